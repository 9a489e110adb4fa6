"""The flags of a plan for Megatron-LM's `pretrain_gpt.py`, group by group, in a fixed order."""

from __future__ import annotations

from planner.emit.megatron_pipeline import Flag, chunks_in_order, pipeline_flags
from planner.emit.states import AWARE, formats_of, offload_fraction, recipe_of
from planner.plan import Layout, Plan
from planner.specs.model import Experts, LatentAttention, ModelSpec, Norm, QkNorm
from planner.specs.stack import stack_named
from planner.specs.workload import Optimizer, Precision, Workload

FSDP_STRATEGY = {2: "optim_grads", 3: "optim_grads_params"}


def flags(plan: Plan) -> list[tuple[str, list[Flag]]]:
    """Return (heading, flags) for every group of `megatron.args`."""
    model, work, lay = plan.request.model, plan.request.workload, plan.best.layout
    groups = [
        ("model", model_flags(model, work)),
        ("attention", attention_flags(model)),
        ("experts", expert_flags(model, work)),
        ("parallelism", parallel_flags(plan)),
        ("data parallelism", data_parallel_flags(lay)),
        ("recomputation", recompute_flags(model, work, lay)),
        ("precision", precision_flags(work)),
        ("batch", batch_flags(work, lay)),
        ("states", state_flags(plan)),
        ("optimizer and logging: a start, tune to your run", optimizer_flags()),
    ]
    return [(heading, rows) for heading, rows in groups if rows]


def _flag(name: str, *values: object) -> Flag:
    return (name, tuple(str(v) for v in values))


def model_flags(model: ModelSpec, work: Workload) -> list[Flag]:
    """Return the shapes outside attention and experts."""
    norm = "RMSNorm" if model.norm is Norm.RMSNORM else "LayerNorm"
    rate = "0.1" if model.dropout else "0.0"
    out = [
        _flag("--num-layers", model.layers),
        _flag("--hidden-size", model.hidden),
        _flag("--ffn-hidden-size", model.ffn),
        _flag("--normalization", norm),
        _flag("--attention-dropout", rate),
        _flag("--hidden-dropout", rate),
    ]
    if model.gated_mlp:
        out.append(_flag("--swiglu"))
    if not model.tied_embeddings:
        out.append(_flag("--untie-embeddings-and-output-weights"))
    out += position_flags(model, work) + bias_flags(model)
    if model.mtp_layers:
        out.append(_flag("--mtp-num-layers", model.mtp_layers))
    return out


def position_flags(model: ModelSpec, work: Workload) -> list[Flag]:
    """Return learned positions where the model has a table of them, rotary ones elsewhere."""
    if model.learned_positions:
        return [
            _flag("--position-embedding-type", "learned_absolute"),
            _flag("--max-position-embeddings", model.learned_positions),
        ]
    return [
        _flag("--position-embedding-type", "rope"),
        _flag("--max-position-embeddings", max(model.max_seq_tokens, work.seq_tokens)),
    ]


def biases(model: ModelSpec) -> set[bool]:
    """Return whether the linear layers other than q, k, v have biases; both values when mixed."""
    held = {model.attention_output_bias}
    if not all(model.moe_layers):
        held.add(model.mlp_bias)
    if model.experts:
        held |= {model.experts.router_bias, model.experts.expert_bias}
    return held


def bias_flags(model: ModelSpec) -> list[Flag]:
    """Return the flags of biases: on all linear layers, on q, k, v only, or on none."""
    if biases(model) == {True}:
        # Transformer Engine's grouped experts refuse the fused bias + dropout
        return [_flag("--no-bias-dropout-fusion")] if model.experts else []
    out = [_flag("--disable-bias-linear")]
    return [*out, _flag("--add-qkv-bias")] if model.qkv_bias else out


def attention_flags(model: ModelSpec) -> list[Flag]:
    """Return heads, their widths, normalisation of q and k, windows and sinks."""
    out = [_flag("--num-attention-heads", model.heads)]
    if model.mla:
        out += latent_flags(model.mla)
    else:
        if model.kv_heads != model.heads:
            out.append(_flag("--group-query-attention"))
            out.append(_flag("--num-query-groups", model.kv_heads))
        out.append(_flag("--kv-channels", model.head_dim))
        if model.qk_norm is QkNorm.HEAD:
            out.append(_flag("--qk-layernorm"))
    if model.sliding_window_tokens:
        # Megatron counts the tokens to the left of a query, the model's window the query too
        out.append(_flag("--window-size", f"{model.sliding_window_tokens - 1},0"))
        if model.full_attention_period:
            out.append(_flag("--window-attn-skip-freq", model.full_attention_period))
    if model.attention_sinks:
        out.append(_flag("--softmax-type", "learnable"))
    return out


def latent_flags(mla: LatentAttention) -> list[Flag]:
    """Return the flags of multi-head latent attention; its low-rank parts are normalised."""
    out = [_flag("--multi-latent-attention")]
    if mla.q_lora_rank:
        out.append(_flag("--q-lora-rank", mla.q_lora_rank))
    return [
        *out,
        _flag("--kv-lora-rank", mla.kv_lora_rank),
        _flag("--qk-head-dim", mla.qk_nope_head_dim),
        _flag("--qk-pos-emb-head-dim", mla.qk_rope_head_dim),
        _flag("--v-head-dim", mla.v_head_dim),
        _flag("--kv-channels", mla.v_head_dim),
        _flag("--qk-layernorm"),
    ]


def expert_flags(model: ModelSpec, work: Workload) -> list[Flag]:
    """Return the flags of the experts; none for a dense model."""
    if (experts := model.experts) is None:
        return []
    out = [
        _flag("--num-experts", experts.count),
        _flag("--moe-router-topk", experts.top_k),
        _flag("--moe-ffn-hidden-size", experts.ffn),
        _flag("--moe-grouped-gemm"),
        _flag("--moe-token-dispatcher-type", "alltoall"),
        _flag("--moe-router-load-balancing-type", "aux_loss"),
        _flag("--moe-aux-loss-coeff", "0.01"),
    ]
    if experts.top_k == 1:  # softmax over one chosen expert is always 1 and has no gradient
        out.append(_flag("--moe-router-pre-softmax"))
    if experts.shared_ffn:
        out.append(_flag("--moe-shared-expert-intermediate-size", experts.shared_ffn))
    if experts.shared_gate:
        out.append(_flag("--moe-shared-expert-gate"))
    if not all(model.moe_layers):
        out.append(_flag("--moe-layer-freq", layer_pattern(experts, model.layers)))
    if work.capacity_factor is not None:
        out.append(_flag("--moe-expert-capacity-factor", work.capacity_factor))
    if work.precision is Precision.FP8:
        # FP8 kernels take token counts in multiples of 16, and routing gives any number
        out.append(_flag("--moe-router-padding-for-quantization"))
    return out


def layer_pattern(experts: Experts, layers: int) -> str:
    """Return Megatron's pattern of dense (0) and expert (1) layers, as a Python list expression."""
    first, period = experts.first_dense_layers, experts.layer_period
    if period == 1:
        return f"([0]*{first}+[1]*{layers - first})"
    if first == 0 and layers % period == 0:
        return f"([0]*{period - 1}+[1]*1)*{layers // period}"
    return f"([{','.join(map(str, layer_kinds(experts, layers)))}])"


def layer_kinds(experts: Experts, layers: int) -> list[int]:
    """Return, layer by layer, 1 where it has experts and 0 where it is dense."""
    first, period = experts.first_dense_layers, experts.layer_period
    return [int(i >= first and (i + 1) % period == 0) for i in range(layers)]


def parallel_flags(plan: Plan) -> list[Flag]:
    """Return tensor, pipeline, context and expert parallelism."""
    model, lay = plan.request.model, plan.best.layout
    out = [_flag("--tensor-model-parallel-size", lay.tp)]
    if lay.sp and lay.tp > 1:
        out.append(_flag("--sequence-parallel"))
    out.append(_flag("--pipeline-model-parallel-size", lay.pp))
    chunks = chunks_in_order(plan.best, model.layers) or []
    out += pipeline_flags(chunks, pp=lay.pp, vpp=lay.vpp, mtp_layers=model.mtp_layers)
    out.append(_flag("--context-parallel-size", lay.cp))
    if model.experts:
        out.append(_flag("--expert-model-parallel-size", lay.ep))
        out.append(_flag("--expert-tensor-parallel-size", lay.etp))
    return out


def data_parallel_flags(lay: Layout) -> list[Flag]:
    """Return how weights, gradients and optimizer state are sharded (the ZeRO stage)."""
    out: list[Flag] = []
    if lay.zero == 1:
        out = [_flag("--use-distributed-optimizer"), *overlap_flags(gather=True)]
    elif lay.zero == 0:
        out = overlap_flags(gather=False)
    else:
        out = [
            _flag("--use-megatron-fsdp"),
            _flag("--data-parallel-sharding-strategy", FSDP_STRATEGY[lay.zero]),
            _flag("--ckpt-format", "fsdp_dtensor"),
            _flag("--use-distributed-optimizer"),
            *overlap_flags(gather=True),
        ]
        if lay.zero == 3:  # no GPU can hold the whole model before it is sharded
            out.append(_flag("--init-model-with-meta-device"))
    if lay.dp_replicate > 1:
        out.append(_flag("--num-distributed-optimizer-instances", lay.dp_replicate))
    return out


def overlap_flags(*, gather: bool) -> list[Flag]:
    """Return the flags that hide gradient reduction, and parameter gathering, behind compute."""
    out = [_flag("--overlap-grad-reduce")]
    return [*out, _flag("--overlap-param-gather")] if gather else out


def recompute_flags(model: ModelSpec, work: Workload, lay: Layout) -> list[Flag]:
    """Return what is recomputed in the backward pass.

    'selective' leaves attention alone where nobody asks for it: fused attention keeps no score
    matrix to save.
    """
    if lay.recompute == "full":
        return [
            _flag("--recompute-granularity", "full"),
            _flag("--recompute-method", work.recompute_method),
            _flag("--recompute-num-layers", work.recompute_layers),
        ]
    if lay.recompute == "none":
        return []
    modules = ["layernorm"]
    modules += ["moe_act"] if model.experts else []
    modules += ["mla_up_proj"] if model.mla else []
    return [
        _flag("--recompute-granularity", "selective"),
        _flag("--recompute-modules", *(work.recompute_modules or modules)),
    ]


def precision_flags(work: Workload) -> list[Flag]:
    """Return the number format, and in FP8 how it scales."""
    if work.precision is Precision.FP16:
        return [_flag("--fp16")]
    out = [_flag("--bf16")]
    if stack_named(work.stack).gradient_bytes == 2:
        out.append(_flag("--grad-reduce-in-bf16"))
    if work.precision is Precision.FP8:
        recipe = recipe_of(work)
        form = "hybrid" if recipe == "tensorwise" else "e4m3"
        out += [_flag("--fp8-format", form), _flag("--fp8-recipe", recipe)]
        if stack_named(work.stack).fp8_params:
            out.append(_flag("--fp8-param-gather"))
            if recipe == "mxfp8":  # weights are gathered in bf16, in the gradients' buffer
                out.append(_flag("--reuse-grad-buf-for-mxfp8-param-ag"))
    return out


def state_flags(plan: Plan) -> list[Flag]:
    """Return the optimizer where it is not Adam, the formats of its states, and offload."""
    work, away = plan.request.workload, plan.best.layout.offload == "optimizer"
    formats = formats_of(work, offload=away)
    out = []
    if work.optimizer is not Optimizer.ADAMW:
        out.append(_flag("--optimizer", work.optimizer.value))
    aware = formats.intersection(AWARE)
    if aware or away:
        out.append(_flag("--use-precision-aware-optimizer"))
    for name, dtype in (("bf16-moments", "bf16"), ("fp8-moments", "fp8")):
        if name in formats:
            out += [_flag("--exp-avg-dtype", dtype), _flag("--exp-avg-sq-dtype", dtype)]
    if aware and stack_named(work.stack).gradient_bytes == 2:
        out.append(_flag("--main-grads-dtype", "bf16"))
    if away:
        out += [
            _flag("--optimizer-cpu-offload"),
            _flag("--optimizer-offload-fraction", offload_fraction(plan)),
            _flag("--overlap-cpu-optimizer-d2h-h2d"),
        ]
    if layers := stack_named(work.stack).offload_layers:
        out.append(_flag("--cpu-offloading-num-layers", layers))
    return out


def batch_flags(work: Workload, lay: Layout) -> list[Flag]:
    """Return sequence length and batch sizes."""
    return [
        _flag("--seq-length", work.seq_tokens),
        _flag("--micro-batch-size", lay.micro_batch),
        _flag("--global-batch-size", work.global_batch),
    ]


def optimizer_flags() -> list[Flag]:
    """Return a start for what a plan says nothing about."""
    return [
        _flag("--lr", "1.0e-4"),
        _flag("--min-lr", "1.0e-5"),
        _flag("--clip-grad", "1.0"),
        _flag("--train-iters", 100),
        _flag("--eval-iters", 0),
        _flag("--log-interval", 1),
        _flag("--log-throughput"),
    ]

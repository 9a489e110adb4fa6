"""The plan as Hydra overrides of a Megatron-Bridge recipe: Megatron-LM's flags in other words.

Bridge fills the same configuration classes of Megatron-Core that the flags fill, so what a plan
means to Megatron is said once, in `megatron_flags`, and renamed here. A flag that is not in the
table is an error, not a silent loss. Values with commas, bars or brackets stand in quotes: Hydra
gives them a meaning of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.emit.megatron_flags import flags, layer_kinds
from planner.emit.megatron_pipeline import Flag
from planner.emit.states import recipe_of
from planner.plan import Plan
from planner.specs.stack import stack_named
from planner.specs.workload import Precision

Override = tuple[str, str]
Values = tuple[str, ...]
Rule = Callable[[Values], list[Override]]

DTYPES = {"bf16": "torch.bfloat16", "fp8": "torch.uint8"}
PRECISION = {
    Precision.BF16: "bf16_mixed",
    Precision.FP16: "fp16_mixed",
}
EIGHT_BIT = {
    "tensorwise": "bf16_with_fp8_current_scaling_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed",
    "blockwise": "bf16_with_fp8_subchannel_scaling_mixed",
}
"""Recipe of FP8 -> Bridge's, whose format and parameters the overrides below set."""


def _one(*keys: str) -> Rule:
    """Return the rule for a flag with one value, which goes into each of the keys."""
    return lambda values: [(key, values[0]) for key in keys]


def _set(*pairs: Override) -> Rule:
    """Return the rule for a flag without a value."""
    return lambda _: list(pairs)


def _on(*keys: str) -> Rule:
    return _set(*((key, "true") for key in keys))


def _quoted(key: str) -> Rule:
    return lambda values: [(key, f"'{values[0]}'")]


def _listed(key: str) -> Rule:
    return lambda values: [(key, f"[{','.join(values)}]")]


def _dtype(key: str) -> Rule:
    return lambda values: [(key, DTYPES[values[0]])]


MODEL: dict[str, Rule] = {
    "--num-layers": _one("model.num_layers"),
    "--hidden-size": _one("model.hidden_size"),
    "--ffn-hidden-size": _one("model.ffn_hidden_size"),
    "--normalization": _one("model.normalization"),
    "--attention-dropout": _one("model.attention_dropout"),
    "--hidden-dropout": _one("model.hidden_dropout"),
    "--swiglu": _set(("model.gated_linear_unit", "true"), ("model.activation_func", "silu")),
    "--untie-embeddings-and-output-weights": _set(
        ("model.share_embeddings_and_output_weights", "false")
    ),
    "--position-embedding-type": _one("model.position_embedding_type"),
    "--max-position-embeddings": _set(),  # positions are as many as tokens in a sequence
    "--mtp-num-layers": _one("model.mtp_num_layers"),
    "--no-bias-dropout-fusion": _set(("model.bias_dropout_fusion", "false")),
    "--disable-bias-linear": _set(("model.add_bias_linear", "false")),
    "--add-qkv-bias": _on("model.add_qkv_bias"),
    "--num-attention-heads": _one("model.num_attention_heads"),
    "--group-query-attention": _set(),
    "--num-query-groups": _one("model.num_query_groups"),
    "--kv-channels": _one("model.kv_channels"),
    "--qk-layernorm": _on("model.qk_layernorm"),
    "--window-size": _listed("model.window_size"),
    "--window-attn-skip-freq": _one("model.window_attn_skip_freq"),
    "--softmax-type": _one("model.softmax_type"),
    "--multi-latent-attention": _on("model.multi_latent_attention"),
    "--q-lora-rank": _one("model.q_lora_rank"),
    "--kv-lora-rank": _one("model.kv_lora_rank"),
    "--qk-head-dim": _one("model.qk_head_dim"),
    "--qk-pos-emb-head-dim": _one("model.qk_pos_emb_head_dim"),
    "--v-head-dim": _one("model.v_head_dim"),
    "--num-experts": _one("model.num_moe_experts"),
    "--moe-router-topk": _one("model.moe_router_topk"),
    "--moe-ffn-hidden-size": _one("model.moe_ffn_hidden_size"),
    "--moe-router-load-balancing-type": _one("model.moe_router_load_balancing_type"),
    "--moe-aux-loss-coeff": _one("model.moe_aux_loss_coeff"),
    "--moe-router-pre-softmax": _on("model.moe_router_pre_softmax"),
    "--moe-shared-expert-intermediate-size": _one("model.moe_shared_expert_intermediate_size"),
    "--moe-shared-expert-gate": _on("model.moe_shared_expert_gate"),
    "--moe-layer-freq": _set(),  # spelt out below: a list, where the flag takes an expression
}
"""What a recipe of the model's own says already."""

PLAN: dict[str, Rule] = {
    "--moe-grouped-gemm": _on("model.moe_grouped_gemm"),
    "--moe-token-dispatcher-type": _one("model.moe_token_dispatcher_type"),
    "--moe-expert-capacity-factor": _one("model.moe_expert_capacity_factor"),
    "--moe-router-padding-for-quantization": _on("model.moe_router_padding_for_quantization"),
    "--tensor-model-parallel-size": _one("model.tensor_model_parallel_size"),
    "--sequence-parallel": _on("model.sequence_parallel"),
    "--pipeline-model-parallel-size": _one("model.pipeline_model_parallel_size"),
    "--num-virtual-stages-per-pipeline-rank": _one("model.virtual_pipeline_model_parallel_size"),
    "--account-for-embedding-in-pipeline-split": _on(
        "model.account_for_embedding_in_pipeline_split"
    ),
    "--account-for-loss-in-pipeline-split": _on("model.account_for_loss_in_pipeline_split"),
    "--pipeline-model-parallel-layout": _quoted("model.pipeline_model_parallel_layout"),
    "--context-parallel-size": _one("model.context_parallel_size"),
    "--expert-model-parallel-size": _one("model.expert_model_parallel_size"),
    "--expert-tensor-parallel-size": _one("model.expert_tensor_parallel_size"),
    "--use-distributed-optimizer": _on(
        "ddp.use_distributed_optimizer", "optimizer.use_distributed_optimizer"
    ),
    "--overlap-grad-reduce": _on("ddp.overlap_grad_reduce"),
    "--overlap-param-gather": _on("ddp.overlap_param_gather", "optimizer.overlap_param_gather"),
    "--use-megatron-fsdp": _on("ddp.use_megatron_fsdp", "dist.use_megatron_fsdp"),
    "--data-parallel-sharding-strategy": _one("ddp.data_parallel_sharding_strategy"),
    "--ckpt-format": _one("checkpoint.ckpt_format"),
    "--init-model-with-meta-device": _on("model.init_model_with_meta_device"),
    "--num-distributed-optimizer-instances": _one("ddp.num_distributed_optimizer_instances"),
    "--recompute-granularity": _one("model.recompute_granularity"),
    "--recompute-method": _one("model.recompute_method"),
    "--recompute-num-layers": _one("model.recompute_num_layers"),
    "--recompute-modules": _listed("model.recompute_modules"),
    "--bf16": _set(),  # mixed_precision, below
    "--fp16": _set(),
    "--fp8-format": _one("mixed_precision.fp8"),
    "--fp8-recipe": _one("mixed_precision.fp8_recipe"),
    "--fp8-param-gather": _set(),  # with the precision, below
    "--reuse-grad-buf-for-mxfp8-param-ag": _set(),
    "--grad-reduce-in-bf16": _set(("mixed_precision.grad_reduce_in_fp32", "false")),
    "--seq-length": _one("model.seq_length", "dataset.seq_length"),
    "--micro-batch-size": _one("train.micro_batch_size"),
    "--global-batch-size": _one("train.global_batch_size"),
    "--optimizer": _one("optimizer.optimizer"),
    "--use-precision-aware-optimizer": _on("optimizer.use_precision_aware_optimizer"),
    "--exp-avg-dtype": _dtype("optimizer.exp_avg_dtype"),
    "--exp-avg-sq-dtype": _dtype("optimizer.exp_avg_sq_dtype"),
    "--main-grads-dtype": _dtype("optimizer.main_grads_dtype"),
    "--optimizer-cpu-offload": _on("optimizer.optimizer_cpu_offload"),
    "--optimizer-offload-fraction": _one("optimizer.optimizer_offload_fraction"),
    "--overlap-cpu-optimizer-d2h-h2d": _on("optimizer.overlap_cpu_optimizer_d2h_h2d"),
    "--cpu-offloading-num-layers": lambda words: [
        ("model.cpu_offloading", "true"),
        ("model.cpu_offloading_weights", "false"),
        ("model.cpu_offloading_num_layers", words[0]),
    ],
    "--lr": _one("optimizer.lr"),
    "--min-lr": _one("optimizer.min_lr"),
    "--clip-grad": _one("optimizer.clip_grad"),
    "--train-iters": _one("train.train_iters"),
    "--eval-iters": _one("validation.eval_iters"),
    "--log-interval": _one("logger.log_interval"),
    "--log-throughput": _on("logger.log_throughput"),
}
"""What belongs to the plan, whatever recipe it is put on."""


def model_overrides(plan: Plan) -> list[Override]:
    """Return the shapes of the model, on top of Bridge's recipe for any GPT."""
    model = plan.request.model
    out = _renamed(_flat(plan, MODEL), MODEL)
    out += [("model.vocab_size", str(model.vocab)), ("tokenizer.vocab_size", str(model.vocab))]
    if model.experts and not all(model.moe_layers):
        kinds = ",".join(map(str, layer_kinds(model.experts, model.layers)))
        out.append(("model.moe_layer_freq", f"[{kinds}]"))
    return out


def plan_overrides(plan: Plan) -> list[tuple[str, list[Override]]]:
    """Return (heading, overrides) for everything that is the plan's."""
    out = []
    for heading, rows in flags(plan):
        mine = _renamed([row for row in rows if row[0] not in MODEL], PLAN)
        if heading == "precision":
            mine = precision_overrides(plan) + mine
        if heading == "data parallelism" and plan.best.layout.zero == 0:
            mine += [
                (f"{part}.use_distributed_optimizer", "false") for part in ("ddp", "optimizer")
            ]
        if mine:
            out.append((heading, mine))
    return out


def precision_overrides(plan: Plan) -> list[Override]:
    """Return the precision recipe; with FP8 as planned: no layer left in bf16, gathers in bf16."""
    kind = plan.request.workload.precision
    work = plan.request.workload
    recipe, in_fp8 = recipe_of(work), stack_named(work.stack).fp8_params
    named = EIGHT_BIT.get(recipe, "") if kind is Precision.FP8 else PRECISION[kind]
    out = [("mixed_precision", named)]
    if kind is Precision.FP8:
        out += [
            ("mixed_precision.first_last_layers_bf16", "false"),
            ("mixed_precision.num_layers_at_start_in_bf16", "0"),
            ("mixed_precision.num_layers_at_end_in_bf16", "0"),
            ("mixed_precision.fp8_param_gather", str(in_fp8).lower()),
        ]
        if recipe == "mxfp8":
            reused = str(in_fp8).lower()
            out.append(("mixed_precision.reuse_grad_buf_for_mxfp8_param_ag", reused))
    return out


def _flat(plan: Plan, table: dict[str, Rule]) -> list[Flag]:
    return [row for _, rows in flags(plan) for row in rows if row[0] in table]


def _renamed(rows: Sequence[Flag], table: dict[str, Rule]) -> list[Override]:
    return [pair for name, values in rows for pair in table[name](values)]

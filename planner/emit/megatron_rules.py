"""What Megatron-LM cannot run, in sentences, its parser's blind spots included.

Its parser accepts layouts that fail later, when groups are made, the model is built or the first
batch runs; each such rule says where it was read (megatron-core 0.19.2).
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.emit.capabilities import ALL, Capabilities, job_refusals, only, refusals, usual
from planner.emit.megatron_flags import biases
from planner.emit.megatron_pipeline import chunks_in_order
from planner.emit.states import AWARE, formats_of, recipe_of
from planner.plan import Layout, Plan
from planner.specs.model import ModelSpec, QkNorm
from planner.specs.workload import Optimizer, Precision, Workload

CAN = usual(
    "Megatron-LM",
    schedule=only(
        *("none", "1f1b", "interleaved"),
        why="Megatron has no GPipe schedule, only 1F1B and its interleaved form",
    ),
    precision=ALL,
    optimizer=only(
        *(Optimizer.ADAMW, Optimizer.SGD, Optimizer.MUON), why="Megatron-LM has adamw, sgd, muon"
    ),
    offload=only("none", "optimizer", why="Megatron-LM keeps weights on the GPUs"),
    formats=only(
        *(*AWARE, "offload-fraction", "offload-layers", "fp8-params"),
        why="Megatron-LM keeps master weights in fp32",
    ),
    recompute_list=ALL,
    capacity_factor=ALL,
)


def never(model: ModelSpec, work: Workload, can: Capabilities = CAN) -> list[str]:
    """Return one sentence for each thing of the model or the job that no layout mends."""
    return [*architecture(model, work), *job_refusals(work, can)]


def problems(plan: Plan, can: Capabilities = CAN) -> list[str]:
    """Return one sentence for each reason why Megatron-LM, or a target built on it, cannot run."""
    model, work, lay = plan.request.model, plan.request.workload, plan.best.layout
    return [
        *architecture(model, work),
        *tensor(model, lay),
        *sequence(model, work, lay),
        *experts(model, lay),
        *pipeline(plan),
        *sharding(lay),
        *eight_bit(model, work, lay),
        *kept(plan),
        *refusals(plan, can),
    ]


def architecture(model: ModelSpec, work: Workload) -> Iterator[str]:
    """Yield what no flag of GPTModel says."""
    if model.norms_per_layer != 2:
        yield f"Megatron's layers have 2 norms, this model has {model.norms_per_layer}."
    if model.qk_norm is QkNorm.FULL:
        yield "Megatron normalises queries and keys head by head, not over all channels."
    if model.embedding_norm:
        yield "Megatron has no norm after the embedding."
    if not model.final_norm:
        yield "Megatron always ends with a norm, this model does not."
    mixed = len(biases(model)) > 1
    if mixed or (biases(model) == {True} and not model.qkv_bias):
        yield "Megatron puts biases on all linear layers, on q, k, v only, or on none."
    if model.learned_positions and work.seq_tokens > model.learned_positions:
        yield (
            f"{work.seq_tokens} tokens a sequence are more than the "
            f"{model.learned_positions} learned positions."
        )
    if model.learned_positions and model.mtp_layers:
        yield "Megatron's multi-token prediction needs rotary positions."


def tensor(model: ModelSpec, lay: Layout) -> Iterator[str]:
    """Yield what tensor parallelism cannot divide (transformer_config.py, layers.py)."""
    if model.heads % lay.tp:
        yield f"{model.heads} heads are not divisible by tp={lay.tp}."
    if not model.mla and model.kv_heads % lay.tp and lay.tp % model.kv_heads:
        yield f"{model.kv_heads} kv heads are neither a multiple nor a divisor of tp={lay.tp}."
    if not all(model.moe_layers) and model.ffn % lay.tp:
        yield f"ffn={model.ffn} is not divisible by tp={lay.tp}."
    if model.experts and model.experts.shared_ffn % lay.tp:
        yield f"experts.shared_ffn={model.experts.shared_ffn} is not divisible by tp={lay.tp}."


def sequence(model: ModelSpec, work: Workload, lay: Layout) -> Iterator[str]:
    """Yield what the sequence cannot be cut into (arguments.py, tensor_parallel/mappings.py)."""
    if lay.cp > 1 and work.seq_tokens % (2 * lay.cp):
        yield f"{work.seq_tokens} tokens are not divisible by 2*cp={2 * lay.cp}."
    elif lay.sp and (work.seq_tokens // lay.cp) % lay.tp:
        yield (
            f"{work.seq_tokens // lay.cp} tokens a rank are not divisible by tp={lay.tp}, "
            "which sequence parallelism needs."
        )
    if lay.cp > 1 and model.sliding_window_tokens:
        yield "Megatron's ring exchange (cp > 1) does not run sliding-window attention."


def experts(model: ModelSpec, lay: Layout) -> Iterator[str]:
    """Yield what expert parallelism cannot divide (parallel_state.py, moe_layer.py)."""
    if model.experts is None:
        if lay.ep > 1:
            yield f"ep={lay.ep} needs a model with experts."
        return
    if model.experts.count % lay.ep:
        yield f"{model.experts.count} experts are not divisible by ep={lay.ep}."
    if model.experts.ffn % lay.etp:
        yield f"experts.ffn={model.experts.ffn} is not divisible by etp={lay.etp}."
    if (lay.tp * lay.cp * lay.dp) % (lay.ep * lay.etp):
        yield (
            f"the {lay.tp * lay.cp * lay.dp} ranks of a stage are not divisible by "
            f"ep*etp={lay.ep * lay.etp}."
        )
    if lay.etp > 1 and biases(model) == {True}:
        yield f"Megatron's experts have biases only with etp=1, not etp={lay.etp}."
    if lay.tp > 1 and not lay.sp:
        yield "Megatron trains experts under tp > 1 only with sequence parallelism (sp=true)."


def pipeline(plan: Plan) -> Iterator[str]:
    """Yield what the pipeline schedules cannot run (pipeline_parallel/schedules.py)."""
    lay, layers = plan.best.layout, plan.request.model.layers
    if lay.vpp > 1 and lay.pp == 1:
        yield f"vpp={lay.vpp} needs pp > 1."
    if lay.vpp > 1 and lay.num_microbatches % lay.pp:
        yield (
            f"{lay.num_microbatches} micro-batches are not a multiple of pp={lay.pp}, "
            "which the interleaved schedule needs."
        )
    if (chunks := chunks_in_order(plan.best, layers)) is None:
        yield f"stage_layers does not split {layers} layers over pp={lay.pp}, vpp={lay.vpp}."
    elif 0 in chunks[1:-1]:
        yield "Only the first and the last pipeline chunk may hold no layer."


def sharding(lay: Layout) -> Iterator[str]:
    """Yield what data parallelism cannot do (Megatron-FSDP's guide, parallel_state.py)."""
    if lay.zero >= 2 and lay.pp > 1:
        yield f"Megatron-FSDP (zero={lay.zero}) runs with tp, cp and ep, not with pp > 1."
    if lay.dp_replicate > 1 and lay.zero == 0:
        yield f"dp_replicate={lay.dp_replicate} needs something sharded: zero >= 1."
    elif (lay.dp * lay.cp) % lay.dp_replicate or lay.edp % lay.dp_replicate:
        yield (
            f"dp_replicate={lay.dp_replicate} does not divide dp*cp={lay.dp * lay.cp} and "
            f"the experts' data parallelism {lay.edp}."
        )


def kept(plan: Plan) -> Iterator[str]:
    """Yield optimizers, formats and offload that do not go together (optimizer_config.py)."""
    work, lay = plan.request.workload, plan.best.layout
    if work.optimizer is Optimizer.MUON and lay.zero >= 2:
        yield f"Megatron-FSDP (zero={lay.zero}) does not run Muon."
    offload = lay.offload != "none"
    formats = formats_of(work, offload=offload)
    aware = bool(formats.intersection(AWARE))
    whole = work.precision is Precision.FP8 and lay.zero > 0 and not (offload or aware)
    if "fp8-params" in formats and not whole:
        yield (
            "Parameters in FP8 (fp8-params) need precision fp8, zero >= 1, states on the GPUs "
            "and no precision-aware optimizer."
        )
    if not aware and not offload:
        return
    if work.optimizer is not Optimizer.ADAMW or lay.zero == 0:
        yield "Megatron's precision-aware optimizer, which offload uses, needs adamw and zero >= 1."
    if lay.offload != "none" and lay.zero != 1:
        yield f"Megatron offloads the distributed optimizer (zero=1), not zero={lay.zero}."


def eight_bit(model: ModelSpec, work: Workload, lay: Layout) -> Iterator[str]:
    """Yield the widths that Transformer Engine's FP8 kernels cannot take.

    They are multiples of 16, in MXFP8 of a scale's 32 values (pytorch/tensor/mxfp8_tensor.py).
    """
    if work.precision is not Precision.FP8:
        return
    if recipe_of(work) == "nvfp4":
        yield "This bundle has FP8, not NVFP4 (stack flag nvfp4)."
    each = 32 if recipe_of(work) == "mxfp8" else 16
    widths = {"hidden": model.hidden}
    if not all(model.moe_layers):
        widths["ffn/tp"] = model.ffn // lay.tp
    if model.experts:
        widths["experts.ffn/etp"] = model.experts.ffn // lay.etp
    for name, width in widths.items():
        if width % each:
            yield f"FP8 needs widths in multiples of {each}, but {name} is {width}."


def queue_text(lay: Layout) -> str:
    """Return the shell lines for the hardware queues, which belong to the layout."""
    if lay.zero >= 2:
        return """\
# Megatron-FSDP gathers weights while it computes, which one hardware queue would forbid.
unset CUDA_DEVICE_MAX_CONNECTIONS"""
    if lay.tp > 1 or lay.cp > 1:
        return """\
# One hardware queue: communication of tp and cp starts in the order in which it was asked for.
# Megatron-LM requires it before Blackwell, where it does no harm.
export CUDA_DEVICE_MAX_CONNECTIONS=1"""
    return """\
# No tp, no cp: several hardware queues let gradients travel while the backward pass computes.
export CUDA_DEVICE_MAX_CONNECTIONS=8"""

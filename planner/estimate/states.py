"""Bytes of the model's states on one GPU: weights, gradients and what the optimizer keeps."""

from __future__ import annotations

import numpy as np

from planner.estimate.communication import expert_shard_ways, shard_ways
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.params import stage_dense_parameters, stage_expert_parameters
from planner.sources import ZERO_2020
from planner.specs.workload import Precision

STATE_BYTES = {
    # (parameters, gradients, optimizer) per parameter before sharding
    "megatron": (2.0, 4.0, 12.0),
    "deepspeed": (2.0, 2.0, 16.0),
    "fsdp2": (4.0, 4.0, 8.0),
}
"""Mixed precision with Adam. Megatron: bf16 weights, fp32 main gradients, fp32 master, m and v.
DeepSpeed: 16-bit weights and gradients, fp32 master, m, v and the gradients it upcasts at the step.
FSDP2: fp32 weights and gradients, m and v; 16-bit copies are gathered (Megatron-LM
docs/dist_optimizer, deepspeed/runtime/zero, torch FSDP2 memory tracker)."""

UPCAST_BYTES = 4.0
"""fp32 gradients of a rank's own shard, made at the step where gradients are kept in 16 bit."""

STATES = ("tp", "cp", "pp", "vpp", "dp", "dp_replicate", "ep", "etp", "zero")


def state_bytes(x: Inputs) -> tuple[float, float, float]:
    """Return bytes of weights, gradients and optimizer state per parameter, before sharding."""
    weight, gradient, optimizer = STATE_BYTES[x.stack.states]
    if x.stack.gradient_bytes is not None and x.stack.states == "megatron":
        kept = min(x.stack.gradient_bytes, _widest_gradient(x))
        return weight, kept, optimizer + (UPCAST_BYTES if kept < UPCAST_BYTES else 0.0)
    return weight, gradient, optimizer


def _widest_gradient(x: Inputs) -> float:
    """Return the most that a gradient takes: fp16 with loss scaling adds up in fp16 only."""
    return 2.0 if x.workload.precision == Precision.FP16 else np.inf


def held(x: Inputs, per_parameter: float, *, sharded_from: int) -> FloatArray:
    """Return per-stage bytes of one state, sharded over data parallelism from a ZeRO stage on."""
    sharded = x.layouts.zero >= sharded_from
    ways = np.where(sharded, shard_ways(x), 1)[:, None]
    expert_ways = np.where(sharded, expert_shard_ways(x), 1)[:, None]
    each = stage_dense_parameters(x) / ways + stage_expert_parameters(x) / expert_ways
    return per_parameter * each


@term(
    unit="bytes",
    formula="2 P (FSDP2: 4 P), / shards in zero 3; FSDP2 without reshard adds 2 P gathered",
    source=ZERO_2020,
    on=STATES,
)
def weights_bytes(x: Inputs) -> FloatArray:
    """Parameters resident on a GPU; P is what its stage, tp and ep ranks hold."""
    weight, _, _ = state_bytes(x)
    if x.stack.states != "fsdp2":
        return held(x, weight, sharded_from=3)
    resident = np.where(x.layouts.zero == 2, 2.0, 0.0)[:, None]
    whole = stage_dense_parameters(x) + stage_expert_parameters(x)
    return held(x, weight, sharded_from=2) + resident * whole


@term(
    unit="bytes",
    formula="4 P (DeepSpeed 2 P, + 4 P of fp32 sums in zero 1), / shards from zero 2 on",
    source=ZERO_2020,
    on=STATES,
)
def gradients_bytes(x: Inputs) -> FloatArray:
    """Gradients kept over the micro-batches.

    DeepSpeed's fp32 sums (grad_accum_dtype, as our configuration asks for) are whole under ZeRO-1;
    from ZeRO-2 on they are shards, counted with the optimizer.
    """
    kept = held(x, state_bytes(x)[1], sharded_from=2)
    if x.stack.states != "deepspeed":
        return kept
    sums = np.where(x.layouts.zero == 1, 4.0, 0.0)[:, None]
    return kept + sums * (stage_dense_parameters(x) + stage_expert_parameters(x))


@term(
    unit="bytes",
    formula="12 P (DeepSpeed, 16-bit gradients: 16 P, FSDP2: 8 P), / shards from zero 1 on",
    source=ZERO_2020,
    on=STATES,
)
def optimizer_bytes(x: Inputs) -> FloatArray:
    """Adam's moments and the fp32 master weights."""
    return held(x, state_bytes(x)[2], sharded_from=1)

"""Bytes of the model's states on one GPU: weights, gradients and what the optimizer keeps.

With offload they are on the host instead, which is told what it needs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.estimate.communication import expert_shard_ways, shard_ways
from planner.estimate.fp8_weights import fp8_copies_bytes
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.params import (
    stage_dense_parameters,
    stage_dense_vectors,
    stage_expert_parameters,
    stage_expert_vectors,
    stage_tables,
)
from planner.estimate.schemes import FP32, Kinds, scheme, weight_kinds
from planner.sources import DEEPSPEED_OFFLOAD, MEGATRON_CORE, ZERO_2020

STATES = ("tp", "cp", "pp", "vpp", "dp", "dp_replicate", "ep", "etp", "zero", "offload")
NVME = 3
"""Code of `offload` from which on states lie on NVMe drives: the optimizer's (3), weights too."""
SWAPPED_AT_ONCE = 1e9
"""Parameters of a rank that DeepSpeed steps at once (sub_group_size, runtime/zero/config.py)."""
SWAP_BUFFERS = 4
"""fp32 buffers of so many in pinned memory: weight, gradient, two moments (offload_config.py)."""
FETCHED_BYTES = 1e9
"""Of weights fetched from drives: five buffers of 1e8 16-bit values (offload_config.py)."""


def optimizer_away(x: Inputs) -> NDArray[np.bool_]:
    """Return where the optimizer's state is off the GPU."""
    away: NDArray[np.bool_] = x.layouts.offload > 0
    return away


def weights_away(x: Inputs) -> NDArray[np.bool_]:
    """Return where the weights are off the GPU too."""
    away: NDArray[np.bool_] = (x.layouts.offload > 0) & (x.layouts.offload % 2 == 0)
    return away


def on_drives(x: Inputs) -> NDArray[np.bool_]:
    """Return where what is off the GPU lies on NVMe drives, not in the host's memory."""
    there: NDArray[np.bool_] = x.layouts.offload >= NVME
    return there


def held(x: Inputs, per_parameter: float, *, sharded_from: int) -> FloatArray:
    """Return per-stage bytes of one state, sharded over data parallelism from a ZeRO stage on."""
    return held_by_kind(x, Kinds(*(per_parameter,) * 3), sharded_from=sharded_from)


def held_by_kind(x: Inputs, each: Kinds, *, sharded_from: int) -> FloatArray:
    """Return the same of a state whose bytes differ between matrices, tables and vectors."""
    sharded = x.layouts.zero >= sharded_from
    ways = np.where(sharded, shard_ways(x), 1)[:, None]
    expert_ways = np.where(sharded, expert_shard_ways(x), 1)[:, None]
    dense, experts = stage_dense_parameters(x), stage_expert_parameters(x)
    if each.uniform:
        return each.matrix * (dense / ways + experts / expert_ways)
    tables, vectors = stage_tables(x), stage_dense_vectors(x)
    biases = stage_expert_vectors(x)
    outside = each.matrix * (dense - tables - vectors)
    outside = outside + each.table * tables + each.vector * vectors
    inside = each.matrix * (experts - biases) + each.vector * biases
    total: FloatArray = outside / ways + inside / expert_ways
    return total


def on_gpu(away: NDArray[np.bool_]) -> FloatArray:
    """Return 1 for layouts that keep on the GPU what others move, shape (layouts, 1)."""
    return (~away).astype(np.float64)[:, None]


def optimizer_here(x: Inputs) -> FloatArray:
    """Return the share of the optimizer's state that stays on the GPU, shape (layouts, 1).

    Megatron moves whole tensors until the fraction is reached, and DeepSpeed all but the first
    groups of parameters, of which none may be cut (megatron/core/optimizer/cpu_offloading/
    hybrid_optimizer.py; deepspeed/runtime/zero/stage3.py, subgroup_to_device): never less.
    """
    here: FloatArray = 1.0 - x.stack.offload_fraction * optimizer_away(x).astype(np.float64)
    return here[:, None]


@term(
    unit="bytes",
    formula="2 P (FSDP2: 4 P; matrices kept in FP8: 1 or 2), / shards in zero 3, + FP8 copies; "
    "FSDP2 without reshard adds 2 P gathered",
    source=ZERO_2020,
    on=STATES,
)
def weights_bytes(x: Inputs) -> FloatArray:
    """Parameters resident on a GPU; P is what its stage, tp and ep ranks hold."""
    here = on_gpu(weights_away(x))
    if x.stack.states != "fsdp2":
        kept = held_by_kind(x, weight_kinds(x), sharded_from=3) * here
        return kept + fp8_copies_bytes(x)
    resident = np.where(x.layouts.zero == 2, 2.0, 0.0)[:, None]
    whole = stage_dense_parameters(x) + stage_expert_parameters(x)
    return held(x, scheme(x).weight, sharded_from=2) * here + resident * whole


@term(
    unit="bytes",
    formula="4 P (DeepSpeed 2 P, + 4 P of fp32 sums in zero 1), / shards from zero 2 on; "
    "none where they go to the host: DeepSpeed's shards, FSDP2's with its parameters",
    source=ZERO_2020,
    on=STATES,
)
def gradients_bytes(x: Inputs) -> FloatArray:
    """Gradients kept over the micro-batches.

    DeepSpeed's fp32 sums (grad_accum_dtype, as our configuration asks for) are whole under ZeRO-1;
    from ZeRO-2 on they are shards, counted with the optimizer.
    """
    kept = held(x, scheme(x).gradient, sharded_from=2)
    if x.stack.states != "deepspeed":
        return kept * on_gpu(weights_away(x))
    here = on_gpu(optimizer_away(x))
    each = FP32 if x.stack.gradient_bytes is None else 0.0  # summed in 16 bit, where asked for
    sums = np.where(x.layouts.zero == 1, each, 0.0)[:, None] * here
    shards = x.layouts.zero[:, None] >= 2
    kept = np.where(shards, kept * here, kept)
    return kept + sums * (stage_dense_parameters(x) + stage_expert_parameters(x))


@term(
    unit="bytes",
    formula="(master + moments) P: Adam 12 (DeepSpeed + 4 of gradients, FSDP2 - 4), SGD 8, "
    "8-bit Adam 6, Muon 8 of matrices; / shards from zero 1 on; * (1 - share offloaded)",
    source=ZERO_2020,
    on=STATES,
)
def optimizer_bytes(x: Inputs) -> FloatArray:
    """The optimizer's moments and the fp32 master weights; with offload the share that stays."""
    return held_by_kind(x, scheme(x).optimizer, sharded_from=1) * optimizer_here(x)


@term(
    unit="bytes",
    formula="4 P / shards from zero 1 on where gradients are kept in 16 bit (Megatron), else 0",
    source=MEGATRON_CORE,
    on=STATES,
)
def step_gradients_bytes(x: Inputs) -> FloatArray:
    """The fp32 copy of a rank's own gradients that Megatron makes at the step, and drops there."""
    return held(x, scheme(x).passing, sharded_from=1) * optimizer_here(x)


@term(
    unit="bytes",
    formula="offload: share * (master + moments + 4 of gradients + 2 of weights) P / shards; NVMe: "
    "4 P / shards + 16 min(P / shards, 1e9) + 1 GB with weights",
    source=DEEPSPEED_OFFLOAD,
    on=STATES,
)
def host_rank_bytes(x: Inputs) -> FloatArray:
    """What one rank keeps in the memory of its node.

    Gradients arrive in fp32. DeepSpeed stages the new 16-bit weights there; FSDP2's are in fp32.
    With NVMe the gradients stay, and what passes between drives and GPU has pinned buffers.
    """
    kept = scheme(x)
    per = kept.moments.plus(kept.master + (FP32 if kept.master else kept.gradient))
    away = held_by_kind(x, per, sharded_from=1)
    staged = weights_away(x)
    if x.stack.states == "deepspeed":
        staged = staged | (x.layouts.zero < 3)
    away = away + np.where(staged[:, None], held(x, kept.weight, sharded_from=1), 0.0)
    away = np.where(on_drives(x)[:, None], _passing_bytes(x), away)
    return away * (1.0 - optimizer_here(x))


def _passing_bytes(x: Inputs) -> FloatArray:
    """Return what a rank keeps in its node's memory of states that lie on NVMe drives."""
    shard = held(x, 1.0, sharded_from=1)
    swapped = SWAP_BUFFERS * FP32 * np.minimum(shard, SWAPPED_AT_ONCE)
    total: FloatArray = FP32 * shard + swapped + FETCHED_BYTES * weights_away(x)[:, None]
    return total

"""Time of the optimizer step: on the GPU, or over the host's link and memory with offload."""

from __future__ import annotations

import numpy as np

from planner.estimate.communication import EXPERT_DATA
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import hbm_s
from planner.estimate.muon import orthogonalising_s
from planner.estimate.offloading import LINK_SUSTAINED
from planner.estimate.schemes import FP32, scheme, stepped
from planner.estimate.states import (
    held,
    held_by_kind,
    on_drives,
    optimizer_away,
    optimizer_here,
    weights_away,
)
from planner.sources import (
    CALIBRATION,
    DEEPSPEED_OFFLOAD,
    ZERO_INFINITY_2021,
    ZERO_OFFLOAD_2021,
)

STATE = (*EXPERT_DATA, "vpp", "zero")
HOST_MEMORY_SUSTAINED = 0.3
"""Share of the host's memory bandwidth that a vectorised CPU Adam reaches on all cores.

From one run (Qwen2.5-72B on 8 GPUs, Megatron-SWIFT: 80 s a step); DeepSpeed's table of ZeRO-3 with
CPU Adam on H200 shows a third of that (10.1 s for 14B), as ranks with one thread each would."""


@term(
    unit="s",
    formula="optimizer factor * (6 + 2 (master + moments) = 30 B for Adam) * parameters/(shards) "
    "/ HBM; Muon: + Newton-Schulz",
    source=CALIBRATION,
    on=STATE,
)
def gpu_step_s(x: Inputs) -> FloatArray:
    """The optimizer step of the heaviest stage on the GPU; sharded from ZeRO-1 on."""
    moved = held_by_kind(x, stepped(x), sharded_from=1).max(axis=1)
    return x.stack.optimizer * hbm_s(x, moved) + orthogonalising_s(x)


@term(
    unit="s",
    formula="(gradients down + weights up) / link to the host of one GPU",
    source=ZERO_OFFLOAD_2021,
    on=(*STATE, "offload"),
)
def host_copies_s(x: Inputs) -> FloatArray:
    """Offload: gradients of a rank's shard to the host, and its updated weights back.

    DeepSpeed sends 16-bit gradients, others as they are kept; nothing hides the last micro-batch's.
    Weights that stay on the host are fetched when they are needed (`host_traffic_s`).
    """
    kept, away = scheme(x), weights_away(x)
    shard = held(x, 1.0, sharded_from=1).max(axis=1)
    moved: FloatArray = shard * (kept.gradient + np.where(away, 0.0, kept.weight))
    return moved / (x.cluster.host_link_bytes_per_s * LINK_SUSTAINED)


@term(
    unit="s",
    formula="GPUs of a node * (8 + 2 (master + moments) = 32 B for Adam) * shard / host memory",
    source=ZERO_OFFLOAD_2021,
    on=STATE,
)
def host_step_s(x: Inputs) -> FloatArray:
    """Offload: the optimizer's step on the host, whose memory all ranks of the node share."""
    per_rank = held_by_kind(x, stepped(x).plus(FP32 - 2.0), sharded_from=1).max(axis=1)
    ranks = np.minimum(x.layouts.gpus, x.cluster.node.gpus)
    moved: FloatArray = ranks * per_rank
    return moved / (x.cluster.host_memory_bytes_per_s * HOST_MEMORY_SUSTAINED)


@term(
    unit="s",
    formula="GPU step; a share offloaded: max((1 - share) GPU step, share (copies + host step))",
    source=DEEPSPEED_OFFLOAD,
    on=(*STATE, "offload"),
)
def optimizer_s(x: Inputs) -> FloatArray:
    """The optimizer step, all of it exposed.

    What stays on the GPU is stepped there while the host steps the rest: its kernels are launched
    first (hybrid_optimizer.py, step; DeepSpeed's first groups).
    """
    here = gpu_step_s(x)
    if not optimizer_away(x).any():
        return here
    share = 1.0 - optimizer_here(x)[:, 0]
    there = host_copies_s(x) + host_step_s(x) + drive_step_s(x)
    return np.maximum((1.0 - share) * here, share * there)


@term(
    unit="s",
    formula="NVMe: GPUs of a node * 2 (master + moments = 12 B for Adam) * shard / drives",
    source=ZERO_INFINITY_2021,
    on=(*STATE, "offload"),
)
def drive_step_s(x: Inputs) -> FloatArray:
    """NVMe offload: the optimizer's state read before the step on the host, and written after it.

    DeepSpeed can read ahead and write behind (pipeline_read, pipeline_write); it does not by
    default.
    """
    kept = scheme(x)
    per = kept.moments.plus(kept.master).times(2.0)
    return _drives_s(x, held_by_kind(x, per, sharded_from=1).max(axis=1))


def _drives_s(x: Inputs, rank_bytes: FloatArray) -> FloatArray:
    """Return the time of what each rank moves from or to its node's drives, which all share."""
    if (rate := x.cluster.node.nvme_gb_per_s) is None:
        return np.zeros(len(x.layouts))  # a rule refuses such layouts
    ranks = np.minimum(x.layouts.gpus, x.cluster.node.gpus)
    return np.where(on_drives(x), ranks * rank_bytes / (rate * 1e9), 0.0)


@term(
    unit="s",
    formula="(2 weights, forward and backward, + gradients) of the shard / link to the host",
    source=ZERO_OFFLOAD_2021,
    on=(*STATE, "offload"),
)
def host_traffic_s(x: Inputs) -> FloatArray:
    """Offload, every micro-batch: weights that live on the host up, gradients added there down.

    Weights on NVMe drives come at what the drives give, where that is slower.
    """
    kept, fetched = scheme(x), weights_away(x)
    if not optimizer_away(x).any():
        return np.zeros(len(x.layouts))
    summed_there = fetched
    if x.stack.states == "deepspeed":
        summed_there = summed_there | (optimizer_away(x) & (x.layouts.zero >= 2))
    weights = np.where(fetched, 2.0 * kept.weight, 0.0)
    each = weights + np.where(summed_there, kept.gradient * x.stack.offload_fraction, 0.0)
    shard = held(x, 1.0, sharded_from=1).max(axis=1)
    moved: FloatArray = shard * each
    over_link = moved / (x.cluster.host_link_bytes_per_s * LINK_SUSTAINED)
    return np.maximum(over_link, _drives_s(x, shard * weights))

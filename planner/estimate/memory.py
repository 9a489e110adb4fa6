"""Bytes on one GPU of every kind of stage at its peak, part by part. The heaviest stage decides.

What one GPU holds is added up from `states`, `activations` and `buffers`. Under FSDP2 the parts
take turns (a loss, a block's backward, the optimizer step): `fsdp` says what each holds at the
peak.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray

from planner.estimate import fsdp
from planner.estimate.activations import logits_bytes
from planner.estimate.buffers import (
    communication_buffers_bytes,
    exchange_buffers_bytes,
    sharding_buffers_bytes,
)
from planner.estimate.compute import EXPERT_SHARD
from planner.estimate.in_flight import activations_bytes
from planner.estimate.inputs import FloatArray, Inputs, Term, term, widest
from planner.estimate.modules import AGAIN
from planner.estimate.recompute import offloaded_bytes
from planner.estimate.schemes import scheme
from planner.estimate.states import (
    STATES,
    gradients_bytes,
    host_rank_bytes,
    optimizer_bytes,
    step_gradients_bytes,
    weights_bytes,
)
from planner.sources import MEGATRON_CORE, TORCH, Source
from planner.units import GIB

CONTEXT_BYTES = 1.5 * GIB
"""CUDA context and kernels: 1,573 MiB on A100 (BigScience), '1-2 GB' (Accelerate docs)."""
COMMUNICATOR_BYTES = 0.4 * GIB
"""Buffers of one NCCL communicator: 342 to 392 MB (aiconfigurator, h100_sxm.yaml, nccl_mem)."""
WORKSPACE_BYTES = 0.1 * GIB
"""Megatron-LM's CI: allocated between steps, less the states, is 0.10 GiB in most of 262 runs with
Transformer Engine on A100, H100 and GB200 alike (0.03 without)."""
ALL_TO_ALL_BYTES = 3.0 * GIB
"""Taken by the first all-to-all over NVLink: 1.06 to 4.34 GB on 8 H100 (NVIDIA/nccl #1685)."""


def _peak(x: Inputs, part: str, otherwise: Term) -> FloatArray:
    """Return a part at the peak of FSDP2, or the term that holds all the time in other stacks."""
    return fsdp.at_peak(x, part) if x.stack.states == "fsdp2" else otherwise(x)


@term(
    unit="bytes",
    formula="weights (FSDP2 without reshard: less the gathered copy at the optimizer step)",
    source=TORCH,
)
def peak_weights_bytes(x: Inputs) -> FloatArray:
    """Parameters resident at the peak."""
    return _peak(x, "weights", weights_bytes)


@term(
    unit="bytes",
    formula="gradients (FSDP2, first micro-step: those of the layers already reduced)",
    source=TORCH,
)
def peak_gradients_bytes(x: Inputs) -> FloatArray:
    """Gradients held at the peak."""
    return _peak(x, "gradients", gradients_bytes)


@term(
    unit="bytes",
    formula="activations (FSDP2: those still kept at the peak's point, and its working set)",
    source=TORCH,
)
def peak_activations_bytes(x: Inputs) -> FloatArray:
    """Activations held at the peak."""
    return _peak(x, "activations", activations_bytes)


@term(
    unit="bytes", formula="logits (FSDP2: where the loss is the peak's point, else 0)", source=TORCH
)
def peak_logits_bytes(x: Inputs) -> FloatArray:
    """Logits, their copies and gradients held at the peak."""
    return _peak(x, "logits", logits_bytes)


@term(
    unit="bytes",
    formula="max(0, fp32 gradients of the step - activations - logits), which are gone by then",
    source=MEGATRON_CORE,
)
def step_excess_bytes(x: Inputs) -> FloatArray:
    """By how much the optimizer step holds more than the backward pass did."""
    return np.maximum(step_gradients_bytes(x) - activations_bytes(x) - logits_bytes(x), 0.0)


@term(
    unit="bytes",
    formula="buffers of collectives + excess of the step (FSDP2: gathered, unreduced, temporary)",
    source=TORCH,
)
def buffers_bytes(x: Inputs) -> FloatArray:
    """Buffers of collectives and temporaries held at the peak."""
    if x.stack.states == "fsdp2":
        return fsdp.at_peak(x, "buffers")
    return communication_buffers_bytes(x) + step_excess_bytes(x)


RESERVE = Source("allocator and NCCL notes", "docs/model.md, section Overhead")


@term(unit="bytes", formula="1.5 GiB", source=RESERVE)
def context_bytes(x: Inputs) -> FloatArray:
    """CUDA context and loaded kernels of one process; outside of torch's allocator."""
    return np.full_like(x.stages.count, CONTEXT_BYTES, dtype=np.float64)


@term(
    unit="bytes",
    formula="0.4 GiB per communicator (tp, cp, pp, dp, ep, edp) + 3 GiB with all-to-all",
    source=RESERVE,
)
def communicators_bytes(x: Inputs) -> FloatArray:
    """Buffers that NCCL or RCCL take for each communicator in use; outside of the allocator."""
    lay = x.layouts
    used = [
        lay.tp > 1,
        lay.cp > 1,
        lay.pp > 1,
        lay.dp > 1,
        lay.ep > 1,
        (lay.ep > 1) & (lay.edp > 1),
    ]
    communicators = np.sum([u.astype(np.int64) for u in used], axis=0)
    buffers = COMMUNICATOR_BYTES * communicators + np.where(lay.ep > 1, ALL_TO_ALL_BYTES, 0.0)
    total: FloatArray = buffers[:, None] + np.zeros_like(x.stages.count)
    return total


@term(unit="bytes", formula="0.1 GiB", source=MEGATRON_CORE)
def workspace_bytes(x: Inputs) -> FloatArray:
    """Workspaces of cuBLAS and Transformer Engine, taken from torch's allocator once."""
    return np.full_like(x.stages.count, WORKSPACE_BYTES, dtype=np.float64)


@term(
    unit="bytes",
    formula="share of the stack * (activations + logits + buffers at the peak)",
    source=RESERVE,
)
def fragmentation_bytes(x: Inputs) -> FloatArray:
    """What the caching allocator must reserve beyond what is asked for: gaps between tensors."""
    moving = peak_activations_bytes(x) + peak_logits_bytes(x) + buffers_bytes(x)
    return x.stack.fragmentation * moving


OVERHEAD_TERMS = (context_bytes, communicators_bytes, workspace_bytes, fragmentation_bytes)


@term(
    unit="bytes",
    formula="context + communicators + workspace + fragmentation",
    source=RESERVE,
)
def overhead_bytes(x: Inputs) -> FloatArray:
    """What is on the GPU beside the tensors of training."""
    return reduce(np.add, [t(x) for t in OVERHEAD_TERMS])


MEMORY_TERMS = {
    "weights": peak_weights_bytes,
    "gradients": peak_gradients_bytes,
    "optimizer": optimizer_bytes,
    "activations": peak_activations_bytes,
    "logits": peak_logits_bytes,
    "buffers": buffers_bytes,
    "overhead": overhead_bytes,
}
"""The parts of a stage's memory by the name that reports use; they sum to its total."""


def stage_bytes(x: Inputs) -> FloatArray:
    """Return the total of every kind of stage, shape (layouts, kinds); absent kinds hold 0.

    The sum of MEMORY_TERMS, which are first added up by what they depend on: states and activations
    meet only here.
    """
    if x.stack.states == "fsdp2":
        return x.by((), _all_parts_bytes)
    total = x.by(STATES, settled_bytes) + x.by(MOVING, moving_bytes)
    if scheme(x).passing:
        excess = (1 + x.stack.fragmentation) * step_excess_bytes(x)
        total = total + np.where(x.stages.count > 0, excess, 0.0)
    return total


def _all_parts_bytes(x: Inputs) -> FloatArray:
    total = reduce(np.add, [t(x) for t in MEMORY_TERMS.values()])
    return np.where(x.stages.count > 0, total, 0.0)


def settled_bytes(x: Inputs) -> FloatArray:
    """Return states and the buffers of their collectives, with what fragments of these."""
    states = weights_bytes(x) + gradients_bytes(x) + optimizer_bytes(x)
    buffers = (1 + x.stack.fragmentation) * sharding_buffers_bytes(x)
    return np.where(x.stages.count > 0, states + buffers, 0.0)


MOVING = (
    *(*EXPERT_SHARD, "pp", "vpp", "dp", "schedule", "num_microbatches"),
    *(*AGAIN, "dp_sync"),
)


def moving_bytes(x: Inputs) -> FloatArray:
    """Return the rest: activations, logits, what is exchanged, and what does not change."""
    moving = activations_bytes(x) + logits_bytes(x) + exchange_buffers_bytes(x)[:, None]
    fixed = context_bytes(x) + communicators_bytes(x) + workspace_bytes(x)
    return np.where(x.stages.count > 0, (1 + x.stack.fragmentation) * moving + fixed, 0.0)


def allocated_bytes(x: Inputs) -> FloatArray:
    """Return what torch.cuda.max_memory_allocated tells of every kind of stage."""
    beyond = context_bytes(x) + communicators_bytes(x) + fragmentation_bytes(x)
    return np.where(x.stages.count > 0, stage_bytes(x) - beyond, 0.0)


def reserved_bytes(x: Inputs) -> FloatArray:
    """Return what torch.cuda.max_memory_reserved tells: no context and no NCCL.

    It counts blocks that the allocator keeps and would give back before it ran out, so that a job
    may fit where this is more than the GPU has; `stage_bytes` leaves those out.
    """
    kept = x.stack.reserve * allocated_bytes(x)
    return np.where(x.stages.count > 0, allocated_bytes(x) + fragmentation_bytes(x) + kept, 0.0)


def used_bytes(x: Inputs) -> FloatArray:
    """Return what nvidia-smi tells of every kind of stage."""
    outside = context_bytes(x) + communicators_bytes(x)
    return np.where(x.stages.count > 0, reserved_bytes(x) + outside, 0.0)


def peak_bytes(x: Inputs) -> FloatArray:
    """Return the heaviest stage's bytes, shape (layouts,)."""
    return widest(stage_bytes(x))


def _uses_host(x: Inputs) -> bool:
    """Return whether a layout keeps something in the memory of its nodes."""
    return bool(x.layouts.offload.any()) or x.stack.offload_layers > 0


def host_bytes(x: Inputs) -> FloatArray:
    """Return what the ranks of one node keep in its memory with offload, by the heaviest stage."""
    if not _uses_host(x):
        return np.zeros(len(x.layouts))
    each = widest(host_rank_bytes(x))
    if x.stack.offload_layers:
        each = each + np.where(x.layouts.pp == 1, offloaded_bytes(x), 0.0)
    return each * np.minimum(x.layouts.gpus, x.cluster.node.gpus)


def fits(x: Inputs, peak: FloatArray) -> NDArray[np.bool_]:
    """Return where a peak is within the budget, and the host has room for what is offloaded."""
    inside: NDArray[np.bool_] = peak <= budget_bytes(x)
    if (room := x.cluster.host_memory_bytes) is not None and _uses_host(x):
        inside = inside & (host_bytes(x) <= room)
    return inside


def limit_bytes(x: Inputs) -> float:
    """Return the bytes that a process can allocate on this accelerator."""
    return x.cluster.accelerator.usable_memory_bytes


def budget_bytes(x: Inputs) -> float:
    """Return the bytes that a plan may take: the limit times the workload's `max_memory`.

    The estimate counts context, NCCL and fragmentation already, so the default keeps 3 % away:
    Llama 3 405B ran on 8,192 GPUs (tp 8, pp 16) with what is estimated here at 96 % of its memory.
    Plans above 85 % are marked: in a published sweep all runs above 70 of 80 GB turned slow.
    """
    return limit_bytes(x) * x.workload.max_memory

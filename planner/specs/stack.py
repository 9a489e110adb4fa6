"""Training stacks: what each overlaps, fuses and costs beyond the kernels. Data, few numbers.

The numbers are fits of one model to published step times (docs/model.md, Calibration); which
layouts a stack can run at all is said by the rules in `planner.layouts.rules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.errors import SpecError, did_you_mean


@dataclass(frozen=True)
class Stack:
    """One training stack, as the estimate sees it. Factors multiply, `_s` are seconds."""

    name: str
    title: str
    attention_kernel: Literal["te", "fa2"]
    activations: Literal["megatron", "dtensor", "hf"]
    states: Literal["megatron", "deepspeed", "fsdp2"]
    gradient_reduce_bytes: int
    attention: float = 1.0
    """Sustained rate of fused attention over the accelerator's figure for the kernel class (da)."""
    gemm: float = 1.0
    """Sustained matrix-multiply rate over the accelerator's training rate (dg)."""
    memory_traffic: float = 1.5
    """Bytes that norms, activations and residuals move over the minimum (mm): lack of fusion."""
    host_s: float = 2.4e-3
    """Host time per layer and micro-batch, forward + backward, without CUDA graphs."""
    host_tp: float = 1.2
    """The same where tp > 1: more kernels and collectives to launch."""
    host_moe_s: float = 5.6e-3
    """Host time of a layer with experts."""
    host_expert_s: float = 1e-4
    """And per local expert."""
    expert_s: float = 1.5e-5
    """Device time per local expert and layer: one more group in the grouped multiply."""
    tp_exposed: float = 1.0
    dp_exposed: float = 1.0
    p2p_exposed: float = 1.0
    cp_exposed: float = 0.31
    ep_exposed: float = 1.0
    step_s: float = 0.1
    """Per-step constant: data, logging, gradient norm."""
    microbatch_s: float = 6.3e-4
    accumulate: float = 1.0
    optimizer: float = 0.85
    fsdp_contention: float = 0.4
    """Share of the hidden ZeRO-3 traffic that still slows the kernels that hide it."""
    overlap: float = 1.0
    """How much of one micro-batch's backward can hide gradient traffic (phi)."""
    permute_bytes: float = 44.0
    """Bytes per routed token element for permute + unpermute, forward + backward."""
    fragmentation: float = 0.05
    """Share of activations and buffers that the allocator reserves beyond what is asked for."""


STACKS: dict[str, Stack] = {
    "megatron": Stack(
        name="megatron",
        title="Megatron-LM / Megatron-Core 2024+",
        attention_kernel="te",
        activations="megatron",
        states="megatron",
        gradient_reduce_bytes=4,
        gemm=1.04,
        memory_traffic=1.50,
        tp_exposed=0.49,
        dp_exposed=0.47,
        p2p_exposed=0.59,
        step_s=0.10,
        microbatch_s=6.3e-4,
        accumulate=0.54,
        optimizer=0.84,
        fsdp_contention=0.41,
        overlap=1.53,
    ),
    # A stack that nobody has measured: the mean over the lineages fitted.
    "any": Stack(
        name="any",
        title="no framework's limits; the mean of the measured stacks",
        attention_kernel="te",
        activations="megatron",
        states="megatron",
        gradient_reduce_bytes=4,
        attention=0.92,
        gemm=1.005,
        memory_traffic=1.66,
        tp_exposed=0.96,
        dp_exposed=1.05,
        p2p_exposed=0.88,
        step_s=0.045,
        microbatch_s=6.8e-4,
        accumulate=1.13,
        optimizer=0.90,
        fsdp_contention=0.60,
        overlap=1.08,
    ),
    "deepspeed": Stack(
        name="deepspeed",
        title="DeepSpeed",
        attention_kernel="fa2",
        activations="hf",
        states="deepspeed",
        gradient_reduce_bytes=2,
        gemm=0.97,
        memory_traffic=1.53,
        host_s=4.2e-3,
        host_moe_s=1.1e-2,
        tp_exposed=0.79,
        dp_exposed=1.41,
        p2p_exposed=0.88,
        step_s=0.26,
        microbatch_s=6.8e-4,
        accumulate=1.15,
        optimizer=0.89,
        fsdp_contention=0.70,
        overlap=1.08,
        fragmentation=0.10,
    ),
    "torchtitan": Stack(
        name="torchtitan",
        title="PyTorch FSDP2 / torchtitan",
        attention_kernel="fa2",
        activations="dtensor",
        states="fsdp2",
        gradient_reduce_bytes=4,
        gemm=1.10,
        memory_traffic=1.33,
        host_s=4.2e-3,
        host_moe_s=1.1e-2,
        tp_exposed=0.68,
        dp_exposed=1.48,
        p2p_exposed=0.88,
        step_s=0.12,
        microbatch_s=6.8e-4,
        accumulate=1.15,
        optimizer=0.89,
        fsdp_contention=0.70,
        overlap=1.08,
        fragmentation=0.10,
    ),
}


def stack_named(name: str) -> Stack:
    """Return the stack called `name`; raises SpecError with the known names otherwise."""
    if name not in STACKS:
        raise SpecError(
            f"stack: {name!r} is not known; allowed: {', '.join(sorted(STACKS))}",
            hint=did_you_mean(name, STACKS),
        )
    return STACKS[name]

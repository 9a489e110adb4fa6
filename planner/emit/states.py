"""In which formats states are kept: the flags of a stack that say so."""

from __future__ import annotations

from planner.plan import Plan
from planner.specs.stack import stack_named
from planner.specs.workload import Workload

AWARE = ("precision-aware", "bf16-moments", "fp8-moments")
"""Those of Megatron's precision-aware optimizer."""
FORMATS = ("pure-bf16", *AWARE, "offload-fraction", "offload-layers", "fp8-params")
"""Flags of a stack that say in which format states are kept, and where; activations too."""


def formats_of(work: Workload, *, offload: bool) -> set[str]:
    """Return the flags of the job's stack that say how states are kept, without their numbers.

    `offload-fraction` says nothing of a layout without offload.
    """
    flags = {flag.partition("=")[0] for flag in work.stack.split("+")[1:]}
    return flags & set(FORMATS) - (set() if offload else {"offload-fraction"})


def offload_fraction(plan: Plan) -> float:
    """Return the share of the optimizer's state that its offload moves."""
    return stack_named(plan.request.workload.stack).offload_fraction


RECIPES = {
    "fp8-current": "tensorwise",
    "mxfp8": "mxfp8",
    "fp8-rowwise": "blockwise",
    "nvfp4": "nvfp4",
}
"""Flag of a stack -> Megatron's name of how it scales in 8 (or 4) bits."""


def recipe_of(work: Workload) -> str:
    """Return how FP8 scales: as the last flag on it says, else one scale of the current tensor.

    Delayed scaling, which the estimate takes without a flag, refuses recomputed norms.
    """
    named = [RECIPES[flag] for flag in work.stack.split("+")[1:] if flag in RECIPES]
    return named[-1] if named else "tensorwise"

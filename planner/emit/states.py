"""Where and in which formats states are kept: what scripts of several targets do about it."""

from __future__ import annotations

from planner.emit.base import placed
from planner.plan import Plan

FORMATS = ("pure-bf16", "precision-aware", "bf16-moments", "fp8-moments")
"""Flags of a stack that say in which format states are kept."""


ONE_THREAD = """\
# One thread a rank; more would fight over the cores that feed the GPUs.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"""


def threads(plan: Plan) -> str:
    """Return the shell lines that set the threads of a rank: many where the host has work to do."""
    if plan.best.layout.offload == "none":
        return ONE_THREAD
    ranks = placed(plan).gpus_per_node
    return f"""\
# The host steps the optimizer, on all of its cores: each rank takes its share of them.
OMP_NUM_THREADS="${{OMP_NUM_THREADS:-$(( ($(nproc) + {ranks - 1}) / {ranks} ))}}"
export OMP_NUM_THREADS
"""


def formats_of(plan: Plan) -> set[str]:
    """Return the flags of the plan's stack that say how states are kept."""
    return set(plan.request.workload.stack.split("+")[1:]) & set(FORMATS)

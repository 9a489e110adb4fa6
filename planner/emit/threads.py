"""How many threads a rank has on its host, which steps the optimizer where states are there."""

from __future__ import annotations

from planner.emit.base import placed
from planner.plan import Plan

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

"""In which formats states are kept: the flags of a stack that say so."""

from __future__ import annotations

from planner.plan import Plan

FORMATS = ("pure-bf16", "precision-aware", "bf16-moments", "fp8-moments")
"""Flags of a stack that say in which format states are kept."""


def formats_of(plan: Plan) -> set[str]:
    """Return the flags of the plan's stack that say how states are kept."""
    return set(plan.request.workload.stack.split("+")[1:]) & set(FORMATS)

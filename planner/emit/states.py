"""In which formats states are kept: the flags of a stack that say so."""

from __future__ import annotations

from planner.specs.workload import Workload

FORMATS = ("pure-bf16", "precision-aware", "bf16-moments", "fp8-moments")
"""Flags of a stack that say in which format states are kept."""


def formats_of(work: Workload) -> set[str]:
    """Return the flags of the job's stack that say how states are kept."""
    return set(work.stack.split("+")[1:]) & set(FORMATS)

"""Sweep: a grid of plans, each finished point durable at once, the whole resumable after a kill."""

from planner.sweep.study import Study, read_study
from planner.sweep.sweeping import Summary, sweep

__all__ = ["Study", "Summary", "read_study", "sweep"]

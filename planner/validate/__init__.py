"""Predictions of published runs, and how far off they are."""

from planner.validate.predict import predicted
from planner.validate.runs import Run, read_runs, runs_of
from planner.validate.scores import summary
from planner.validate.table import PUBLISHED, columns_told, read_table

__all__ = [
    "PUBLISHED",
    "Run",
    "columns_told",
    "predicted",
    "read_runs",
    "read_table",
    "runs_of",
    "summary",
]

"""Predictions of published runs, and how far off they are."""

from planner.validate.predict import predicted
from planner.validate.runs import PUBLISHED, Run, read_runs
from planner.validate.scores import summary

__all__ = ["PUBLISHED", "Run", "predicted", "read_runs", "summary"]

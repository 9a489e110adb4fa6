"""Fits the planner's own step-time numbers to published runs, and scores them on runs left out."""

"""Import: the configuration of a job that exists, read back into layout, workload and model."""

from planner.importing.job import Job
from planner.importing.read import read_job

__all__ = ["Job", "read_job"]

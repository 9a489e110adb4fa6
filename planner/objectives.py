"""Objectives: what a layout is chosen for, what it may take at most, and what trades for what.

All of it follows from four figures of a layout: seconds of a step, peak bytes, GPUs, and the tokens
of a step. Plain arithmetic over arrays, so that one layout and all of them go the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from planner.estimate.inputs import FloatArray
from planner.layouts.table import IntArray
from planner.sources import NEWKIRK_2025, Source
from planner.specs.accelerator import Accelerator

HOUR_S, DAY_S = 3600.0, 86_400.0
TRILLION = 1e12
JOULES_PER_MWH = 3.6e9
POWER_SHARE = 0.76
"""Of the rated power that a node draws in heavy training: 76 % of 10.2 kW with 8 H100."""


class Objective(StrEnum):
    """What the best layout is the best in."""

    STEP_TIME = "step-time"
    TOKENS_PER_GPU = "tokens-per-gpu"
    COST = "cost"
    ENERGY = "energy"
    MEMORY = "memory"
    GPUS = "gpus"


class Formula(NamedTuple):
    """How an objective is counted, for people; `source` where a published figure is in it."""

    unit: str
    text: str
    source: Source | None = None


FORMULAS: Mapping[Objective, Formula] = {
    Objective.STEP_TIME: Formula("s", "step_time_s; per token where batches differ"),
    Objective.TOKENS_PER_GPU: Formula("tokens/s/GPU", "tokens of a step / step_time_s / GPUs"),
    Objective.COST: Formula(
        "USD per trillion tokens", "1e12 / tokens of a step * step_time_s * GPUs * USD/h / 3600"
    ),
    Objective.ENERGY: Formula(
        "MWh per trillion tokens",
        "1e12 / tokens of a step * step_time_s * GPUs * W / 3.6e9; W = 0.76 * tdp_w unless given; "
        "GPU boards only, without hosts, network and cooling",
        NEWKIRK_2025,
    ),
    Objective.MEMORY: Formula("bytes", "peak_bytes of the fullest GPU, then step_time_s"),
    Objective.GPUS: Formula("GPUs", "GPUs, then step_time_s"),
}


@dataclass(frozen=True)
class Aim:
    """What is wanted: an objective, the prices that it takes, and limits; None is no limit."""

    objective: Objective = Objective.STEP_TIME
    usd_per_gpu_hour: float | None = None
    usd_source: str = ""
    watts_per_gpu: float | None = None
    watts_source: str = ""
    tokens: float | None = None
    """Of the whole run."""
    deadline_s: float | None = None
    budget_usd: float | None = None
    max_step_s: float | None = None

    @property
    def limited(self) -> bool:
        """Return whether anything beside memory rules layouts out."""
        limits = (self.deadline_s, self.budget_usd, self.max_step_s)
        return any(limit is not None for limit in limits)


class Job(NamedTuple):
    """What a step is of: the GPUs that take it, and its tokens."""

    gpus: int
    tokens: int


def usual_watts(accelerator: Accelerator) -> float | None:
    """Return what a GPU draws in training, of its rated power; None where that is not known."""
    return POWER_SHARE * accelerator.tdp_w if accelerator.tdp_w else None


def steps_of(tokens: float, job: Job) -> int:
    """Return the steps of a run of so many tokens; the last one may be partly filled."""
    return ceil(tokens / job.tokens)


def gpu_seconds_per_token(step_s: FloatArray, job: Job) -> FloatArray:
    """Return what every GPU's clock adds up to for one token."""
    return step_s * job.gpus / job.tokens


def usd_per_trillion(step_s: FloatArray, job: Job, usd_per_gpu_hour: float) -> FloatArray:
    """Return the price of 10^12 tokens."""
    return gpu_seconds_per_token(step_s, job) * TRILLION / HOUR_S * usd_per_gpu_hour


def mwh_per_trillion(step_s: FloatArray, job: Job, watts_per_gpu: float) -> FloatArray:
    """Return the energy that the GPUs take for 10^12 tokens."""
    return gpu_seconds_per_token(step_s, job) * TRILLION * watts_per_gpu / JOULES_PER_MWH


def allowed_step_s(aim: Aim, job: Job) -> float:
    """Return the longest step that meets the step limit, the deadline and the budget."""
    return min((limit for _, limit in step_limits(aim, job)), default=inf)


def step_limits(aim: Aim, job: Job) -> list[tuple[str, float]]:
    """Return (option, seconds that a step may take by it), for every limit that is set."""
    found = []
    if aim.max_step_s is not None:
        found.append(("--max-step-time", aim.max_step_s))
    if aim.tokens is None:
        return found
    steps = steps_of(aim.tokens, job)
    if aim.deadline_s is not None:
        found.append(("--deadline", aim.deadline_s / steps))
    if aim.budget_usd is not None and aim.usd_per_gpu_hour is not None:
        per_second = job.gpus * aim.usd_per_gpu_hour / HOUR_S
        found.append(("--budget", aim.budget_usd / (steps * per_second)))
    return found


def score(aim: Aim, job: Job, step_s: FloatArray, peak_bytes: FloatArray) -> FloatArray:
    """Return what the objective makes of layouts of one job; the least is the best.

    Comparable between jobs. Cost, energy and tokens per GPU are all the GPU-seconds of a token,
    because a GPU costs and draws the same at every size.
    """
    match aim.objective:
        case Objective.STEP_TIME:
            return step_s / job.tokens
        case Objective.MEMORY:
            return peak_bytes
        case Objective.GPUS:
            return np.full(step_s.shape, float(job.gpus))
        case _:
            return gpu_seconds_per_token(step_s, job)


def value(aim: Aim, job: Job, step_s: float, peak_bytes: float) -> float:
    """Return the objective of one layout in its unit (`FORMULAS`)."""
    time = np.array([step_s])
    match aim.objective:
        case Objective.STEP_TIME:
            return step_s
        case Objective.TOKENS_PER_GPU:
            return job.tokens / step_s / job.gpus
        case Objective.COST:
            return float(usd_per_trillion(time, job, aim.usd_per_gpu_hour or 0.0)[0])
        case Objective.ENERGY:
            return float(mwh_per_trillion(time, job, aim.watts_per_gpu or 0.0)[0])
        case Objective.MEMORY:
            return peak_bytes
        case Objective.GPUS:
            return float(job.gpus)


def lower_envelope(step_s: FloatArray, peak_bytes: FloatArray) -> IntArray:
    """Return the rows that no other beats in both figures, fastest first; of equals, the first."""
    order = np.arange(len(step_s))
    if not _ascending(step_s, peak_bytes):  # a ranking mostly is, and sorting one takes a while
        order = np.lexsort((peak_bytes, step_s))
    peaks = peak_bytes[order]
    least_before = np.minimum.accumulate(np.concatenate([[inf], peaks]))[:-1]
    return order[peaks < least_before].astype(np.int64)


def _ascending(first: FloatArray, then: FloatArray) -> bool:
    """Return whether rows stand in the order of `first`, and of `then` where these are equal."""
    up, ties = first[1:] > first[:-1], first[1:] == first[:-1]
    return bool((up | (ties & (then[1:] >= then[:-1]))).all())


def pareto(columns: tuple[FloatArray, ...]) -> IntArray:
    """Return the rows that no other row beats: less or equal in every column, less in one.

    In the order of the columns; of rows that are equal in all, the first.
    """
    points = np.stack(columns, axis=1)
    order = np.lexsort((np.arange(len(points)), *reversed(columns)))
    kept = np.zeros((0, len(columns)))
    rows = []
    for row in order.tolist():  # whatever beats a row stands before it
        if not (kept <= points[row]).all(axis=1).any():
            rows.append(row)
            kept = np.concatenate([kept, points[row : row + 1]])
    return np.array(rows, dtype=np.int64)

"""How far off step times of one stack on one generation of GPUs are: learnt from published runs.

The table holds measured over predicted time at the 10th and 90th percentile, each run's family left
out of the fit; what no run stands behind gets the spread of sources left out whole. Written by
calibration/fit.py.
"""

from __future__ import annotations

from typing import NamedTuple

from planner.specs.cluster import ClusterSpec
from planner.specs.workload import Workload

GENERATIONS: dict[str, tuple[str, ...]] = {
    "blackwell": ("b200", "b300", "gb200", "gb300"),
    "hopper": ("h100", "h200", "h800", "h20", "gh200"),
    "ampere": ("a100", "a800", "a10"),
    "volta": ("v100",),
}
FEWEST_RUNS = 10
"""Runs below which a stack's own spread is not believed."""


class Interval(NamedTuple):
    """Measured over predicted step time: 80 % of `runs` lie between `low` and `high`."""

    low: float
    high: float
    runs: int

    def words(self) -> str:
        """Return the interval as a report says it."""
        return f"{self.low - 1:+.0%} to {self.high - 1:+.0%}"


UNSEEN = Interval(0.85, 1.17, 0)
"""A stack or GPU without runs: the 90th percentile of |error| of a source that is left out of the
fit whole, median over the sources of five runs or more (docs/accuracy.md)."""

# (stack, generation) -> 10th and 90th percentile of measured / predicted, 1 included, and the runs
# behind it, families left out
INTERVALS: dict[tuple[str, str], Interval] = {
    ("internevo", "ampere"): Interval(0.93, 1.04, 38),
    ("llm-foundry", "ampere"): Interval(0.95, 1.02, 105),
    ("llm-foundry", "hopper"): Interval(0.96, 1.06, 66),
    ("megatron", "hopper"): Interval(0.93, 1.06, 167),
    ("megatron-2021", "ampere"): Interval(0.91, 1.04, 15),
    ("megatron-bridge", "blackwell"): Interval(0.90, 1.11, 152),
    ("megatron-bridge", "hopper"): Interval(0.95, 1.08, 48),
    ("megatron-deepspeed", "ampere"): Interval(0.92, 1.08, 720),
    ("megatron-deepspeed-2021", "volta"): Interval(0.79, 1.33, 38),
    ("megatron-deepspeed-2022", "ampere"): Interval(0.95, 1.10, 107),
    ("megatron-plain", "blackwell"): Interval(0.95, 1.04, 22),
    ("mlperf", "hopper"): Interval(0.93, 1.09, 20),
    ("nanotron", "hopper"): Interval(0.92, 1.09, 380),
    ("nemo-2023", "ampere"): Interval(0.91, 1.22, 11),
    ("torchtitan", "ampere"): Interval(0.97, 1.13, 10),
    ("torchtitan", "blackwell"): Interval(0.76, 1.12, 11),
    ("torchtitan", "hopper"): Interval(0.84, 1.32, 69),
}

TIES: dict[str, float] = {
    "internevo": 0.04,
    "megatron-deepspeed": 0.05,
    "megatron-deepspeed-2021": 0.07,
    "megatron-deepspeed-2022": 0.05,
    "nanotron": 0.05,
}
"""How much the errors of two runs of one family differ in the median: layouts that close are one.
Errors that all layouts of a job share do not change their order, so this is less than the interval.
"""
LEAST_TIE = 0.03
"""Reruns of one configuration differ by 1 to 6 %."""


def tie(workload: Workload) -> float:
    """Return the relative difference of step times below which two layouts cannot be told apart."""
    return max(LEAST_TIE, TIES.get(workload.stack.split("+", maxsplit=1)[0], LEAST_TIE))


def generation(accelerator: str) -> str:
    """Return the generation of an accelerator by its name, or `other`."""
    name = accelerator.lower()
    for kind, prefixes in GENERATIONS.items():
        if name.startswith(prefixes):
            return kind
    return "other"


def interval(cluster: ClusterSpec, workload: Workload) -> Interval:
    """Return the interval of step times for a stack on a cluster; UNSEEN without enough runs.

    Where the stack was calibrated on this very cluster, it is that of the runs there.
    """
    own = cluster.figures_of(workload.stack)
    if own and own.low is not None and own.high is not None:
        return Interval(own.low, own.high, own.runs)
    if cluster.mix:  # no run behind any job over several types
        return UNSEEN
    profile = workload.stack.split("+", maxsplit=1)[0]
    found = INTERVALS.get((profile, generation(cluster.accelerator.name)), UNSEEN)
    return found if found.runs >= FEWEST_RUNS else UNSEEN

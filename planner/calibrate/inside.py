"""Links inside a scale-up domain: each operation and number of ranks is measured on its own.

Alpha, bandwidth and gamma are those of planner/estimate/collectives.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from planner.calibrate.figure import (
    Figure,
    Found,
    Quality,
    rounded,
)
from planner.calibrate.fitted import FEWEST, at_sizes, by_size, columns, op_of, worth
from planner.calibrate.nccl import Log
from planner.calibrate.peaks import impossible_bus
from planner.calibrate.probe import probe
from planner.calibrate.solve import FloatArray, Number, Solution, solve
from planner.estimate.collectives import bus_bytes, inside_s
from planner.specs.cluster import ClusterSpec
from planner.specs.links import Collective, CollectiveFit

UNITS = {"alpha_us": "us", "gb_per_s": "GB/s", "gamma_us_per_sqrt_kb": "us/sqrt(kB)"}


class _Measured(NamedTuple):
    """One collective on one number of GPUs, timing by timing."""

    op: Collective
    ranks: int
    file: str
    sizes: FloatArray
    seconds: FloatArray
    volume: FloatArray
    """Bytes over the busiest link."""

    @property
    def group(self) -> str:
        """Return what the figures are listed under."""
        return f"{self.op} {self.ranks}"

    def predict(self, values: FloatArray) -> FloatArray:
        """Return what (alpha, bandwidth, gamma) say of every timing."""
        alpha_us, gb_per_s, gamma = values.tolist()
        bent = gamma * 1e-6 * np.sqrt(self.volume / 1e3)
        return np.asarray(alpha_us * 1e-6 + self.volume / (gb_per_s * 1e9) + bent)


def fit_inside(
    cluster: ClusterSpec, op: str, ranks: int, logs: Sequence[Log], found: Found
) -> ClusterSpec:
    """Fit one collective on one number of GPUs; return the cluster with it put in."""
    sizes, seconds, _ = columns(logs)
    n = np.full(len(sizes), ranks)
    volume = np.asarray(bus_bytes(op_of(op), sizes, n), dtype=np.float64)
    seen = _Measured(op_of(op), ranks, logs[0].file, sizes, seconds, volume)
    if (kinds := len(np.unique(sizes))) < FEWEST:
        found.warnings.append(
            f"{seen.file}: {kinds} sizes of {op} on {ranks} GPUs where {FEWEST} are needed: "
            "left out"
        )
        return cluster
    at = cluster.model_copy(update={"nodes": max(log.nodes for log in logs)})
    before = np.asarray(inside_s(probe(at), seen.op, sizes, n), dtype=np.float64)
    listed = next((f for f in cluster.scale_up.collectives if (f.op, f.gpus) == (op, ranks)), None)
    solution = _solved(seen, listed, before)
    quality = Quality.of(solution, seconds)
    if not worth(found, seen.group, quality, seen.file):
        return cluster
    if not _believed(cluster, seen, solution, found):
        return cluster
    values = {name: rounded(v) for name, v in zip(UNITS, solution.values.tolist(), strict=True)}
    found.figures += _figures(seen, listed, values, solution.spread, quality)
    after = seen.predict(np.array(list(values.values())))
    found.predictions += at_sizes(f"{op} on {ranks} GPUs", sizes, before, after, seconds)
    found.residuals += by_size(seen.group, sizes, before, after, seconds)
    return _put_in(cluster, listed, {"op": op, "gpus": ranks, **values})


def _solved(seen: _Measured, listed: CollectiveFit | None, before: FloatArray) -> Solution:
    """Return the fit, around the numbers that ship or, where none do, those seen by eye."""
    start = _by_eye(seen.volume, seen.seconds)
    shipped = [getattr(listed, name) for name in UNITS] if listed else [*start[:2], 0.15]
    numbers = [
        Number("alpha_us", max(shipped[0], 0.01), 2.0, low=1e-2),
        Number("gb_per_s", shipped[1], 2.0, low=1e-3),
        Number("gamma_us_per_sqrt_kb", max(shipped[2], 0.02), 1.5),
    ]
    solution = solve(seen.predict, seen.seconds, numbers, start=start)
    return replace(solution, before=np.log(before / seen.seconds))


def _believed(cluster: ClusterSpec, seen: _Measured, solution: Solution, found: Found) -> bool:
    """Return whether links can be so fast; say where the bandwidth is a guess."""
    alpha_us, gb_per_s, _ = solution.values.tolist()
    if reason := impossible_bus(cluster, seen.op, gb_per_s):
        found.warnings.append(f"{seen.file}: {seen.group}: {reason}")
        return False
    if seen.volume.max() / (gb_per_s * 1e9) < alpha_us * 1e-6:
        found.warnings.append(
            f"{seen.file}: the largest message of {seen.group} is still bound by latency, so its "
            "bandwidth is a guess; measure up to 1 GB"
        )
    return True


def _figures(
    seen: _Measured,
    listed: CollectiveFit | None,
    values: Mapping[str, float],
    spread: FloatArray,
    quality: Quality,
) -> list[Figure]:
    """Return the three numbers, before and after."""
    return [
        Figure(
            ("scale_up", "collectives", seen.group, name),
            unit,
            float(getattr(listed, name)) if listed else None,
            values[name],
            float(wide),
            quality,
            seen.group,
        )
        for (name, unit), wide in zip(UNITS.items(), spread, strict=True)
    ]


def _put_in(
    cluster: ClusterSpec, listed: CollectiveFit | None, values: Mapping[str, object]
) -> ClusterSpec:
    """Return the cluster with a collective's fit in the place of the one listed."""
    others = tuple(f for f in cluster.scale_up.collectives if f is not listed)
    fit = CollectiveFit.model_validate(values)
    links = cluster.scale_up.model_copy(update={"collectives": (*others, fit)})
    return cluster.model_copy(update={"scale_up": links})


def _by_eye(volume: FloatArray, measured: FloatArray) -> tuple[float, float, float]:
    """Return where to start: latency of the small messages, bandwidth of the large ones."""
    big, small = volume >= np.quantile(volume, 0.8), volume <= np.quantile(volume, 0.2)
    alpha_us = float(np.median(measured[small])) * 1e6
    gb_per_s = float(np.median(volume[big] / measured[big])) / 1e9
    return max(alpha_us, 0.1), max(gb_per_s, 0.01), 0.1

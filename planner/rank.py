"""Rank: score every legal layout, keep those that fit, best first.

Only totals of all rows are kept; what is shown is computed again, in full, by the same formulas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.memory import budget_bytes, limit_bytes, peak_bytes
from planner.estimate.memory import fits as fitting
from planner.estimate.step import step_s
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import Fix
from planner.layouts.rules import Context
from planner.layouts.table import COLUMNS, IntArray, Layouts

SHAPE = ("tp", "pp", "cp", "ep", "etp", "dp")


@dataclass(frozen=True)
class Ranking:
    """All layouts that fit, best first, and the lightest of those that do not."""

    tally: Tally
    gpus: int
    layouts: Layouts
    step_s: FloatArray
    peak_bytes: FloatArray
    lightest: Layouts
    lightest_bytes: float
    limit_bytes: float
    budget_bytes: float

    @property
    def feasible(self) -> int:
        """Return how many layouts fit."""
        return len(self.layouts)

    def best_of_each_shape(self, top: int) -> IntArray:
        """Return the rows of the first `top` distinct (tp, pp, cp, ep, etp, dp), best first."""
        seen: dict[tuple[int, ...], int] = {}
        columns = [getattr(self.layouts, name) for name in SHAPE]
        key = np.stack(columns, axis=1) if len(self.layouts) else np.zeros((0, len(SHAPE)))
        for row in range(len(key)):
            shape = tuple(int(v) for v in key[row])
            if shape not in seen:
                seen[shape] = row
                if len(seen) == top:
                    break
        return np.array(list(seen.values()), dtype=np.int64)


def rank(context: Context, gpus: int, fix: Fix) -> Ranking:
    """Return every legal layout of `gpus` GPUs that `fix` allows, scored and ordered.

    Ties in time go to the smaller peak, then to the earlier row of the enumeration.
    """
    tally = Tally()
    nothing = Inputs(*context, Layouts.empty())
    budget = budget_bytes(nothing)
    parts, times, peaks = [], [], []
    lightest, lightest_bytes = Layouts.empty(), np.inf
    for layouts in legal_layouts(context, gpus, fix, tally):
        x = Inputs(*context, layouts)
        peak = peak_bytes(x)
        fits = fitting(x, peak)
        if not fits.all():
            low = int(np.where(fits, np.inf, peak).argmin())
            if peak[low] < lightest_bytes:
                lightest, lightest_bytes = layouts.take([low]), float(peak[low])
        if fits.any():
            parts.append(layouts.take(fits))
            times.append(step_s(Inputs(*context, parts[-1])))
            peaks.append(peak[fits])
    layouts = Layouts.concat(parts) if parts else Layouts.empty()
    time = np.concatenate(times) if times else np.zeros(0)
    peak = np.concatenate(peaks) if peaks else np.zeros(0)
    order = np.lexsort((peak, time))
    return Ranking(
        tally=tally,
        gpus=gpus,
        layouts=layouts.take(order),
        step_s=time[order],
        peak_bytes=peak[order],
        lightest=lightest,
        lightest_bytes=lightest_bytes,
        limit_bytes=limit_bytes(nothing),
        budget_bytes=budget,
    )


def nearest(ranking: Ranking, wanted: dict[str, int], names: Iterable[str], top: int) -> IntArray:
    """Return the rows that change the fewest of `names` from `wanted`, then the fastest.

    A degree that doubles counts less than one that grows eightfold; rows are distinct in `names`.
    """
    lay, names = ranking.layouts, [n for n in names if n in COLUMNS]
    if not len(lay):
        return np.zeros(0, dtype=np.int64)
    distance = np.zeros(len(lay))
    for name in names:
        column = getattr(lay, name).astype(np.float64)
        far = np.abs(np.log2((column + 1e-9) / (wanted[name] + 1e-9))) if wanted[name] else column
        distance += (column != wanted[name]) * (1.0 + 0.1 * np.minimum(far, 10.0))
    order = np.lexsort((ranking.step_s, distance))
    found: dict[tuple[int, ...], int] = {}
    for row in order[:4096]:
        key = tuple(int(getattr(lay, n)[row]) for n in names)
        found.setdefault(key, int(row))
        if len(found) == top:
            break
    return np.array(list(found.values()), dtype=np.int64)

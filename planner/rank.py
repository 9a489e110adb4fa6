"""Rank: score every legal layout, keep those that fit, best first.

Closed forms score all of them; the pipelines of the leading ones are then run action by action,
enough of them that the fastest cannot be among the others.

Only totals of all rows are kept; what is shown is computed again, in full, by the same formulas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.leading import BATCH, Leaders, leaders
from planner.estimate.memory import budget_bytes, limit_bytes
from planner.estimate.running import Judged, lightened, runs
from planner.estimate.scoring import Scored, Tell, best_first, score, silent
from planner.layouts.grid import Tally
from planner.layouts.ranges import Fix
from planner.layouts.rules import Context
from planner.layouts.table import COLUMNS, IntArray, Layouts

AT_ONCE = 4096
"""Rows that are looked at together for shapes not seen yet."""
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
    fitted: int
    leaders: Leaders = field(default_factory=Leaders)

    @property
    def feasible(self) -> int:
        """Return how many layouts fit; of very many not all are kept (see `score`)."""
        return self.fitted

    def best_of_each_shape(self, top: int) -> IntArray:
        """Return the rows of the first `top` distinct (tp, pp, cp, ep, etp, dp), best first."""
        seen: dict[tuple[int, ...], int] = {}
        columns = [getattr(self.layouts, name) for name in SHAPE]
        for start in range(0, len(self.layouts), AT_ONCE):
            parts = (column[start : start + AT_ONCE].tolist() for column in columns)
            for row, shape in enumerate(zip(*parts, strict=True), start):
                if shape not in seen:
                    seen[shape] = row
                    if len(seen) == top:
                        return np.array(list(seen.values()), dtype=np.int64)
        return np.array(list(seen.values()), dtype=np.int64)


def rank(
    context: Context,
    gpus: int,
    fix: Fix,
    *,
    cores: int | None = None,
    worth_s: float = np.inf,
    tell: Tell = silent,
) -> Ranking:
    """Return every legal layout of `gpus` GPUs that `fix` allows, scored and ordered.

    A layout that was not run has its closed form, or its lower bound where that is more.

    Ties in time go to the smaller peak, then to the earlier row of the enumeration. The result does
    not depend on `cores`, by default all that this process may use. Pipelines that cannot be faster
    than `worth_s` (what another job takes) are not run.
    """
    found = score(context, gpus, fix, cores=cores, tell=tell)
    told = leaders(context, found.layouts, found.step_s, found.least_s, worth_s)
    found, told = _with_lighter_cuts(context, found, told)
    layouts, time, bound, peak = found.layouts, found.step_s, found.least_s, found.peak_bytes
    time = np.maximum(time, bound)
    put(told.judged, time, peak)
    order = best_first(time, peak)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    nothing = Inputs(*context, Layouts.empty())
    return Ranking(
        tally=found.tally,
        gpus=gpus,
        layouts=layouts.only(order),
        step_s=time[order],
        peak_bytes=peak[order],
        lightest=found.lightest,
        lightest_bytes=found.lightest_bytes,
        limit_bytes=limit_bytes(nothing),
        budget_bytes=budget_bytes(nothing),
        fitted=found.fitted,
        leaders=replace(told, judged={int(place[row]): one for row, one in told.judged.items()}),
    )


def _with_lighter_cuts(context: Context, found: Scored, told: Leaders) -> tuple[Scored, Leaders]:
    """Return both with the pipelines that fit by a cut of their layers that memory allows.

    Tried are those that nearly fit with the usual cut (see `score`), lowest bound first, as long as
    they might be faster than the best of those that fit.
    """
    near, scores = found.nearly, found.nearly_rows
    if near is None or scores is None:
        return found, told
    rows = np.flatnonzero((scores.least_s < told.best_s) & runs(near))
    rows = rows[np.argsort(scores.least_s[rows], kind="stable")]
    fit: dict[int, Judged] = {}
    best = told.best_s
    for start in range(0, len(rows), BATCH):
        some = [row for row in rows[start : start + BATCH].tolist() if scores.least_s[row] < best]
        if not some:
            break
        tried = zip(some, lightened(context, near.take(some)), strict=True)
        fit |= {row: one for row, one in tried if one is not None}
        best = min([best, *(one.step_s for one in fit.values())])
    if not fit:
        return found, told
    first = len(found.step_s)
    step_s, peaks = (np.array(v, dtype=np.float64) for v in _figures(fit.values()))
    found = found.with_nearly(np.array(list(fit), dtype=np.int64), step_s, peaks)
    more = {first + at: one for at, one in enumerate(fit.values())}
    pipelines = told.pipelines + len(more)
    return found, replace(told, judged=told.judged | more, pipelines=pipelines, best_s=best)


def _figures(judged: Iterable[Judged]) -> tuple[list[float], list[float]]:
    pairs = [(one.step_s, one.peak_bytes or 0.0) for one in judged]
    return [step for step, _ in pairs], [peak for _, peak in pairs]


def put(judged: Mapping[int, Judged], step_s: FloatArray, peaks: FloatArray) -> None:
    """Put what rows take when run in the place of what was estimated of them."""
    for row, one in judged.items():
        step_s[row] = one.step_s
        if one.peak_bytes is not None:
            peaks[row] = one.peak_bytes


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

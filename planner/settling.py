"""Settle: run what is shown of a ranking, so that every row stands where its own figures put it.

A layout that running makes slower than others of its shape makes room for the next of them. Closed
forms lead most astray where chunks hold unlike numbers of layers; bounds that count whole layers
put such rows back first, at little cost.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planner.estimate.bounds import whole_layers_s
from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.leading import MOST_TO_RUN
from planner.estimate.running import Judged, actions_of, judge, runs
from planner.estimate.scoring import best_first
from planner.layouts.rules import Context
from planner.layouts.table import IntArray
from planner.rank import SHAPE, Ranking, put

ROUNDS = 12
"""Times that a shown layout may make room for another of its shape."""
BESIDE = 2
"""Shapes beyond those shown that are run too: a run may be faster than its closed form."""
MOST_BOUNDED = 20_000
"""Rows that are bounded by whole layers for one table."""


def settle(context: Context, ranking: Ranking, top: int) -> Ranking:
    """Return the ranking with the layouts that are shown run too, and put where they then belong.

    Where a shape has more variants that promise much than may be run, the best of those that were
    stands for it.
    """
    ranking, left = _bounded(context, ranking, top + BESIDE), MOST_TO_RUN // 2
    for _ in range(ROUNDS):
        new = _not_run(ranking, top + BESIDE)
        cost = np.cumsum(actions_of(ranking.layouts.take(new)))
        new = [row for row, total in zip(new, cost.tolist(), strict=True) if total <= left]
        if not new:
            break
        left -= int(cost[len(new) - 1])
        ranking = _with_runs(context, ranking, new)
    while new := _not_run(ranking, top):  # what is shown is run in any case
        ranking = _with_runs(context, ranking, new, alone=True)
    return ranking


def _not_run(ranking: Ranking, top: int) -> list[int]:
    """Return the rows that would be shown and whose pipelines can be run, and were not."""
    rows = ranking.best_of_each_shape(top).tolist()
    new = [row for row in rows if row not in ranking.leaders.judged]
    return [row for row, small in zip(new, runs(ranking.layouts.take(new)), strict=True) if small]


def _bounded(context: Context, ranking: Ranking, top: int) -> Ranking:
    """Return the ranking with what stands before the last row shown bounded by whole layers."""
    done, left = np.zeros(len(ranking.layouts), dtype=np.bool_), MOST_BOUNDED
    done[list(ranking.leaders.judged)] = True
    while left > 0:
        last = int(ranking.best_of_each_shape(top).max(initial=-1))
        rows = np.flatnonzero(~done[: last + 1] & (ranking.layouts.pp[: last + 1] > 1))[:left]
        if not len(rows):
            break
        left -= len(rows)
        time = ranking.step_s.copy()
        bound = whole_layers_s(Inputs(*context, ranking.layouts.take(rows)))
        time[rows] = np.maximum(time[rows], bound)
        done[rows] = True
        order = _order(ranking, rows, time, ranking.peak_bytes)
        ranking, done = _moved(ranking, order, time, ranking.peak_bytes, {}), done[order]
    return ranking


def _with_runs(
    context: Context, ranking: Ranking, rows: list[int], *, alone: bool = False
) -> Ranking:
    """Return the ranking with some rows run; `alone` puts those like them that were not behind."""
    found = dict(zip(rows, judge(context, ranking.layouts.take(rows)), strict=True))
    time, peak = ranking.step_s.copy(), ranking.peak_bytes.copy()
    put(found, time, peak)
    changed = list(rows)
    for row, one in found.items() if alone else ():
        end = int(np.searchsorted(ranking.step_s, one.step_s, side="right"))
        behind = [r for r in not_run_like(ranking, row, end) if r not in found]
        time[behind] = np.nextafter(one.step_s, np.inf)
        changed += behind
    order = _order(ranking, np.array(changed), time, peak)
    return _moved(ranking, order, time, peak, found)


def not_run_like(ranking: Ranking, row: int, end: int | None = None) -> list[int]:
    """Return the rows before `end` of the same shape as `row` that were not run."""
    columns = (getattr(ranking.layouts, name) for name in SHAPE)
    like = np.logical_and.reduce([column[:end] == column[row] for column in columns])
    return [r for r in np.flatnonzero(like).tolist() if r not in ranking.leaders.judged]


def _order(ranking: Ranking, changed: IntArray, time: FloatArray, peak: FloatArray) -> IntArray:
    """Return all rows in order; only those up to where the slowest that changed belongs move."""
    slowest = time[changed].max()
    behind = int(np.searchsorted(ranking.step_s, slowest, side="right"))
    ahead = 1 + max(int(changed.max()), behind)
    order = np.arange(len(time))
    order[:ahead] = best_first(time[:ahead], peak[:ahead])
    return order


def _moved(
    ranking: Ranking,
    order: IntArray,
    time: FloatArray,
    peak: FloatArray,
    found: dict[int, Judged],
) -> Ranking:
    """Return the ranking in another order, with what was found out about some of its rows."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    known = ranking.leaders.judged | found
    return replace(
        ranking,
        layouts=ranking.layouts.only(order),
        step_s=time[order],
        peak_bytes=peak[order],
        leaders=replace(
            ranking.leaders, judged={int(place[row]): one for row, one in known.items()}
        ),
    )

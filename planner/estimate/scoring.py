"""Score: memory of every legal layout and time of each that fits, part by part on all cores.

A part is small enough for a core's cache, and independent of the others, so that a second core
changes nothing but the wall clock. A row is kept as two numbers and three results; of a space with
more fitting rows than MOST_KEPT the slowest are counted only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from planner.estimate.bounds import least_step_s
from planner.estimate.forked import in_order, usable_cores
from planner.estimate.inputs import FloatArray, Inputs, Shared
from planner.estimate.memory import budget_bytes, fits, peak_bytes
from planner.estimate.step import step_s
from planner.layouts.factored import SHAPE, Factored, Space
from planner.layouts.grid import Grid, Tally, grid_of
from planner.layouts.ranges import Fix
from planner.layouts.rules import Context
from planner.layouts.split import cuts_freely
from planner.layouts.table import IntArray, Layouts

MOST_KEPT = 1 << 21
"""Fitting rows that a search keeps; 30 bytes each, and as much again while they are sorted."""
CLOSE, NEARLY, NEARLY_KEPT = 1.15, 1.3, 64
"""Pipelines that need up to so much more than may be used, and how many of these are tried with a
cut of their layers that memory allows: the close ones, then the others, least lower bound first."""
PARALLEL_ROWS = 1 << 18
"""Rows (a fifth of a second) from which on a second core gains what a copy of this one costs."""


class Rows(NamedTuple):
    """Fitting rows of a space: which they are, and what they score."""

    turn: NDArray[np.int32]
    option: NDArray[np.int32]
    step_s: FloatArray
    least_s: FloatArray
    peak_bytes: FloatArray

    def take(self, rows: IntArray) -> Rows:
        """Return some of them."""
        columns: tuple[Any, ...] = tuple(column[rows] for column in self)
        return Rows(*columns)

    @classmethod
    def concat(cls, parts: list[Self]) -> Rows:
        """Return the rows of all parts, in order."""
        columns: tuple[Any, ...] = tuple(map(np.concatenate, zip(*parts, strict=True)))
        return Rows(*columns)


@dataclass
class Part:
    """What one part of a space has given."""

    tally: Tally
    rows: Rows | None
    lightest: Layouts
    """The lightest row that does not fit, if any."""
    lightest_bytes: float
    nearly: Rows | None = None


@dataclass(frozen=True)
class Scored:
    """All fitting layouts in the order of the enumeration, and the lightest of those that do not.

    `fitted` counts them; `layouts` are at most about MOST_KEPT of them: every one that may be
    among the fastest so many, the best of each shape, and the front of time and memory.
    """

    tally: Tally
    layouts: Layouts
    step_s: FloatArray
    least_s: FloatArray
    peak_bytes: FloatArray
    fitted: int
    lightest: Layouts
    lightest_bytes: float
    nearly: Factored | None = None
    """Pipelines that another cut may make fit, least bound first; `nearly_rows` are their scores.
    """
    nearly_rows: Rows | None = None

    def with_nearly(self, rows: IntArray, step_s: FloatArray, peak_bytes: FloatArray) -> Scored:
        """Return the same with some of those that nearly fit among those that do, at the end."""
        near, scores = self.nearly, self.nearly_rows
        if near is None or scores is None or not len(rows):
            return self
        more = scores.take(rows)
        turn, option = more.turn, more.option
        if isinstance(self.layouts, Factored):
            turn = np.concatenate([self.layouts.turn, turn])
            option = np.concatenate([self.layouts.option, option])
        return replace(
            self,
            layouts=Factored(near.space, near.base, turn, option),
            step_s=np.concatenate([self.step_s, step_s]),
            least_s=np.concatenate([self.least_s, more.least_s]),
            peak_bytes=np.concatenate([self.peak_bytes, peak_bytes]),
            fitted=self.fitted + len(rows),
        )


Tell = Callable[[int, int], None]
"""What is told of a search on its way: the parts scored, and how many there are."""


def silent(_done: int, _parts: int) -> None:
    """Tell nothing."""


def score(
    context: Context, gpus: int, fix: Fix, *, cores: int | None = None, tell: Tell = silent
) -> Scored:
    """Return the scores of every legal layout of `gpus` GPUs that `fix` allows."""
    tally = Tally()
    grid = grid_of(context, gpus, fix, tally)
    nothing = Scored(tally, Layouts.empty(), *(np.zeros(0),) * 3, 0, Layouts.empty(), np.inf)
    return nothing if grid is None else _gathered(grid, tally, cores or usable_cores(), tell)


def _gathered(grid: Grid, tally: Tally, cores: int, tell: Tell) -> Scored:
    kept: list[Rows] = []
    close: list[Rows] = []
    fitted, waiting = 0, 0
    lightest, lightest_bytes = Layouts.empty(), np.inf
    for done, part in enumerate(_parts(grid, cores), start=1):
        tell(done, len(grid))
        tally.add(part.tally)
        if part.lightest_bytes < lightest_bytes:
            lightest, lightest_bytes = part.lightest, part.lightest_bytes
        if part.nearly is not None:
            close.append(part.nearly)
        if part.rows is not None:
            kept.append(part.rows)
            fitted += len(part.rows.turn)
            waiting += len(part.rows.turn)
        if waiting > 2 * MOST_KEPT:
            kept = [fastest(Rows.concat(kept), grid.space)]
            waiting = len(kept[0].turn)
    every = np.arange(len(grid.count))
    near, near_rows = None, None
    if close:
        near_rows = _hopeful(Rows.concat(close), Inputs(*grid.context, Layouts.empty()))
        near = Factored(grid.space, every, near_rows.turn, near_rows.option)
    beside = {"nearly": near, "nearly_rows": near_rows}
    rest: dict[str, Any] = {"lightest": lightest, "lightest_bytes": lightest_bytes} | beside
    if not kept:
        return Scored(tally, Layouts.empty(), *(np.zeros(0),) * 3, 0, **rest)
    rows = fastest(Rows.concat(kept), grid.space)
    layouts = Factored(grid.space, every, rows.turn, rows.option)
    return Scored(tally, layouts, *rows[2:], fitted, **rest)


def _parts(grid: Grid, cores: int) -> Iterator[Part]:
    """Yield every part in order; the first alone, so that what all share is computed once."""
    one = partial(_part, grid, Shared())
    if len(grid):
        yield one(0)
    yield from in_order(one, range(1, len(grid)), cores if grid.rows > PARALLEL_ROWS else 1)


def _part(grid: Grid, shared: Shared, at: int) -> Part:
    layouts, tally = grid.part(at)
    part = Part(tally, None, Layouts.empty(), np.inf)
    if not len(layouts):
        return part
    x = Inputs(*grid.context, layouts, shared=shared)
    peak = peak_bytes(x)
    inside = fits(x, peak)
    if not inside.all():
        part.nearly = _nearly(x, layouts, peak, shared)
        low = int(np.where(inside, np.inf, peak).argmin())
        part.lightest, part.lightest_bytes = layouts.take([low]), float(peak[low])
        x, peak = x.only(np.flatnonzero(inside)), peak[inside]
    if len(peak):
        layouts = layouts.only(np.flatnonzero(inside))
        turn, option = layouts.base[layouts.turn].astype(np.int32), layouts.option.astype(np.int32)
        part.rows = Rows(turn, option, step_s(x), least_step_s(x), peak)
    return part


def _nearly(x: Inputs, layouts: Factored, peak: FloatArray, shared: Shared) -> Rows | None:
    """Return pipelines that another cut of their layers may make fit, those of least bound.

    A cut moves what GPUs hold; what their hosts hold has to fit as it is.
    """
    if not cuts_freely(x.workload.stack):
        return None
    budget = budget_bytes(x)
    piped = (peak > budget) & (peak <= NEARLY * budget) & (layouts.pp > 1)
    piped &= fits(x, np.minimum(peak, budget))
    if not piped.any():
        return None
    rows = layouts.only(np.flatnonzero(piped))
    near = Inputs(x.model, x.cluster, x.workload, rows, shared=shared)
    least = least_step_s(near)
    turn, option = rows.base[rows.turn].astype(np.int32), rows.option.astype(np.int32)
    found = Rows(turn, option, step_s(near), least, peak[piped])
    return _hopeful(found, x)


def _hopeful(rows: Rows, x: Inputs) -> Rows:
    """Return the rows that nearly fit which are tried with another cut."""
    far = rows.peak_bytes > CLOSE * budget_bytes(x)
    return rows.take(np.lexsort((rows.least_s, far))[:NEARLY_KEPT])


def best_first(step_s: FloatArray, peak_bytes: FloatArray) -> IntArray:
    """Return the rows by time, ties by the smaller peak, then by row.

    The quickest sort does not keep the order of ties; these are few and sorted once more.
    """
    order = np.argsort(step_s)
    again = np.diff(step_s[order]) == 0.0
    tied = np.flatnonzero(np.append(again, False) | np.append(False, again))
    rows = order[tied]
    order[tied] = rows[np.lexsort((rows, peak_bytes[rows], step_s[rows]))]
    return order


def fastest(rows: Rows, space: Space) -> Rows:
    """Return MOST_KEPT rows that may be the fastest, and those that lead in another way.

    By the lesser of closed form and lower bound: no row that is left out could be among them.
    """
    if len(rows.turn) <= MOST_KEPT:
        return rows
    could = np.minimum(rows.step_s, rows.least_s)
    limit = np.partition(could, MOST_KEPT - 1)[MOST_KEPT - 1]
    keep = could < limit
    keep[np.flatnonzero(could == limit)[: MOST_KEPT - int(keep.sum())]] = True
    order = best_first(rows.step_s, rows.peak_bytes)
    shapes = space.codes(SHAPE)
    first = np.full(shapes.size, -1)
    first[shapes.code[rows.turn][order[::-1]]] = order[::-1]  # the best row is written last
    keep[first[first >= 0]] = True
    peaks = rows.peak_bytes[order]
    keep[order[np.append(True, peaks[1:] < np.minimum.accumulate(peaks)[:-1])]] = True
    return rows.take(np.flatnonzero(keep))

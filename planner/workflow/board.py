"""Board: what is known of each row of a ranking on its fabric, and what is found out about it.

Each row has a lower bound that holds for every map; where it is placed, also how it runs there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.errors import InfeasibleError
from planner.estimate.bounds import least_step_s, whole_layers_s
from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.leading import EACH
from planner.estimate.running import Judged, actions_of, judge, loaded
from planner.layouts.rules import Context
from planner.layouts.table import IntArray, Layouts
from planner.place import (
    TIERS,
    Clock,
    FreeNodes,
    Load,
    Tree,
    flows_of,
    free_nodes,
    loads_of,
    trades_of,
)
from planner.plan import Layout
from planner.rank import SHAPE, Ranking
from planner.workflow.request import PlanRequest

MOST_TO_RUN = 1_500_000
"""Actions run for the layouts of one plan, one or two seconds."""


@dataclass
class Board:
    """What is known of each row of a ranking: a lower bound, and how it runs where it is placed."""

    request: PlanRequest
    ranking: Ranking
    free_air: Context
    """The same on uplinks as wide as what is below them."""
    least_s: FloatArray
    placed_s: FloatArray
    roomless: NDArray[np.bool_]
    loads: dict[tuple[int, ...], list[Load]] = field(default_factory=dict)
    judged: dict[int, Judged] = field(default_factory=dict)
    traded: set[tuple[int, ...]] = field(default_factory=set)
    """Keys whose rows are bounded by what uplinks carry whatever the map."""
    refusal: InfeasibleError | None = None
    actions_left: int = MOST_TO_RUN

    @classmethod
    def of(cls, request: PlanRequest, ranking: Ranking) -> Board:
        """Return a board on which nothing is placed yet."""
        cluster = request.cluster
        narrow = ("leaf_oversubscription", "pod_oversubscription", "routing_efficiency")
        fabric = cluster.fabric.model_copy(update=dict.fromkeys(narrow, 1.0))
        wide = cluster.model_copy(update={"fabric": fabric})
        free_air = Context(request.model, wide, request.workload)
        least = least_step_s(Inputs(*free_air, ranking.layouts))
        none = np.zeros(len(least), dtype=np.bool_)
        return cls(request, ranking, free_air, least, np.full(len(least), np.inf), none)

    @cached_property
    def free(self) -> FreeNodes:
        """Return the nodes that can be used."""
        return free_nodes(self.request.cluster, self.request.unhealthy)

    @cached_property
    def tree(self) -> Tree:
        """Return the switches above them."""
        return Tree.of(self.request.cluster)

    @property
    def best_s(self) -> float:
        """Return the step time of the best layout placed."""
        return float(self.placed_s.min())

    def might_win(self) -> IntArray:
        """Return the rows that are not placed and whose bound is under the best time."""
        waiting = ~np.isfinite(self.placed_s) & ~self.roomless
        return np.flatnonzero(waiting & (self.least_s < self.best_s))

    def key(self, row: int) -> tuple[int, ...]:
        """Return what the maps of a layout depend on: interleaved, its pipeline is a ring."""
        layouts = self.ranking.layouts
        return (*(int(getattr(layouts, n)[row]) for n in SHAPE), int(layouts.vpp[row] > 1))

    def like(self, row: int) -> NDArray[np.bool_]:
        """Return which rows have the key of `row`."""
        layouts, (*shape, several) = self.ranking.layouts, self.key(row)
        same: NDArray[np.bool_] = (layouts.vpp > 1) == several
        for name, value in zip(SHAPE, shape, strict=True):
            same &= getattr(layouts, name) == value
        return same

    def layouts(self, rows: Sequence[int] | IntArray) -> Layouts:
        """Return some rows."""
        return self.ranking.layouts.take(np.asarray(rows, dtype=np.int64))

    def ranking_in(self, order: IntArray) -> Ranking:
        """Return the ranking with its rows in `order` and what is known of them now."""
        at = {row: n for n, row in enumerate(order.tolist())}
        known = {**self.ranking.leaders.judged, **self.judged}
        return replace(
            self.ranking,
            layouts=self.ranking.layouts.take(order),
            step_s=self.times()[order],
            peak_bytes=self.peaks()[order],
            leaders=replace(
                self.ranking.leaders,
                judged={at[row]: one for row, one in known.items() if row in at},
            ),
        )

    def times(self) -> FloatArray:
        """Return what each row takes; one that is not placed takes no less than the best."""
        waiting = np.maximum(self.ranking.step_s, self.least_s)
        return np.where(np.isfinite(self.placed_s), self.placed_s, np.maximum(waiting, self.best_s))

    def peaks(self) -> FloatArray:
        """Return the peak of each row with its own cut."""
        peaks = self.ranking.peak_bytes.copy()
        for row, one in self.judged.items():
            peaks[row] = peaks[row] if one.peak_bytes is None else one.peak_bytes
        return peaks

    def order(self) -> IntArray:
        """Return the rows that can be placed, fastest first."""
        order = np.lexsort((self.peaks(), ~np.isfinite(self.placed_s), self.times()))
        found: IntArray = order[~self.roomless[order]]
        return found


def trade(board: Board, rows: IntArray) -> bool:
    """Bound rows by what uplinks carry whatever the map; return whether any is new to that.

    Of each tier the best of the trades between rings and sends counts, and the worse of the tiers.
    """
    new = [row for row in rows.tolist() if board.key(row) not in board.traded]
    if not new:
        return False
    keys = list(dict.fromkeys(map(board.key, new)))
    board.traded.update(keys)
    first = {key: next(row for row in new if board.key(row) == key) for key in keys}
    for tier in range(TIERS):
        trades = {key: ways[tier] for key, row in first.items() if (ways := _trades(board, row))}
        traded = [row for row in new if board.key(row) in trades]
        counts = [len(trades[board.key(row)]) for row in traded]
        if not traded:
            return True
        flows = flows_of([load for row in traded for load in trades[board.key(row)]])
        layouts = board.layouts(np.repeat(traded, counts))
        bound = least_step_s(Inputs(*board.request.context, layouts, flows=flows))
        hopeful = np.flatnonzero(bound < board.best_s)  # of the others no more needs to be known
        if len(hopeful):
            some, under = layouts.take(hopeful), flows.take(hopeful)
            exact = whole_layers_s(Inputs(*board.request.context, some, flows=under))
            bound[hopeful] = np.maximum(bound[hopeful], exact)
        least = np.minimum.reduceat(bound, np.cumsum([0, *counts[:-1]]))
        board.least_s[traded] = np.maximum(board.least_s[traded], least)
    return True


def _trades(board: Board, row: int) -> list[list[Load]]:
    """Return the trades of a row's shape per tier; none where it has no room."""
    clock = Clock(board.request.context, layout_of(board, row))
    try:
        return trades_of(board.free, board.tree, clock)
    except InfeasibleError:
        return []  # said when it is placed


def map_bounds_s(board: Board, rows: IntArray, loads: Sequence[Load]) -> FloatArray:
    """Return a lower bound for each of `rows` under each of `loads`."""
    layouts = board.layouts(np.repeat(rows, len(loads)))
    flows = flows_of([*loads] * len(rows))
    bound: FloatArray = whole_layers_s(Inputs(*board.request.context, layouts, flows=flows))
    return bound.reshape(len(rows), len(loads))


def loads_on_maps(board: Board, row: int) -> list[Load]:
    """Return the loads of the maps of a row's shape; none, and say so, where it has no room."""
    key, request = board.key(row), board.request
    if key not in board.loads:
        clock, rule = Clock(request.context, layout_of(board, row)), request.pipelines
        try:
            board.loads[key] = loads_of(board.free, board.tree, clock, pipelines=rule)
        except InfeasibleError as error:
            board.loads[key] = []
            board.roomless |= board.like(row)
            board.refusal = error
    return board.loads[key]


def run_on_maps(board: Board, rows: IntArray, loads: Sequence[Load], least_s: FloatArray) -> None:
    """Run the pipelines of `rows` on their maps and keep the best; `least_s` is [row, load].

    The map with the least bound comes first; others whose bound is above what it took need not run.
    """
    known = {row: board.ranking.leaders.judged.get(row) for row in rows.tolist()}
    unknown = [row for row, one in known.items() if one is None]
    if unknown:
        found = judge(board.request.context, board.layouts(unknown))
        known |= dict(zip(unknown, found, strict=True))
    first = least_s.argmin(axis=1)
    pairs = list(zip(range(len(rows)), first.tolist(), strict=True))
    while pairs:
        picked = rows[[n for n, _ in pairs]]
        own = [one for row in picked.tolist() if (one := known[row]) is not None]
        flows = flows_of([loads[k] for _, k in pairs])
        timed = loaded(board.request.context, board.layouts(picked), own, flows)
        for row, one in zip(picked.tolist(), timed, strict=True):
            if one.step_s < board.placed_s[row]:
                board.judged[row], board.placed_s[row] = one, one.step_s
        board.actions_left -= int((actions_of(board.layouts(picked)) + EACH).sum())
        least_s[tuple(zip(*pairs, strict=True))] = np.inf
        left = least_s < board.placed_s[rows][:, None]
        pairs = [(n, int(least_s[n].argmin())) for n in np.flatnonzero(left.any(axis=1)).tolist()]


def layout_of(board: Board, row: int) -> Layout:
    """Return a row as a record."""
    return Layout.model_validate(board.ranking.layouts.row(row))

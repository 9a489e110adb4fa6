"""On the fabric: the leading layouts placed, timed on the links that they get, and put in order.

A ranking takes every pipeline to stand under one leaf and every ring to leave it. Where uplinks are
narrow, a layout's own map decides: one that wins on paper and loses on this fabric loses. A map can
only slow a step down, so no layout is faster than without contention. Those that could still win
are placed, lowest bound first, until none is left.
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
    contended,
    flows_of,
    free_nodes,
    loads_of,
    trades_of,
)
from planner.plan import Layout
from planner.rank import ROUNDS, SHAPE, Ranking
from planner.units import many, seconds
from planner.workflow.request import PlanRequest

MOST_SHAPES = 96
"""Shapes that are placed for one plan; what is left stays behind the best, and that is said."""
MOST_TO_RUN = 1_500_000
"""Actions run for them, one or two seconds."""
AT_ONCE = 8
"""Layouts of a shape whose pipelines are run together, lowest bound first."""
SAID = 0.0005
"""A relative difference in step time that is worth a sentence."""


def on_fabric(request: PlanRequest, ranking: Ranking, top: int) -> tuple[Ranking, list[str]]:
    """Return the ranking with the leading layouts placed by the request's rule, and what to say.

    Where no uplink is narrower than the NICs below it, and no expert group can be torn out of a
    scale-up domain, every map takes the estimated time: then only layouts without room fall out.
    Raises InfeasibleError where nothing can be placed.
    """
    if not len(ranking.layouts):
        return ranking, []
    if not map_matters(request):
        return _with_room(request, ranking, top), []
    board = _Board.of(request, ranking)
    left = _find_best(board)
    order = _shown_too(board, top)
    return board.ranking_in(order), _remarks(board, int(order[0]), left)


def map_matters(request: PlanRequest) -> bool:
    """Return whether a map can change what a layout takes."""
    domains = request.cluster.domain_nodes > 1 and request.model.experts is not None
    return contended(request.cluster) or domains


def floor_s(request: PlanRequest, ranking: Ranking) -> float:
    """Return a step time that no layout of a ranking beats, wherever its ranks are placed.

    What a ranking takes on paper is none: its rings all leave a leaf, those of a map may not.
    """
    if not map_matters(request):
        return float(ranking.step_s.min())
    board = _Board.of(request, ranking)
    rows = np.flatnonzero(board.least_s < ranking.step_s.min())
    if len(rows):
        exact = whole_layers_s(Inputs(*board.free_air, board.layouts(rows)))
        board.least_s[rows] = np.maximum(board.least_s[rows], exact)
    return float(board.least_s.min())


def on_maps(request: PlanRequest, ranking: Ranking, rows: Sequence[int]) -> Ranking:
    """Return a ranking in its order with some rows timed on the links of the maps that they get.

    Rows that find no room fall out, with all that are placed alike. Raises InfeasibleError where
    nothing is left.
    """
    board = _Board.of(request, ranking)
    for row in rows:
        if loads := _loads(board, row):
            one = np.array([row])
            _run(board, one, loads, _least_s(board, one, loads))
    if board.roomless.all():
        raise board.refusal or InfeasibleError("no layout can be placed")
    times = np.where(np.isfinite(board.placed_s), board.placed_s, ranking.step_s)
    there = replace(ranking, step_s=times)
    return replace(board, ranking=there, placed_s=times).ranking_in(np.flatnonzero(~board.roomless))


def _with_room(request: PlanRequest, ranking: Ranking, top: int) -> Ranking:
    """Return the ranking without layouts whose tensor groups find no scale-up domain."""
    if request.cluster.domain_nodes == 1:
        return ranking
    roomless = np.zeros(len(ranking.layouts), dtype=np.bool_)
    board = _Board(request, ranking, request.context, ranking.step_s, ranking.step_s, roomless)
    while waiting := _unsure(board, top):
        for row in waiting:
            _loads(board, row)
    return board.ranking_in(_placeable(board)) if board.roomless.any() else ranking


def _unsure(board: _Board, top: int) -> list[int]:
    """Return the rows that will be shown with tensor groups over nodes, not placed so far."""
    order = _placeable(board)
    shown = order[board.ranking_in(order).best_of_each_shape(top)]
    over = board.ranking.layouts.tp[shown] > board.request.cluster.node.gpus
    return [row for row in shown[over].tolist() if board.key(row) not in board.loads]


def _placeable(board: _Board) -> IntArray:
    """Return the rows in order; raises InfeasibleError where none has room."""
    if not len(order := board.order()):
        raise board.refusal or InfeasibleError("no layout can be placed")
    return order


@dataclass
class _Board:
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
    def of(cls, request: PlanRequest, ranking: Ranking) -> _Board:
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


def _find_best(board: _Board) -> int:
    """Place layouts until none of the others can win; return how many there was no time for."""
    row, sharp = 0, False
    while True:
        _place_like(board, row)
        rows = board.might_win()
        if len(rows) and not sharp and np.isfinite(board.best_s):
            exact = whole_layers_s(Inputs(*board.free_air, board.layouts(rows)))
            board.least_s[rows] = np.maximum(board.least_s[rows], exact)
            rows, sharp = board.might_win(), True
        if len(rows) and sharp and _trade(board, rows):
            rows = board.might_win()
        if not len(rows) or len(board.loads) >= MOST_SHAPES or board.actions_left < 0:
            return len(rows)
        row = int(rows[board.least_s[rows].argmin()])


def _trade(board: _Board, rows: IntArray) -> bool:
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


def _trades(board: _Board, row: int) -> list[list[Load]]:
    """Return the trades of a row's shape per tier; none where it has no room."""
    clock = Clock(board.request.context, _layout(board, row))
    try:
        return trades_of(board.free, board.tree, clock)
    except InfeasibleError:
        return []  # said when it is placed


def _place_like(board: _Board, row: int) -> None:
    """Place the rows like `row` that might win on one of their maps."""
    loads = _loads(board, row)
    if not loads:
        return
    rows = np.flatnonzero(board.like(row))
    rows = rows[(board.least_s[rows] < board.best_s) & ~np.isfinite(board.placed_s[rows])]
    least = _least_s(board, rows, loads)
    board.least_s[rows] = np.maximum(board.least_s[rows], least.min(axis=1))
    order = np.argsort(board.least_s[rows], kind="stable")
    for start in range(0, len(rows), AT_ONCE):
        some = order[start : start + AT_ONCE]
        some = some[board.least_s[rows[some]] < board.best_s]
        if not len(some) or board.actions_left < 0:
            return
        _run(board, rows[some], loads, least[some])


def _least_s(board: _Board, rows: IntArray, loads: Sequence[Load]) -> FloatArray:
    """Return a lower bound for each of `rows` under each of `loads`."""
    layouts = board.layouts(np.repeat(rows, len(loads)))
    flows = flows_of([*loads] * len(rows))
    bound: FloatArray = whole_layers_s(Inputs(*board.request.context, layouts, flows=flows))
    return bound.reshape(len(rows), len(loads))


def _loads(board: _Board, row: int) -> list[Load]:
    """Return the loads of the maps of a row's shape; none, and say so, where it has no room."""
    key, request = board.key(row), board.request
    if key not in board.loads:
        clock, rule = Clock(request.context, _layout(board, row)), request.pipelines
        try:
            board.loads[key] = loads_of(board.free, board.tree, clock, pipelines=rule)
        except InfeasibleError as error:
            board.loads[key] = []
            board.roomless |= board.like(row)
            board.refusal = error
    return board.loads[key]


def _run(board: _Board, rows: IntArray, loads: Sequence[Load], least_s: FloatArray) -> None:
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


def _shown_too(board: _Board, top: int) -> IntArray:
    """Place what will be shown too, and return the rows in order.

    A layout that its map makes slower than others of its shape makes room for the next of them.
    """
    for _ in range(ROUNDS):
        order = _placeable(board)
        shown = order[board.ranking_in(order).best_of_each_shape(top)].tolist()
        waiting = [row for row in shown if row not in board.judged]
        for row in waiting:
            if loads := _loads(board, row):
                one = np.array([row])
                _run(board, one, loads, _least_s(board, one, loads))
        if not waiting:
            break
    return board.order()


def _remarks(board: _Board, best: int, left: int) -> list[str]:
    """Return how a layout that led on paper fell behind, and how sure the best one is."""
    request, ranking = board.request, board.ranking
    fabric = f"this {Clock(request.context, _layout(board, best)).fabric()} fabric"
    said = f"{many(len(board.judged), 'layout')} placed on {fabric}"
    if left:
        most = 1 - board.least_s[board.might_win()].min() / board.best_s
        told = [f"{said}; {left:,} more might be up to {most:.1%} faster, by their lower bounds"]
    else:
        kept = len(ranking.layouts)
        other = "other" if kept == ranking.feasible else f"other of the {kept:,} kept"
        told = [f"{said}: no {other} can be faster there, by its lower bound"]
    took = board.placed_s[0]
    if best == 0 or (np.isfinite(took) and took < board.best_s * (1 + SAID)):
        return told
    was = f"{_layout(board, 0).short()} is first on paper ({seconds(ranking.step_s[0])})"
    if not np.isfinite(took):
        return [f"{was} and cannot be placed", *told]
    loses = f"takes {seconds(took)} and loses by {took / board.best_s - 1:.1%}"
    return [f"{was}; placed on {fabric} it {loses}", *told]


def _layout(board: _Board, row: int) -> Layout:
    return Layout.model_validate(board.ranking.layouts.row(row))

"""On the fabric: the leading layouts placed, timed on the links that they get, and put in order.

A ranking takes every pipeline to stand under one leaf and every ring to leave it. Where uplinks are
narrow, a layout's own map decides: one that wins on paper and loses on this fabric loses. A map can
only slow a step down, so no layout is faster than without contention. Those that could still win
are placed, lowest bound first, until none is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.errors import InfeasibleError
from planner.estimate.bounds import whole_layers_s
from planner.estimate.inputs import FloatArray, Inputs
from planner.layouts.table import IntArray
from planner.objectives import Job, allowed_step_s
from planner.place import Clock, contended
from planner.rank import Ranking
from planner.settling import ROUNDS
from planner.units import many, seconds
from planner.workflow.board import (
    Board,
    layout_of,
    loads_on_maps,
    map_bounds_s,
    run_on_maps,
    trade,
)
from planner.workflow.request import PlanRequest

MOST_SHAPES = 96
"""Shapes that are placed for one plan; what is left stays behind the best, and that is said."""
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
    board = Board.of(request, ranking)
    left = _find_best(board)
    order = _shown_too(board, top)
    return board.ranking_in(order), _remarks(board, int(order[0]), left)


def map_matters(request: PlanRequest) -> bool:
    """Return whether a map can change what a layout takes."""
    domains = request.cluster.domain_nodes > 1 and request.model.experts is not None
    return contended(request.cluster) or domains


def floors_s(request: PlanRequest, ranking: Ranking) -> FloatArray:
    """Return, per layout, a step time that it does not beat, wherever its ranks are placed."""
    return Board.of(request, ranking).least_s


def floor_s(request: PlanRequest, ranking: Ranking) -> float:
    """Return a step time that no layout of a ranking beats, wherever its ranks are placed.

    What a ranking takes on paper is none: its rings all leave a leaf, those of a map may not.
    """
    if not map_matters(request):
        return float(ranking.step_s.min())
    board = Board.of(request, ranking)
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
    board = Board.of(request, ranking)
    for row in rows:
        if loads := loads_on_maps(board, row):
            one = np.array([row])
            run_on_maps(board, one, loads, map_bounds_s(board, one, loads))
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
    board = Board(request, ranking, request.context, ranking.step_s, ranking.step_s, roomless)
    while waiting := _unsure(board, top):
        for row in waiting:
            loads_on_maps(board, row)
    return board.ranking_in(_placeable(board)) if board.roomless.any() else ranking


def _unsure(board: Board, top: int) -> list[int]:
    """Return the rows that will be shown with tensor groups over nodes, not placed so far."""
    order = _placeable(board)
    shown = order[board.ranking_in(order).best_of_each_shape(top)]
    over = board.ranking.layouts.tp[shown] > board.request.cluster.node.gpus
    return [row for row in shown[over].tolist() if board.key(row) not in board.loads]


def _placeable(board: Board) -> IntArray:
    """Return the rows in order; raises InfeasibleError where none has room."""
    if not len(order := board.order()):
        raise board.refusal or InfeasibleError("no layout can be placed")
    return order


def _find_best(board: Board) -> int:
    """Place layouts until none of the others can win; return how many there was no time for."""
    row, sharp = 0, False
    while True:
        _place_like(board, row)
        rows = board.might_win()
        if len(rows) and not sharp and np.isfinite(board.best_s):
            exact = whole_layers_s(Inputs(*board.free_air, board.layouts(rows)))
            board.least_s[rows] = np.maximum(board.least_s[rows], exact)
            rows, sharp = board.might_win(), True
        if len(rows) and sharp and trade(board, rows):
            rows = board.might_win()
        if not len(rows) or len(board.loads) >= MOST_SHAPES or board.actions_left < 0:
            return len(rows)
        row = int(rows[board.least_s[rows].argmin()])


def _place_like(board: Board, row: int) -> None:
    """Place the rows like `row` that might win on one of their maps."""
    loads = loads_on_maps(board, row)
    if not loads:
        return
    rows = np.flatnonzero(board.like(row))
    rows = rows[(board.least_s[rows] < board.best_s) & ~np.isfinite(board.placed_s[rows])]
    least = map_bounds_s(board, rows, loads)
    board.least_s[rows] = np.maximum(board.least_s[rows], least.min(axis=1))
    order = np.argsort(board.least_s[rows], kind="stable")
    for start in range(0, len(rows), AT_ONCE):
        some = order[start : start + AT_ONCE]
        some = some[board.least_s[rows[some]] < board.best_s]
        if not len(some) or board.actions_left < 0:
            return
        run_on_maps(board, rows[some], loads, least[some])


def _shown_too(board: Board, top: int) -> IntArray:
    """Place what will be shown too, and return the rows in order.

    A layout that its map makes slower than others of its shape makes room for the next of them.
    """
    for _ in range(ROUNDS):
        order = _placeable(board)
        shown = order[board.ranking_in(order).best_of_each_shape(top)].tolist()
        waiting = [row for row in shown if row not in board.judged]
        for row in waiting:
            if loads := loads_on_maps(board, row):
                one = np.array([row])
                run_on_maps(board, one, loads, map_bounds_s(board, one, loads))
        if not waiting:
            break
    return board.order()


def _remarks(board: Board, best: int, left: int) -> list[str]:
    """Return how a layout that led on paper fell behind, and how sure the best one is."""
    request, ranking = board.request, board.ranking
    fabric = f"this {Clock(request.context, layout_of(board, best)).fabric()} fabric"
    said = f"{many(len(board.judged), 'layout')} placed on {fabric}"
    if left:
        most = 1 - board.least_s[board.might_win()].min() / board.best_s
        told = [f"{said}; {left:,} more might be up to {most:.1%} faster, by their lower bounds"]
    else:
        kept = len(ranking.layouts)
        other = "other" if kept == ranking.feasible else f"other of the {kept:,} kept"
        told = [f"{said}: no {other} can be faster there, by its lower bound"]
    told += _late(board)
    took = board.placed_s[0]
    if best == 0 or (np.isfinite(took) and took < board.best_s * (1 + SAID)):
        return told
    mine, paper = layout_of(board, best).short(), ranking.step_s
    was = f"{layout_of(board, 0).short()} is first on paper ({seconds(paper[0])}; {mine} takes "
    was += f"{seconds(paper[best])})"
    if not np.isfinite(took):
        return [f"{was} and cannot be placed", *told]
    now = f"it takes {_placed(took, paper[0])} and the other {_placed(board.best_s, paper[best])}"
    return [f"{was}; placed on {fabric} {now}: {1 - board.best_s / took:.1%} less", *told]


def _late(board: Board) -> list[str]:
    """Return how many layouts meet the limits on paper and miss them where they are placed."""
    aim, ranking = board.request.aim, board.ranking
    most = allowed_step_s(aim, Job(ranking.gpus, board.request.workload.tokens))
    placed = np.isfinite(board.placed_s)
    late = placed & (ranking.step_s <= most) & (board.placed_s > most)
    if not (count := int(late.sum())):
        return []
    least = seconds(board.placed_s[late].min())
    meets = "layout meets" if count == 1 else "layouts meet"
    return [
        f"{count:,} {meets} the limits ({seconds(most)} a step) on paper but not where placed "
        f"({least} at the least), and left out"
    ]


def _placed(placed_s: float, paper_s: float) -> str:
    """Return a step time on its map, and what that makes of it."""
    return f"{seconds(placed_s)} ({placed_s / paper_s - 1:+.1%})"

"""Fastest: orders of filling leafs, scored in seconds, against a bound that no map beats.

The bound is the step with what the uplinks carry at the least (`planner.place.bound`). Where an
order meets it (on most fabrics, also narrow ones) it is proved best; elsewhere the gap says how far
that is from proved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from planner.place.cells import Grid
from planner.place.clock import Clock
from planner.place.groups import IntArray, splits
from planner.place.orders import Order, window_orders
from planner.place.tilings import tiled_orders
from planner.place.traffic import Load, apart, load_of
from planner.place.tree import Tree
from planner.plan import Layout, OrderTime
from planner.units import seconds

SAME = 1e-6
"""Step times that differ by less (relative) count as equal: fewer splits then decide."""
MATTERS = 0.0005
"""A difference in step time that is worth a sentence of its own."""
UNDER_LEAF = "one leaf a pipeline"
BY_NAME = "hosts in name order"


@dataclass(frozen=True)
class Cells:
    """The cells that there are: `nodes` is [cell, node], sorted by leaf."""

    grid: Grid
    nodes: IntArray
    leaf_order: tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """One map: what it is called, its nodes in rank order, its splits and step time."""

    words: str
    nodes: IntArray
    splits: int
    seconds: float


@dataclass(frozen=True)
class _Way:
    """One map that is not timed yet; `order` says how to get its nodes where they are not known."""

    load: Load
    splits: int
    words: str = ""
    nodes: IntArray | None = None
    order: Order | None = None


def scored(
    clock: Clock,
    tree: Tree,
    ranks: int,
    maps: Mapping[str, IntArray],
    cells: Cells | None,
    *,
    bound_s: float = 0.0,
) -> list[Scored]:
    """Return `maps` (words -> nodes in rank order), then orders of `cells`, with their times.

    Where one of the simpler orders takes no longer than `bound_s`, no others are tried.
    """
    timed = _timed(clock, tree, ranks, maps, cells, bound_s=bound_s)
    out = [Scored(w.words, w.nodes, w.splits, t) for w, t in timed if w.nodes is not None]
    if cells:
        best = _best_orders(timed)
        out += [Scored(o.words(), _nodes(cells, o), lost, time) for o, lost, time in best]
    return out


def loads(
    clock: Clock,
    tree: Tree,
    ranks: int,
    maps: Mapping[str, IntArray],
    cells: Cells | None,
    *,
    bound_s: float = 0.0,
) -> list[Load]:
    """Return the loads of the same maps, without those that carry as much as another or more."""
    if cells is None:
        ways = list(_named(clock, tree, ranks, maps))
    else:
        ways = [way for way, _ in _timed(clock, tree, ranks, maps, cells, bound_s=bound_s)]
    found = dict.fromkeys(way.load for way in ways)
    return [one for one in found if not any(other != one and other <= one for other in found)]


def _timed(
    clock: Clock,
    tree: Tree,
    ranks: int,
    maps: Mapping[str, IntArray],
    cells: Cells | None,
    *,
    bound_s: float,
) -> list[tuple[_Way, float]]:
    """Return maps and windows with their times, and tilings where those leave something open."""
    ways = list(_named(clock, tree, ranks, maps))
    if cells and clock.contended:
        ways += _ordered(clock, tree, ranks, cells, _windows(tree, cells))
    times = clock.seconds([way.load for way in ways])
    if cells and clock.contended and min(times) > bound_s * (1 + MATTERS):
        tiled = tiled_orders(cells.grid, tree.leaf[cells.nodes[:, 0]])
        known = {way.load for way in ways}
        more = [
            way
            for way in _ordered(clock, tree, ranks, cells, tiled)
            if not any(load <= way.load for load in known)
        ]
        ways += more
        times += clock.seconds([way.load for way in more])
    return list(zip(ways, times, strict=True))


def _named(clock: Clock, tree: Tree, ranks: int, maps: Mapping[str, IntArray]) -> Iterator[_Way]:
    for words, nodes in maps.items():
        leaf_of_rank = np.repeat(tree.leaf[nodes], ranks)
        load, lost = _of_nodes(clock.layout, leaf_of_rank, _pods(tree), clock.near)
        yield _Way(_torn(clock, load, tree, nodes, ranks), lost, words, nodes)


def fastest(found: list[Scored]) -> Scored:
    """Return the map with the least step time; of equals the one with fewest splits, then first."""
    least = min(one.seconds for one in found) * (1 + SAME)
    return min((one for one in found if one.seconds <= least), key=lambda one: one.splits)


def order_times(found: list[Scored]) -> list[OrderTime]:
    """Return what is known of each map for the record."""
    return [OrderTime(order=o.words, splits=o.splits, step_time_s=o.seconds) for o in found]


def _of_nodes(
    layout: Layout, leaf_of_rank: IntArray, pod_of_leaf: IntArray, near: int
) -> tuple[Load, int]:
    ranks = leaf_of_rank.reshape(layout.pp, layout.dp * layout.cp, layout.tp)
    load = load_of(
        layout,
        ranks[:, :, 0],
        pod_of_leaf,
        send_gpus=layout.tp,
        member_ranks=layout.tp,
        near=near,
    )
    return load, splits(layout, leaf_of_rank)


def _torn(clock: Clock, load: Load, tree: Tree, nodes: IntArray, ranks: int) -> Load:
    """Return the load with the ranks of expert groups that stand outside their domain."""
    if not clock.tears:
        return load
    domain_of_rank = np.repeat(tree.domain[nodes], ranks)
    return replace(load, apart=apart(clock.layout, domain_of_rank, clock.near))


def _windows(tree: Tree, cells: Cells) -> Iterator[Order]:
    leaf_of_slot = tree.leaf[cells.nodes[:, 0]]
    rank_of_leaf = {leaf: n for n, leaf in enumerate(cells.leaf_order)}
    last = len(rank_of_leaf)
    packed = np.argsort([rank_of_leaf.get(k, last) for k in leaf_of_slot.tolist()], kind="stable")
    return window_orders(cells.grid, leaf_of_slot, (packed, np.arange(len(leaf_of_slot))))


def _ordered(
    clock: Clock, tree: Tree, ranks: int, cells: Cells, orders: Iterable[Order]
) -> Iterator[_Way]:
    leaf_of_slot = tree.leaf[cells.nodes[:, 0]]
    grid, pod_of_leaf, near = cells.grid, _pods(tree), clock.near
    for order in orders:
        leaf = leaf_of_slot[order.slots]
        load = load_of(
            clock.layout,
            leaf,
            pod_of_leaf,
            send_gpus=grid.pipelines * clock.layout.tp * clock.layout.cp,
            member_ranks=grid.cell_nodes * ranks,
            near=near,
        )
        if clock.tears:
            load = _torn(clock, load, tree, _nodes(cells, order), ranks)
        yield _Way(load, int((leaf[1:] != leaf[:-1]).sum()) * grid.pipelines, order=order)


def _best_orders(found: Iterable[tuple[_Way, float]]) -> list[tuple[Order, int, float]]:
    """Return the best order of each name, in the order in which they came."""
    best: dict[str, tuple[Order, int, float]] = {}
    for way, time in found:
        if way.order is None:
            continue
        kept = best.get(way.order.words())
        if kept is None or (time, way.splits) < (kept[2], kept[1]):
            best[way.order.words()] = (way.order, way.splits, time)
    return list(best.values())


def _nodes(cells: Cells, order: Order) -> IntArray:
    return cells.nodes[order.slots.reshape(-1)].reshape(-1)


def _pods(tree: Tree) -> IntArray:
    """Return the pod of every leaf."""
    pods = np.zeros(int(tree.leaf.max()) + 1, dtype=np.int64)
    pods[tree.leaf] = tree.pod
    return pods


def remarks(clock: Clock, found: list[Scored], chosen: Scored) -> list[str]:
    """Return what the other rule would give, and how much the order of hosts matters at all.

    `found` begins with one leaf a pipeline and hosts in name order.
    """
    fabric = f"this {clock.fabric()} fabric"
    if not clock.contended:
        return [
            f"no uplink of {fabric} is narrower than the NICs below it: every order of hosts takes "
            f"the same estimated time, {seconds(chosen.seconds)} a step"
        ]
    under, best = found[0], fastest(found)
    worst = max(found, key=lambda one: one.seconds)
    spread = worst.seconds / best.seconds - 1
    if spread < MATTERS:
        return [f"on {fabric} any order tried is within {spread:.2%} of {seconds(best.seconds)}"]
    cost = under.seconds / best.seconds - 1
    if cost < MATTERS:
        return [
            f"on {fabric} no order tried is faster than one leaf a pipeline; "
            f"{worst.words} would cost {spread:.1%}"
        ]
    if chosen is under:
        return [
            f"the one-leaf rule costs {cost:.1%} on {fabric}: --pipelines fastest takes "
            f"{best.words}, {seconds(best.seconds)} a step instead of {seconds(under.seconds)}"
        ]
    return [
        f"{best.words}: the one-leaf rule would cost {cost:.1%} on {fabric} "
        f"({seconds(under.seconds)} a step instead of {seconds(best.seconds)})"
    ]

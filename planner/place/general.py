"""General: units that make no grid, because a stage ends inside a node or cells do not fit whole.

Good orders are filled into the leafs one after the other and the best is kept; the exact model
improves it where there are few units. The bound is honest and often loose: the answer is called
optimal only when the bound meets it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from planner.place.groups import IntArray, splits
from planner.plan import Layout

EXACT_BOOLEANS = 200  # units * leafs up to which the exact model is tried: under a second


def arrange(layout: Layout, leaf_of_block: IntArray, block_ranks: int) -> tuple[IntArray, int]:
    """Return which block of nodes each unit runs on, and a lower bound on the splits.

    A unit here is `block_ranks` consecutive ranks, one block of nodes; `leaf_of_block` is sorted
    and may hold more blocks than units.
    """
    units = layout.gpus // block_ranks
    maps = list(_filled(layout, leaf_of_block, block_ranks))
    counted = [splits(layout, np.repeat(leaf_of_block[m], block_ranks)) for m in maps]
    best = maps[int(np.argmin(counted))]
    leafs, rooms = np.unique(leaf_of_block, return_counts=True)
    bound = _bound(layout, units, rooms, block_ranks)
    if min(counted) <= bound or units * len(leafs) > EXACT_BOOLEANS:
        return best, min(bound, *counted)
    # as in packing: ortools is slow to import and rarely needed
    from planner.place.solve import leaf_of_units  # noqa: PLC0415

    hint = np.searchsorted(leafs, leaf_of_block[best]).tolist()
    cuts = _cuts(layout, block_ranks)
    found, bound = leaf_of_units(cuts, rooms.tolist(), hint, at_least=bound)
    blocks = {k: iter(np.flatnonzero(leaf_of_block == leaf)) for k, leaf in enumerate(leafs)}
    return np.array([next(blocks[k]) for k in found], dtype=np.int64), bound


def _filled(layout: Layout, leaf_of_block: IntArray, block_ranks: int) -> Iterator[IntArray]:
    """Yield maps: pipeline by pipeline and rank by rank, into leafs as they come and by size."""
    units = layout.gpus // block_ranks
    first = np.arange(units) * block_ranks
    stage = layout.tp * layout.cp * layout.dp
    by_pipeline = np.lexsort((first // stage, first % stage))
    _, index, rooms = np.unique(leaf_of_block, return_inverse=True, return_counts=True)
    by_room = np.argsort(-rooms[index], kind="stable")
    for units_in_order in (by_pipeline, np.arange(units)):
        for blocks in (np.arange(len(leaf_of_block)), by_room):
            chosen = np.empty(units, dtype=np.int64)
            chosen[units_in_order] = np.sort(blocks[:units])
            yield chosen


def _cuts(layout: Layout, block_ranks: int) -> list[tuple[int, frozenset[tuple[int, int]]]]:
    """Return each set of unit pairs that pipeline edges join, and how many edges join it."""
    alike: dict[frozenset[tuple[int, int]], int] = defaultdict(int)
    for pairs in _pairs(layout, block_ranks).tolist():
        joined = frozenset((a, b) for a, b in pairs if a != b)
        if joined:
            alike[joined] += 1
    return [(count, pairs) for pairs, count in alike.items()]


def _pairs(layout: Layout, block_ranks: int) -> IntArray:
    """Return [pipeline edge, rank of the replica, 2]: the units at both ends."""
    unit = np.arange(layout.gpus) // block_ranks
    by_stage = unit.reshape(layout.pp, layout.dp, layout.cp * layout.tp)
    ends = np.stack([by_stage[:-1], by_stage[1:]], axis=-1)
    return ends.reshape(-1, layout.cp * layout.tp, 2)


def _bound(layout: Layout, units: int, rooms: IntArray, block_ranks: int) -> int:
    """Return a lower bound: units joined by edges and spread over k leafs need k - 1 cut pairs.

    A pipeline edge joins few pairs of units; so many pairs are cut by one split at most.
    """
    needed_leafs = 1 + int(np.searchsorted(np.cumsum(np.sort(rooms)[::-1]), units))
    if needed_leafs == 1 or layout.pp == 1:
        return 0
    joined = {
        (a, b) for a, b in np.unique(_pairs(layout, block_ranks).reshape(-1, 2), axis=0).tolist()
    }
    cut_pairs = max(0, needed_leafs - _parts(units, joined))
    replica_ranks = layout.cp * layout.tp
    pairs_an_edge = min(replica_ranks, 2 * (-(-replica_ranks // block_ranks) + 1))
    return -(-cut_pairs // pairs_an_edge)


def _parts(units: int, joined: Iterable[tuple[int, int]]) -> int:
    """Return the number of connected parts of the unit graph."""
    root = list(range(units))

    def find(unit: int) -> int:
        while root[unit] != unit:
            root[unit] = root[root[unit]]
            unit = root[unit]
        return unit

    for a, b in sorted(joined):
        root[find(a)] = find(b)
    return sum(find(u) == u for u in range(units))

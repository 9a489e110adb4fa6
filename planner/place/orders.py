"""Orders: ways to fill leafs with the stages of pipelines, beside one leaf a pipeline.

A *window* of s puts s consecutive stages of a pipeline under one leaf and fills leaf by leaf. With
s = all stages every pipeline is under one leaf and every ring of replicas crosses; with s = 1 the
rings stay and every pipeline edge crosses (Megatron's default order on hosts in a row). Between
them lies the best trade where uplinks are narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planner.place.cells import Grid
from planner.place.groups import IntArray


@dataclass(frozen=True)
class Order:
    """`slots` is [stage, column] -> which cell of the cluster."""

    window: int
    slots: IntArray

    def words(self, stages: int) -> str:
        """Return the order in words."""
        if self.window == stages:
            return "each pipeline's stages in a row"
        return f"{self.window} consecutive stage{'s' * (self.window > 1)} a leaf"


def window_orders(
    grid: Grid, leaf_of_slot: IntArray, sequences: Sequence[IntArray]
) -> Iterator[Order]:
    """Yield orders for every window, with leafs in each of `sequences` (of slots).

    `leaf_of_slot` is sorted. Leafs are filled to the brim, to the last whole window, or all to the
    same height; those that come to the same slots are yielded once.
    """
    _, start, room = np.unique(leaf_of_slot, return_index=True, return_counts=True)
    height = np.arange(len(leaf_of_slot)) - np.repeat(start, room)
    needed = grid.stages * grid.columns
    level = _level(room, needed)
    for window in range(grid.stages, 0, -1):
        fill = _fill_order(grid, window)
        even = -(-level // window) * window
        seen: set[bytes] = set()
        for most in (room, room // window * window, np.minimum(room // window * window, even)):
            kept = height < np.repeat(most, room)
            if kept.sum() < needed:
                continue
            for sequence in sequences:
                used = sequence[kept[sequence]][:needed]
                if used.tobytes() not in seen:
                    seen.add(used.tobytes())
                    slots = np.empty(needed, dtype=np.int64)
                    slots[fill] = used
                    yield Order(window, slots.reshape(grid.stages, grid.columns))


def _fill_order(grid: Grid, window: int) -> IntArray:
    """Return cells (stage * columns + column) as windows fill: column by column, stage by stage."""
    columns = np.arange(grid.columns)
    parts = [
        (np.arange(first, min(first + window, grid.stages)) * grid.columns + columns[:, None])
        for first in range(0, grid.stages, window)
    ]
    return np.concatenate([part.reshape(-1) for part in parts])


def _level(rooms: IntArray, needed: int) -> int:
    """Return the least height to which all leafs must be filled to hold `needed` cells."""
    low, high = 0, int(rooms.max())
    while low < high:
        middle = (low + high) // 2
        if np.minimum(rooms, middle).sum() >= needed:
            high = middle
        else:
            low = middle + 1
    return low

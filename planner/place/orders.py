"""Orders: ways to fill leafs with the stages of pipelines, beside one leaf a pipeline.

A *window* of s puts s consecutive stages of a pipeline under one leaf and fills leaf by leaf; the
stages are cut into blocks of that width, or one less where they do not divide. With s = all stages
every pipeline is under one leaf and every ring of replicas crosses; with s = 1 the
rings stay and every pipeline edge crosses (Megatron's default order on hosts in a row). Between
them lies the best trade where uplinks are narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planner.place.blocks import deal, slots_of
from planner.place.cells import Grid
from planner.place.groups import IntArray


@dataclass(frozen=True)
class Order:
    """`slots` is [stage, column] -> which cell of the cluster; `widths` are stages a block.

    With `strips` they are columns (replicas) a block.
    """

    widths: tuple[int, ...]
    slots: IntArray
    strips: bool = False

    def words(self) -> str:
        """Return the order in words."""
        most, least = max(self.widths), min(self.widths)
        if self.strips and len(self.widths) == 1:
            return "each stage's replicas in a row"
        if self.strips:
            return f"strips of {most} replica{'s' * (most > 1)}, stage by stage"
        if len(self.widths) == 1:
            return "each pipeline's stages in a row"
        span = f"{most}" if most == least else f"{least} to {most}"
        return f"{span} consecutive stage{'s' * (most > 1)} a leaf"


def window_orders(
    grid: Grid, leaf_of_slot: IntArray, sequences: Sequence[IntArray]
) -> Iterator[Order]:
    """Yield orders for every way to cut the stages into blocks of (nearly) equal width.

    `leaf_of_slot` is sorted. Leafs are filled to the brim, to the last whole column of a block, or
    all to the same height; in each of `sequences` (of slots), and dealt to blocks. Those that come
    to the same slots are yielded once.
    """
    _, start, room = np.unique(leaf_of_slot, return_index=True, return_counts=True)
    height = np.arange(len(leaf_of_slot)) - np.repeat(start, room)
    needed = grid.stages * grid.columns
    level = level_of(room, needed)
    for widths in _cuts(grid.stages):
        fill, most_wide = _fill_order(grid, widths), max(widths)
        even = -(-level // most_wide) * most_wide
        columns = room // most_wide * most_wide
        seen: set[bytes] = set()
        for most in (room, columns, np.minimum(columns, even)):
            if most.sum() < needed:
                continue
            kept = height < np.repeat(most, room)
            ways = [sequence[kept[sequence]][:needed] for sequence in sequences]
            if len(widths) > 1:
                ways.append(slots_of(deal(most, [w * grid.columns for w in widths], widths), start))
            for used in ways:
                if used.tobytes() not in seen:
                    seen.add(used.tobytes())
                    slots = np.empty(needed, dtype=np.int64)
                    slots[fill] = used
                    yield Order(widths, slots.reshape(grid.stages, grid.columns))


def _cuts(stages: int) -> Iterator[tuple[int, ...]]:
    """Yield widths of blocks, widest first: of blocks equally narrow the fewest stages a leaf."""
    for blocks in sorted({stages // narrowest for narrowest in range(1, stages + 1)}):
        least, more = divmod(stages, blocks)
        yield (least + 1,) * more + (least,) * (blocks - more)


def _fill_order(grid: Grid, widths: Sequence[int]) -> IntArray:
    """Return cells (stage * columns + column) as blocks fill: column by column, stage by stage."""
    columns = np.arange(grid.columns)
    firsts = np.cumsum([0, *widths[:-1]]).tolist()
    parts = [
        (np.arange(first, first + width) * grid.columns + columns[:, None])
        for first, width in zip(firsts, widths, strict=True)
    ]
    return np.concatenate([part.reshape(-1) for part in parts])


def level_of(rooms: IntArray, needed: int) -> int:
    """Return the least height to which all must be filled to hold `needed`."""
    low, high = 0, int(rooms.max())
    while low < high:
        middle = (low + high) // 2
        if np.minimum(rooms, middle).sum() >= needed:
            high = middle
        else:
            low = middle + 1
    return low

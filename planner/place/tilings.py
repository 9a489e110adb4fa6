"""Tilings: bands of stages or strips of replicas, each held by leafs of its own.

Leafs that are filled one after the other end anywhere: those at a border hold cells on both sides
of it, and the busiest of them sets the pace. Here every band (some stages, all replicas) or strip
(some replicas, all stages) gets leafs of its own, such that none has more rows and columns of it
than wished: a search over how many leafs of each size go where, least waste first. It ends after a
number of steps, never by a clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.place.cells import Grid
from planner.place.groups import IntArray
from planner.place.orders import Order, level_of

MOST_CELLS, MOST_LEAFS = 2048, 256
"""Sizes up to which tilings are tried; larger jobs have leafs for every remainder."""
MOST_STEPS = 800
"""Leafs put into blocks beside one for each leaf, before a tiling is given up."""
MORE = 3
"""Numbers of columns (or rows) a leaf that are tried, from the fewest that could do."""


@dataclass(frozen=True)
class Block:
    """`need` cells in rows of `width`, of which no leaf may have more than `most`, or parts of so.

    Where nothing is beside the block (`alone`), rows that a leaf holds whole do not count.
    """

    need: int
    width: int
    most: int
    alone: bool = False

    def room(self, size: int, filled: int) -> int:
        """Return the cells that a leaf of `size` may have after `filled` others."""
        begun, size = filled % self.width, min(size, self.need - filled)
        if not self.alone:
            return min(size, self.width * self.most - begun)
        first = min((self.width - begun) % self.width, size)
        whole, rest = divmod(size - first, self.width)
        if (first > 0) + (rest > 0) <= self.most:
            return size
        return first + whole * self.width if (first > 0) <= self.most else 0


def tiled_orders(grid: Grid, leaf_of_slot: IntArray) -> Iterator[Order]:
    """Yield orders of every way to cut stages into bands, or replicas into strips.

    `leaf_of_slot` is sorted. Of each way the one whose leafs have the fewest columns (of a band) or
    rows (of a strip).
    """
    _, start, room = np.unique(leaf_of_slot, return_index=True, return_counts=True)
    if grid.stages * grid.columns > MOST_CELLS or len(room) > MOST_LEAFS:
        return
    for strips in (False, True):
        across, along = (grid.columns, grid.stages) if strips else (grid.stages, grid.columns)
        for widths, used in _ways(room, start, across, along):
            slots = np.empty((grid.stages, grid.columns), dtype=np.int64)
            _fill(slots.T if strips else slots, widths, used)
            yield Order(widths, slots, strips)


def _ways(
    room: IntArray, start: IntArray, across: int, along: int
) -> Iterator[tuple[tuple[int, ...], IntArray]]:
    """Yield widths of blocks, and the slots that fill them; leaf k has those from `start[k]`."""
    level = level_of(room, across * along)
    for widths in _cuts(across, along, level):
        if takes := _tiled(room, widths, along, level):
            yield widths, _slots(start, takes)
    whole = room // across
    whole -= np.maximum(0, np.minimum(whole, np.cumsum(whole) - along))
    need = (along - int(whole.sum())) * across
    rest = room - whole * across
    if whole.any() and 0 < need <= rest.sum():  # whole rows first, the others of what is left
        blocks = [Block(need, across, most, alone=True) for most in (1, 2)]
        takes = next(filter(None, (_dealt(rest, [block]) for block in blocks)), [])
        first = _slots(start, list(enumerate((whole * across).tolist())))
        yield (across,), np.concatenate([first, _slots(start + whole * across, takes)])


def _cuts(across: int, along: int, level: int) -> Iterator[tuple[int, ...]]:
    """Yield widths that leafs of `level` cells fill well: nearly equal, or one for what is left."""
    wished = {-(-level // rows) + more for rows in range(1, along + 1) for more in (0, 1)}
    seen = set()
    for width in sorted({across, *(w for w in wished if w < across)}, reverse=True):
        least, more = divmod(across, -(-across // width))
        even = (least + 1,) * more + (least,) * (-(-across // width) - more)
        count, rest = divmod(across, width)
        last = (width,) * count + (rest,) * (rest > 0)
        wide = (width + rest, *(width,) * (count - 1))
        for widths in (even, last, wide):
            if widths not in seen:
                seen.add(widths)
                yield widths


def _fill(slots: IntArray, widths: Sequence[int], used: IntArray) -> None:
    """Put the slots used into [across, along]: block by block, each in rows of its width."""
    first = at = 0
    for width in widths:
        block = slots[first : first + width]
        block[:] = used[at : at + block.size].reshape(-1, width).T
        first, at = first + width, at + block.size


def _tiled(rooms: IntArray, widths: Sequence[int], along: int, level: int) -> list[tuple[int, int]]:
    """Return (leaf, cells) as they fill blocks of these widths; none where no search found any."""
    alone = len(widths) == 1
    least = 0 if alone else -(-level // max(widths))
    for most in range(least, least + MORE):
        blocks = [Block(width * along, width, most, alone) for width in widths]
        if takes := _dealt(rooms, blocks):
            return takes
    return []


def _dealt(rooms: IntArray, blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """Return (leaf, cells) as they fill the blocks; none where no search found any."""
    spare = int(rooms.sum()) - sum(block.need for block in blocks)
    dealing = _Dealing(Counter(rooms[rooms > 0].tolist()), spare, MOST_STEPS + len(rooms))
    if not dealing.fills(blocks):
        return []
    leafs: dict[int, list[int]] = defaultdict(list)
    for leaf in np.argsort(rooms, kind="stable")[::-1].tolist():
        leafs[int(rooms[leaf])].append(leaf)
    return [(leafs[size].pop(), cells) for size, cells in dealing.taken]


def _slots(start: IntArray, takes: Sequence[tuple[int, int]]) -> IntArray:
    return np.concatenate([np.arange(start[k], start[k] + cells) for k, cells in takes])


@dataclass
class _Dealing:
    """A search: how many leafs of each size are left, what was taken, and what is known to fail."""

    left: Counter[int]
    spare: int
    steps: int
    taken: list[tuple[int, int]] = field(default_factory=list)
    dead: set[tuple[object, ...]] = field(default_factory=set)

    def fills(self, blocks: Sequence[Block], at: int = 0, filled: int = 0, waste: int = 0) -> bool:
        """Return whether leafs fill `blocks` from the one `at`; `taken` then says which."""
        if at < len(blocks) and filled == blocks[at].need:
            at, filled = at + 1, 0
        if at == len(blocks):
            return True
        state = (at, filled, tuple(self.left.items()))
        self.steps -= 1
        if state in self.dead or self.steps < 0:
            return False
        for lost, size in self._ways(blocks[at], filled):
            if waste + lost > self.spare:
                break
            self.left[size] -= 1
            self.taken.append((size, size - lost))
            if self.fills(blocks, at, filled + size - lost, waste + lost):
                return True
            self.taken.pop()
            self.left[size] += 1
        self.dead.add(state)
        return False

    def _ways(self, block: Block, filled: int) -> list[tuple[int, int]]:
        """Return (cells wasted, size) for the sizes left: least waste first, then the largest."""
        sizes = (size for size, count in self.left.items() if count)
        ways = ((size - block.room(size, filled), size) for size in sizes)
        return sorted((w for w in ways if w[0] < w[1]), key=lambda way: (way[0], -way[1]))

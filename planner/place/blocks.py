"""Blocks: which leafs hold which consecutive stages, so that few leafs hold stages of two blocks.

Filled in the order in which they come, leafs of unequal room end anywhere in a block of stages, and
those at its borders hold stages of both: their rings and sends all leave one leaf, and a step waits
for the busiest. Leafs are interchangeable, so they are dealt to blocks such that rooms add up to
exactly what a block needs wherever they can.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement

import numpy as np

from planner.place.groups import IntArray

Take = tuple[int, int]
"""A leaf, and how many of its cells are used."""
MOST_TO_END = 3
"""Leafs that are chosen together to end a block exactly."""
MOST_SIZES = 24
"""Sizes of rooms, commonest first, that those are chosen from."""


def deal(rooms: IntArray, needs: Sequence[int], widths: Sequence[int]) -> list[Take]:
    """Return leafs in the order in which they fill blocks of `needs` cells, `widths` stages wide.

    `rooms` must hold all blocks together.
    """
    pile = _Pile.of(rooms)
    spare = int(rooms.sum()) - sum(needs)
    taken: list[Take] = []
    carried: tuple[int, int] | None = None  # the leaf at the border, and what it has left
    for need, width in zip(needs, widths, strict=True):
        offset, left = 0, need
        if carried is not None:
            leaf, room = carried
            here = min(room, left)
            taken.append((leaf, here))
            offset, left = here % width, left - here
            carried = (leaf, room - here) if room > here else None
        sizes, over = _chosen(pile, left, spare)
        whole = sizes[:-1] if over else sizes
        taken += [(pile.pop(size), size) for size in _without_wraps(whole, offset, width)]
        if over:
            leaf, room = pile.pop(sizes[-1]), sizes[-1] - over
            taken.append((leaf, room))
            if over <= spare:
                spare -= over
            else:
                carried = (leaf, over)
    return _joined(taken)


@dataclass
class _Pile:
    """Leafs by their room; `count` may be lowered ahead of taking them."""

    leafs: dict[int, deque[int]] = field(default_factory=dict)
    count: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rooms: IntArray) -> _Pile:
        pile = cls()
        for leaf, room in enumerate(rooms.tolist()):
            if room:
                pile.leafs.setdefault(room, deque()).append(leaf)
        pile.count = {room: len(leafs) for room, leafs in pile.leafs.items()}
        return pile

    def sizes(self) -> list[int]:
        """Return the sizes that are left, commonest first."""
        left = [size for size, count in self.count.items() if count]
        return sorted(left, key=lambda size: (-self.count[size], -size))

    def pop(self, size: int) -> int:
        return self.leafs[size].popleft()


def _chosen(pile: _Pile, need: int, spare: int) -> tuple[list[int], int]:
    """Return rooms that hold `need`, and by how much the last one is more than is left for it."""
    chosen: list[int] = []
    while need > 0:
        sizes = pile.sizes()
        end = _ending(pile, sizes[:MOST_SIZES], need)
        if end is None and need <= sizes[0]:
            fitting = sorted(size for size in sizes if size > need)
            end = fitting[:1] or [sizes[0]]
        for size in end or sizes[:1]:
            pile.count[size] -= 1
            chosen.append(size)
            need -= size
    return chosen, -need


def _ending(pile: _Pile, sizes: Sequence[int], need: int) -> list[int] | None:
    """Return up to three rooms that are exactly what is needed."""
    if need > MOST_TO_END * max(sizes):
        return None
    for many in range(1, MOST_TO_END + 1):
        for first in combinations_with_replacement(sizes, many - 1):
            last = need - sum(first)
            some = [*first, last]
            if all(pile.count.get(size, 0) >= some.count(size) for size in some):
                return some
    return None


def _without_wraps(sizes: Sequence[int], offset: int, width: int) -> Iterator[int]:
    """Yield rooms, largest first, but such that few begin and end inside one column of stages.

    Those that do send one pipeline more to other leafs; small ones can afford it.
    """
    left = sorted(sizes, reverse=True)
    while left:
        at = next((n for n, s in enumerate(left) if offset + s % width <= width), len(left) - 1)
        size = left.pop(at)
        offset = (offset + size) % width
        yield size


def _joined(taken: Sequence[Take]) -> list[Take]:
    """Return takes with those of one leaf in a row made one."""
    out: list[Take] = []
    for leaf, cells in taken:
        if out and out[-1][0] == leaf:
            out[-1] = (leaf, out[-1][1] + cells)
        else:
            out.append((leaf, cells))
    return out


def slots_of(takes: Sequence[Take], start: IntArray) -> IntArray:
    """Return the slots that `takes` use, in order; `start` is the first slot of every leaf."""
    return np.concatenate([np.arange(start[k], start[k] + cells) for k, cells in takes])

"""Exact cuts into several chunks a rank where layers of two kinds take turns (Llama 4's experts).

What a chunk holds follows from where it begins and ends within the turn, and from how many whole
turns lie between. So a rank sees of the cut no more than where each of its laps enters and leaves
it: one number below the period for each lap. From rank to rank these are the states of a dynamic
programme that keeps every number of layers that can be reached within a limit; the least limit that
reaches all of the model is found by halving. Whole turns then go to the smallest chunks of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.errors import InfeasibleError
from planner.pipeline.timing import FloatArray

MOST_STATES = 8
"""Period to the power of the chunks up to which all cuts are looked at (3 chunks of two kinds)."""
CLOSE = 1e-9

State = tuple[int, ...]


def period_of(kinds: Sequence[bool]) -> int | None:
    """Return after how many layers two kinds of layer repeat, None where they do not."""
    for period in range(2, len(kinds) // 2 + 1):
        if all(kind == kinds[at % period] for at, kind in enumerate(kinds)):
            return period if len(set(kinds)) > 1 else None
    return None


def cuts_in_turn(kinds: Sequence[bool], chunks: int) -> bool:
    """Return whether all cuts into so many chunks a rank are looked at."""
    period = period_of(kinds)
    return period is not None and chunks > 1 and period**chunks <= MOST_STATES


def _place(rank: int, ranks: int) -> int:
    """Return 0 for the first rank, 2 for the last and 1 for all between."""
    return 0 if rank == 0 else 2 if rank == ranks - 1 else 1


class Room(NamedTuple):
    """What memory leaves on each rank, and what a layer of either kind takes, shape (2, ranks)."""

    free_bytes: FloatArray
    layer_bytes: FloatArray


class _Step(NamedTuple):
    """What a rank holds beside whole turns: layers and seconds of each lap's begun turn."""

    base: tuple[int, ...]
    least_turns: tuple[int, ...]
    layers: int
    begun_s: float
    of_kind: tuple[int, int]


@dataclass(frozen=True)
class Turns:
    """The layers of a model in turn, and the ranks that share them."""

    kinds: tuple[bool, ...]
    """Of all layers: with experts or not."""
    kind_s: tuple[float, float]
    fixed_s: FloatArray
    chunks: int
    back: bool = False
    fewest: int = 1
    """Layers of the first lap's chunks, one less for the first of all."""
    room: Room | None = None
    _steps: dict[tuple[int, State, State], _Step] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """Return how many ranks there are."""
        return len(self.fixed_s)

    @cached_property
    def period(self) -> int:
        """Return the layers of a turn."""
        return period_of(self.kinds) or 1

    @cached_property
    def alike(self) -> list[int]:
        """Return of each rank the first that is like it: in place, time and memory."""
        first: dict[tuple[float, ...], int] = {}
        out = []
        for rank, fixed in enumerate(self.fixed_s.tolist()):
            own: list[float] = [] if self.room is None else self._room_of(rank)
            key = (_place(rank, self.ranks), fixed, *own)
            out.append(first.setdefault(key, rank))
        return out

    def _room_of(self, rank: int) -> list[float]:
        assert self.room is not None
        return [float(self.room.free_bytes[rank]), *self.room.layer_bytes[:, rank].tolist()]

    @cached_property
    def turn(self) -> tuple[int, int]:
        """Return the layers of a turn without and with experts."""
        moe = sum(self.kinds[: self.period])
        return self.period - moe, moe

    def reversed_lap(self, lap: int) -> bool:
        """Return whether a lap passes the ranks from the last to the first."""
        return self.back and lap % 2 == 1

    def joins(self, start: State, end: State) -> bool:
        """Return whether each lap begins in the turn where the one before it has ended."""
        at = 0
        for lap in range(self.chunks):
            first, last = (end, start) if self.reversed_lap(lap) else (start, end)
            if first[lap] != at:
                return False
            at = last[lap]
        return at == len(self.kinds) % self.period

    def step(self, rank: int, before: State, after: State) -> _Step:
        """Return what a rank holds between two states, beside whole turns."""
        key = (_place(rank, self.ranks), before, after)
        if key not in self._steps:
            self._steps[key] = self._made(rank, before, after)
        return self._steps[key]

    def _made(self, rank: int, before: State, after: State) -> _Step:
        base, least, of_kind = [], [], [0, 0]
        for lap in range(self.chunks):
            ends = before[lap], after[lap]
            low, high = ends[::-1] if self.reversed_lap(lap) else ends
            begun = (high - low) % self.period
            for at in range(low, low + begun):
                of_kind[self.kinds[at % self.period]] += 1
            base.append(begun)
            least.append(max(0, -(-(self._fewest_of(rank, lap) - begun) // self.period)))
        seconds = of_kind[0] * self.kind_s[0] + of_kind[1] * self.kind_s[1]
        return _Step(tuple(base), tuple(least), sum(base), seconds, (of_kind[0], of_kind[1]))

    def _fewest_of(self, rank: int, lap: int) -> int:
        last_rank = 0 if self.reversed_lap(self.chunks - 1) else self.ranks - 1
        if lap == self.chunks - 1 and rank == last_rank:
            return 0
        if lap == 0 and rank == 0:
            return max(self.fewest - 1, 0)
        return max(self.fewest, 1) if lap == 0 and rank < self.ranks - 1 else 1

    def amounts(self, rank: int, step: _Step, limit_s: float) -> range:
        """Return the layers that a rank may hold within a limit."""
        turn_s = self.turn[0] * self.kind_s[0] + self.turn[1] * self.kind_s[1]
        left = limit_s * (1 + CLOSE) - float(self.fixed_s[rank]) - step.begun_s
        most = int(left // turn_s) if left >= 0 else -1
        if self.room is not None:
            each = self.room.layer_bytes[:, rank]
            free = float(self.room.free_bytes[rank] - each @ np.array(step.of_kind))
            most = min(most, int(free / float(each @ np.array(self.turn)) + CLOSE))
            most = most if free >= 0 else -1
        least = sum(step.least_turns)
        least += least == 0 and step.layers == 0  # a rank has a layer
        most = min(most, len(self.kinds) // self.period)
        first = step.layers + self.period * least
        return range(first, step.layers + self.period * most + 1, self.period)


def deal_in_turn(turns: Turns) -> list[list[int]]:
    """Return the layers of each [rank][chunk]: the slowest rank is as fast as it can be.

    Raises InfeasibleError where they do not fit.
    """
    limits = _limits(turns)
    if not len(limits) or _reached(turns, float(limits[-1])) is None:
        raise InfeasibleError(
            f"{len(turns.kinds)} layers do not fit {turns.ranks} ranks of {turns.chunks} chunks",
            hint="fewer chunks, or more ranks",
        )
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        if _reached(turns, float(limits[middle])) is None:
            low = middle + 1
        else:
            high = middle
    found = _reached(turns, float(limits[low]))
    assert found is not None
    return _laps(turns, found)


def _limits(turns: Turns) -> FloatArray:
    """Return every time that a rank may take, from the mean of all on, ascending."""
    counts = [turns.kinds.count(kind) for kind in (False, True)]
    held = np.add.outer(*(np.arange(n + 1) * s for n, s in zip(counts, turns.kind_s, strict=True)))
    every = np.unique(np.add.outer(np.unique(turns.fixed_s), held.ravel()))
    total = sum(n * s for n, s in zip(counts, turns.kind_s, strict=True))
    mean = (float(turns.fixed_s.sum()) + total) / turns.ranks
    return every[every >= max(mean, float(turns.fixed_s.max())) * (1 - CLOSE)]


def _states(turns: Turns) -> list[State]:
    return list(product(range(turns.period), repeat=turns.chunks))


class _Path(NamedTuple):
    """The states between ranks, and the layers that each rank holds."""

    states: list[State]
    layers: list[int]


def _reached(turns: Turns, limit_s: float) -> _Path | None:
    """Return a cut whose ranks all keep to a limit, None where there is none."""
    whole = 1 << len(turns.kinds)
    states = _states(turns)
    ways = {
        rank: {
            before: [
                (after, count)
                for after in states
                for count in turns.amounts(rank, turns.step(rank, before, after), limit_s)
            ]
            for before in states
        }
        for rank in set(turns.alike)
    }
    for start in _states(turns):
        if start[0]:
            continue
        reach = [{start: 1}]
        for rank in turns.alike:
            reach.append(_next(turns, ways[rank], reach[-1]))
        for end, sums in sorted(reach[-1].items()):
            if sums & whole and turns.joins(start, end):
                return _back(turns, reach, end, limit_s)
    return None


def _next(
    turns: Turns, ways: dict[State, list[tuple[State, int]]], reach: dict[State, int]
) -> dict[State, int]:
    """Return the sums of layers that each state can have after one more rank, as bits."""
    most = (1 << (len(turns.kinds) + 1)) - 1
    out: dict[State, int] = {}
    for before, sums in reach.items():
        for after, count in ways[before]:
            if more := (sums << count) & most:
                out[after] = out.get(after, 0) | more
    return out


def _back(turns: Turns, reach: list[dict[State, int]], end: State, limit_s: float) -> _Path:
    """Return the states and layers that lead to the whole model, ranks as even as they can be."""
    states, layers, left = [end], list[int](), len(turns.kinds)
    for rank in range(turns.ranks - 1, -1, -1):
        even = left / (rank + 1)
        count, before = min(
            _ways(turns, rank, reach[rank], (states[-1], left), limit_s),
            key=lambda w: (abs(w[0] - even), w),
        )
        states.append(before)
        layers.append(count)
        left -= count
    return _Path(states[::-1], layers[::-1])


def _ways(
    turns: Turns, rank: int, reach: dict[State, int], to: tuple[State, int], limit_s: float
) -> Iterator[tuple[int, State]]:
    after, left = to
    for before, sums in reach.items():
        for count in turns.amounts(rank, turns.step(rank, before, after), limit_s):
            if count <= left and sums >> (left - count) & 1:
                yield count, before


def _laps(turns: Turns, path: _Path) -> list[list[int]]:
    """Return each rank's layers by lap: whole turns go to its smallest chunk, one by one."""
    out = []
    for rank, count in enumerate(path.layers):
        step = turns.step(rank, path.states[rank], path.states[rank + 1])
        laps: NDArray[np.int64] = np.array(step.base) + turns.period * np.array(step.least_turns)
        while laps.sum() < count:
            laps[int(laps.argmin())] += turns.period
        out.append([int(n) for n in laps])
    return out

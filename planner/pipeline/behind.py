"""Exact cuts into several chunks a rank where the first few layers differ from all others.

Dense layers before those with experts: every way to put the few into chunks is tried, and the rest,
all alike, is dealt one by one to the rank that it hurts least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.errors import InfeasibleError
from planner.pipeline.partition import SAME, dealt_to_ranks
from planner.pipeline.timing import FloatArray

MOST_AHEAD = 6
"""Layers of another kind at the model's start of which all cuts are tried: 2^6 of them."""


class Ahead(NamedTuple):
    """The first layers of a model, which differ from the others: how many, and what one takes."""

    layers: int
    layer_s: float


def layers_ahead(kinds: Sequence[bool]) -> int | None:
    """Return how many layers at the start differ from all others, None where it is not so simple.

    0 where all are alike.
    """
    count = next((at for at, kind in enumerate(kinds) if kind != kinds[0]), 0)
    simple = all(kind == kinds[-1] for kind in kinds[count:])
    return count if simple and count <= MOST_AHEAD else None


def deal_behind(
    ahead: Ahead,
    layers: int,
    *,
    layer_s: float,
    fixed_s: FloatArray,
    chunks: int,
    most: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
    back: bool = False,
) -> list[list[int]]:
    """Return the layers of each [rank][chunk]: some `ahead`, and `layers` alike behind them.

    As `deal`, for two chunks or more; `most(held)` is how many of the others a rank's memory takes
    beside so many of those ahead.
    """
    ranks, best, slowest = len(fixed_s), None, np.inf
    parts = _parts(ranks, chunks, back=back)
    for heads in _heads(ahead.layers):
        if len(heads) > ranks * chunks:
            continue
        first = np.zeros((ranks, chunks), dtype=np.int64)
        first[parts < len(heads)] = np.array(heads)[parts[parts < len(heads)]]
        held, least = first.sum(axis=1), _least_behind(parts, first, len(heads))
        fixed = fixed_s + held * ahead.layer_s
        room = np.full(ranks, layers) if most is None else most(held)
        room = np.where((parts >= len(heads) - 1).any(axis=1), room, 0)
        try:
            counts = dealt_to_ranks(layers, least, layer_s, fixed, room)
        except InfeasibleError:
            continue
        longest = float((fixed + counts * layer_s).max())
        if longest < slowest / SAME:
            best, slowest = (first, counts, len(heads)), longest
    if best is None:
        raise InfeasibleError(
            f"{ahead.layers + layers} layers do not fill {ranks} ranks of {chunks} chunks",
            hint="fewer chunks, or more ranks",
        )
    return _laps_behind(parts, *best)


def _parts(ranks: int, chunks: int, *, back: bool) -> NDArray[np.int64]:
    """Return which part of the model, in its order, each [rank][chunk] is."""
    parts = np.arange(ranks * chunks).reshape(chunks, ranks)
    if back:
        parts[1::2] = parts[1::2, ::-1].copy()
    return parts.T


def _least_behind(
    parts: NDArray[np.int64], first: NDArray[np.int64], ahead: int
) -> NDArray[np.int64]:
    """Return the fewest layers of each rank behind those that fill the first `ahead` parts.

    Each part after these has one or more, the last of all may have none; a rank has one layer.
    """
    behind = ((parts >= ahead) & (parts < parts.size - 1)).sum(axis=1)
    least: NDArray[np.int64] = np.maximum(behind, first.sum(axis=1) == 0)
    return least


def _heads(count: int) -> Iterator[tuple[int, ...]]:
    """Yield how many of the first layers each rank's first chunk may hold; rank 0's may be empty.

    The evenest come first: of equal cuts the first is kept.
    """
    found = [c for first in range(count + 1) for c in _compositions(count - first, (first,))]
    yield from sorted(found, key=lambda c: (sum(n * n for n in c), c))


def _compositions(count: int, begun: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if count == 0:
        yield begun
    for n in range(1, count + 1):
        yield from _compositions(count - n, (*begun, n))


def _laps_behind(
    parts: NDArray[np.int64], first: NDArray[np.int64], counts: NDArray[np.int64], ahead: int
) -> list[list[int]]:
    """Return each rank's layers per chunk: the others go one by one to its smallest open chunk.

    The last part of the model comes last among equals, and may stay without.
    """
    out = first.copy()
    for rank, count in enumerate(counts.tolist()):
        open_laps = np.flatnonzero(parts[rank] >= ahead - 1)
        last = parts[rank, open_laps] == parts.size - 1
        for _ in range(count):
            at = open_laps[np.lexsort((-open_laps, out[rank, open_laps] + last))[0]]
            out[rank, at] += 1
    return [[int(n) for n in row] for row in out]

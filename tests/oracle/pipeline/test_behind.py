"""Cuts behind a few layers that differ: no cut at all has a faster slowest rank."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InfeasibleError
from planner.pipeline.behind import MOST_AHEAD, Ahead, deal_behind, layers_ahead


def rank_of(part: int, ranks: int, *, back: bool) -> int:
    lap, at = divmod(part, ranks)
    return ranks - 1 - at if back and lap % 2 else at


def rank_seconds(edges, ahead: Ahead, layer_s, fixed, *, back):
    """Seconds of each rank when part i holds the layers from edge i to the next."""
    took = fixed.copy()
    for part, (low, high) in enumerate(pairwise(edges)):
        first = max(0, min(high, ahead.layers) - low)
        rank = rank_of(part, len(fixed), back=back)
        took[rank] += first * ahead.layer_s + (high - low - first) * layer_s
    return took


def every_cut(layers: int, ranks: int, chunks: int, *, back: bool):
    """All cuts whose inner parts hold a layer, and of which no rank is without one."""
    parts = ranks * chunks
    for inner in combinations_with_replacement(range(layers + 1), parts - 1):
        edges = (0, *inner, layers)
        counts = [high - low for low, high in pairwise(edges)]
        held = np.zeros(ranks, dtype=int)
        for part, count in enumerate(counts):
            held[rank_of(part, ranks, back=back)] += count
        if all(counts[1:-1]) and held.all():
            yield edges


@settings(deadline=None, max_examples=60)
@given(
    ranks=st.integers(2, 3),
    first=st.integers(1, 3),
    others=st.integers(2, 7),
    times=st.lists(st.integers(1, 9), min_size=2, max_size=2),
    ends=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    back=st.booleans(),
)
def test_no_cut_behind_a_few_layers_has_a_faster_slowest_rank(  # noqa: PLR0917
    ranks, first, others, times, ends, back
):
    ahead, layer_s, fixed = Ahead(first, times[0]), times[1], np.array(ends[:ranks], dtype=float)
    cuts = list(every_cut(first + others, ranks, 2, back=back))
    if not cuts:
        with pytest.raises(InfeasibleError):
            deal_behind(ahead, others, layer_s=layer_s, fixed_s=fixed, chunks=2, back=back)
        return
    best = min(rank_seconds(c, ahead, layer_s, fixed, back=back).max() for c in cuts)
    table = deal_behind(ahead, others, layer_s=layer_s, fixed_s=fixed, chunks=2, back=back)
    laps = [[row[lap] for row in table] for lap in (0, 1)]
    flat = [*laps[0], *(laps[1][::-1] if back else laps[1])]
    edges = tuple(np.concatenate([[0], np.cumsum(flat)]).tolist())
    assert edges in cuts
    assert rank_seconds(edges, ahead, layer_s, fixed, back=back).max() == best


def test_a_rank_without_memory_takes_none_of_the_others():
    """Three dense layers of 2 GB beside layers of 5: rank 0 has room for two of these, not three.

    Layers of 1 s on two ranks of two chunks would be even at five each.
    """
    free = np.array([16, 1000])
    table = deal_behind(
        Ahead(3, 1.0),
        7,
        layer_s=1.0,
        fixed_s=np.zeros(2),
        chunks=2,
        most=lambda held: (free - 2 * held) // 5,
    )
    held = [sum(row) for row in table]
    assert sum(held) == 10
    assert held[0] <= 5


def test_layers_ahead_are_those_before_the_only_change():
    assert layers_ahead([True] * 4) == 0
    assert layers_ahead([False, False, True, True]) == 2
    assert layers_ahead([False, True, False, True]) is None
    assert layers_ahead([False] * (MOST_AHEAD + 1) + [True]) is None

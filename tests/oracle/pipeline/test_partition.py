"""Cuts against every cut there is, on all instances small enough to try them all."""

from __future__ import annotations

import tracemalloc
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InfeasibleError
from planner.pipeline.partition import StageCosts, cut, deal, slowest_s


def all_cuts(layers: int, stages: int, fewest: int):
    """Yield every way to cut `layers` into `stages` stretches of at least `fewest`."""
    for edges in combinations(range(layers + stages), stages - 1):
        counts = [
            b - a - 1 for a, b in zip((-1, *edges), (*edges, layers + stages - 1), strict=True)
        ]
        if sum(counts) == layers and min(counts) >= fewest:
            yield counts


def fits(costs: StageCosts, counts: list[int]) -> bool:
    at = 0
    for stage, count in enumerate(counts):
        held = costs.fixed_bytes[stage] + costs.layer_bytes[stage, at : at + count].sum()
        if held > costs.limit_bytes:
            return False
        at += count
    return True


@given(data=st.data(), layers=st.integers(1, 9), stages=st.integers(1, 4), fewest=st.integers(0, 1))
def test_no_cut_that_fits_has_a_faster_slowest_stage(data, layers, stages, fewest):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    costs = StageCosts(
        layer_s=rng.integers(1, 6, layers).astype(float),
        fixed_s=rng.integers(0, 9, stages).astype(float),
        layer_bytes=rng.integers(1, 5, (stages, layers)).astype(float),
        fixed_bytes=rng.integers(0, 4, stages).astype(float),
        limit_bytes=float(data.draw(st.integers(3, 20))),
        fewest=fewest,
    )
    every = [c for c in all_cuts(layers, stages, fewest) if fits(costs, c)]
    if not every:
        with pytest.raises(InfeasibleError, match="no cut"):
            cut(costs)
        return
    found = cut(costs)
    assert found in every
    best = min(slowest_s(costs, c) for c in every)
    assert slowest_s(costs, found) == best

    def squares(counts: list[int]) -> float:
        edges = np.concatenate([[0], np.cumsum(counts)])
        spans = [costs.layer_s[a:b].sum() for a, b in pairwise(edges)]
        return float(((np.array(spans) + costs.fixed_s) ** 2).sum())

    assert squares(found) == min(squares(c) for c in every if slowest_s(costs, c) == best)


@given(
    data=st.data(),
    ranks=st.integers(1, 3),
    chunks=st.integers(1, 3),
    more=st.integers(0, 6),
)
def test_no_deal_of_equal_layers_has_a_faster_slowest_rank(data, ranks, chunks, more):
    layers = max(1, ranks * chunks - 2 + more)
    fixed = np.array(data.draw(st.lists(st.integers(0, 9), min_size=ranks, max_size=ranks)), float)
    layer_s = float(data.draw(st.integers(1, 4)))
    most = np.array(data.draw(st.lists(st.integers(0, 12), min_size=ranks, max_size=ranks)))
    least = [chunks - (chunks > 1) * ((r == 0) + (r == ranks - 1)) for r in range(ranks)]
    every = [
        counts
        for counts in product(
            *(range(low, high + 1) for low, high in zip(least, most, strict=True))
        )
        if sum(counts) == layers
    ]
    if not every:
        with pytest.raises(InfeasibleError, match="do not fit"):
            deal(layers, layer_s=layer_s, fixed_s=fixed, chunks=chunks, most=most)
        return
    table = deal(layers, layer_s=layer_s, fixed_s=fixed, chunks=chunks, most=most)
    counts = tuple(map(sum, table))
    assert counts in every
    best = min(max(np.array(c) * layer_s + fixed) for c in every)
    assert max(np.array(counts) * layer_s + fixed) == best
    for rank, row in enumerate(table):
        for lap, held in enumerate(row):
            end = chunks > 1 and (rank, lap) in ((0, 0), (ranks - 1, chunks - 1))
            assert held >= (0 if end else 1)


def test_bloom_and_llama_405b_leave_a_layer_out_beside_the_embedding_and_the_head():
    """BLOOM: 70 layers, 12 stages; Llama 3.1 405B: 126, 16 stages: ends that weigh a layer each."""
    for layers, stages, inner in ((70, 12, 6), (126, 16, 8)):
        ends = np.zeros(stages)
        ends[[0, -1]] = 1.0
        counts = cut(StageCosts(np.ones(layers), ends))
        assert counts == [inner - 1, *[inner] * (stages - 2), inner - 1]


def test_equal_laps_stay_equal_on_every_rank():
    ends = np.zeros(8)
    ends[[0, -1]] = 1.0
    table = deal(126, layer_s=1.0, fixed_s=ends, chunks=7)
    assert table[0] == [1, 2, 2, 2, 2, 3, 3]
    assert table[1:-1] == [[2, 2, 2, 2, 2, 3, 3]] * 6
    assert table[-1] == [2, 2, 2, 2, 2, 3, 2]


def test_thousands_of_layers_are_cut_in_a_few_megabytes():
    """Only stages near their share are looked at: not every stretch of the model on every stage."""
    rng = np.random.default_rng(3)
    costs = StageCosts(layer_s=rng.random(2048), fixed_s=rng.random(64))
    tracemalloc.start()
    counts = cut(costs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(counts) == 2048
    mean = (costs.layer_s.sum() + costs.fixed_s.sum()) / 64
    assert mean <= slowest_s(costs, counts) < mean + costs.layer_s.max()
    assert peak < 20e6

"""Cuts of layers of two kinds in turn: no cut at all has a faster slowest rank."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InfeasibleError
from planner.estimate.bounds import whole_layers_s
from planner.estimate.inputs import Inputs
from planner.estimate.running import judge
from planner.layouts.rules import Context
from planner.layouts.table import Layouts
from planner.pipeline.in_turn import Room, Turns, cuts_in_turn, deal_in_turn, period_of
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload


def rank_of(part: int, ranks: int, *, back: bool) -> int:
    lap, at = divmod(part, ranks)
    return ranks - 1 - at if back and lap % 2 else at


def held(edges, turns: Turns) -> np.ndarray:
    """Layers of each rank, without and with experts, counted one by one."""
    out = np.zeros((turns.ranks, 2), dtype=int)
    for part, (low, high) in enumerate(pairwise(edges)):
        for layer in range(low, high):
            out[rank_of(part, turns.ranks, back=turns.back), int(turns.kinds[layer])] += 1
    return out


def slowest(edges, turns: Turns) -> float:
    return float((held(edges, turns) @ np.array(turns.kind_s) + turns.fixed_s).max())


def every_cut(turns: Turns):
    """All cuts whose inner parts hold a layer, of which no rank is without one, and that fit."""
    layers, parts = len(turns.kinds), turns.ranks * turns.chunks
    for inner in combinations_with_replacement(range(layers + 1), parts - 1):
        edges = (0, *inner, layers)
        counts = [high - low for low, high in pairwise(edges)]
        by_rank = held(edges, turns)
        if not (all(counts[1:-1]) and by_rank.sum(axis=1).all()):
            continue
        if turns.room is not None:
            used = (by_rank.T * turns.room.layer_bytes).sum(axis=0)
            if (used > turns.room.free_bytes).any():
                continue
        yield edges


@settings(deadline=None, max_examples=40)
@given(
    size=st.sampled_from([(2, 2, 2), (2, 2, 3), (3, 2, 2), (2, 3, 2)]),
    more=st.integers(0, 5),
    times=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ends=st.tuples(*(st.integers(0, 9) for _ in range(3))),
    back=st.booleans(),
    memory=st.one_of(
        st.none(), st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(4, 24))
    ),
)
def test_no_cut_has_a_faster_slowest_rank(  # noqa: PLR0917
    size, more, times, ends, back, memory
):
    ranks, chunks, period = size
    layers = max(2 * period, ranks * chunks - 2) + more
    room = None
    if memory is not None:
        each = np.tile(np.array(memory[:2], dtype=float)[:, None], ranks)
        room = Room(np.full(ranks, float(memory[2])), each)
    turns = Turns(
        tuple(at % period == period - 1 for at in range(layers)),
        (float(times[0]), float(times[1])),
        np.array(ends[:ranks], dtype=float),
        chunks,
        back=back,
        fewest=0,
        room=room,
    )
    cuts = list(every_cut(turns))
    if not cuts:
        with pytest.raises(InfeasibleError):
            deal_in_turn(turns)
        return
    table = deal_in_turn(turns)
    laps = [[row[lap] for row in table] for lap in range(chunks)]
    flat = [n for i, lap in enumerate(laps) for n in (lap[::-1] if back and i % 2 else lap)]
    edges = tuple(np.concatenate([[0], np.cumsum(flat)]).tolist())
    assert edges in cuts
    assert slowest(edges, turns) == pytest.approx(min(slowest(c, turns) for c in cuts))


def test_what_takes_turns_is_told_from_what_does_not():
    assert period_of([False, True] * 3) == 2
    assert period_of([False, False, True] * 2) == 3
    assert period_of([True] * 6) is None
    assert period_of([False, True, True, True]) is None
    assert cuts_in_turn([False, True] * 24, 3)
    assert not cuts_in_turn([False, True] * 24, 4)
    assert not cuts_in_turn([False, True] * 24, 1)


def test_a_model_whose_layers_take_turns_is_cut_anew_where_that_is_faster():
    """Llama 4 Maverick: 24 dense layers and 24 with experts, the head as long as several."""
    work = Workload(seq_tokens=8192, global_batch=512)
    context = Context(load_model("llama-4-maverick"), load_cluster("dgx-h100:64"), work)
    row = {"tp": 2, "sp": 1, "pp": 4, "vpp": 2, "cp": 1, "ep": 128, "etp": 1, "dp": 64}
    row |= {"dp_replicate": 1, "zero": 1, "micro_batch": 1, "num_microbatches": 8}
    row |= {"recompute": "selective", "schedule": "interleaved", "offload": "none"}
    layouts = Layouts.of([row | {"dp_sync": "all-reduce"}])
    (own,), (usual,) = judge(context, layouts), judge(context, layouts, recut=False)
    assert own.table != usual.table
    assert own.step_s < 0.97 * usual.step_s
    assert own.step_s >= whole_layers_s(Inputs(*context, layouts))[0]

"""How layers are dealt to stages and chunks, and that kinds of stage lose none of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layouts.split import (
    all_stages,
    chunk_layers,
    fits,
    layers_by_cost,
    stage_kinds,
    stage_layers,
)
from planner.layouts.table import Layouts
from planner.specs.model import Experts, ModelSpec

PLAIN = {"recompute": "none", "schedule": "none", "offload": "none", "dp_sync": "all-reduce"}


def layouts(*pairs):
    ones = dict.fromkeys(("tp", "cp", "ep", "etp", "dp", "dp_replicate", "micro_batch"), 1)
    row = {**PLAIN, **ones, "sp": 0, "zero": 0, "num_microbatches": 1}
    return Layouts.of([{**row, "pp": pp, "vpp": vpp} for pp, vpp in pairs])


def model(layers, **experts):
    return ModelSpec(
        name="m",
        layers=layers,
        hidden=8,
        heads=2,
        kv_heads=2,
        head_dim=4,
        ffn=16,
        vocab=32,
        max_seq_tokens=64,
        experts=Experts(count=4, top_k=2, ffn=8, **experts) if experts else None,
    )


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "expected"),
    [
        (8, 2, 1, [[4], [4]]),
        (8, 2, 2, [[2, 2], [2, 2]]),
        # BLOOM 70 + 2 on 12 stages, Llama 3.1 405B 126 + 2 on 16: the ends carry one less
        (70, 12, 1, [[5], *[[6]] * 10, [5]]),
        (126, 16, 1, [[7], *[[8]] * 14, [7]]),
        # 126 + 2 over 16 stages of 8 chunks: the first and the last chunk hold none
        (126, 16, 8, [[0, *[1] * 7], *[[1] * 8] * 14, [*[1] * 7, 0]]),
        (3, 2, 1, [[2], [1]]),
        (6, 5, 1, [[1], [1], [1], [2], [1]]),
    ],
)
def test_layers_are_dealt_as_published_runs_deal_them(layers, pp, vpp, expected):
    assert chunk_layers(layers, pp, vpp) == expected


@given(layers=st.integers(1, 200), pp=st.integers(1, 200), vpp=st.integers(1, 16))
def test_no_layer_is_lost_and_no_stage_is_left_without_one(layers, pp, vpp):
    if not fits(layers, pp, vpp):
        with pytest.raises(ValueError, match="do not fill"):
            chunk_layers(layers, pp, vpp)
        return
    stages = chunk_layers(layers, pp, vpp)
    flat = [stages[p][v] for v in range(vpp) for p in range(pp)]
    assert sum(flat) == layers
    assert min(flat) >= 0
    assert all(flat[1:-1])
    assert vpp > 1 or all(flat)
    assert max(flat) - min(flat) <= 2
    if layers % (pp * vpp):  # the head makes the last chunk the dearest: it never holds the most
        assert flat[-1] == min(flat)


@given(layers=st.integers(2, 60), pp=st.integers(1, 12), vpp=st.integers(1, 4), data=st.data())
def test_kinds_of_stage_hold_every_layer_of_both_sorts(layers, pp, vpp, data):
    if not fits(layers, pp, vpp):
        return
    first = data.draw(st.integers(0, layers - 1))
    spec = model(layers, first_dense_layers=first, layer_period=data.draw(st.integers(1, 3)))
    kinds = stage_kinds(spec, layouts((pp, vpp), (1, 1)))
    moe = sum(spec.moe_layers)
    assert kinds.count[0].sum() == pp
    assert (kinds.count * kinds.moe_layers).sum(axis=1).tolist() == [moe, moe]
    dense = [layers - moe] * 2
    assert (kinds.count * kinds.dense_layers).sum(axis=1).tolist() == dense
    assert (kinds.count * kinds.first)[0].sum() == (kinds.count * kinds.last)[0].sum() == 1
    every = all_stages(spec, layouts((pp, vpp)))
    told = list(zip(every.dense_layers[0].tolist(), every.moe_layers[0].tolist(), strict=True))
    assert told == stage_layers(spec, pp, vpp)


def test_a_kind_is_known_by_its_first_stage_which_holds_the_most_micro_batches():
    kinds = stage_kinds(model(8), layouts((4, 1)))
    held = kinds.count[0] > 0
    order = np.argsort(kinds.index[0][held])
    assert kinds.index[0][held][order].tolist() == [0, 1, 3]
    assert kinds.count[0][held][order].tolist() == [1, 2, 1]


def test_stages_filled_by_cost_leave_the_last_one_to_a_large_head():
    """16 layers of 1 unit and a head of 6 are 22 units: stages fill up at 5.5, 11 and 16.5.

    Six layers cross 5.5, eleven fill 11, and the five left do not fill 16.5.
    """
    small = model(16)
    unit = 4 * small.heads * small.head_dim * small.hidden + 3 * small.ffn * small.hidden
    wide = small.model_copy(update={"vocab": 6 * unit // small.hidden})
    assert layers_by_cost(wide, 4) == [6, 5, 5, 0]
    assert layers_by_cost(small.model_copy(update={"vocab": 1}), 4) == [5, 4, 4, 3]


def test_a_head_of_four_layers_takes_four_of_the_last_stage_in_nanotrons_1b_runs():
    """16 layers and a head worth 4: published PP 4 runs take 5 layers' time a stage, not 6."""
    small = model(16)
    unit = 4 * small.heads * small.head_dim * small.hidden + 3 * small.ffn * small.hidden
    assert unit % small.hidden == 0
    tied = small.model_copy(update={"vocab": 4 * unit // small.hidden})
    assert layers_by_cost(tied, 4) == [5, 5, 5, 1]

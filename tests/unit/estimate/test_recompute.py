"""What recompute leaves of the activations: by module, by method, by number of layers."""

from __future__ import annotations

import numpy as np
import pytest
from estimate_cases import inputs, spec

from planner.estimate import again, compute, in_flight, pipelined, recompute
from planner.estimate.activations import logits_bytes
from planner.specs.model import Experts, LatentAttention

MLA = LatentAttention(
    q_lora_rank=64, kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32
)
EIGHT = Experts(count=8, top_k=2, ffn=512, shared_ffn=128)
ROW = {"tp": 2, "sp": 1, "recompute": "selective"}
TOKENS, HIDDEN, FFN = 1024, 256, 1024


def kept(*, model=None, row=ROW, **workload):
    x = inputs(model or spec(), row, stack="megatron", **workload)
    return [float(v[0]) for v in recompute.kept_layer_bytes(x)]


@pytest.mark.parametrize(
    ("module", "elements"),
    [
        ("layernorm", 2 * HIDDEN),  # the output of two norms
        ("mlp", 3 * 1024),  # gate, up and their product; see test_the_widths
        ("core_attn", 2 * 4),  # an fp32 statistic a head
    ],
)
def test_a_module_drops_what_it_makes_again(module, elements):
    model = spec(hidden=HIDDEN, ffn=FFN, heads=4, kv_heads=4, head_dim=64)
    whole, _ = kept(model=model, row={**ROW, "recompute": "none"})
    left, _ = kept(model=model, recompute_modules=(module,))
    assert whole - left == 2 * elements * TOKENS / 2


def test_modules_drop_the_sum_of_what_each_drops():
    model = spec(mla=MLA, experts=EIGHT)
    whole = kept(model=model, row={**ROW, "recompute": "none"})
    modules = ("layernorm", "mla_up_proj", "moe_act", "shared_experts")
    apart = [kept(model=model, recompute_modules=(m,)) for m in modules]
    together = kept(model=model, recompute_modules=modules)
    for i in (0, 1):
        assert whole[i] - together[i] == pytest.approx(sum(whole[i] - a[i] for a in apart))


def test_recomputing_the_experts_covers_what_is_inside_them():
    model = spec(experts=EIGHT)
    all_of_it = kept(model=model, recompute_modules=("moe",))[1]
    assert all_of_it == kept(model=model, recompute_modules=("moe", "moe_act"))[1]
    assert all_of_it < kept(model=model, recompute_modules=("moe_act", "shared_experts"))[1]


def test_the_usual_modules_are_megatrons():
    told = kept(model=spec(mla=MLA, experts=EIGHT))
    modules = ("layernorm", "mla_up_proj", "moe_act")
    assert told == kept(model=spec(mla=MLA, experts=EIGHT), recompute_modules=modules)


def stage(layers=8, row=None, **workload):
    row = row or {"pp": 2, "schedule": "1f1b", "recompute": "full"}
    x = inputs(spec(layers=layers), row, stack="megatron", every_stage=True, **workload)
    return x, recompute.kept_stage_bytes(x)[0]


@pytest.mark.parametrize(("each", "points"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_uniform_recompute_keeps_one_input_for_every_few_layers(each, points):
    x, kept_bytes = stage(recompute_layers=each)
    assert kept_bytes.tolist() == [points * float(recompute.checkpoint_bytes(x)[0])] * 2
    assert recompute.live_layers(x)[0].tolist() == [min(each, 4)] * 2


@pytest.mark.parametrize("again", [1, 2, 4, 9])
def test_block_recompute_keeps_the_other_layers_whole(again):
    x, kept_bytes = stage(recompute_layers=again, recompute_method="block")
    whole = float(recompute.whole_layer_bytes(x)[0][0])
    point = float(recompute.checkpoint_bytes(x)[0])
    n = min(again, 4)
    assert kept_bytes.tolist() == pytest.approx([n * point + (4 - n) * whole] * 2)


def test_block_recompute_counts_layers_of_each_virtual_chunk():
    row = {"pp": 2, "vpp": 2, "schedule": "interleaved", "recompute": "full"}
    x, kept_bytes = stage(row=row, recompute_layers=1, recompute_method="block")
    whole = float(recompute.whole_layer_bytes(x)[0][0])
    point = float(recompute.checkpoint_bytes(x)[0])
    assert kept_bytes.tolist() == pytest.approx([2 * point + 2 * whole] * 2)


def test_longer_units_trade_kept_inputs_for_live_layers():
    rows = {"pp": 1, "recompute": "full"}
    peaks = []
    for each in (1, 4, 256):
        x = inputs(spec(layers=256), rows, stack="megatron", recompute_layers=each)
        peaks.append(float(in_flight.activations_bytes(x)[0, 0]))
    assert np.argmin(peaks) == 1
    assert peaks[2] > peaks[0]


def took(layers=None, recompute="full", **workload):
    row = {"pp": 2, "schedule": "1f1b", "recompute": recompute, "num_microbatches": 8}
    rows = [row, {**row, "pp": 4}]  # told apart although they share their kernels
    more = {"recompute_method": "block", "recompute_layers": layers} if layers else {}
    model = spec(layers=16, hidden=4096, ffn=16384, heads=32, kv_heads=32, head_dim=128)
    x = inputs(model, *rows, stack="megatron+full-graphs", seq_tokens=4096, **more, **workload)
    return pipelined.stage_microbatch_s(x).max(axis=1)


def test_blocks_take_the_time_of_the_layers_that_run_again():
    none, whole, some = took(recompute="none"), took(), took(layers=2)
    assert some - none == pytest.approx((whole - none) * [2 / 8, 2 / 4], rel=1e-6)


@pytest.mark.parametrize("module", ["core_attn", "mlp", "layernorm"])
def test_every_module_costs_time_and_less_than_the_whole_layer(module):
    none, whole = took(recompute="none"), took()
    some = took(recompute="selective", recompute_modules=(module,))
    assert (none < some).all()
    assert (some < whole).all()


def test_a_loss_in_pieces_holds_one_piece_and_a_gradient_that_adds_up():
    model, row = spec(), {"micro_batch": 2, "dp": 8, "zero": 3}
    whole, pieces = (
        inputs(model, row, seq_tokens=4096, stack=stack)
        for stack in ("torchtitan", "torchtitan+chunked-loss")
    )
    tokens = 2 * 4096
    told = logits_bytes(pieces)[0, -1]
    assert told == logits_bytes(whole)[0, -1] / 8 + 4 * tokens * model.hidden


PAID_BY = {"mlp": "dense", "moe": "experts", "moe_act": "experts", "shared_experts": "experts"}


@pytest.mark.parametrize("module", [*PAID_BY, "layernorm", "core_attn", "mla_up_proj"])
def test_a_layer_pays_the_time_of_just_what_it_drops(module):
    """Dense layers before those with experts: each kind recomputes its own feed-forward."""
    model = spec(mla=MLA, experts=EIGHT)
    whole = kept(model=model, row={**ROW, "recompute": "none"})
    left = kept(model=model, recompute_modules=(module,))
    x = inputs(model, ROW, stack="megatron", recompute_modules=(module,))
    paid = [float(t(x)[0]) for t in (again.dense_recompute_s, again.moe_recompute_s)]
    assert [seconds > 0 for seconds in paid] == [a > b for a, b in zip(whole, left, strict=True)]
    kinds = {"dense": [True, False], "experts": [False, True]}
    assert [seconds > 0 for seconds in paid] == kinds.get(PAID_BY.get(module), [True, True])


def test_the_dense_feed_forward_is_paid_in_full():
    model = spec(experts=EIGHT)
    x = inputs(model, ROW, stack="megatron", recompute_modules=("mlp",))
    assert again.dense_recompute_s(x)[0] == compute.mlp_forward_s(x)[0]

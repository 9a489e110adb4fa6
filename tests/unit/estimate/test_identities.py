"""What must hold by arithmetic: bytes of collectives, shards of parameters, tokens of experts."""

from __future__ import annotations

import numpy as np
import pytest
from estimate_cases import inputs, layouts, spec

from planner.errors import SpecError
from planner.estimate import params
from planner.estimate.collectives import bus_bytes, group_s, inside_s, ranks_per_domain
from planner.estimate.experts import (
    busiest_rank,
    dropped_share,
    expert_shares,
    received_tokens,
    routed_tokens,
)
from planner.estimate.memory import stage_bytes
from planner.estimate.pipelined import bubble_s, stage_microbatch_s
from planner.estimate.step import step_s
from planner.estimate.sync import gradient_sync
from planner.specs.model import Experts
from planner.specs.parameters import count_parameters
from planner.specs.workload import Workload

EIGHT = Experts(count=8, top_k=2, ffn=512, shared_ffn=128)


def workload(**more):
    return Workload(seq_tokens=1024, global_batch=64, **more)


# --- collectives


@pytest.mark.parametrize(
    ("op", "share"),
    [
        ("all_reduce", {2: 1.0, 4: 1.5, 8: 1.75, 1000: 1.998}),
        ("all_gather", {2: 0.5, 4: 0.75, 8: 0.875, 1000: 0.999}),
        ("reduce_scatter", {2: 0.5, 4: 0.75, 8: 0.875, 1000: 0.999}),
    ],
)
def test_a_ring_moves_its_share_of_the_buffer(op, share):
    n = np.array(list(share))
    assert bus_bytes(op, 1e9, n) == pytest.approx(1e9 * np.array(list(share.values())))


@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter"])
def test_a_large_ring_between_nodes_runs_at_the_rate_of_the_nics_it_has(op):
    """Two ranks of each node of 8 x 400 Gb/s: 100 GB/s times the fabric's efficiency."""
    x = inputs(spec(), {}, cluster="dgx-h100:4")
    n, stride = np.array([8]), np.array([4])
    assert ranks_per_domain(x, stride, n) == 2
    moved = {"all_reduce": 2}.get(op, 1) * 7 / 8 * 1e12
    ideal = moved / (100e9 * x.cluster.fabric.efficiency)
    assert group_s(x, op, 1e12, stride, n)[0] == pytest.approx(ideal, rel=1e-3)


def test_a_group_inside_a_node_never_pays_the_network():
    near = inputs(spec(), {}, cluster="dgx-h100:64")
    n, stride = np.array([8]), np.array([1])
    inside = inside_s(near, "all_gather", 1e9, n)
    assert group_s(near, "all_gather", 1e9, stride, n) == inside
    assert group_s(near, "all_gather", 1e9, stride, n * 2) > inside


def test_one_rank_needs_no_collective():
    x = inputs(spec(), {}, cluster="dgx-h100:4")
    one = np.array([1])
    assert group_s(x, "all_reduce", 1e9, one, one)[0] == 0
    assert inside_s(x, "all_reduce", 1e9, one)[0] == 0


# --- the pipeline


@pytest.mark.parametrize(("pp", "vpp"), [(4, 1), (8, 1), (4, 2)])
def test_equal_stages_wait_pp_less_1_over_m_vpp(pp, vpp):
    """arXiv:2104.04473 section 2.2: bubble / ideal = (p-1)/(m v), where all stages are equal."""
    schedule = "interleaved" if vpp > 1 else "1f1b"
    row = {"pp": pp, "vpp": vpp, "schedule": schedule, "num_microbatches": 16, "tp": 1}
    model = spec(layers=pp * vpp * 50, vocab=128, hidden=2048, heads=16, kv_heads=16, head_dim=128)
    x = inputs(model, row, cluster="dgx-h100", seq_tokens=4096)
    ideal = 16 * stage_microbatch_s(x).max(axis=1)
    assert (bubble_s(x) / ideal)[0] == pytest.approx((pp - 1) / (16 * vpp), rel=0.02)


# --- parameters


def over_all_ranks(model, row):
    """Elements over all ranks of one replica: tp and pipeline ranks, and every expert shard."""
    x = inputs(model, row, cluster="dgx-h100:4")
    lay, s = x.layouts, x.stages
    dense = (params.stage_dense_parameters(x) * s.count).sum(axis=1) * lay.tp
    experts = (params.stage_expert_parameters(x) * s.count).sum(axis=1) * lay.ep * lay.etp
    return float((dense + experts)[0])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("experts", [None, EIGHT])
@pytest.mark.parametrize(
    "row",
    [
        {},
        {"pp": 2, "schedule": "1f1b"},
        {"pp": 2, "vpp": 2, "schedule": "interleaved"},
        {"ep": 4, "dp": 4},
    ],
    ids=str,
)
def test_the_shards_of_all_ranks_are_the_model(tied, experts, row):
    model = spec(tied_embeddings=tied, experts=experts)
    total = count_parameters(model).total
    copy = 8192 * 256 if tied and row.get("pp", 1) > 1 else 0  # the last stage's own table
    if experts is None and row.get("ep", 1) > 1:
        return
    assert over_all_ranks(model, row) == total + copy


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("etp", [1, 2])
def test_tensor_ranks_repeat_the_norms_and_the_router_and_nothing_else(tp, etp):
    model = spec(experts=EIGHT)
    repeated = 4 * (2 * 256 + 8 * 256) + 256
    total = count_parameters(model).total
    row = {"tp": tp, "sp": 1, "etp": etp}
    assert over_all_ranks(model, row) == total + (tp - 1) * repeated


def test_weights_of_keys_and_values_are_split_beyond_the_number_of_their_heads():
    """Megatron-Core gathers what they put out, not the weights (core/transformer/attention.py)."""
    grouped = spec(kv_heads=2)
    repeated = 4 * 2 * 256 + 256
    total = count_parameters(grouped).total
    assert over_all_ranks(grouped, {"tp": 2}) == total + repeated
    assert over_all_ranks(grouped, {"tp": 8}) == total + 7 * repeated


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_experts_are_divided_by_ep_and_etp_and_never_by_tp_again(tp):
    rows = [{"tp": tp, "sp": int(tp > 1), "ep": ep, "etp": etp} for ep, etp in ((1, 1), (4, 1))]
    rows += [{"tp": 8, "sp": 1, "ep": 2, "etp": 4}]
    x = inputs(spec(experts=EIGHT), *rows)
    whole = 8 * 3 * 256 * 512
    assert params.expert_parameters(x).tolist() == [whole, whole / 4, whole / 8]


def test_the_vocabulary_is_padded_to_128_tp():
    x = inputs(spec(vocab=50257), {"tp": 1}, {"tp": 8})
    assert (params.embedding_parameters(x) / 256).tolist() == [50304, 51200 / 8]


def test_the_heaviest_stage_decides():
    row = {"pp": 4, "schedule": "1f1b", "num_microbatches": 8}
    x = inputs(spec(layers=8), row, every_stage=True)
    stages = stage_bytes(x)[0]
    assert len(stages) == 4
    assert stages[1] > stages[2]  # 1F1B: one more micro-batch in flight


# --- experts


def test_capacity_above_the_imbalance_drops_nothing():
    model = spec(experts=EIGHT)
    for imbalance in (1.0, 1.3, 2.0, 7.0):
        w = workload(expert_imbalance=imbalance, capacity_factor=imbalance)
        assert dropped_share(model, w) == pytest.approx(0, abs=1e-12)
        assert dropped_share(model, workload(expert_imbalance=imbalance)) == 0


def test_a_smaller_capacity_drops_more():
    model = spec(experts=EIGHT)
    shares = [
        dropped_share(model, workload(expert_imbalance=2.0, capacity_factor=c))
        for c in (2.0, 1.5, 1.2, 1.0, 0.5)
    ]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.5)  # half of a fair share each: half of all is dropped
    assert shares[1] > 0


def test_a_measured_load_is_cut_expert_by_expert():
    """Loads 4,2,1,1,0,0,0,0 of 8: shares .5 .25 .125 .125; at most .125 * 1.5 = .1875 each."""
    model = spec(experts=EIGHT)
    w = workload(expert_load=(4, 2, 1, 1, 0, 0, 0, 0), capacity_factor=1.5)
    kept = 0.1875 + 0.1875 + 0.125 + 0.125
    assert dropped_share(model, w) == pytest.approx(1 - kept)


def test_the_busiest_rank_is_the_mean_of_its_experts():
    """Loads of 8 experts over 4 ranks of two: (4+2)/8, (1+1)/8, 0, 0; the mean is 1/4."""
    model = spec(experts=EIGHT)
    load = (4, 2, 1, 1, 0, 0, 0, 0)
    rows = [{"ep": ep, "dp": 8} for ep in (1, 2, 4, 8)]
    x = inputs(model, *rows, expert_load=load)
    assert busiest_rank(x) == pytest.approx([1, 2, 3, 4])
    x = inputs(model, *rows, expert_load=load, capacity_factor=1.5)
    # no expert beyond 1.5 fair shares: 1.5 1.5 1 1 0 0 0 0
    assert busiest_rank(x) == pytest.approx([5 / 8, 5 / 4, 1.5, 1.5])


@pytest.mark.parametrize("imbalance", [1.0, 1.1, 2.5, 8.0, 50.0])
def test_the_assumed_shares_sum_to_one_and_have_the_busiest_asked_for(imbalance):
    shares = expert_shares(spec(experts=EIGHT), workload(expert_imbalance=imbalance))
    assert shares.sum() == pytest.approx(1)
    assert shares.max() * 8 == pytest.approx(min(imbalance, 8), rel=1e-6)


def test_a_load_for_another_number_of_experts_is_refused():
    with pytest.raises(SpecError, match="2 shares, small has 8 experts"):
        expert_shares(spec(experts=EIGHT), workload(expert_load=(1, 2)))


def test_imbalance_costs_time_only_where_experts_are_spread():
    rows = [{"ep": ep, "dp": 8, "micro_batch": 512} for ep in (1, 8)]
    model = spec(experts=EIGHT)
    even = step_s(inputs(model, *rows, expert_imbalance=1.0))
    skewed = step_s(inputs(model, *rows, expert_imbalance=2.0))
    assert skewed[0] == even[0]
    assert skewed[1] > even[1]


def test_every_token_visits_top_k_experts_once_whatever_the_split():
    """Over the ranks of a stage, balanced experts compute T * top_k pairs: one copy each."""
    model = spec(experts=EIGHT)
    rows = [
        {"tp": 4, "sp": 1},
        {"tp": 4, "sp": 1, "ep": 4},
        {"tp": 4, "sp": 1, "ep": 2, "etp": 2},
        {"tp": 4, "sp": 1, "etp": 4},
        {"tp": 4, "sp": 0, "etp": 4},  # all four hold the same tokens, and a quarter of each expert
        {"cp": 2, "ep": 2},
    ]
    x = inputs(model, *rows, expert_imbalance=1.0)
    lay = layouts(*rows)
    ranks = lay.tp * lay.cp
    assert (routed_tokens(x) * ranks)[lay.sp == 1] == pytest.approx(1024 * 2)
    assert received_tokens(x) / lay.etp * ranks == pytest.approx(1024 * 2)


# --- one synchronisation


@pytest.mark.parametrize("n", [2, 8, 64, 1000])
def test_synchronising_a_hundred_billion_fp16_gradients(n):
    rows = {row.scheme: row for row in gradient_sync(100e9, n, 2.0)}
    ring = rows["ring all-reduce"]
    assert ring.per_gpu_sent_bytes == pytest.approx(400e9 * (n - 1) / n)
    assert ring.total_bytes == pytest.approx(400e9 * (n - 1))
    server = rows["parameter server"]
    assert server.per_gpu_sent_bytes == 200e9
    assert server.busiest_link_bytes == n * 200e9
    assert rows["ZeRO-1"].per_gpu_sent_bytes == rows["ZeRO-2"].per_gpu_sent_bytes
    assert rows["ZeRO-2"].per_gpu_sent_bytes == ring.per_gpu_sent_bytes
    assert rows["ZeRO-3"].per_gpu_sent_bytes == pytest.approx(600e9 * (n - 1) / n)

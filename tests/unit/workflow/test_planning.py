"""From a request to a placed plan: what is searched, what is said, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InfeasibleError, SpecError
from planner.estimate.bounds import least_step_s
from planner.estimate.inputs import Inputs
from planner.estimate.step import step_s
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import Fix, parse_fix
from planner.layouts.table import COLUMNS
from planner.rank import nearest, rank
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.workflow import PlanRequest, explain, place, plan, plan_for_target
from planner.workflow.request import quiet
from planner.workflow.searching import fewer_gpus, search


def request(model="llama-3.1-8b", cluster="dgx-h100:2", *, seq=4096, batch=64, fix=None, **more):
    asked = {name: more.pop(name) for name in ("gpus", "top", "unhealthy", "slow") if name in more}
    return PlanRequest(
        load_model(model),
        load_cluster(cluster),
        Workload(seq_tokens=seq, global_batch=batch, **more),
        fix=fix or {},
        **asked,
    )


# --- ranking


def test_every_feasible_layout_is_ranked_by_time_then_memory():
    asked = request()
    ranking = rank(asked.context, 16, Fix())
    times = ranking.step_s
    assert (times[1:] >= times[:-1]).all()
    ties = times[1:] == times[:-1]
    assert (ranking.peak_bytes[1:] >= ranking.peak_bytes[:-1])[ties].all()
    assert (ranking.peak_bytes <= ranking.budget_bytes).all()
    x = Inputs(*asked.context, ranking.layouts)
    told = np.maximum(step_s(x), least_step_s(x))
    for row, one in ranking.leaders.judged.items():
        told[row] = one.step_s
    assert (times >= told * (1 - 1e-12)).all()
    flat = ranking.layouts.pp == 1
    assert times[flat] == pytest.approx(step_s(x)[flat])
    assert ranking.feasible < ranking.tally.legal
    assert ranking.lightest_bytes > ranking.budget_bytes


def test_shown_rows_are_the_best_of_their_shape():
    ranking = rank(request().context, 16, Fix())
    rows = ranking.best_of_each_shape(5)
    shapes = [tuple(ranking.layouts.row(r)[n] for n in ("tp", "pp", "cp", "dp")) for r in rows]
    assert len(set(shapes)) == len(shapes) == 5
    assert rows[0] == 0
    assert list(rows) == sorted(rows)


def test_the_nearest_layouts_change_the_fewest_fields():
    ranking = rank(request().context, 16, Fix())
    wanted = {"tp": 2, "pp": 1, "dp": 8, "cp": 1}
    first = ranking.layouts.row(int(nearest(ranking, wanted, wanted, 1)[0]))
    assert {name: first[name] for name in wanted} == wanted


# --- plan


def test_the_plan_counts_every_layout_once():
    search = plan(request()).search
    assert sum(search.rejected.values()) + search.feasible == search.enumerated
    assert search.feasible + search.rejected["does not fit in memory"] == search.legal


def test_two_runs_give_the_same_bytes_but_for_the_timing():
    first, second = (json.loads(plan(request()).to_json()) for _ in range(2))
    assert set(first.pop("timing")) == {"search_s", "place_s", "total_s"}
    second.pop("timing")
    assert first == second
    assert json.dumps(first) == json.dumps(second)


def test_plain_data_parallelism_stands_last_as_the_baseline():
    last = plan(request()).plans[-1]
    assert last.note.startswith("plain data parallelism: does not fit")
    assert not last.feasible
    assert (last.layout.tp, last.layout.pp, last.layout.zero, last.layout.dp) == (1, 1, 0, 16)
    # 18 bytes a parameter do not fit into 80 GB for 8 billion
    assert last.estimate.memory.peak_bytes > 18 * 8.03e9


def test_a_baseline_of_a_small_batch_uses_the_gpus_that_it_can():
    last = plan(request(batch=6)).plans[-1]
    assert last.note.startswith("plain data parallelism on 6 of 16 GPUs")
    assert last.layout.dp == 6


def test_a_baseline_that_is_ranked_already_is_not_repeated():
    found = plan(request("gpt2", seq=1024, fix={"zero": "0", "tp": "1", "pp": "1", "cp": "1"}))
    plain = [p for p in found.plans if p.layout.zero == 0 and p.layout.dp == 16]
    assert len(plain) == 1
    assert plain[0].rank == 1


def test_nodes_with_unhealthy_gpus_are_left_out():
    found = plan(request(cluster="dgx-h100:3", unhealthy=("node00002:5",)))
    assert found.best.layout.gpus == 16
    assert "8 of 24 GPUs are on unhealthy nodes and left out" in found.notes
    assert set(found.placement.hosts) == {"node00001", "node00003"}


def test_slow_nodes_are_told_apart_from_broken_ones():
    avoid = {
        "unhealthy": ("node00003", "node00002", "node00003"),
        "slow": ("node00002", "node00003"),
    }
    found = plan(request(cluster="dgx-h100:4", **avoid))
    assert "16 of 32 GPUs are on unhealthy and slow nodes and left out" in found.notes
    notes = found.placement.notes  # node00003 is broken and slow: broken
    assert "1 node with fewer than 8 healthy GPUs left out" in notes
    assert "1 slow node left out" in notes
    only = plan(request(cluster="dgx-h100:3", unhealthy=("node00002",), slow=("node00002",)))
    assert "8 of 24 GPUs are on slow nodes and left out" in only.notes
    with pytest.raises(InfeasibleError, match="all are slow") as refused:
        plan(request(cluster="dgx-h100:1", unhealthy=("node00001",), slow=("node00001",)))
    assert refused.value.hint == "leave --slow out"


def test_without_a_healthy_node_there_is_no_plan():
    with pytest.raises(InfeasibleError, match="no node to use: all are unhealthy"):
        plan(request(unhealthy=("node00001", "node00002")))


def test_more_gpus_than_are_healthy_are_refused():
    with pytest.raises(InfeasibleError, match=r"16 GPUs asked for; .* has 8 on healthy nodes"):
        plan(request(unhealthy=("node00002",), gpus=16))


def test_where_no_layout_uses_all_gpus_the_plan_uses_fewer_and_says_so():
    """7 nodes cannot share 64 sequences with 32 layers and 32 heads of powers of two: 4 can."""
    fix = {"tp": "8", "cp": "1", "pp": "1"}
    found = plan(request(cluster="dgx-h100:7", fix=fix))
    assert found.best.layout.gpus == 32
    told = (
        "no layout is legal on all 56 GPUs; this one leaves 24 idle, as few as a layout that fits"
    )
    assert any(note.startswith(told) for note in found.notes)


@pytest.mark.parametrize(
    ("batch", "fix"), [(64, {"pp": "1"}), (64, {}), (24, {"tp": "2", "pp": "1..3"}), (9, {})]
)
def test_fewer_gpus_are_those_that_some_layout_can_use_most_first(batch, fix):
    asked = request("gpt2", "dgx-h100:24", seq=1024, batch=batch, fix=fix)

    def legal(gpus: int) -> bool:
        tally = Tally()
        return any(len(part) for part in legal_layouts(asked.context, gpus, asked.choices, tally))

    tried = fewer_gpus(asked.context, 192, asked.choices)
    by_hand = [n for n in range(184, 0, -8) if legal(n)]
    assert [n for n in tried if n >= 8 and legal(n)] == by_hand
    assert [n for n in tried if n < 8 and legal(n)] == [n for n in range(7, 0, -1) if legal(n)]


def test_a_thousand_nodes_without_a_legal_layout_do_not_fall_to_parts_of_one():
    asked = request("gpt2", "dgx-h100:1000", seq=1024, batch=4096, fix={"tp": "1", "pp": "1"})
    ranking, notes = search(replace(asked, fix=asked.fix | {"cp": "1"}), quiet)
    assert ranking.gpus == 4096
    assert "leaves 3,904 idle" in notes[0]


def test_asking_for_a_number_of_gpus_forbids_to_use_fewer():
    with pytest.raises(InfeasibleError, match=r"none of .* layouts on 56 GPUs is legal"):
        plan(request(cluster="dgx-h100:7", fix={"tp": "8", "cp": "1", "pp": "1"}, gpus=56))


def test_fixed_fields_that_no_layout_has_are_named():
    with pytest.raises(InfeasibleError, match="tp=2, dp=5") as caught:
        plan(request(fix={"tp": "2", "dp": "5"}, gpus=16))
    assert "must equal the number of GPUs" in caught.value.hint


def test_what_does_not_fit_is_refused_with_figures():
    with pytest.raises(InfeasibleError) as caught:
        plan(request("llama-3.1-405b"))
    message = str(caught.value)
    assert "nothing fits: the lightest of" in message
    assert "GiB per GPU" in message
    assert "of 79.10 GiB" in message
    ranking = rank(request("llama-3.1-405b").context, 16, Fix())
    assert ranking.feasible == 0
    assert ranking.lightest_bytes > 405e9 * 16 / 16  # at least 16 bytes a parameter over 16 GPUs


def test_what_fits_no_gpus_is_planned_with_states_on_the_hosts_and_that_is_said():
    found = plan(request("llama-3.1-70b", "dgx-h100:1"))
    assert found.best.layout.offload != "none"
    assert 0 < found.best.estimate.memory.host_bytes <= 2048 * 2**30
    assert any("states are in that of their hosts" in note for note in found.notes)
    assert "offload=" in found.best.layout.short()


def test_states_stay_on_the_gpus_where_the_user_says_so():
    with pytest.raises(InfeasibleError, match="nothing fits"):
        plan(request("llama-3.1-70b", "dgx-h100:1", fix={"offload": "none"}))


def test_hosts_without_room_for_what_is_offloaded_are_refused_with_figures():
    asked = request("llama-3.1-8b", "dgx-h100:1", fix={"offload": "optimizer", "zero": "2"})
    node = asked.cluster.node.model_copy(update={"memory_gib": 64})
    cluster = asked.cluster.model_copy(update={"node": node})
    with pytest.raises(InfeasibleError, match=r"of a node's own memory; it has 64.00 GiB"):
        plan(replace(asked, cluster=cluster))


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "sgd", "muon"])
def test_another_optimizer_changes_its_own_part_of_memory_and_time_only(optimizer):
    fix = {"tp": "2", "pp": "1", "zero": "1", "micro_batch": "1", "recompute": "full", "sp": "true"}
    adam, other = (plan(request(fix=fix, optimizer=o)).best.estimate for o in ("adamw", optimizer))
    for name in ("weights", "gradients", "activations", "logits", "buffers", "overhead"):
        assert getattr(adam.memory.stages[0], name) == getattr(other.memory.stages[0], name)
    assert other.memory.stages[0].optimizer < adam.memory.stages[0].optimizer
    assert {n for n in adam.time_s if adam.time_s[n] != other.time_s[n]} == {"optimizer"}
    assert (other.time_s["optimizer"] > adam.time_s["optimizer"]) == (optimizer == "muon")


@pytest.mark.parametrize(
    ("fix", "named"), [({"tpp": "2"}, "tpp"), ({"tp": "x"}, "tp"), ({"zero": "4"}, "zero")]
)
def test_unknown_fields_and_values_are_refused(fix, named):
    with pytest.raises(SpecError, match=named):
        plan(request(fix=fix))


def test_plans_above_the_share_asked_for_are_marked_at_risk():
    shares = {}
    for risk in (0.3, 0.9):
        found = plan(request("llama-3.1-8b", risk_memory=risk))
        memories = [p.estimate.memory for p in found.plans if p.feasible]
        assert all(m.at_risk == (m.peak_bytes > risk * m.limit_bytes) for m in memories)
        shares[risk] = sum(m.at_risk for m in memories) / len(memories)
        told = [note for note in found.notes if f"--max-memory {risk:g} would give" in note]
        assert bool(told) == memories[0].at_risk
    assert shares[0.3] > shares[0.9]


def test_fixed_fields_hold_in_every_ranked_row():
    fix = {"tp": "2|4", "pp": "2..4", "recompute": "full", "sp": "true"}
    for row in plan(request(fix=fix)).plans:
        if not row.note:
            assert row.layout.tp in (2, 4)
            assert 2 <= row.layout.pp <= 4
            assert row.layout.recompute == "full"
            assert row.layout.sp


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_tiny_batch_still_gets_a_plan_on_all_gpus(batch):
    found = plan(request(batch=batch, fix={"zero": "0|1|2|3"}))
    assert batch % (found.best.layout.dp * found.best.layout.micro_batch) == 0


# --- targets


@pytest.mark.parametrize("target", ["megatron", "deepspeed", "torchrun"])
def test_a_target_gets_the_best_plan_that_it_can_run(target):
    from planner.emit import emitter_named

    found = plan_for_target(request(), target)
    emitter = emitter_named(target)
    assert emitter.unsupported(found) == []
    assert found.request.workload.stack == emitter.stack
    assert found.placement is not None
    assert found.best.feasible
    assert emitter.emit(found)


def test_a_target_that_cannot_run_what_is_fixed_says_so():
    with pytest.raises(InfeasibleError):
        plan_for_target(request(fix={"vpp": "2", "pp": "2"}), "deepspeed")


# --- place


def test_a_layout_given_in_part_is_completed_and_placed():
    placed = place(request(), {"tp": "4", "pp": "2"})
    assert len(placed.ranks) == 16
    assert len({(r.host, r.gpu) for r in placed.ranks}) == 16
    assert {r.tp for r in placed.ranks} == {0, 1, 2, 3}


def test_an_illegal_layout_is_not_placed():
    with pytest.raises(InfeasibleError, match="not legal"):
        place(request(), {"tp": "16"})


def test_rows_hold_every_column():
    assert set(COLUMNS) <= set(plan(request()).best.layout.model_dump())


# --- sequences longer than the model's


def test_learned_positions_bound_the_sequence():
    with pytest.raises(SpecError, match="1024 tokens, not 2048"):
        plan(request("gpt2", "rtx-4090-8x", seq=2048))


def test_a_rotary_model_beyond_its_published_length_is_said():
    notes = plan(request("llama-2-7b", "dgx-h100:2", seq=8192, top=1)).notes
    assert any("published for 4,096 tokens, fewer than 8,192" in note for note in notes)


# --- pipelines that are run


def test_a_plan_says_how_many_pipelines_were_run_and_why_that_is_enough():
    found = plan(request("llama-3.1-70b", "dgx-h100:8", batch=128, fix={"pp": "4|8"}))
    assert found.search.simulated > 0
    assert found.search.unsettled == 0
    ran = f"{found.search.simulated:,} of "
    assert any(n.startswith(ran) and "lower bound of every other" in n for n in found.notes)
    times = [row.estimate.step_time_s for row in found.plans if not row.note]
    assert times == sorted(times)


@pytest.mark.parametrize("most", [600_000, 40_000])
def test_rows_stand_in_the_order_of_their_times_however_few_may_be_run(most, monkeypatch):
    """On 24 nodes closed forms of 12 stages with unlike chunks are 5 % fast."""
    monkeypatch.setattr("planner.settling.MOST_TO_RUN", most)
    found = plan(
        request("llama-3.1-70b", "dgx-h100:24", seq=8192, batch=384, top=12, stack="megatron")
    )
    times = [row.estimate.step_time_s for row in found.plans if row.feasible]
    assert len(times) == 12
    assert times == sorted(times)


def test_where_too_few_may_be_run_the_plan_says_what_that_leaves_open(monkeypatch):
    monkeypatch.setattr("planner.estimate.leading.MOST_TO_RUN", 10_000)
    found = plan(request("llama-3.1-70b", "dgx-h100:8", batch=128, fix={"pp": "4|8"}))
    assert found.search.unsettled > 0
    assert any("might be up to" in note and "by their lower bounds" in note for note in found.notes)


def test_a_large_head_takes_the_place_of_layers_on_the_last_stage():
    """32 layers on 4 stages of one chunk: the head of 128,256 tokens weighs about one of them."""
    fix = {"pp": "4", "vpp": "1", "tp": "1", "dp": "4"}
    best = plan(request(batch=256, fix=fix, stack="deepspeed")).best
    held = [sum(chunks) for chunks in best.stage_layers]
    assert sum(held) == 32
    assert held[-1] < max(held)
    even = rank(request(batch=256, stack="deepspeed").context, 16, parse_fix(fix))
    closed = step_s(Inputs(*request(batch=256, stack="deepspeed").context, even.layouts))
    assert best.estimate.step_time_s < closed.min()


@pytest.mark.parametrize("stack", ["megatron+no-graphs", "nanotron"])
def test_a_host_bound_plan_says_so_and_how_to_mend_it(stack):
    asked = request("llama-3.2-1b", "dgx-h100:1", seq=512, batch=64, stack=stack)
    slow = {"tp": "8", "pp": "1", "cp": "1", "micro_batch": "1"}
    found = plan(replace(asked, fix=slow))
    told = [note for note in found.notes if "host-bound" in note]
    share = found.best.estimate.time_s["host"] / found.best.estimate.step_time_s
    assert len(told) == 1
    assert f"wait {share:.0%} of the step" in told[0]
    assert "larger micro-batch" in told[0]
    assert "full-graphs" in told[0]
    assert [n for n in explain(asked, slow).notes if "host-bound" in n]


def test_graphs_are_not_offered_to_a_plan_that_has_them_nor_a_cure_to_a_busy_gpu():
    busy = plan(request("llama-3.1-8b", "dgx-h100:2", stack="megatron"))
    assert busy.best.estimate.time_s["host"] < 0.1 * busy.best.estimate.step_time_s
    assert not [note for note in busy.notes if "host-bound" in note]
    graphed = request("gpt2", "dgx-h100:1", seq=64, batch=64, stack="megatron+full-graphs")
    found = plan(replace(graphed, fix={"tp": "2", "pp": "1", "cp": "1", "micro_batch": "1"}))
    told = [note for note in found.notes if "host-bound" in note]
    assert told
    assert "graphs" not in told[0]


@pytest.mark.parametrize("stack", ["torchtitan", "torchtitan+eager"])
def test_rows_stand_in_the_order_of_the_times_that_they_show(stack):
    """A batch so small that chunked schedules have fewer micro-batches than stages."""
    found = plan(request("llama-3.1-70b", "dgx-h100:16", seq=8192, batch=32, stack=stack))
    shown = [row.estimate.step_time_s for row in found.plans if row.feasible]
    assert len(shown) >= 8
    assert shown == sorted(shown)

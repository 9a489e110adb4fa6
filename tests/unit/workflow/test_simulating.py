"""A saved plan's pipeline: stage times from the estimate, the closed form beside, what-ifs."""

from __future__ import annotations

import numpy as np
import pytest

from planner.errors import InfeasibleError, SpecError
from planner.estimate.communication import pp_microbatch_s
from planner.estimate.inputs import Inputs
from planner.estimate.memory import budget_bytes, stage_bytes
from planner.estimate.pipelined import stage_microbatch_s
from planner.estimate.stages import prices
from planner.layouts.split import chunk_layers
from planner.layouts.table import FOLDS_OF, Layouts
from planner.pipeline.registry import SCHEDULES
from planner.plan import Estimate, Layout, Memory, Plan, RankedPlan, Request, Search
from planner.specs.catalog import load_cluster, load_model
from planner.specs.cluster import ClusterSpec
from planner.specs.workload import Workload
from planner.workflow import PlanRequest, SimulationRequest, explain, simulate
from planner.workflow import plan as make_plan

NOTHING = Estimate(
    step_time_s=1,
    tokens_per_s=1,
    tokens_per_s_per_gpu=1,
    tflops_per_gpu=1,
    mfu=0,
    mfu_causal=0,
    bubble_fraction=0,
    time_s={},
    memory=Memory(peak_bytes=0, limit_bytes=1, stages=[]),
)
"""Simulating asks the formulas anew; what the saved plan estimated does not matter."""


def saved(model: str, cluster: str = "dgx-h100:4", **layout: object) -> Plan:
    base: dict[str, object] = dict(tp=2, sp=True, pp=4, vpp=1, cp=1, ep=1, etp=1, dp=4)
    base |= dict(dp_replicate=1, zero=1, micro_batch=1, num_microbatches=16, recompute="none")
    base |= dict(schedule="1f1b") | layout
    shape = Layout.model_validate(base)
    spec = load_model(model)
    row = RankedPlan(
        rank=1,
        layout=shape,
        estimate=NOTHING,
        stage_layers=chunk_layers(spec.layers, shape.pp, shape.vpp, FOLDS_OF[style_of(shape)]),
    )
    work = Workload(seq_tokens=4096, global_batch=shape.dp * 16)
    return Plan(
        request=Request(model=spec, cluster=load_cluster(cluster), workload=work),
        search=Search(enumerated=1, legal=1, feasible=1, rejected={}),
        plans=[row],
    )


def style_of(shape: Layout) -> str:
    return "loop" if shape.schedule == "none" else SCHEDULES[shape.schedule].style


def ask(plan: Plan, **more):
    return simulate(SimulationRequest(plan, **more)).record


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("llama-3.1-8b", dict(pp=4)),
        ("llama-3.1-8b", dict(pp=4, vpp=2, schedule="interleaved", recompute="full")),
        ("llama-3.1-8b", dict(pp=4, zero=3)),
        ("mixtral-8x7b", dict(pp=2, ep=8, recompute="selective")),
        ("deepseek-v3", dict(pp=8, ep=4)),
    ],
)
def test_parts_take_what_the_estimate_charges_their_stage_without_sends(model, layout):
    plan = saved(model, **layout)
    shape = plan.best.layout
    one = Layouts.of([shape.model_dump()])
    ask_of = plan.request
    x = Inputs(ask_of.model, ask_of.cluster, ask_of.workload, one, every_stage=True)
    flat = [plan.best.stage_layers[p][v] for v in range(shape.vpp) for p in range(shape.pp)]
    parts = prices(x).parts(0, flat, chunks=shape.vpp)
    total = parts.forward_s + parts.backward_input_s + parts.backward_weight_s
    by_rank = total.reshape(shape.vpp, shape.pp).sum(axis=0)
    np.testing.assert_allclose(by_rank + pp_microbatch_s(x)[0], stage_microbatch_s(x)[0])
    for direction in parts[:3]:
        assert (direction > 0).all()


def without_sends(plan: Plan) -> Plan:
    """Return the plan on links that cost nothing."""
    data = plan.request.cluster.model_dump()
    data["scale_up"] |= {"gb_per_s": 1e12, "latency_us": 0, "collectives": ()}
    data["fabric"] |= {"latency_us": 0, "step_latency_us": 0}
    data["node"]["nic_gbit_per_s"] = 1e12
    request = plan.request.model_copy(update={"cluster": ClusterSpec.model_validate(data)})
    return plan.model_copy(update={"request": request})


@pytest.mark.parametrize(
    "layout", [dict(schedule="1f1b"), dict(schedule="gpipe"), dict(pp=1, schedule="none")]
)
def test_without_sends_it_comes_close_to_the_closed_form_from_above(layout):
    """The form adds every other stage's time once; one slow stage alone makes that exact."""
    record = ask(without_sends(saved("llama-3.1-8b", **layout)))
    ratio = record.makespan_s / record.closed_form.makespan_s
    assert 0.99 < ratio < 1.02
    once = record.closed_form.step_time_s - record.closed_form.makespan_s
    assert record.step_time_s == pytest.approx(record.makespan_s + once)


def test_a_single_stage_is_exactly_its_micro_batches_one_after_the_other():
    record = ask(saved("llama-3.1-8b", pp=1, dp=16, schedule="none"))
    assert record.makespan_s == pytest.approx(record.closed_form.makespan_s)
    assert record.bubble_fraction == pytest.approx(0, abs=1e-12)
    assert any("pp=1" in note for note in record.notes)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_runs_a_plan_and_its_seconds_add_up(name):
    record = ask(saved("llama-3.1-8b"), schedule=name)
    assert record.schedule == name
    assert record.chunks == SCHEDULES[name].usual_chunks
    copies = record.model_copies
    assert sum(sum(rank.layers) for rank in record.ranks) == 32 * copies
    for rank in record.ranks:
        spent = rank.busy_s + rank.sending_s + rank.idle_s
        assert spent == pytest.approx(record.makespan_s)
        assert rank.busy_s == pytest.approx(16 * (rank.forward_s + rank.backward_s))


def test_stages_hold_at_their_peak_what_the_memory_estimate_says():
    record = ask(saved("llama-3.1-8b"))
    assert [rank.peak_in_flight for rank in record.ranks] == [4, 3, 2, 1]
    looped = ask(saved("llama-3.1-8b", vpp=2, schedule="interleaved"))
    assert [rank.peak_in_flight for rank in looped.ranks] == [5.5, 4.5, 3.5, 2.5]


def test_a_slower_stage_costs_about_its_own_lag_for_every_micro_batch():
    plan = saved("llama-3.1-8b")
    record = ask(plan, straggler={3: 1.5})  # the head makes the last stage the slowest as it is
    one = record.ranks[3].forward_s + record.ranks[3].backward_s
    assert record.straggler is not None
    assert record.straggler.slower_s == pytest.approx(16 * 0.5 * one, rel=0.2)
    assert record.straggler.step_time_s > record.step_time_s
    assert record.makespan_s == ask(plan).makespan_s
    same = ask(plan, straggler={3: 1.0}).straggler
    assert same is not None
    assert same.slower_s == 0


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("llama-3.1-8b", dict(pp=4)),
        ("llama-3.1-8b", dict(pp=4, vpp=2, schedule="interleaved")),
        ("llama-3.1-70b", dict(pp=8)),
        ("llama-3.1-405b", dict(pp=16)),
        ("llama-3.1-405b", dict(pp=8, vpp=7, schedule="interleaved")),
        ("bloom-176b", dict(pp=12)),
        ("gpt-oss-120b", dict(pp=4, ep=8)),
        ("deepseek-v3", dict(pp=16, ep=8)),
    ],
)
def test_an_exact_cut_is_never_slower_than_the_usual_one(model, layout):
    plan = saved(model, **layout)

    def slowest(record) -> float:
        return max(rank.forward_s + rank.backward_s for rank in record.ranks)

    usual, exact = ask(plan), ask(plan, balance=True)
    layers = plan.request.model.layers
    assert sum(sum(rank.layers) for rank in exact.ranks) == layers
    assert slowest(exact) <= slowest(usual) * (1 + 1e-12)
    assert exact.makespan_s <= usual.makespan_s * 1.005


def test_405b_over_16_stages_leaves_a_layer_out_at_either_end_as_llama_3_did():
    """Llama Team 2024, sec. 3.3.2: one layer fewer on the first and on the last stage."""
    record = ask(saved("llama-3.1-405b", tp=8, pp=16), balance=True)
    assert [sum(rank.layers) for rank in record.ranks] == [7, *[8] * 14, 7]


def test_an_exact_cut_that_is_not_known_is_refused():
    with pytest.raises(InfeasibleError, match="two copies"):
        ask(saved("llama-3.1-8b"), schedule="dualpipe", balance=True)
    with pytest.raises(InfeasibleError, match="different kinds into 4 chunks"):
        ask(saved("llama-4-maverick", vpp=4, schedule="interleaved"), balance=True)


@pytest.mark.parametrize(
    ("model", "schedule"),
    [
        ("llama-3.1-8b", "zbv"),
        ("deepseek-v3", "interleaved"),
        ("deepseek-v3", "zbv"),
        ("deepseek-v2-lite", "interleaved"),
        ("llama-4-maverick", "interleaved"),
        ("llama-4-maverick", "zbv"),
    ],
)
def test_an_exact_cut_over_several_chunks_has_no_slower_slowest_stage(model, schedule):
    """Dense layers first, a multi-token prediction block last, both ends on one stage."""
    plan = saved(model, pp=4, vpp=2, schedule=schedule)
    usual, balanced = ask(plan), ask(plan, balance=True)
    slowest = [max(r.forward_s + r.backward_s for r in one.ranks) for one in (usual, balanced)]
    assert slowest[1] <= slowest[0] * (1 + 1e-12)
    assert sum(sum(r.layers) for r in balanced.ranks) == plan.request.model.layers


@pytest.mark.parametrize(
    ("schedule", "vpp"),
    [("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("zbv", 2), ("dualpipev", 2), ("dualpipe", 1)],
)
def test_simulate_and_explain_show_the_same_bubble_under_the_same_name(schedule, vpp):
    fix = {"tp": "2", "pp": "4", "dp": "4", "vpp": str(vpp), "schedule": schedule}
    fix |= {"micro_batch": "1", "cp": "1", "zero": "1", "recompute": "none"}
    request = PlanRequest(
        load_model("llama-3.1-8b"),
        load_cluster("dgx-h100:4"),
        Workload(seq_tokens=4096, global_batch=64),
        fix=fix,
    )
    shown = explain(request, fix).estimate
    plan = make_plan(request)
    record = ask(plan)
    assert shown is not None
    assert record.schedule == schedule
    assert record.bubble_s == pytest.approx(shown.time_s["bubble"])
    assert record.bubble_fraction == pytest.approx(shown.bubble_fraction)
    assert record.step_time_s == pytest.approx(plan.best.estimate.step_time_s)


def test_fewer_micro_batches_make_a_larger_bubble():
    plan = saved("llama-3.1-8b")
    assert ask(plan, microbatches=4).bubble_fraction > 1.5 * ask(plan).bubble_fraction


@pytest.mark.parametrize(
    ("more", "error", "why"),
    [
        (dict(plan_rank=2), SpecError, "holds ranks 1"),
        (dict(schedule="zbw"), SpecError, "allowed: gpipe"),
        (dict(straggler={4: 2.0}), SpecError, "stages are 0 to 3"),
        (dict(chunks=40, schedule="interleaved"), InfeasibleError, "do not fill 160 chunks"),
        (dict(chunks=3, schedule="zbv"), InfeasibleError, "two chunks a rank, not 3"),
        (dict(microbatches=9_000_000), InfeasibleError, "too many to run"),
    ],
)
def test_what_cannot_be_run_is_said(more, error, why):
    with pytest.raises(error, match=why):
        ask(saved("llama-3.1-8b"), **more)


@pytest.mark.parametrize(
    "bad", [dict(pp=0), dict(tp=-8), dict(pp=64), dict(zero=7), dict(dp=10**17)]
)
def test_a_layout_that_no_planner_wrote_is_refused(bad):
    plan = saved("llama-3.1-8b")
    layout = plan.best.layout.model_copy(update=bad)
    rows = [plan.best.model_copy(update={"layout": layout})]
    with pytest.raises(SpecError, match="plan 1"):
        ask(plan.model_copy(update={"plans": rows}))


MI300X_LLAMA_2_7B = {"1f1b": 235.7, "interleaved": 257.3, "zb-h1": 268.0, "zbv": 265.9}
"""TFLOP/s per GPU, Llama 2 7B over 8 stages: AMD-AGI/Primus@fd1eeabb, primus_pipeline.md.

The batch is not stated: with 32 micro-batches interleaving gains about what it gained there
(9.2 %), and the other two follow.
"""


def test_zero_bubble_gains_over_1f1b_what_was_measured_on_mi300x():
    plan = saved(
        "llama-2-7b", "mi300x-8x400g", tp=1, sp=False, pp=8, dp=1, zero=0, num_microbatches=32
    )
    took = {name: ask(plan, schedule=name).step_time_s for name in MI300X_LLAMA_2_7B}
    told = {name: took["1f1b"] / step for name, step in took.items()}
    base = MI300X_LLAMA_2_7B["1f1b"]
    for name, tflops in MI300X_LLAMA_2_7B.items():
        assert told[name] == pytest.approx(tflops / base, rel=0.10), name
    assert told["1f1b"] < told["interleaved"] < min(told["zb-h1"], told["zbv"])


# --- plans that were run


@pytest.mark.parametrize("stack", ["any", "megatron", "torchtitan"])
def test_a_plan_is_simulated_to_the_number_that_it_states(stack):
    work = Workload(seq_tokens=4096, global_batch=128, stack=stack)
    fix = {"pp": "4|8", "zero": "1|2"}
    found = make_plan(
        PlanRequest(load_model("llama-3.1-70b"), load_cluster("dgx-h100:8"), work, fix)
    )
    for row in found.plans[:4]:
        told = ask(found, plan_rank=row.rank)
        assert row.estimate.simulated
        assert told.step_time_s == pytest.approx(row.estimate.step_time_s, rel=1e-9)
        assert [rank.layers for rank in told.ranks] == row.stage_layers
        assert sum(row.estimate.time_s.values()) == pytest.approx(row.estimate.step_time_s)


def test_explaining_a_plan_states_the_same_number():
    work = Workload(seq_tokens=4096, global_batch=128, stack="megatron")
    asked = PlanRequest(
        load_model("llama-3.1-70b"), load_cluster("dgx-h100:8"), work, {"pp": "4|8"}
    )
    best = make_plan(asked).best
    told = explain(asked, dict(p.split("=") for p in best.layout.short().split(",")))
    assert told.layout == best.layout
    assert told.estimate.step_time_s == pytest.approx(best.estimate.step_time_s, rel=1e-9)
    assert told.stage_layers == best.stage_layers


# --- less recomputation where there is room


def test_without_recomputation_there_is_none_to_save():
    assert ask(saved("llama-3.1-8b")).less_recompute is None


def test_where_every_stage_has_room_the_gain_is_that_of_the_other_layout():
    less = ask(saved("llama-3.1-8b", recompute="full")).less_recompute
    assert less.stages == [0, 1, 2, 3]
    assert less.recompute == "none"
    plain = ask(saved("llama-3.1-8b", recompute="none"))
    assert less.makespan_s == pytest.approx(plain.makespan_s, rel=1e-12)
    assert less.gained_s == pytest.approx(
        ask(saved("llama-3.1-8b", recompute="full")).makespan_s - plain.makespan_s
    )


def test_only_stages_with_room_are_named_and_they_gain_what_a_mixed_pipeline_takes():
    plan = saved("llama-3.1-70b", "dgx-h100:16", tp=4, pp=8, micro_batch=4, recompute="full")
    told = ask(plan)
    less = told.less_recompute
    one = Layouts.of([plan.best.layout.model_dump() | {"recompute": less.recompute}])
    asked = plan.request
    x = Inputs(asked.model, asked.cluster, asked.workload, one, every_stage=True)
    fits = stage_bytes(x)[0] <= budget_bytes(x)
    assert 0 < fits.sum() < 8
    assert less.stages == np.flatnonzero(fits).tolist()
    # 1F1B holds most on the first stages: those with room are the last ones
    assert less.stages == list(range(8 - len(less.stages), 8))
    assert 0 <= less.gained_s < told.makespan_s
    assert less.peak_bytes <= budget_bytes(x)

"""The best by each objective, within limits, over sizes: against all layouts, one by one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InfeasibleError, SpecError
from planner.layouts.ranges import parse_fix
from planner.objectives import Aim, Job, Objective, allowed_step_s, value
from planner.plan import Plan
from planner.rank import rank
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.workflow import PlanRequest, narrowed, plan, plan_for_target
from planner.workflow.sizing import least_step_s, open_jobs

RATES = {"usd_per_gpu_hour": 2.0, "watts_per_gpu": 500.0}
SMALL = {"micro_batch": "1", "vpp": "1", "recompute": "none|full"}
"""Few enough layouts that every one can be looked at."""


def request(model="llama-3.1-8b", cluster="dgx-h100:2", *, aim=None, batch=64, fix=None, **more):
    own = {n: more.pop(n) for n in ("nodes", "batches", "gpus", "unhealthy", "top") if n in more}
    own |= {"sensitivity": more.pop("sensitivity", False)}
    work = Workload(seq_tokens=4096, global_batch=batch, **more)
    return PlanRequest(
        load_model(model),
        load_cluster(cluster),
        work,
        fix=SMALL if fix is None else fix,
        aim=aim or Aim(),
        **own,
    )


def brute(asked: PlanRequest) -> list[tuple[Job, int, int, float, float]]:
    """Every layout that fits of every job: (job, batch, nodes, seconds, bytes)."""
    rows = []
    for job in open_jobs(asked):
        gpus = job.gpus or job.cluster.gpus
        ranking = rank(job.context, gpus, parse_fix(job.fix))
        one = Job(gpus, job.workload.tokens)
        for s, b in zip(ranking.step_s.tolist(), ranking.peak_bytes.tolist(), strict=True):
            rows.append((one, job.workload.global_batch, gpus // 8, s, b))
    return rows


# --- objectives


@pytest.mark.parametrize("objective", [o for o in Objective if o is not Objective.GPUS])
def test_the_first_plan_is_the_best_of_all_layouts_of_all_sizes(objective):
    aim = Aim(objective, **RATES)
    asked = request(aim=aim, nodes=(1, 2, 3, 4), batches=(48, 96))
    found = plan(asked)
    sign = -1 if objective is Objective.TOKENS_PER_GPU else 1
    per_token = objective is Objective.STEP_TIME
    values = [
        sign * value(aim, job, s, b) / (job.tokens if per_token else 1)
        for job, _, _, s, b in brute(asked)
    ]
    told = sign * found.objective.value
    if per_token:
        told /= found.request.workload.tokens
    assert told == pytest.approx(min(values), rel=1e-9)
    assert found.objective.name == objective.value


@pytest.mark.parametrize("objective", [o for o in Objective if o is not Objective.GPUS])
def test_rows_are_the_best_of_each_shape_and_size_in_order(objective):
    """Written with loops over all layouts; without pipelines no time changes when it is run."""
    aim = Aim(objective, **RATES)
    asked = request(aim=aim, nodes=(1, 2, 3), batches=(48, 96), fix={**SMALL, "pp": "1"}, top=12)
    best: dict[tuple, tuple] = {}
    for job in open_jobs(asked):
        ranking = rank(job.context, job.gpus, parse_fix(job.fix))
        one = Job(job.gpus, job.workload.tokens)
        for row in range(len(ranking.layouts)):
            lay = ranking.layouts.row(row)
            time, peak = float(ranking.step_s[row]), float(ranking.peak_bytes[row])
            worth = value(aim, one, time, peak)
            worth /= one.tokens if objective is Objective.STEP_TIME else 1
            worth *= -1 if objective is Objective.TOKENS_PER_GPU else 1
            key = (one, *(lay[n] for n in ("tp", "pp", "cp", "ep", "etp", "dp")))
            best[key] = min(best.get(key, (np.inf,)), (worth, time / one.tokens, job.gpus))
    wanted = sorted(best.values())[:12]
    rows = [p for p in plan(asked).plans if not p.note]
    told = [(p.estimate.step_time_s / (p.global_batch * 4096), p.layout.gpus) for p in rows]
    assert told == [(pytest.approx(time), gpus) for _, time, gpus in wanted]


def test_the_lightest_layout_is_the_fastest_of_the_lightest():
    fix = {**SMALL, "pp": "1"}
    found = plan(request(aim=Aim(Objective.MEMORY), fix=fix))
    ranking = rank(request().context, 16, parse_fix(fix))
    least = ranking.peak_bytes.min()
    assert found.best.estimate.memory.peak_bytes == pytest.approx(least)
    fastest = ranking.step_s[ranking.peak_bytes == least].min()
    assert found.best.estimate.step_time_s == pytest.approx(fastest)
    peaks = [p.estimate.memory.peak_bytes for p in found.plans if not p.note]
    assert peaks == sorted(peaks)
    assert not any(p.tie for p in found.plans)


def test_the_lightest_layout_that_finds_no_room_makes_room_for_the_next():
    """20 trays stand in two racks of 40 GPUs: five groups of 16 do not."""
    fix = {"tp": "8|16", "micro_batch": "1", "recompute": "full", "zero": "3", "cp": "1"}
    asked = request(
        cluster="gb200-nvl72:20", aim=Aim(Objective.MEMORY), batch=80, fix={**fix, "pp": "1"}
    )
    lightest = rank(asked.context, 80, parse_fix(asked.fix))
    best = int(lightest.peak_bytes.argmin())
    assert int(lightest.layouts.tp[best]) == 16
    found = plan(asked)
    assert found.best.layout.tp == 8
    assert len(found.placement.ranks) == 80


def test_without_an_objective_nothing_changes():
    told = plan(request()).objective
    assert (told.name, told.unit) == ("step-time", "s")
    assert told.value == plan(request()).best.estimate.step_time_s


def test_rows_say_what_they_cost():
    aim = Aim(tokens=1e12, **RATES)
    row = plan(request(aim=aim)).best
    seconds = row.estimate.step_time_s * row.run.steps
    assert row.run.steps == -(-(10**12) // (64 * 4096))
    assert row.run.seconds == pytest.approx(seconds)
    assert row.run.usd == pytest.approx(seconds / 3600 * 16 * 2.0)
    assert row.run.mwh == pytest.approx(seconds * 16 * 500 / 3.6e9)
    assert row.usd_per_trillion_tokens == pytest.approx(row.run.usd, rel=1e-6)
    assert row.mwh_per_trillion_tokens == pytest.approx(row.run.mwh, rel=1e-6)
    bare = plan(request()).best
    assert bare.run is bare.usd_per_trillion_tokens is None


# --- limits


def test_every_row_keeps_to_the_step_limit_and_the_slower_ones_are_counted_out():
    fix = {**SMALL, "pp": "1"}
    ranking = rank(request().context, 16, parse_fix(fix))
    limit = float(np.quantile(ranking.step_s, 0.2))
    found = plan(request(aim=Aim(Objective.MEMORY, max_step_s=limit), top=100, fix=fix))
    rows = [p for p in found.plans if not p.note]
    assert all(p.estimate.step_time_s <= limit for p in rows)
    inside = ranking.step_s <= limit
    least = ranking.peak_bytes[inside].min()
    assert rows[0].estimate.memory.peak_bytes == pytest.approx(least)
    said = f"{int(inside.sum()):,} of {ranking.feasible:,} layouts that fit meet the limits"
    assert any(note.startswith(said) for note in found.notes)


def test_a_pipeline_that_is_too_slow_when_run_makes_room_for_the_next():
    ranking = rank(request().context, 16, parse_fix(SMALL))
    limit = float(np.quantile(ranking.step_s, 0.2))
    rows = plan(request(aim=Aim(Objective.MEMORY, max_step_s=limit), top=100)).plans
    assert all(p.estimate.step_time_s <= limit for p in rows if not p.note)
    assert any(p.estimate.simulated for p in rows)


def test_a_budget_and_a_deadline_are_kept_by_what_the_run_is_said_to_cost():
    free = plan(request(aim=Aim(tokens=1e12, **RATES))).plans
    worst = free[3].run
    aims = Aim(tokens=1e12, deadline_s=worst.seconds * 1.0001, **RATES)
    late = plan(request(aim=aims, top=100)).plans
    assert all(p.run.seconds <= aims.deadline_s for p in late if not p.note)
    aims = Aim(tokens=1e12, budget_usd=worst.usd * 1.0001, **RATES)
    dear = plan(request(aim=aims, top=100)).plans
    assert all(p.run.usd <= aims.budget_usd for p in dear if not p.note)
    assert dear[0].layout == late[0].layout == free[0].layout


def test_limits_that_nothing_meets_are_refused_with_figures_and_a_size_that_would_do():
    fastest = plan(request()).best.estimate.step_time_s
    with pytest.raises(InfeasibleError) as raised:
        plan(request(aim=Aim(max_step_s=fastest * 0.6)))
    assert f"the fastest layout takes {fastest:.2f} s a step on 16 GPUs" in raised.value.message
    assert "--max-step-time asks for" in raised.value.message
    nodes = int(raised.value.hint.split()[0])
    assert nodes > 2
    larger = plan(request(cluster=f"dgx-h100:{nodes}")).best.estimate.step_time_s
    assert larger <= fastest * 0.6
    assert f"{nodes} nodes would take" in raised.value.hint


def test_a_budget_that_nothing_meets_is_refused_in_money():
    run = plan(request(aim=Aim(tokens=1e12, **RATES))).best.run
    with pytest.raises(InfeasibleError, match=r"cost .* USD; --budget allows 1.00k USD"):
        plan(request(aim=Aim(tokens=1e12, budget_usd=1000.0, **RATES)))
    assert run.usd > 1000


def test_a_deadline_that_nothing_meets_is_refused_in_days():
    with pytest.raises(InfeasibleError, match=r"days; --deadline asks for 3.0 days"):
        plan(request(aim=Aim(tokens=1e12, deadline_s=3 * 86400.0)))


# --- fewest GPUs


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_no_smaller_job_would_do(share):
    one = plan(request(cluster="dgx-h100:1", model="qwen2.5-1.5b")).best.estimate.step_time_s
    aim = Aim(Objective.GPUS, max_step_s=one * share)
    asked = request(cluster="dgx-h100:8", model="qwen2.5-1.5b", aim=aim)
    found = plan(asked)
    gpus = found.best.layout.gpus
    assert found.objective.value == gpus
    assert found.best.estimate.step_time_s <= aim.max_step_s
    meets = {job.gpus for job, _, _, s, _ in brute(asked) if s <= allowed_step_s(aim, job)}
    assert gpus == min(meets)
    assert [s.nodes for s in found.sizes] == list(range(1, gpus // 8 + 1))


def test_jobs_that_cannot_do_are_not_searched_and_that_is_said():
    aim = Aim(Objective.GPUS, max_step_s=plan(request()).best.estimate.step_time_s)
    found = plan(request(cluster="dgx-h100:4", aim=aim))
    assert found.best.nodes == 2
    (first,) = [s for s in found.sizes if s.nodes == 1]
    assert first.reason.startswith("not searched: its matrix multiplies alone take")
    assert first.enumerated == 0
    assert any("2 larger jobs were not, because fewer GPUs do" in note for note in found.notes)


@pytest.mark.parametrize(
    ("model", "cluster", "more"),
    [
        ("llama-3.1-8b", "dgx-h100:2", {}),
        ("llama-3.1-8b", "dgx-h100:2", {"precision": "fp8"}),
        ("llama-3.1-8b", "dgx-a100:1", {"stack": "megatron"}),
        ("mixtral-8x7b", "dgx-h100:4", {}),
        ("deepseek-v3", "dgx-h100:64", {"stack": "megatron+deepep"}),
        ("gpt2", "rtx-4090-8x", {"stack": "deepspeed"}),
        ("qwen2.5-1.5b", "gb200-nvl72:4", {"precision": "fp8"}),
    ],
)
def test_no_layout_beats_the_bound_that_leaves_jobs_out(model, cluster, more):
    asked = request(model, cluster, batch=128, fix={}, **more)
    if model == "gpt2":
        asked = replace(asked, workload=asked.workload.model_copy(update={"seq_tokens": 1024}))
    gpus = asked.cluster.gpus
    ranking = rank(asked.context, gpus, parse_fix({}))
    assert ranking.feasible
    assert 0 < least_step_s(asked, gpus) <= ranking.step_s.min()


def test_dropped_tokens_promise_no_bound():
    assert least_step_s(request("mixtral-8x7b", capacity_factor=1.0), 16) == 0


# --- sizes


def test_every_size_and_batch_is_looked_at_and_told():
    found = plan(request(nodes=(1, 2, 3, 4), batches=(64, 128)))
    assert [(s.nodes, s.global_batch) for s in found.sizes] == [
        (n, b) for n in (1, 2, 3, 4) for b in (64, 128)
    ]
    assert all(s.layout or s.reason for s in found.sizes)
    assert sum(s.enumerated for s in found.sizes) == found.search.enumerated
    assert sum(found.search.rejected.values()) + found.search.feasible == found.search.enumerated
    assert "looked at 1 to 4 nodes with batch 64, 128" in found.notes
    assert len({(p.nodes, p.global_batch) for p in found.plans}) > 1


def test_the_size_chosen_is_planned_as_if_it_had_been_asked_for():
    found = plan(request(nodes=(1, 2)))
    alone = plan(request(cluster="dgx-h100:2"))
    assert found.request == alone.request
    assert found.best == alone.best
    assert found.placement == alone.placement


def test_on_narrow_uplinks_too_the_size_chosen_is_planned_as_if_alone():
    fix = {"pp": "1|2", "micro_batch": "1", "recompute": "none", "cp": "1"}
    found = plan(request(cluster="h100-tor-4to1:12", nodes=(9, 12), batch=144, fix=fix))
    alone = plan(request(cluster="h100-tor-4to1:12", batch=144, fix=fix))
    assert found.best.nodes == 12
    assert found.best.estimate == alone.best.estimate
    assert found.placement == alone.placement
    assert found.placement.step_time_s == pytest.approx(found.best.estimate.step_time_s)


def test_limits_that_nothing_meets_are_told_on_racks_too():
    with pytest.raises(InfeasibleError, match="the fastest layout takes"):
        plan(request(cluster="gb200-nvl72:4", aim=Aim(max_step_s=1e-3)))


def test_named_hosts_stay_and_as_many_of_them_are_used():
    cluster = load_cluster("dgx-h100:4")
    named = {**cluster.model_dump(mode="json"), "hosts": ["a", "b", "c", "d"]}
    asked = replace(request(nodes=(1, 2)), cluster=type(cluster).model_validate(named))
    found = plan(asked)
    assert found.request.cluster.nodes == 4
    assert found.placement.hosts == ["a", "b"]
    avoiding = plan(replace(asked, unhealthy=("a",), nodes=(2, 3)))
    assert set(avoiding.placement.hosts) == {"b", "c", "d"}


def test_more_nodes_than_are_healthy_have_no_answer_and_that_is_told():
    cluster = load_cluster("dgx-h100:2")
    found = plan(replace(request(nodes=(1, 2)), cluster=cluster, unhealthy=("node00001",)))
    assert found.best.nodes == 1
    assert "16 GPUs asked for; dgx-h100 has 8 on healthy nodes" in found.sizes[1].reason


def test_where_no_size_has_a_layout_that_fits_the_largest_are_told():
    with pytest.raises(InfeasibleError, match=r"none of 2 jobs .* needs .* GiB per GPU"):
        plan(request("llama-3.1-405b", nodes=(1, 2), fix={**SMALL, "offload": "none"}))


def test_a_cluster_without_a_network_cannot_grow():
    lone = load_cluster("dgx-h100:1")
    node = lone.node.model_copy(update={"nics": 0})
    with pytest.raises(SpecError, match="dgx-h100 cannot have 2 nodes"):
        plan(replace(request(nodes=(1, 2)), cluster=lone.model_copy(update={"node": node})))


def test_too_many_jobs_are_refused():
    with pytest.raises(SpecError, match="more than the 4,096 jobs"):
        plan(request(nodes=tuple(range(1, 101)), batches=tuple(range(64, 164))))


def test_a_target_gets_its_best_on_the_size_that_was_chosen():
    asked = request(nodes=(1, 2), batches=(64, 128), fix={})
    found = plan(asked)
    own = plan_for_target(narrowed(asked, found), "megatron")
    assert own.best.layout.gpus == found.best.layout.gpus
    assert own.request.workload.global_batch == found.best.global_batch
    assert narrowed(request(), plan(request())) == request()


def test_a_target_keeps_to_the_limits():
    with pytest.raises(InfeasibleError, match="no layout for deepspeed meets the limits"):
        plan_for_target(request(fix={}, aim=Aim(max_step_s=0.1)), "deepspeed")


# --- trade-offs


@pytest.mark.parametrize(("nodes", "batches"), [((), ()), ((1, 2, 4), ()), ((1, 2), (64, 128))])
def test_the_front_is_what_no_layout_of_any_size_beats(nodes, batches):
    """Against all pairs of all layouts; SMALL leaves no pipeline that running would change."""
    fix = {**SMALL, "pp": "1"}
    asked = request(nodes=nodes, batches=batches, fix=fix)
    points = {(s / job.tokens, b, job.gpus) for job, _, _, s, b in brute(asked)}
    table = np.array(sorted(points))
    beaten = [bool(((table <= p).all(axis=1) & (table < p).any(axis=1)).any()) for p in table]
    told = [
        (p.step_time_s / (p.global_batch * 4096), p.peak_bytes, p.gpus) for p in plan(asked).pareto
    ]
    assert np.allclose(told, table[~np.array(beaten)], rtol=1e-12)


def test_rows_of_the_table_are_on_the_front_with_the_figures_that_they_show():
    found = plan(request("llama-3.1-70b", "dgx-h100:8", batch=128, fix={}))
    rows = {p.rank: p for p in found.plans}
    listed = [p for p in found.pareto if p.rank is not None]
    assert 1 in {p.rank for p in listed}
    for point in listed:
        cost = rows[point.rank].estimate
        assert (point.step_time_s, point.peak_bytes) == (cost.step_time_s, cost.memory.peak_bytes)
        assert point.layout == rows[point.rank].layout
        assert point.simulated == cost.simulated
    times = [p.step_time_s for p in found.pareto]
    assert times == sorted(times)


def test_what_misses_a_limit_on_time_is_not_on_the_front():
    every = plan(request(fix={})).pareto
    limit_s = every[len(every) // 2].step_time_s
    kept = plan(request(fix={}, aim=Aim(max_step_s=limit_s))).pareto
    assert [p.step_time_s for p in kept] == [
        p.step_time_s for p in every if p.step_time_s <= limit_s
    ]


def test_near_ties_are_marked_and_only_they():
    found = plan(request(fix={}))
    best = found.best.estimate.step_time_s
    for row in found.plans[1:]:
        close = row.estimate.step_time_s <= best * 1.03
        assert row.tie == (close and not row.note)
    assert any(row.tie for row in found.plans)


# --- what the hardware does


def test_worse_hardware_never_speeds_a_layout_up_and_the_best_is_never_behind_it():
    asked = request("llama-3.1-8b", "dgx-h100:2", sensitivity=True)
    found = plan(asked)
    base = found.best.estimate.step_time_s
    told = {one.figure: one for one in found.sensitivity}
    rising = {"matmul_peak", "hbm_bandwidth", "scale_up_bandwidth", "nic_bandwidth"}
    assert set(told) == rising | {"hbm_size", "latency"}
    for name, one in told.items():
        low, high = one.cases
        assert (low.factor, high.factor) == (0.5, 2.0)
        if name in rising:
            assert low.first_step_time_s >= base >= high.first_step_time_s
            assert one.elasticity <= 0
        if name == "latency":
            assert low.first_step_time_s <= base <= high.first_step_time_s
        for case in one.cases:
            if case.first_fits:
                assert case.step_time_s <= case.first_step_time_s * (1 + 1e-9)
            assert case.same_layout == (case.layout == found.best.layout)
    assert told["hbm_size"].cases[1].step_time_s <= base
    assert -1.05 < told["matmul_peak"].elasticity < -0.5


def test_on_narrow_uplinks_a_case_is_timed_on_the_links_that_it_gets():
    fix = {"pp": "2", "tp": "4", "micro_batch": "1", "recompute": "none", "cp": "1", "vpp": "1"}
    asked = request(cluster="h100-tor-4to1:12", batch=144, fix=fix, sensitivity=True)
    found = plan(asked)
    base = found.best.estimate.step_time_s
    (nic,) = [s for s in found.sensitivity if s.figure == "nic_bandwidth"]
    low, high = nic.cases
    assert low.first_step_time_s > base > high.first_step_time_s
    assert low.step_time_s <= low.first_step_time_s
    assert nic.elasticity < 0


def test_a_case_is_the_plan_on_a_cluster_with_that_figure():
    asked = request("llama-3.1-8b", "dgx-h100:2", sensitivity=True)
    (nic,) = [s for s in plan(asked).sensitivity if s.figure == "nic_bandwidth"]
    node = asked.cluster.node
    assert nic.cases[0].changes == {"node.nic_gbit_per_s": node.nic_gbit_per_s / 2}
    slow = node.model_copy(update={"nic_gbit_per_s": node.nic_gbit_per_s / 2})
    own = replace(asked, cluster=asked.cluster.model_copy(update={"node": slow}), sensitivity=False)
    best = plan(own).best
    assert nic.cases[0].layout == best.layout
    assert nic.cases[0].step_time_s == pytest.approx(best.estimate.step_time_s)


def test_one_node_has_no_network_to_change():
    found = plan(request(cluster="dgx-h100:1", sensitivity=True))
    assert "nic_bandwidth" not in {s.figure for s in found.sensitivity}


def test_half_the_memory_may_leave_no_room():
    fix = {"tp": "8", "recompute": "full", "micro_batch": "1", "offload": "none"}
    asked = request("llama-3.1-70b", "dgx-h100:4", fix=fix, sensitivity=True)
    (size,) = [s for s in plan(asked).sensitivity if s.figure == "hbm_size"]
    assert not size.cases[0].first_fits
    assert size.why_none == "does not fit at x 0.5"
    assert size.elasticity == pytest.approx(0.0, abs=0.01)  # of the other side: more room is idle


# --- saved plans


def test_a_saved_plan_reads_back_with_its_choices():
    aim = Aim(Objective.COST, tokens=1e12, **RATES)
    found = plan(request(aim=aim, nodes=(1, 2), batches=(64, 128), sensitivity=True))
    again = Plan.model_validate(json.loads(found.to_json()))
    assert again == found
    other = next(p for p in found.plans if p.global_batch != found.request.workload.global_batch)
    assert found.request_of(other).workload.global_batch == other.global_batch
    assert found.request_of(found.best) == found.request

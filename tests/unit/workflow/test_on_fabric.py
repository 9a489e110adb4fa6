"""Layouts ranked by where their ranks go: against placing every one of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InfeasibleError
from planner.estimate.running import judge
from planner.layouts.table import Layouts
from planner.objectives import Aim, Objective
from planner.plan import Layout
from planner.settling import settle
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.workflow import PlanRequest, plan
from planner.workflow.board import Board, trade
from planner.workflow.on_fabric import floor_s, on_fabric
from planner.workflow.planning import placed_layout, search


def request(cluster="dgx-h100:16", *, leaf=4, ways=8.0, rule="under-leaf", fix="", **more):
    found = load_cluster(cluster)
    fabric = {"nodes_per_leaf": leaf, "leafs_per_pod": None, "leaf_oversubscription": ways}
    fields = dict(pair.split("=") for pair in fix.split(",") if pair)
    return PlanRequest(
        load_model(more.pop("model", "llama-3.1-70b")),
        found.model_copy(update={"fabric": found.fabric.model_copy(update=fabric)}),
        Workload(seq_tokens=2048, global_batch=more.pop("batch", 64)),
        fix=fields,
        pipelines=rule,
        **more,
    )


CASES = [
    ("under-leaf", "tp=8,zero=1,recompute=none,cp=1,micro_batch=1,vpp=1|2|4", ()),
    ("fastest", "tp=8,zero=1,recompute=none,cp=1,micro_batch=1,vpp=1|2|4", ()),
    (
        "fastest",
        "tp=8,zero=1,recompute=none,cp=2,micro_batch=1,vpp=1|2|4",
        ("node00002", "node00007", "node00008"),
    ),
]


@pytest.mark.parametrize(("rule", "fix", "down"), CASES)
def test_no_layout_placed_by_itself_is_faster(rule, fix, down):
    """Every feasible layout, placed and timed one by one."""
    asked = request(rule=rule, fix=fix, unhealthy=down, batch=24 if down else 32)
    asked = replace(asked, gpus=96 if down else None)
    ranking, _ = search(asked, str)
    assert 20 < ranking.feasible < 200
    alone = [
        placed_layout(asked, Layout.model_validate(ranking.layouts.row(row))).step_time_s or np.inf
        for row in range(ranking.feasible)
    ]
    found = plan(asked)
    assert found.best.estimate.step_time_s == pytest.approx(min(alone), rel=2e-6)
    for shown in found.plans:
        if not shown.note:
            took = placed_layout(asked, shown.layout).step_time_s
            assert shown.estimate.step_time_s == pytest.approx(took, rel=2e-6)
            assert sum(shown.estimate.time_s.values()) == pytest.approx(took, rel=1e-5)
    assert found.placement
    assert found.placement.step_time_s == pytest.approx(found.best.estimate.step_time_s, rel=2e-6)


def test_a_layout_that_leads_on_paper_and_loses_when_placed_is_said():
    """405B on top-of-rack switches at 2:1: pipelines of 16 nodes do not fit leafs of 8."""
    asked = PlanRequest(
        load_model("llama-3.1-405b"),
        load_cluster("h100-tor-2to1:256"),
        Workload(seq_tokens=8192, global_batch=256),
        fix={"tp": "8", "pp": "16", "vpp": "8"},
    )
    ranking, _ = search(asked, str)
    first = Layout.model_validate(ranking.layouts.row(0))
    found = plan(asked)
    took = placed_layout(asked, first).step_time_s
    assert found.best.layout != first
    assert found.best.estimate.step_time_s < took
    (said,) = (note for note in found.notes if "first on paper" in note)
    assert said.startswith(first.short())
    best, on_paper = found.best, explain_on_paper(asked, found.best.layout)
    placed_s = best.estimate.step_time_s
    change = f"{took / explain_on_paper(asked, first) - 1:+.1%}"
    assert f"; {best.layout.short()} takes {on_paper:.2f} s)" in said
    assert f"placed on this 2:1 fabric it takes {took:.2f} s ({change})" in said
    assert f"the other {placed_s:.2f} s ({placed_s / on_paper - 1:+.1%})" in said
    assert said.endswith(f": {1 - placed_s / took:.1%} less")
    assert any("no other can be faster there" in note for note in found.notes)


def test_a_fabric_as_wide_as_its_nics_changes_nothing():
    asked = request(ways=1.0)
    asked = replace(asked, fix={"tp": "8", "zero": "1", "cp": "1"})
    ranking = settle(asked.context, search(asked, str)[0], asked.top)
    again, said = on_fabric(asked, ranking, asked.top)
    assert again is ranking
    assert said == []


@pytest.mark.parametrize("ways", [1.0, 8.0])
def test_layouts_that_find_no_scale_up_domain_fall_out(ways):
    """Racks of 8 trays of 4 GPUs, one tray down in each: tensor groups of 32 GPUs have no room."""
    asked = request(
        "gb200-nvl72:16", leaf=8, ways=ways, fix="tp=8|32,pp=1,cp=1", batch=48,
        model="gpt-3-175b",
    )  # fmt: skip
    scale_up = asked.cluster.scale_up.model_copy(update={"domain_gpus": 32})
    cluster = asked.cluster.model_copy(update={"scale_up": scale_up})
    down = (cluster.host(0), cluster.host(8))
    asked = replace(asked, cluster=cluster, unhealthy=down, gpus=32)
    assert {32, 8} <= set(search(asked, str)[0].layouts.tp.tolist())
    assert {shown.layout.tp for shown in plan(asked).plans if not shown.note} == {8}
    with pytest.raises(InfeasibleError, match="inside one scale-up domain"):
        plan(replace(asked, fix={"tp": "32", "pp": "1", "cp": "1"}))


def test_the_same_question_gets_the_same_answer():
    asked = request(rule="fastest", fix="tp=8,zero=1")
    told = [plan(asked).model_dump(exclude={"timing"}) for _ in range(2)]
    assert told[0] == told[1]


# --- several jobs, and memory

SMALL = "tp=8,zero=1,recompute=none,cp=1,micro_batch=1,vpp=1"


@pytest.mark.parametrize("objective", ["step-time", "tokens-per-gpu"])
def test_of_several_node_counts_the_best_placed_one_is_found(objective):
    """Every feasible layout of each job, placed and timed one by one."""
    asked = replace(request(fix=SMALL, nodes=(6, 8, 12)), aim=Aim(objective=Objective(objective)))
    asked = replace(asked, workload=asked.workload.model_copy(update={"global_batch": 48}))
    best = {}
    for nodes in asked.nodes:
        one = replace(asked, nodes=(), cluster=asked.cluster.model_copy(update={"nodes": nodes}))
        ranking, _ = search(one, str)
        records = [Layout.model_validate(ranking.layouts.row(n)) for n in range(ranking.feasible)]
        best[nodes] = min(placed_layout(one, layout).step_time_s for layout in records)
    worth = {n: s * (n if objective == "tokens-per-gpu" else 1) for n, s in best.items()}
    found = plan(asked)
    first = min(worth, key=worth.__getitem__)
    assert found.request.cluster.nodes == first
    assert found.best.estimate.step_time_s == pytest.approx(best[first], rel=2e-6)


def test_the_least_memory_is_told_with_the_time_of_its_map():
    aim = Aim(objective=Objective.MEMORY)
    asked = replace(request(fix=SMALL, top=4), aim=aim)
    found = plan(asked)
    peaks = [p.estimate.memory.peak_bytes for p in found.plans if not p.note]
    assert peaks == sorted(peaks)
    paper = {}
    for shown in found.plans:
        if not shown.note:
            took = placed_layout(asked, shown.layout).step_time_s
            assert shown.estimate.step_time_s == pytest.approx(took, rel=2e-6)
            paper[shown.layout] = explain_on_paper(asked, shown.layout)
    assert any(
        paper[p.layout] != pytest.approx(p.estimate.step_time_s, rel=1e-3)
        for p in found.plans
        if not p.note
    )
    # a limit that the lightest keeps on paper and misses on its map, or the other way round
    limit = found.plans[0].estimate.step_time_s * 0.999
    held = plan(replace(asked, aim=replace(aim, max_step_s=limit)))
    assert held.best.layout != found.best.layout
    assert held.best.estimate.step_time_s <= limit


def test_limits_hold_where_layouts_are_placed_not_on_paper():
    """Leafs of five nodes under pipelines of four: two pipelines have to leave theirs."""
    asked = request(fix="tp=8,pp=4,dp=4", leaf=5, ways=4.0)
    placed_s = plan(asked).best.estimate.step_time_s
    paper_s = float(settle(asked.context, search(asked, str)[0], asked.top).step_s.min())
    assert paper_s < placed_s * 0.999
    between = replace(asked, aim=Aim(max_step_s=(paper_s + placed_s) / 2))
    with pytest.raises(InfeasibleError) as error:
        plan(between)
    assert f"takes {placed_s:.2f} s a step on 128 GPUs, placed on this f" in error.value.message
    assert f"({paper_s:.2f} s on paper)" in error.value.message
    enough = plan(replace(asked, aim=Aim(max_step_s=placed_s * 1.0001)))
    assert enough.best.estimate.step_time_s == pytest.approx(placed_s)
    assert any(" on paper but not where placed " in note for note in enough.notes)


def test_a_layout_that_only_its_map_makes_fast_enough_is_found():
    asked = request(fix="tp=8,pp=4,dp=4", leaf=5, ways=4.0, rule="fastest")
    ranking, _ = search(asked, str)
    paper, best = float(ranking.step_s.min()), plan(asked).best.estimate.step_time_s
    assert best < paper * 0.999
    limit = (paper + best) / 2
    held = plan(replace(asked, aim=Aim(max_step_s=limit)))
    assert held.best.estimate.step_time_s <= limit


def explain_on_paper(asked, layout):
    rows = Layouts.of([layout.model_dump()])
    return judge(asked.context, rows)[0].step_s


def test_a_bound_of_all_maps_is_under_what_any_map_takes():
    asked = request(fix=SMALL)
    ranking, _ = search(asked, str)
    least = floor_s(asked, ranking)
    for row in range(0, ranking.feasible, 3):
        layout = Layout.model_validate(ranking.layouts.row(row))
        assert least <= placed_layout(asked, layout).step_time_s * (1 + 1e-9)
    assert floor_s(request(ways=1.0, fix=SMALL), ranking) == ranking.step_s.min()


def test_rows_not_placed_are_bounded_by_what_uplinks_must_carry():
    """Trades bound every row under its own best map, and some of them above free air."""
    asked = request(fix=SMALL, rule="fastest", leaf=2)
    ranking, _ = search(asked, str)
    board = Board.of(asked, ranking)
    before = board.least_s.copy()
    board.placed_s[0] = 1e9  # something is placed, and everything might still beat it
    assert trade(board, np.arange(1, len(ranking.layouts)))
    assert not trade(board, np.arange(1, len(ranking.layouts)))
    assert (board.least_s[1:] > before[1:] * 1.001).any()
    for row in range(1, ranking.feasible, 2):
        layout = Layout.model_validate(ranking.layouts.row(row))
        took = placed_layout(asked, layout).step_time_s
        assert board.least_s[row] <= took * (1 + 1e-9)

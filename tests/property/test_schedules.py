"""Schedules as a field of layouts: legal where the stack runs them, memory and time as they run."""

from __future__ import annotations

import numpy as np
import pytest

from planner.estimate.bounds import least_step_s
from planner.estimate.in_flight import microbatches_in_flight
from planner.estimate.inputs import Inputs
from planner.estimate.memory import budget_bytes, stage_bytes
from planner.estimate.params import stage_dense_parameters, stage_expert_parameters
from planner.estimate.running import judge, own_kinds
from planner.estimate.scoring import score
from planner.estimate.step import pipeline_s, step_s, time_parts
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import parse_fix
from planner.layouts.rules import Context, broken_rules
from planner.layouts.table import SCHEDULE, Layouts
from planner.pipeline.registry import SCHEDULES
from planner.pipeline.timeline import peak_in_flight
from planner.rank import rank
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

NEW = tuple(name for name in SCHEDULES if name not in ("gpipe", "1f1b", "interleaved"))


def around(model="llama-3.1-8b", cluster="dgx-h100:4", stack="any", batch=64, seq=4096):
    work = Workload(seq_tokens=seq, global_batch=batch, stack=stack)
    return Context(load_model(model), load_cluster(cluster), work)


def row(schedule: str, **more) -> Layouts:
    vpp = SCHEDULES[schedule].vpp[0]
    base = {"tp": 1, "sp": 0, "pp": 4, "vpp": vpp, "cp": 1, "ep": 1, "etp": 1, "dp": 8, "zero": 1}
    base |= {"dp_replicate": 1, "micro_batch": 1, "num_microbatches": 8, "recompute": "none"}
    base |= {"schedule": schedule, "offload": "none", "dp_sync": "all-reduce"}
    return Layouts.of([base | more])


@pytest.mark.parametrize(
    ("stack", "runs"),
    [
        ("any", set(SCHEDULES)),
        ("megatron", {"1f1b", "interleaved"}),
        ("megatron+primus-pipeline", {"1f1b", "interleaved", "zb-h1", "zbv"}),
        ("torchtitan", {"gpipe", "1f1b", "interleaved", "looped-bfs"}),
        (
            "torchtitan+eager",
            {"gpipe", "1f1b", "interleaved", "looped-bfs", "interleaved-zb", "zbv", "dualpipev"},
        ),
        ("nanotron", {"gpipe", "1f1b", "interleaved"}),
    ],
)
def test_a_schedule_is_legal_where_the_stack_runs_it(stack, runs):
    zero = 2 if stack.startswith("torchtitan") else 1
    context = around(stack=stack)
    legal = {name for name in SCHEDULES if not broken_rules(row(name, zero=zero), 0, context)}
    assert legal == runs


def test_deepspeed_runs_1f1b_alone_and_says_so():
    context = around(stack="deepspeed")
    assert not broken_rules(row("1f1b"), 0, context)
    assert any("1f1b only, not schedule=zb-h1" in w for w in broken_rules(row("zb-h1"), 0, context))


def test_a_search_for_no_stack_goes_through_the_new_ones_where_they_are_asked_for():
    def found(fix):
        parts = legal_layouts(around(), 32, parse_fix({"tp": "1", "pp": "4"} | fix), Tally())
        return {SCHEDULE[code] for part in parts for code in part.schedule.tolist()}

    assert found({}) == {"gpipe", "1f1b", "interleaved"}
    assert found({"schedule": "|".join(NEW)}) == set(NEW)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("m", [2, 4, 8, 12, 20])
def test_memory_is_never_below_the_chunks_that_the_order_holds(name, m):
    layouts = row(name, num_microbatches=m)
    shape = SCHEDULES[name].shape(4, int(layouts.vpp[0]), m)
    if SCHEDULES[name].refuses(shape):
        return
    x = Inputs(*around(), layouts, every_stage=True)
    held = microbatches_in_flight(x)[0] * shape.chunks
    peak = peak_in_flight(SCHEDULES[name].order(shape))
    assert (held >= peak - 1e-9).all()
    if m >= 8:
        np.testing.assert_allclose(held, peak)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("model", ["llama-3.1-8b", "gemma-2-9b", "deepseek-v2-lite", "deepseek-v3"])
def test_stages_hold_the_model_once_or_as_often_as_the_schedule_keeps_it(name, model):
    context, layouts = around(model=model), row(name)
    x = Inputs(*context, layouts, every_stage=True)
    held = float((stage_dense_parameters(x) + stage_expert_parameters(x)).sum())
    flat = Inputs(*context, row("1f1b"), every_stage=True)
    once = float((stage_dense_parameters(flat) + stage_expert_parameters(flat)).sum())
    copies = SCHEDULES[name].model_copies
    if SCHEDULES[name].style == "v":  # both ends on one stage: one table where tied, or for MTP
        assert held <= once
        assert held == pytest.approx(once, rel=0.15)
    else:
        assert held == pytest.approx(copies * once)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("model", ["llama-3.1-8b", "deepseek-v2-lite"])
def test_the_closed_form_is_near_what_running_it_gives_and_its_parts_sum(name, model):
    context, layouts = around(model=model, batch=256), row(name, num_microbatches=32)
    x = Inputs(*context, layouts)
    one = judge(context, layouts, recut=False)[0]
    assert one.makespan_s is not None
    assert float(pipeline_s(x)[0]) == pytest.approx(one.makespan_s, rel=0.06)
    parts = time_parts(x)
    assert float(sum(parts.values())[0]) == pytest.approx(float(step_s(x)[0]))
    own = Inputs(*context, layouts, kinds=own_kinds(context, one))
    ran = time_parts(own, one.ran)
    assert float(sum(ran.values())[0]) == pytest.approx(one.step_s, rel=1e-9)
    assert min(float(v[0]) for v in ran.values()) >= 0


@pytest.mark.parametrize("microbatches", [1, 2, 3])
def test_fewer_micro_batches_than_stages_idle_in_every_lap(microbatches):
    """The closed form is near what running it gives, and the lower bound is under it."""
    context = around(model="llama-3.1-8b", batch=microbatches)
    layouts = row("looped-bfs", dp=1, num_microbatches=microbatches)
    assert microbatches < layouts.pp[0]
    x, one = Inputs(*context, layouts), judge(context, layouts, recut=False)[0]
    assert one.makespan_s is not None
    assert float(pipeline_s(x)[0]) == pytest.approx(one.makespan_s, rel=0.06)
    assert float(least_step_s(x)[0]) <= judge(context, layouts)[0].step_s * (1 + 1e-9)


def test_zero_bubble_wins_where_the_bubble_is_large():
    fix = {"tp": "1", "pp": "4", "vpp": "1|2", "micro_batch": "1", "zero": "1", "recompute": "none"}
    best = {}
    for names in ("1f1b|interleaved", "1f1b|interleaved|zb-h1|zbv"):
        ranking = rank(around(batch=32), 32, parse_fix(fix | {"schedule": names}))
        best[names] = ranking.step_s[0], SCHEDULE[int(ranking.layouts.schedule[0])]
    (old, _), (new, name) = best.values()
    assert name in ("zb-h1", "zbv")
    assert new < 0.97 * old


def test_a_layout_that_fits_by_another_cut_only_is_found_and_is_no_slower_than_the_best():
    """Llama 3.1 70B on 32 GPUs, where memory decides."""
    context, fix = around("llama-3.1-70b", stack="megatron", seq=8192), parse_fix({})
    scored, ranking = score(context, 32, fix), rank(context, 32, fix)
    assert scored.nearly is not None
    assert ranking.feasible > scored.fitted
    limit, rescued = budget_bytes(Inputs(*context, Layouts.empty())), 0
    for at, one in ranking.leaders.judged.items():
        if one.peak_bytes is None:
            continue
        layouts = ranking.layouts.take([at])
        peak = stage_bytes(Inputs(*context, layouts, kinds=own_kinds(context, one))).max()
        usual = stage_bytes(Inputs(*context, layouts)).max()
        assert peak <= limit
        rescued += usual > limit
    assert rescued == ranking.feasible - scored.fitted

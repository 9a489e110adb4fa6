"""What else a plan may choose: every combination of the axes is a job, and the best of all wins."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations, product

import numpy as np
import pytest

from planner.errors import SpecError
from planner.estimate.inputs import Inputs
from planner.estimate.memory import peak_bytes
from planner.estimate.scoring import score
from planner.estimate.step import step_s
from planner.layouts.ranges import Fix, parse_fix
from planner.layouts.split import chunk_layers
from planner.plan import Plan
from planner.rank import rank
from planner.specs.catalog import load_cluster, load_model
from planner.specs.stack import overlaps_of
from planner.specs.workload import Workload
from planner.workflow import PlanRequest, plan
from planner.workflow.sizing import open_jobs
from planner.workflow.variants import AXES, axes_named, module_lists, refuse_twice, with_unit

FIX = {"tp": "1|2", "cp": "1", "pp": "1", "micro_batch": "1|2", "dp_replicate": "1"}


def asked(model="llama-3.1-8b", *, search=(), fix=FIX, **work):
    workload = Workload(seq_tokens=1024, global_batch=64, **work)
    cluster = load_cluster("dgx-h100:1")
    return PlanRequest(load_model(model), cluster, workload, fix=fix, search=axes_named(search))


def test_nothing_but_the_layout_is_searched_unless_it_is_asked_for():
    assert list(open_jobs(asked())) == [asked()]
    assert len(list(open_jobs(asked(search=("offload", "schedule"))))) == 1


def test_the_best_of_all_choices_is_what_asking_for_each_of_them_alone_finds():
    """Every precision x overlap x list of modules, each ranked by a search of its own."""
    request = asked(search=("precision", "overlap", "recompute-modules"))
    found = plan(request)
    modules = ("core_attn", "mlp", "layernorm")
    lists = [None, *chain.from_iterable(combinations(modules, n) for n in (1, 2, 3))]
    fastest = []
    for precision, stack, some in product(("bf16", "fp8"), ("any", "any+async-tp"), lists):
        work = {"precision": precision, "stack": stack, "recompute_modules": some}
        alone = rank(asked(**work).context, 8, request.choices)
        fastest.append((float(alone.step_s[0]), precision, stack))
    best = found.best
    least, precision, stack = min(fastest)
    assert best.estimate.step_time_s == pytest.approx(least, rel=1e-9)
    assert (best.options["precision"], best.options["stack"]) == (precision, stack)
    assert len(found.sizes) == 4 * (1 + 6)  # the stack's own list is one of the seven
    assert found.plans[1].layout != best.layout


@pytest.mark.parametrize("search", [("offload",), ("precision", "recompute-layers"), AXES])
def test_rejects_of_all_choices_add_up(search):
    fix = FIX | {"zero": "1|3", "micro_batch": "1"}
    found = plan(asked("gpt2", search=search, fix=fix)).search
    assert sum(found.rejected.values()) + found.feasible == found.enumerated
    assert found.legal == found.feasible + found.rejected.get("does not fit in memory", 0)


def test_every_row_says_what_it_uses_and_asking_again_gives_the_same_estimate():
    found = plan(asked("mixtral-8x7b", search=("precision", "overlap", "offload")))
    again = Plan.model_validate_json(found.to_json())
    for row in (row for row in again.plans if row.feasible):
        work = again.request_of(row).workload
        assert row.options == {"precision": work.precision, "stack": work.stack}
        own = replace(asked(), workload=work, fix=fix_of(row), model=found.request.model)
        assert plan(own).best.estimate.step_time_s == pytest.approx(
            row.estimate.step_time_s, rel=1e-9
        )
    assert "precision" in found.to_frame().columns


def fix_of(row) -> dict[str, str]:
    kept = row.layout.model_dump()
    return {n: str(v).lower() for n, v in kept.items() if n != "num_microbatches"}


def test_a_variant_of_recompute_only_holds_layouts_that_it_changes():
    jobs = list(open_jobs(asked(search=("recompute-modules", "recompute-layers"))))
    assert len(jobs) == 1 + 6  # layers are an axis of the layouts, not jobs
    assert {job.fix.get("recompute") for job in jobs} == {None, "selective"}
    none = asked(search=("recompute-modules",), fix=FIX | {"recompute": "none"})
    assert len(list(open_jobs(none))) == 1


def counts_of(request):
    """Every (method, layers) of a model, as the workload says them."""
    layers = range(1, request.model.layers + 1)
    return [("uniform", n) for n in layers] + [("block", n) for n in layers]


def by_row(found):
    rows = (tuple(found.layouts.row(row).values()) for row in range(len(found.layouts)))
    return dict(zip(rows, zip(found.step_s, found.peak_bytes, strict=True), strict=True))


PIPED = {"tp": "1", "cp": "1", "pp": "1|2|4", "micro_batch": "4", "zero": "1", "recompute": "full"}


def test_layers_as_an_axis_score_what_each_number_of_them_scores_alone():
    """And of a number that is more than a chunk has, or as good as all of it, nothing twice."""
    request = asked("gpt2", search=("recompute-layers",), fix=PIPED)
    found = score(request.context, 8, request.choices)
    units = found.layouts.recompute_units
    seen = {}
    for unit in np.unique(units).tolist():
        rows = np.flatnonzero(units == unit)
        work = with_unit(request, unit).workload
        alone = by_row(score(asked("gpt2", **changed(work)).context, 8, parse_fix(PIPED)))
        for row in rows.tolist():
            layout = found.layouts.row(row)
            mine = (found.step_s[row], found.peak_bytes[row])
            assert mine == pytest.approx(alone[tuple(layout.values())], rel=1e-12)
            chunk = max(map(max, chunk_layers(12, layout["pp"], layout["vpp"])))
            assert work.recompute_layers <= chunk - (work.recompute_method == "block")
        seen[work.recompute_method, work.recompute_layers] = len(rows)
    assert seen.keys() == {*counts_of(request)} - {("block", 12)}


def changed(work):
    return {name: getattr(work, name) for name in ("recompute_method", "recompute_layers")}


def test_the_best_number_of_layers_is_that_of_a_search_for_each_number():
    fix = PIPED | {"recompute": "none|full", "micro_batch": "4|8", "pp": "1|2"}
    request = asked("gpt2", search=("recompute-layers",), fix=fix, max_memory=0.1)
    found = plan(request).best
    times = {}
    for method, layers in counts_of(request):
        work = {"recompute_method": method, "recompute_layers": layers}
        alone = rank(asked("gpt2", max_memory=0.1, **work).context, 8, parse_fix(fix))
        times[method, layers] = float(alone.step_s[0]) if alone.feasible else np.inf
    assert found.estimate.step_time_s == pytest.approx(min(times.values()), rel=1e-9)
    own = found.options["recompute_method"], found.options["recompute_layers"]
    assert times[own] == pytest.approx(min(times.values()), rel=1e-9)
    assert own != ("uniform", 1)  # memory is short: how many layers are run again decides


def test_lists_of_modules_are_left_out_where_the_stack_cannot_be_told():
    request = asked(search=("recompute-modules",), stack="torchtitan")
    assert len(list(open_jobs(request))) == 1


def test_modules_inside_another_are_not_listed_twice():
    lists = module_lists(asked("mixtral-8x7b"))
    assert ("moe",) in lists
    assert not any({"moe", "moe_act"} <= {*some} for some in lists)


@pytest.mark.parametrize(
    ("stack", "flags"),
    [
        ("any", ("async-tp", "ep-overlap")),
        ("torchtitan", ("async-tp",)),
        ("megatron", ("ep-overlap",)),
        ("megatron+ep-overlap", ()),
        ("deepspeed", ()),
    ],
)
def test_overlap_is_what_the_stack_could_hide_and_does_not(stack, flags):
    assert overlaps_of(stack, experts=True) == flags
    assert "ep-overlap" not in overlaps_of(stack, experts=False)


def test_fp16_is_not_searched_because_it_takes_what_bf16_takes():
    ranking = rank(asked().context, 8, Fix())
    times, peaks = ([], [])
    for precision in ("bf16", "fp16"):
        x = Inputs(*asked(precision=precision).context, ranking.layouts)
        times.append(step_s(x))
        peaks.append(peak_bytes(x))
    np.testing.assert_array_equal(*times)
    np.testing.assert_array_equal(*peaks)


def test_what_is_searched_and_given_at_once_is_refused():
    with pytest.raises(SpecError, match="no axis; axes: offload, schedule"):
        axes_named(["offlaod"])
    with pytest.raises(SpecError, match="--fix offload"):
        refuse_twice(asked(search=("offload",), fix={"offload": "none"}))
    with pytest.raises(SpecError, match="recompute-modules"):
        refuse_twice(asked(search=("recompute-modules",), recompute_modules=("mlp",)))
    assert axes_named(["all"]) == AXES
    many = replace(asked("deepseek-v3", search=("all",)), batches=tuple(range(8, 800, 8)))
    with pytest.raises(SpecError, match="makes more than the 4,096 jobs"):
        plan(many)

"""Flags of a stack that make a layout fit as it is: told with figures, the fewest layers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from planner.estimate.inputs import Inputs
from planner.estimate.memory import budget_bytes, limit_bytes, peak_bytes
from planner.estimate.running import judge, own_kinds
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.units import gib, seconds
from planner.workflow import PlanRequest
from planner.workflow.completing import completed
from planner.workflow.flagging import flag_mends

WHOLE = {"tp": "1", "pp": "1", "cp": "1", "zero": "3", "recompute": "none"}
CASES = {
    "layers": ("megatron", "bf16", {**WHOLE, "micro_batch": "2"}, r"\+offload-layers=(\d+)$"),
    "fp8": (
        "megatron",
        "fp8",
        {"tp": "2", "pp": "4", "vpp": "1", "cp": "1", "zero": "1", "micro_batch": "1"}
        | {"recompute": "full"},
        r"\+fp8-params$",
    ),
}


def request(stack, precision, model="llama-3.1-70b", cluster="gb200-nvl72:16"):
    work = Workload(seq_tokens=8192, global_batch=256, precision=precision, stack=stack)
    return PlanRequest(load_model(model), load_cluster(cluster), work)


def needs(context, layouts):
    """Return the peak and the budget of one layout, with the cut that it would get."""
    kinds = own_kinds(context, judge(context, layouts)[0])
    x = Inputs(*context, layouts, kinds=kinds)
    return float(peak_bytes(x)[0]), budget_bytes(x)


@pytest.mark.parametrize("case", CASES)
def test_the_flag_that_is_told_makes_it_fit_with_the_figures_told(case):
    stack, precision, layout, flag = CASES[case]
    asked = request(stack, precision)
    found = completed(asked, layout)
    assert found.legal, found.reasons
    if case == "fp8":  # room for all but a little
        limit = limit_bytes(Inputs(*asked.context, found.layouts))
        share = 0.95 * needs(asked.context, found.layouts)[0] / limit
        asked = replace(asked, workload=asked.workload.model_copy(update={"max_memory": share}))
    peak, budget = needs(asked.context, found.layouts)
    assert peak > budget
    (line,) = flag_mends(asked, found.layouts, 1.0)
    name = line.split()[1].rstrip(":")
    assert re.search(flag, name)
    peak, budget = needs(with_stack(asked, name), found.layouts)
    assert peak <= budget
    took = judge(with_stack(asked, name), found.layouts)[0].step_s
    assert gib(peak) in line
    assert f"{seconds(took)} a step ({took - 1:+.1%})" in line
    if case == "layers":
        fewer = int(re.search(flag, name)[1]) - 1
        peak, budget = needs(with_stack(asked, f"{stack}+offload-layers={fewer}"), found.layouts)
        assert peak > budget


def with_stack(asked, stack):
    return replace(asked, workload=asked.workload.model_copy(update={"stack": stack})).context


@pytest.mark.parametrize(
    ("stack", "more"),
    [
        ("torchtitan", {"zero": "3"}),  # has neither
        ("megatron", {"pp": "2", "zero": "1"}),  # activations stay where there is a pipeline
        ("megatron", {"recompute": "full"}),
    ],
)
def test_flags_that_a_stack_or_a_layout_does_not_take_are_not_told(stack, more):
    asked = request(stack, "bf16")
    found = completed(asked, {**WHOLE, "micro_batch": "2", **more})
    assert found.legal, found.reasons
    assert flag_mends(asked, found.layouts, 1.0) == []

"""Refused with the reason, and with the nearest layout that the target can run."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pytest

from planner import workflow
from planner.emit import EMITTER_NAMES, emitter_named
from planner.emit.capabilities import FIELDS, words
from planner.errors import PlannerError, SpecError
from planner.plan import Layout, Plan
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.workflow import targets
from planner.workflow.expressing import FIELDS as COMPARED

MODEL, CLUSTER = load_model("llama-3.2-1b"), load_cluster("dgx-h100:2")


def planned(stack: str = "any", **fix: Any) -> Plan:
    work = Workload(seq_tokens=4096, global_batch=64, stack=stack)
    request = workflow.PlanRequest(
        MODEL, CLUSTER, work, fix={k: str(v) for k, v in fix.items()}, top=1
    )
    return workflow.plan(request)


REFUSED: dict[str, dict[str, Any]] = {
    "deepspeed": {"tp": 2, "pp": 2},
    "megatron": {"pp": 2, "schedule": "gpipe"},
    "megatron-bridge": {"pp": 2, "schedule": "gpipe"},
    "accelerate": {"pp": 4},
    "torchtitan": {"zero": 1, "tp": 2},
    "nanotron": {"zero": 3},
}


def changed(a: Layout, b: Layout) -> int:
    return sum(getattr(a, field) != getattr(b, field) for field in COMPARED)


@pytest.mark.parametrize("target", REFUSED)
def test_a_refusal_names_the_nearest_layout_that_the_target_runs(target):
    answer = planned(**REFUSED[target])
    assert emitter_named(target).unsupported(answer)
    near = workflow.nearest_layout(answer, target)
    assert near is not None
    with pytest.raises(SpecError) as caught:
        workflow.refuse(answer, target)
    assert near.short() in caught.value.hint
    assert answer.best.layout.short() in caught.value.message
    fixed = {f: getattr(near, f) for f in ("tp", "pp", "cp", "dp", "zero", "schedule")}
    again = planned(workflow.stack_of(target, "any"), **fixed)
    assert emitter_named(target).unsupported(again) == []


@pytest.mark.parametrize("target", ["deepspeed", "accelerate", "nanotron"])
def test_no_layout_with_fewer_changes_would_do(target):
    """Every layout of 16 GPUs that differs in fewer fields is refused, or breaks a rule."""
    answer = planned(**REFUSED[target])
    near = workflow.nearest_layout(answer, target)
    assert near is not None
    most = changed(answer.best.layout, near)
    for tp, pp, zero in itertools.product((1, 2, 4), (1, 2, 4), (0, 1, 2, 3)):
        try:
            other = planned(workflow.stack_of(target, "any"), tp=tp, pp=pp, zero=zero)
        except PlannerError:  # nothing of the kind is legal, or fits
            continue
        if not emitter_named(target).unsupported(other):
            assert changed(answer.best.layout, other.best.layout) >= most, other.best.layout.short()


def test_one_node_alone_holds_a_parameter_server():
    """16 GPUs on two nodes are too many for one process: there is no such layout."""
    with pytest.raises(SpecError) as caught:
        workflow.refuse(planned(tp=2), "dataparallel")
    assert "dataparallel" in caught.value.hint


def for_target(
    target: str, stack: str, *, changes: dict[str, Any] | None = None, **fix: Any
) -> Plan:
    untied = MODEL.model_copy(
        update={"tied_embeddings": False} | (changes or {})
    )  # as torch's pipelines need
    request = workflow.PlanRequest(
        untied,
        CLUSTER,
        Workload(seq_tokens=4096, global_batch=64, stack=stack),
        fix={k: str(v) for k, v in fix.items()},
    )
    return workflow.plan_for_target(request, target)


@pytest.mark.parametrize("target", ["slurm", "k8s"])
def test_a_scheduler_plans_as_the_framework_does_that_it_starts(target):
    alone, started = (for_target(name, "any", pp=2) for name in ("torchrun", target))
    assert started.best == alone.best
    assert started.request.workload.stack == "torchtitan"
    for name in ("torchrun", target):  # FSDP2 has no zero 1
        with pytest.raises(PlannerError, match="FSDP2 has zero 2"):
            for_target(name, "any", pp=2, zero=1)
    assert for_target(target, "megatron", pp=2, zero=1).best.layout.zero == 1


def test_what_a_scheduler_starts_may_be_named_by_the_stack():
    with pytest.raises(PlannerError) as caught:
        for_target("slurm", "any", pp=2, zero=1)
    assert "--stack megatron" in caught.value.hint


def test_layouts_that_the_table_does_not_hold_are_not_dealt_layer_by_layer(monkeypatch):
    """Hundreds of kinds of layout are legal here; one process on one node can run none of them."""
    dealt = mock.Mock(wraps=targets.shown)
    monkeypatch.setattr(targets, "shown", dealt)
    with pytest.raises(PlannerError, match="parameter server"):
        for_target("dataparallel", "any", pp=2)
    assert dealt.call_count == 0
    biased = {"qkv_bias": True}  # which nanotron's Llama has in no layout
    with pytest.raises(PlannerError, match="without biases"):
        for_target("nanotron", "any", changes=biased)
    assert 0 < dealt.call_count <= targets.LIKE
    for_target("torchrun", "any")
    assert dealt.call_count >= 1


@pytest.mark.parametrize(
    ("target", "asked", "runs"),
    [
        ("nanotron", "any", "nanotron"),
        ("nanotron", "megatron", "nanotron"),
        ("megatron", "nanotron", "megatron"),
        ("megatron", "megatron-bridge+mxfp8", "megatron-bridge+mxfp8"),
        ("torchtitan", "torchtitan+eager", "torchtitan+eager+chunked-loss"),
        ("slurm", "nanotron", "nanotron"),
        ("slurm", "transformers", "transformers"),
        ("k8s", "megatron-bridge", "megatron-bridge"),
    ],
)
def test_a_target_plans_with_its_own_stack_or_with_one_of_its_kind(target, asked, runs):
    assert workflow.stack_of(target, asked) == runs


def test_what_a_target_runs_is_not_refused():
    workflow.refuse(planned("deepspeed", tp=1, pp=1, zero=2), "deepspeed")


@pytest.mark.parametrize("target", EMITTER_NAMES)
def test_every_target_says_of_every_field_what_it_can(target):
    can = emitter_named(target).can
    assert set(can) == set(FIELDS)
    for field, held in can.items():
        assert held.values is None or held.why, field
        assert words(held)

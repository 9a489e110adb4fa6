"""What would make a layout fit: feasible, cheapest first, and no single change missed."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from planner.estimate.inputs import Inputs
from planner.estimate.memory import budget_bytes, peak_bytes
from planner.estimate.step import step_s
from planner.layouts.ranges import FIXABLE
from planner.layouts.rules import broken_rules
from planner.layouts.table import NAMES, Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.cluster import ClusterSpec
from planner.specs.workload import Workload
from planner.workflow import PlanRequest, explain

PLAIN = dict(sp="false", pp="1", vpp="1", cp="1", ep="1", etp="1", dp_replicate="1", zero="0")
PLAIN |= dict(micro_batch="1", recompute="none", schedule="none", dp_sync="all-reduce")
CASES = {
    "8b replicated": ("llama-3.1-8b", "dgx-h100:2", "any", dict(tp="1", dp="16", micro_batch="4")),
    "8b, large micro-batch": (
        "llama-3.1-8b",
        "dgx-h100:2",
        "any",
        dict(tp="2", dp="8", zero="1", micro_batch="16"),
    ),
    "405b, whole norms": (
        "llama-3.1-405b",
        "dgx-h100:64",
        "any",
        dict(tp="8", pp="8", vpp="2", dp="8", zero="1", micro_batch="2", schedule="interleaved"),
    ),
    "70b, pipeline": (
        "llama-3.1-70b",
        "dgx-h100:8",
        "any",
        dict(tp="4", sp="true", pp="4", dp="4", zero="1", micro_batch="2", schedule="gpipe"),
    ),
    "70b, chunks": (
        "llama-3.1-70b",
        "dgx-h100:4",
        "megatron",
        dict(tp="4", pp="4", vpp="4", dp="2", zero="1", schedule="interleaved"),
    ),
    "70b, fsdp": (
        "llama-3.1-70b",
        "dgx-h100:8",
        "torchtitan",
        dict(tp="1", dp="64", zero="3", micro_batch="4"),
    ),
    "experts": (
        "mixtral-8x7b",
        "dgx-h100:4",
        "megatron",
        dict(tp="2", sp="true", ep="2", pp="2", dp="8", zero="1", schedule="1f1b"),
    ),
}


def request(model, cluster, stack="any", *, batch=256, **more):
    work = Workload(seq_tokens=4096, global_batch=batch, stack=stack, **more)
    return PlanRequest(load_model(model), load_cluster(cluster), work)


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """Return a question whose layout does not fit, every field given, and its answer."""
    return ask(request.param)


@functools.cache
def ask(name):
    model, cluster, stack, given = CASES[name]
    asked = request(model, cluster, stack)
    told = explain(asked, {**PLAIN, **given})
    assert told.legal, told.reasons
    assert not told.feasible
    return asked, told


def within(mend):
    return [m for m in mend if not m.more_gpus]


def as_given(layout):
    return {n: str(getattr(layout, n)).lower() for n in FIXABLE}


def test_every_mend_that_is_followed_fits_with_the_figures_that_it_was_given(case):
    asked, told = case
    assert told.mend_layouts
    for mend in told.mend_layouts:
        cluster = load_cluster(f"{asked.cluster.name}:{mend.nodes}")
        again = explain(PlanRequest(asked.model, cluster, asked.workload), as_given(mend.layout))
        assert again.legal, mend.change
        assert again.feasible, mend.change
        assert again.layout == mend.layout
        assert again.estimate.step_time_s == pytest.approx(mend.step_time_s, rel=1e-9)
        assert again.estimate.memory.peak_bytes == pytest.approx(mend.peak_bytes, rel=1e-9)
        assert again.estimate.memory.at_risk == mend.at_risk
        cost = mend.step_time_s / told.estimate.step_time_s - 1
        assert mend.slower == pytest.approx(cost, rel=1e-9)


def test_mends_come_cheapest_first_and_a_larger_machine_last(case):
    _, told = case
    took = [m.step_time_s for m in within(told.mend_layouts)]
    assert took == sorted(took)
    larger = [m.more_gpus for m in told.mend_layouts]
    assert larger == sorted(larger)
    assert all(m.gpus > told.layout.gpus for m in told.mend_layouts if m.more_gpus)


def test_changes_lead_from_the_layout_that_was_asked_for_to_the_mend(case):
    _, told = case
    for mend in told.mend_layouts:
        for name, (old, new) in mend.changes.items():
            assert getattr(told.layout, name) == old
            assert getattr(mend.layout, name) == new != old
        same = set(FIXABLE) - {*mend.changes}
        assert all(getattr(mend.layout, n) == getattr(told.layout, n) for n in same)


def variants(asked, layout):
    """Yield every legal layout that differs in one field, as a row; what must follow, follows."""
    gpus, batch = layout.gpus, asked.workload.global_batch
    base = Layouts.of([layout.model_dump()]).row(0)
    values = {n: range(1, gpus + 1) for n in ("tp", "pp", "cp", "ep", "etp", "dp_replicate")}
    values |= dict(zero=range(4), micro_batch=range(1, 65), vpp=range(1, 17), sp=(False, True))
    values |= {n: NAMES[n] for n in ("recompute", "schedule", "dp_sync")}
    for name, choices in values.items():
        for value in choices:
            row = {**base, name: value}
            ways = row["tp"] * row["pp"] * row["cp"]
            if value == base[name] or gpus % ways:
                continue
            row["dp"] = gpus // ways
            row["num_microbatches"] = max(1, batch // (row["dp"] * row["micro_batch"]))
            if name in ("pp", "vpp"):
                flat = base["schedule"] if base["schedule"] in ("gpipe", "1f1b") else "1f1b"
                flat = "none" if row["pp"] == 1 else flat
                row["schedule"] = "interleaved" if row["vpp"] > 1 else flat
            if not broken_rules(Layouts.of([row]), 0, asked.context):
                yield name, row


def test_no_single_change_is_cheaper_than_the_cheapest_single_one_proposed(case):
    asked, told = case
    named, rows = zip(*variants(asked, told.layout), strict=True)
    x = Inputs(*asked.context, Layouts.of(rows))
    fits = peak_bytes(x) <= budget_bytes(x)
    singles = [m for m in within(told.mend_layouts) if " and " not in m.idea]
    if not fits.any():
        assert not any(len(m.changes) == 1 for m in singles)
        return
    assert len(rows) >= 10
    cheapest = float(step_s(x)[fits].min())
    assert singles[0].step_time_s <= cheapest * (1 + 1e-9)
    fixes = {name for name, fit in zip(named, fits, strict=True) if fit}
    proposed = {next(iter(m.changes)) for m in singles}
    assert fixes <= proposed


def test_cases_cover_one_change_and_two():
    names = ("8b replicated", "8b, large micro-batch", "70b, fsdp", "experts")
    ideas = [within(ask(name)[1].mend_layouts)[0].idea for name in names]
    assert any(" and " in idea for idea in ideas)
    assert any(" and " not in idea for idea in ideas)


def test_what_follows_a_change_follows_because_a_rule_makes_it(case):
    asked, told = case
    free = {"dp", "num_microbatches", "offload"}
    for mend in within(told.mend_layouts):
        meant = [*mend.changes][: 1 + mend.idea.count(" and ")]
        followed = {*mend.changes} - {*meant} - free
        if not followed:
            continue
        kept = {n: getattr(told.layout, n) for n in followed}
        row = {**mend.layout.model_dump(), **kept}
        assert broken_rules(Layouts.of([row]), 0, asked.context), mend.change


def test_fields_left_out_take_the_best_value_for_the_change():
    asked = request("llama-3.1-405b", "dgx-h100:64")
    given = {"tp": "8", "pp": "4", "recompute": "none", "zero": "1"}
    told = explain(asked, given)
    assert not told.feasible
    mend = within(told.mend_layouts)[0]
    meant = [n for n in mend.changes if n in given]
    assert len(meant) == 1
    wanted = {n: given[n] for n in given if n != meant[0]}
    free = explain(asked, {**wanted, meant[0]: str(getattr(mend.layout, meant[0]))})
    assert free.layout == mend.layout


def test_where_no_two_changes_do_the_nearest_that_fit_are_shown_by_what_they_change():
    given = dict(tp="1", pp="1", cp="1", zero="0", recompute="none", micro_batch="4")
    told = explain(request("llama-3.1-405b", "dgx-h100:16", "megatron", batch=512), given)
    near = within(told.mend_layouts)
    assert 1 < len(near) <= 3
    kinds = [frozenset(given) & {*mend.changes} for mend in near]
    assert len({*kinds}) == len(kinds)
    assert all(len(kind) > 2 for kind in kinds)
    assert [m.step_time_s for m in near] == sorted(m.step_time_s for m in near)
    assert not any(m.idea for m in near)


def test_where_nothing_fits_more_nodes_are_counted_out():
    asked = request("llama-3.1-405b", "dgx-h100:2")
    told = explain(asked, {"tp": "8"})
    assert "no layout of 16 GPUs fits" in told.mends[0]
    (mend,) = told.mend_layouts
    assert mend.more_gpus
    assert mend.gpus == mend.nodes * 8 == mend.layout.gpus > 16
    assert told.mends[1].startswith(f"{mend.gpus} GPUs on {mend.nodes} nodes: ")


def test_a_machine_without_a_network_is_not_told_to_grow():
    asked = request("llama-3.1-70b", "dgx-h100:1")
    alone = asked.cluster.model_dump(mode="json") | {"fabric": {"kind": "none"}}
    assert any(m.more_gpus for m in explain(asked, {"tp": "8"}).mend_layouts)
    still = PlanRequest(asked.model, ClusterSpec.model_validate(alone), asked.workload)
    told = explain(still, {"tp": "8"})
    assert not told.feasible
    assert not any(m.more_gpus for m in told.mend_layouts)


def test_a_share_of_memory_asked_for_is_kept_by_every_mend():
    asked = request("llama-3.1-8b", "dgx-h100:2", max_memory=0.6, risk_memory=0.5)
    told = explain(asked, {"tp": "1", "pp": "1", "cp": "1", "zero": "1", "micro_batch": "8"})
    assert told.legal
    assert not told.feasible
    shares = np.array([m.peak_bytes / m.limit_bytes for m in told.mend_layouts])
    assert (shares <= 0.6).all()
    assert [m.at_risk for m in told.mend_layouts] == list(shares > 0.5)


def test_more_nodes_are_timed_on_their_own_network():
    asked = request("llama-3.1-70b", "dgx-h100:1", batch=512, optimizer="muon")
    told = explain(asked, {"tp": "8", "pp": "1"})
    grown = [mend for mend in told.mend_layouts if mend.more_gpus]
    assert grown
    for mend in grown:
        cluster = load_cluster(f"{asked.cluster.name}:{mend.nodes}")
        again = explain(PlanRequest(asked.model, cluster, asked.workload), as_given(mend.layout))
        assert again.estimate.step_time_s == pytest.approx(mend.step_time_s, rel=1e-9)

"""Memory opened by stage and part: it adds up, and says what the terms themselves call."""

from __future__ import annotations

import numpy as np
import pytest

from planner.estimate import memory
from planner.estimate.inputs import Inputs, term
from planner.estimate.opening import opened_memory, peak_points
from planner.estimate.record import TERMS, estimate_record
from planner.estimate.running import judge, own_kinds
from planner.layouts.rules import Context
from planner.layouts.table import Layouts
from planner.sources import TORCH
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

PLAIN = dict(tp=8, sp=1, pp=4, vpp=1, cp=1, ep=1, etp=1, dp=2, dp_replicate=1, zero=1)
PLAIN |= dict(micro_batch=1, recompute="none", schedule="1f1b", offload="none")
PLAIN |= dict(num_microbatches=64, dp_sync="all-reduce")
CASES = {
    "dense": ("llama-3.1-70b", "megatron", {}),
    "full recompute": ("llama-3.1-70b", "megatron", dict(recompute="full")),
    "interleaved": ("llama-3.1-70b", "megatron", dict(vpp=4, schedule="interleaved")),
    "experts": ("deepseek-v3", "megatron", dict(tp=2, dp=8, ep=8, recompute="selective")),
    "fsdp": ("llama-3.1-70b", "torchtitan", dict(zero=3)),
    "fsdp, one stage": (
        "llama-3.1-8b",
        "torchtitan",
        dict(tp=1, sp=0, pp=1, dp=64, zero=3, schedule="none", num_microbatches=2),
    ),
    "zero 3": (
        "llama-3.1-8b",
        "deepspeed",
        dict(tp=1, sp=0, pp=1, dp=64, zero=3, schedule="none", num_microbatches=2),
    ),
}


def asked(model, stack, changes):
    work = Workload(seq_tokens=4096, global_batch=128, stack=stack)
    context = Context(load_model(model), load_cluster("dgx-h100:8"), work)
    return context, Layouts.of([{**PLAIN, **changes}])


@pytest.fixture(params=CASES)
def case(request):
    return asked(*CASES[request.param])


def rows_of(case):
    return {row["name"]: row for row in opened_memory(*case, 0)}


def test_the_parts_of_memory_sum_to_the_total_of_every_stage(case):
    *parts, total = opened_memory(*case, 0)
    assert total["name"] == "total"
    assert [p["name"] for p in parts] == [*memory.MEMORY_TERMS]
    summed = np.sum([p["stages"] for p in parts], axis=0)
    assert len(summed) == int(case[1].pp[0])
    np.testing.assert_allclose(summed, total["stages"], rtol=1e-12)


def test_the_table_shows_what_the_estimate_summed(case):
    stages = estimate_record(*case, 0)["memory"]["stages"]
    for name, row in rows_of(case).items():
        np.testing.assert_array_equal(row["stages"], [stage[name] for stage in stages])


def test_what_stands_for_a_part_has_its_very_values(case):
    context, layouts = case
    terms = {t.name: t for t in TERMS}
    x = Inputs(*context, layouts, kinds=own_kinds(context, judge(context, layouts)[0]))
    for row in opened_memory(context, layouts, 0)[:-1]:
        assert row["formula"] == terms[row["terms"][-1]].formula
        for name in row["terms"]:
            np.testing.assert_array_equal(terms[name](x)[0], row["stages"])


def test_no_part_exceeds_what_it_is_a_part_of_and_all_say_where_they_come_from(case):
    for row in opened_memory(*case, 0)[:-1]:
        assert all((row["formula"], row["source"], row["about"]))
        for part in row["parts"]:
            assert all((part["formula"], part["source"], part["about"])), part["name"]
            assert len(part["stages"]) == len(row["stages"])
            if part["unit"] == "bytes":
                assert (np.array(part["stages"]) <= np.array(row["stages"]) * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ["dense", "full recompute", "interleaved", "experts"])
def test_activations_are_in_flight_times_layers_times_kept_and_the_working_set(name):
    row = rows_of(asked(*CASES[name]))["activations"]
    part = {p["name"]: np.array(p["stages"]) for p in row["parts"]}
    none = np.zeros(len(row["stages"]))
    per_batch = sum(
        part.get(f"kept_{kind}_layer_bytes", none) * part.get(f"{kind}_layers", none)
        for kind in ("dense", "moe")
    )
    kept = part["microbatches_in_flight"] * per_batch
    np.testing.assert_allclose(part["kept_activations_bytes"], kept)
    whole = part["kept_activations_bytes"] + part["working_activations_bytes"]
    np.testing.assert_allclose(whole, row["stages"])
    layers = part.get("dense_layers", none) + part.get("moe_layers", none)
    model = load_model(CASES[name][0])
    assert layers.sum() == model.layers + model.mtp_layers


def test_full_recompute_keeps_one_input_a_layer_and_works_on_a_whole_layer():
    part = {
        name: {
            p["name"]: p["stages"][0] for p in rows_of(asked(*CASES[name]))["activations"]["parts"]
        }
        for name in ("dense", "full recompute")
    }
    kept = part["full recompute"]["kept_dense_layer_bytes"]
    assert kept == 2 * 4096 * 8192 / 8
    saved = part["dense"]["kept_dense_layer_bytes"] - kept
    more = (
        part["full recompute"]["working_activations_bytes"]
        - part["dense"]["working_activations_bytes"]
    )
    assert more == pytest.approx(saved)


def test_a_term_that_is_split_shows_its_pieces(monkeypatch):
    @term(unit="bytes", formula="1 GiB", source=TORCH)
    def context_piece_bytes(x):
        """One piece."""
        return np.full(len(x.layouts), 2.0**30)

    @term(unit="bytes", formula="2 GiB on the first stage", source=TORCH)
    def stage_piece_bytes(x):
        """Another."""
        return 2.0**31 * x.stages.first

    @term(unit="bytes", formula="both", source=TORCH)
    def split_bytes(x):
        """Two pieces."""
        return context_piece_bytes(x)[:, None] + stage_piece_bytes(x)

    monkeypatch.setitem(memory.MEMORY_TERMS, "overhead", split_bytes)
    row = rows_of(asked(*CASES["dense"]))["overhead"]
    assert row["stages"] == [3 * 2.0**30, *[2.0**30] * 3]
    pieces = {p["name"]: p["stages"] for p in row["parts"]}
    assert pieces == {
        "context_piece_bytes": [2.0**30] * 4,
        "stage_piece_bytes": [2.0**31, 0.0, 0.0, 0.0],
    }


def test_fsdp_names_the_point_at_which_each_stage_peaks():
    context, layouts = asked(*CASES["fsdp"])
    points = peak_points(context, layouts, 0)
    record = estimate_record(context, layouts, 0)["memory"]
    totals = [stage["total"] for stage in record["stages"]]
    assert len(points) == 4
    assert points[totals.index(max(totals))] == record["peak_point"]
    assert peak_points(*asked(*CASES["dense"]), 0) == []

"""Pipelines that are run for a ranking: bounds hold, the best is found, and numbers agree."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from planner.estimate.bounds import least_step_s, whole_layers_s
from planner.estimate.inputs import Inputs
from planner.estimate.memory import budget_bytes, peak_bytes, stage_bytes
from planner.estimate.record import estimate_record
from planner.estimate.running import judge, own_kinds, runs
from planner.estimate.step import step_s
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import parse_fix
from planner.layouts.rules import Context
from planner.layouts.split import cuts_freely
from planner.layouts.table import Layouts
from planner.rank import rank
from planner.settling import settle
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

CASES = {
    "dense": ("llama-3.1-8b", "dgx-h100:4", "any", 96, {"cp": "1"}),
    "dense-405b": ("llama-3.1-405b", "dgx-h100:64", "megatron", 256, {"tp": "8", "cp": "1"}),
    "large-head": ("gemma-2-9b", "dgx-a100:4", "megatron", 64, {"cp": "1"}),
    "torchtitan": (
        "llama-3.1-8b",
        "dgx-h100:4",
        "torchtitan",
        64,
        {"cp": "1", "dp_replicate": "1"},
    ),
    "deepspeed": ("llama-3.1-8b", "dgx-a100:4", "deepspeed", 96, {}),
    "by-cost": ("llama-3.1-8b", "dgx-h100:2", "nanotron", 32, {"cp": "1"}),
    "even-only": ("gpt-3-1.3b", "dgx-a100:4", "megatron-2021", 64, {}),
    "experts": ("deepseek-v2-lite", "dgx-h100:4", "megatron", 128, {"tp": "1|2", "cp": "1"}),
    "in-turn": (
        "llama-4-maverick",
        "dgx-h100:64",
        "any",
        512,
        {"tp": "2", "cp": "1", "ep": "64|128", "vpp": "2|3", "micro_batch": "1", "zero": "1"},
    ),
    "mtp": ("deepseek-v3", "dgx-h100:64", "megatron", 512, {"tp": "1", "cp": "1", "ep": "32|64"}),
}


@functools.cache
def piped(name):
    """All legal layouts of a case that fit and have a pipeline, thinned to a few hundred."""
    model, cluster, stack, batch, fix = CASES[name]
    around = Context(
        load_model(model),
        load_cluster(cluster),
        Workload(seq_tokens=4096, global_batch=batch, stack=stack),
    )
    found = legal_layouts(around, around.cluster.gpus, parse_fix(fix), Tally())
    layouts = Layouts.concat(list(found))
    x = Inputs(*around, layouts)
    layouts = layouts.take((peak_bytes(x) <= budget_bytes(x)) & runs(layouts))
    few = np.random.default_rng(7).permutation(len(layouts))[:150]
    layouts = layouts.take(np.sort(few))
    assert len(layouts) > 20
    return around, layouts, judge(around, layouts)


@pytest.mark.parametrize("name", sorted(CASES))
def test_no_pipeline_that_is_run_beats_its_bound(name):
    around, layouts, judged = piped(name)
    took = np.array([one.step_s for one in judged])
    x = Inputs(*around, layouts)
    assert (least_step_s(x) <= took * (1 + 1e-9)).all()
    assert (whole_layers_s(x) <= took * (1 + 1e-9)).all()
    assert (whole_layers_s(x) >= least_step_s(x) * (1 - 1e-6)).all()
    # a bound that is far off would be no help: half of them are within a quarter
    assert np.median(took / whole_layers_s(x)) < 1.25


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_cut_fits_holds_every_layer_and_is_no_slower_than_the_usual_one(name):
    around, layouts, judged = piped(name)
    x = Inputs(*around, layouts)
    for row, one in enumerate(judged):
        alone = layouts.take([row])
        kinds = own_kinds(around, one)
        assert sum(map(sum, one.table)) == around.model.layers
        peak = stage_bytes(Inputs(*around, alone, kinds=kinds)).max()
        assert peak <= budget_bytes(x)
        assert one.peak_bytes is None or one.peak_bytes == pytest.approx(peak)
    if not cuts_freely(around.workload.stack):
        usual = [step_s(Inputs(*around, layouts.take([row])))[0] for row in range(len(layouts))]
        assert step_s(x) == pytest.approx(usual)
        assert all(one.peak_bytes is None for one in judged)


@pytest.mark.parametrize("name", ["dense", "dense-405b", "torchtitan", "deepspeed", "experts"])
def test_the_first_of_a_ranking_is_the_best_of_all_that_could_be_run(name):
    around, fix = piped(name)[0], CASES[name][-1]
    ranking = rank(around, around.cluster.gpus, parse_fix(fix | {"pp": "2|4|8|16"}))
    assert ranking.leaders.left == 0
    small = runs(ranking.layouts)
    rows = np.flatnonzero(small)[:400]  # in order of what was thought of them
    took = np.array([one.step_s for one in judge(around, ranking.layouts.take(rows))])
    assert ranking.step_s[0] == pytest.approx(took.min(), rel=1e-12)
    for row, one in ranking.leaders.judged.items():
        assert ranking.step_s[row] == one.step_s
    assert len(ranking.leaders.judged) < small.sum()


def test_shown_rows_are_run_and_stand_in_order():
    around = piped("dense")[0]
    ranking = rank(around, around.cluster.gpus, parse_fix({"pp": "2|4|8"}))
    ranking = settle(around, ranking, 8)
    rows = ranking.best_of_each_shape(8)
    for row in rows.tolist():
        assert row in ranking.leaders.judged
        told = estimate_record(around, ranking.layouts, row)
        assert told["simulated"]
        assert told["step_time_s"] == pytest.approx(ranking.step_s[row], rel=1e-12)
    assert (np.diff(ranking.step_s) >= 0).all()


@pytest.mark.parametrize("name", sorted(CASES))
def test_parts_of_a_pipeline_that_was_run_sum_to_its_step(name):
    around, layouts, _ = piped(name)
    for row in range(0, len(layouts), 10):
        told = estimate_record(around, layouts, row)
        assert sum(told["time_s"].values()) == pytest.approx(told["step_time_s"], rel=1e-9)
        assert min(told["time_s"].values()) >= 0


PLAIN = {"tp": 1, "pp": 1, "cp": 1, "zero": 0, "recompute": 0, "offload": 0}


@pytest.mark.parametrize(
    ("model", "cluster", "stack", "batch"),
    [
        ("gpt-3-1.3b", "dgx-a100:2", "any", 64),
        ("llama-3.2-1b", "dgx-h100:2", "nanotron", 32),
        ("llama-3.2-1b", "gcp-a3-high:2", "any", 16),
        ("qwen2.5-0.5b", "dgx-h100:4", "torchtitan", 32),
        ("gpt2-xl", "dgx-h100:1", "megatron-2021", 128),
    ],
)
def test_nothing_stands_above_plain_data_parallelism_that_is_slower_than_it(
    model, cluster, stack, batch
):
    """FlexFlow's users met a tuned plan slower than plain data parallelism (flexflow-train 217)."""
    work = Workload(seq_tokens=1024, global_batch=batch, stack=stack)
    around = Context(load_model(model), load_cluster(cluster), work)
    ranking = rank(around, around.cluster.gpus, parse_fix({}))
    at = np.all([getattr(ranking.layouts, n) == v for n, v in PLAIN.items()], axis=0)
    first = int(np.flatnonzero(at)[0])
    plain_s = estimate_record(around, ranking.layouts, first)["step_time_s"]
    shown = np.unique(np.linspace(0, first, 12).astype(np.int64))
    above = [estimate_record(around, ranking.layouts, int(row))["step_time_s"] for row in shown]
    assert max(above) <= plain_s * (1 + 1e-9)
    assert ranking.step_s[first] == pytest.approx(plain_s)

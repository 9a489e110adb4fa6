"""Measured steps: a few of a stack that nobody has seen tell how fast its others are."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from logs import EXAMPLES

from planner.calibrate.stacks import WIDTHS, Step, Steps, fit_stack, numbers_of
from planner.calibrate.steps import fit_steps
from planner.layouts.rules import Context
from planner.specs.catalog import load_cluster, load_model
from planner.specs.figures import StackFigures
from planner.specs.stack import stack_named
from planner.specs.workload import Workload
from planner.validate import PUBLISHED, predicted, read_runs

TRUTH = {
    "gemm": 0.85,
    "memory_traffic": 2.2,
    "host_s": 6e-3,
    "tp_exposed": 0.6,
    "dp_exposed": 0.7,
    "step_s": 0.25,
}
"""A stack unlike `any`: slower multiplies, less fused, twice the host time."""


def layouts():
    """Return layouts of one job on 32 GPUs, from data parallel to deep pipelines."""
    for tp, pp in ((1, 1), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 4)):
        for micro in (1, 2):
            for recompute in ("none", "full"):
                dp = 32 // tp // pp
                yield {
                    **dict.fromkeys(("vpp", "cp", "ep", "etp", "dp_replicate"), 1),
                    **{"tp": tp, "pp": pp, "dp": dp, "sp": int(tp > 1)},
                    **{"zero": 1 if dp > 1 else 0, "micro_batch": micro},
                    **{"num_microbatches": 64 // dp // micro, "recompute": recompute},
                    **{"schedule": "1f1b" if pp > 1 else "none"},
                    **{"offload": "none", "dp_sync": "all-reduce"},
                }


def measured(seed=0, noise=0.02):
    """Return steps of a stack with the numbers of TRUTH, with noise."""
    cluster = load_cluster("dgx-h100:4")
    truth = cluster.model_copy(update={"stacks": {"any": StackFigures(**TRUTH)}})
    work = Workload(seq_tokens=4096, global_batch=64, stack="any")
    rows = [r for r in layouts() if r["num_microbatches"] >= 1]
    steps = [Step(Context(load_model("llama-3.1-8b"), cluster, work), row, 1.0) for row in rows]
    on_truth = [s._replace(context=s.context._replace(cluster=truth)) for s in steps]
    seconds = Steps("other", on_truth).closed_form_s({})
    spread = np.exp(np.random.default_rng(seed).normal(0, noise, len(steps)))
    return [s._replace(measured_s=float(t)) for s, t in zip(steps, seconds * spread, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_eight_steps_of_an_unseen_stack_predict_the_others_within_eight_percent(seed):
    steps = measured(seed)
    order = np.random.default_rng(seed).permutation(len(steps))
    numbers = numbers_of(stack_named("any"))
    few, rest = [steps[i] for i in order[:8]], [steps[i] for i in order[8:]]
    found = fit_stack(Steps("any", few), numbers)
    others = Steps("any", rest)
    values = dict(zip((n.name for n in numbers), found.values.tolist(), strict=True))
    before = np.abs(others.closed_form_s({}) / others.measured_s - 1)
    after = np.abs(others.closed_form_s(values) / others.measured_s - 1)
    assert np.median(before) > 0.15
    assert np.median(after) < 0.08


def test_steps_of_the_stack_as_it_ships_leave_its_numbers_alone():
    cluster = load_cluster("dgx-h100:4")
    numbers = numbers_of(stack_named("any"))
    steps = Steps("any", measured())
    exact = steps.judged_s({n.name: n.shipped for n in numbers})
    same = [
        s._replace(measured_s=float(t), context=s.context._replace(cluster=cluster))
        for s, t in zip(measured(), exact, strict=True)
    ]
    found = fit_stack(Steps("any", same), numbers)
    assert found.values == pytest.approx([n.shipped for n in numbers], rel=1e-6)


def test_every_number_that_may_move_is_one_that_a_cluster_can_hold():
    assert set(WIDTHS) == set(StackFigures.model_fields) - {"runs", "low", "high", "fitted"}
    assert set(WIDTHS) <= set(vars(stack_named("any")))


def test_twelve_real_steps_of_plain_pytorch_on_an_h100_halve_the_error_of_those_left_out():
    """No profile was fitted to eager PyTorch with Hugging Face models on one GPU."""
    mine = load_cluster("dgx-h100")
    found, after = fit_steps(mine, read_runs(EXAMPLES / "h100_steps.csv", mine), "h100_steps.csv")
    quality = found.figures[0].quality
    assert quality.points == 12
    assert quality.median_before > 0.08
    assert quality.median_unseen < 0.05
    figures = after.stacks["any"]
    assert figures.low <= 1 <= figures.high
    assert figures.high / figures.low < 1.25


def test_steps_of_an_unknown_framework_are_of_the_stack_that_the_user_names():
    mine = load_cluster("dgx-h100")
    runs = read_runs(EXAMPLES / "h100_steps.csv", mine, "torchtitan+cudnn")
    _, after = fit_steps(mine, runs, "h100_steps.csv")
    assert set(after.stacks) == {"torchtitan"}


def table(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_published_rows_are_read_on_the_users_cluster_and_fit_better_afterwards(tmp_path):
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["hardware"].startswith("H100-SXM-80GB")]
    mine = load_cluster("dgx-h100")
    path = table(tmp_path / "runs.csv", rows)
    found, after = fit_steps(mine, read_runs(path, mine), "runs.csv")
    assert after.stacks
    for figures in after.stacks.values():
        assert figures.runs >= 3
    errors = [
        np.median(
            [abs(r["error"]) for r in predicted(read_runs(path, on)) if r["error"] is not None]
        )
        for on in (mine, after)
    ]
    assert errors[1] < errors[0]
    steps = {p.what: p for p in found.predictions}
    again = {r["id"]: r for r in predicted(read_runs(path, after))}
    for name, one in steps.items():
        assert one.after_s == pytest.approx(again[name]["step_time_s_predicted"], rel=0.01)


def test_rows_of_another_gpu_are_left_out_with_the_line(tmp_path):
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["hardware"].startswith("A100")]
    mine = load_cluster("dgx-h100")
    found, after = fit_steps(mine, read_runs(table(tmp_path / "r.csv", rows), mine), "r.csv")
    assert after == mine
    assert "r.csv, line 2: hardware: 'A100" in found.warnings[0]


def test_what_is_kept_between_evaluations_never_changes_a_prediction():
    """Numbers changed one at a time, all at once, and back; against layouts never seen before."""
    random = np.random.default_rng(1)
    steps = measured()
    table = Steps("any", steps)
    shipped = {n.name: n.shipped for n in numbers_of(stack_named("any"))}
    tried = [shipped]
    for name, value in shipped.items():
        tried += [{**shipped, name: value * 1.01}, shipped]
    tried += [{n: v * random.uniform(0.5, 2) for n, v in shipped.items()} for _ in range(6)]
    for numbers in tried:
        fresh = Steps("any", steps).closed_form_s(numbers)
        np.testing.assert_array_equal(table.closed_form_s(numbers), fresh)


def test_a_step_faster_than_the_peak_is_left_out_with_its_line(tmp_path):
    text = (EXAMPLES / "h100_steps.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    rows[2]["step_time_s"] = str(float(rows[2]["step_time_s"]) / 1000)  # ms for s
    mine = load_cluster("dgx-h100")
    path = table(tmp_path / "runs.csv", rows)
    found, _ = fit_steps(mine, read_runs(path, mine), "runs.csv")
    assert found.figures[0].quality.points == len(rows) - 1
    assert "runs.csv, line 4: a step in" in found.warnings[0]
    assert "impossible" in found.warnings[0]

"""Published runs whose pipelines tell something: uneven stages, chunks and schedules that vary.

`pipelines.csv` holds rows as they were collected, each with its `source_ref`. The Megatron-Bridge
and DGX Cloud rows run 126 layers over 8 stages (and 8 chunks), BLOOM's 70 over 12.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from planner.estimate.inputs import Inputs
from planner.estimate.stages import prices
from planner.layouts.split import chunk_layers
from planner.layouts.table import Layouts
from planner.pipeline.actions import Shape
from planner.pipeline.partition import StageCosts, cut
from planner.pipeline.registry import schedule_named
from planner.pipeline.simulate import simulate
from planner.pipeline.timing import StageTimes
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.validate.predict import predicted
from planner.validate.runs import read_runs

TABLE = Path(__file__).parent / "pipelines.csv"
ROWS = list(csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines()))
TIMED = [row["id"] for row in ROWS if not row["id"].startswith("primus")]


@cache
def told():
    return {record["id"]: record for record in predicted(read_runs(TABLE))}


@pytest.mark.parametrize("name", TIMED)
def test_a_published_pipeline_takes_what_it_took(name):
    assert abs(told()[name]["error"]) < 0.10


@pytest.mark.parametrize(
    ("faster", "slower"),
    [
        # the same batch on twice the stages; all else alike
        ("mbridge-skill-llama3-70b-sft-base", "mbridge-skill-llama3-70b-sft-morepp"),
        *(
            (f"bloom-{m}-384g-dp8tp8pp6-{b}", f"bloom-{m}-384g-dp4tp8pp12-{b}")
            for m, b in (
                ("14336x72-h64", "mbs1-gbs2048-02-21"),
                ("14336x72-h64", "mbs2-gbs2048-02-21"),
                ("14336x72-h64", "mbs4-gbs2048-02-21"),
                ("13824x84-h64", "mbs2-gbs2048-02-21"),
                ("13824x84-h64", "mbs4-gbs2048-02-21"),
            )
        ),
    ],
)
def test_runs_that_differ_in_their_pipeline_only_come_in_the_measured_order(faster, slower):
    one, other = told()[faster], told()[slower]
    assert one["step_time_s_measured"] < other["step_time_s_measured"]
    ratio = one["step_time_s_predicted"] / other["step_time_s_predicted"]
    # BLOOM's were 2 % apart; ours are a tie, less than 1 % apart
    assert ratio < 1.01
    assert ratio == pytest.approx(one["step_time_s_measured"] / other["step_time_s_measured"], 0.03)


def test_bloom_over_12_stages_is_cut_as_it_was():
    """70 layers and 2: BLOOM's embedding (250,880 tokens) and head each took a layer's place."""
    run = next(run for run in read_runs(TABLE) if run.id == "bloom176b-run-c")
    priced = prices(Inputs(*run.context, Layouts.of([run.layout])))
    fixed = priced.fixed_seconds(0, 12, chunks=1)
    counts = cut(StageCosts(priced.layer_seconds(0), fixed))
    assert counts == [5, *[6] * 10, 5]


def seconds_of(name: str, chunks: int, microbatches: int) -> float:
    """Llama 2 7B on 8 MI300X, 8 stages: the makespan of a schedule."""
    workload = Workload(seq_tokens=4096, global_batch=microbatches, stack="megatron-plain")
    row = {"tp": 1, "sp": 0, "pp": 8, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "dp": 1, "zero": 0}
    row |= {"dp_replicate": 1, "micro_batch": 1, "num_microbatches": microbatches}
    row |= {"recompute": "none", "schedule": "1f1b", "offload": "none", "dp_sync": "all-reduce"}
    context = (load_model("llama-2-7b"), load_cluster("mi300x-8x400g:1"), workload)
    priced = prices(Inputs(*context, Layouts.of([row])))
    order = schedule_named(name).order(Shape(8, chunks, microbatches))
    table = chunk_layers(32, 8, chunks)
    layers = [table[p][v] for v in range(chunks) for p in range(8)]
    forward, given, weight, experts = priced.parts(0, layers, chunks=chunks)
    times = StageTimes(forward, given, weight, hidden_s=experts)
    return simulate(order, times, priced.links(0, 8 * chunks)).makespan_s


def test_primus_schedules_come_in_the_measured_order_and_within_10_percent():
    """Batch and sequence are not stated; 32 micro-batches give interleaving its measured gain."""
    schedules = {"1F1B": ("1f1b", 1), "interleaved 1F1B": ("interleaved", 2), "ZBV": ("zbv", 2)}
    rows = {r["schedule"]: float(r["tflops_per_gpu"]) for r in ROWS if r["id"].startswith("primus")}
    measured = np.array([rows[name] for name in schedules])
    ours = np.array([1 / seconds_of(*schedules[name], 32) for name in schedules])
    assert (np.diff(measured) > 0).all()
    assert (np.diff(ours) > 0).all()
    assert ours / ours[0] == pytest.approx(measured / measured[0], rel=0.10)

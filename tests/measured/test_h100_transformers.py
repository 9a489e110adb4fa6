"""Steps of Hugging Face models on a real GPU: what the allocator held, and how long they took."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from planner.estimate.inputs import Inputs
from planner.estimate.memory import allocated_bytes
from planner.estimate.step import step_s
from planner.layouts.table import Layouts
from planner.specs.catalog import load_cluster
from planner.specs.huggingface import model_from_config
from planner.specs.workload import Workload

LINES = (Path(__file__).parent / "h100_transformers.csv").read_text(encoding="utf-8").splitlines()
ROWS = list(csv.DictReader(line for line in LINES if not line.startswith("#")))
ONE_GPU = load_cluster("dgx-h100:1")


def model(row):
    config = {
        "model_type": row["model_type"],
        "num_hidden_layers": int(row["layers"]),
        "hidden_size": int(row["hidden"]),
        "num_attention_heads": int(row["heads"]),
        "num_key_value_heads": int(row["kv_heads"]),
        "head_dim": int(row["head_dim"]),
        "intermediate_size": int(row["ffn"]),
        "vocab_size": int(row["vocab"]),
        "tie_word_embeddings": row["tied"] == "1",
    }
    if row["experts"]:
        config |= {"num_local_experts": int(row["experts"]), "num_experts_per_tok": 2}
    return model_from_config(config, "m", "config.json")


def inputs(row):
    batch, again = int(row["micro_batch"]), int(row["num_microbatches"])
    names = {"recompute": row["recompute"], "schedule": "none", "offload": "none"}
    counts = {"micro_batch": batch, "num_microbatches": again, "zero": int(row["zero"]), "sp": 0}
    ones = dict.fromkeys(("tp", "pp", "vpp", "cp", "ep", "etp", "dp", "dp_replicate"), 1)
    workload = Workload(
        seq_tokens=int(row["seq_tokens"]),
        global_batch=batch * again,
        stack=row["stack"],
        optimizer=row["optimizer"],
    )
    layouts = Layouts.of([{**ones, **names, **counts, "dp_sync": "all-reduce"}])
    return Inputs(model(row), ONE_GPU, workload, layouts)


def told(row):
    stack = row["stack"].removeprefix("transformers")
    shape = f"{row['model_type']}-{row['layers']}x{row['hidden']}-v{row['vocab']}"
    batch = f"{row['micro_batch']}x{row['seq_tokens']}x{row['num_microbatches']}"
    return f"{shape}-{batch}-{row['recompute']}-zero{row['zero']}{stack}-{row['optimizer']}"


@pytest.mark.parametrize("row", ROWS, ids=told)
def test_the_allocators_peak_is_told_within_two_percent(row):
    peak = float(allocated_bytes(inputs(row)).max())
    assert peak == pytest.approx(float(row["allocated_bytes"]), rel=0.02)


def test_half_of_the_peaks_are_told_within_a_quarter_of_a_percent():
    errors = [
        abs(float(allocated_bytes(inputs(row)).max()) / float(row["allocated_bytes"]) - 1)
        for row in ROWS
    ]
    assert np.median(errors) < 0.0025


def errors():
    return [abs(step_s(inputs(row))[0] / float(row["step_time_s"]) - 1) for row in ROWS]


def test_steps_are_told_within_five_percent_and_nine_in_ten_within_an_eighth():
    """Eight numbers were fitted to these 32 runs; two of equal runs differ by 20 %."""
    assert np.median(errors()) < 0.05
    assert np.quantile(errors(), 0.9) < 0.13


def test_autocast_and_the_hooks_of_fsdp_take_what_they_were_seen_to_take():
    """The same job under autocast, with bf16 weights, and in FSDP2 on one GPU: what each adds."""
    wanted = {"layers": "16", "hidden": "2048", "vocab": "32000", "micro_batch": "2"}
    wanted |= {"seq_tokens": "2048", "recompute": "none", "num_microbatches": "1"}
    same = [r for r in ROWS if r["optimizer"] == "adamw" and wanted.items() <= r.items()]

    def took(told, stack, zero):
        rows = [r for r in same if (r["stack"], r["zero"]) == (stack, zero)]
        return np.mean([told(r) for r in rows])

    def predicted(row):
        return step_s(inputs(row))[0]

    def measured(row):
        return float(row["step_time_s"])

    for told in (predicted, measured):
        bf16 = took(told, "transformers+pure-bf16", "0")
        autocast = took(told, "transformers", "0")
        assert 1.15 < autocast / bf16 < 1.40
        assert 1.15 < took(told, "transformers", "3") / autocast < 1.40

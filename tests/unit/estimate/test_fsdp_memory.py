"""Peaks under FSDP2 against torch's own memory tracker, and the point of the step they are at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from estimate_cases import inputs, spec, table

from planner.estimate import memory
from planner.estimate.fsdp import POINTS, peak_point
from planner.specs.catalog import load_model

ROWS = table("fsdp_memory.csv")


def traced(row):
    """The run that a row traced; its recipe may reduce embedding and head with the root."""
    model = load_model(row["model"]).model_copy(update={"tied_embeddings": False})
    world = int(row["world"])
    zero = {"always": 3, "never": 2}[row["reshard_after_forward"]]
    one = {"dp": world, "zero": zero, "micro_batch": int(row["mbs"]), "recompute": row["ac"]}
    cluster = f"dgx-h100:{max(1, world // 8)}"
    x = inputs(model, one, cluster=cluster, seq_tokens=int(row["seq"]), stack="torchtitan")
    x.stack = replace(
        x.stack,
        fsdp_root=row["separate_embed_head_groups"] == "0",
        gradient_reduce_bytes=4 if row["reduce_dtype"] == "float32" else 2,
    )
    return x


def allocated(x):
    return memory.peak_bytes(x)[0] - memory.overhead_bytes(x)[0, 0]


@pytest.mark.parametrize(
    "row",
    ROWS,
    ids=lambda r: f"{r['model']}-{r['world']}-{r['seq']}-{r['ac']}-{r['reshard_after_forward']}",
)
def test_the_peak_is_what_torch_tracks(row):
    x = traced(row)
    assert allocated(x) == pytest.approx(int(row["peak_incl_optimizer_step"]), rel=1e-4)
    shards = memory.weights_bytes(x)[0, 0]
    gathered = 2 * int(row["params"]) if row["reshard_after_forward"] == "never" else 0
    assert shards - gathered == pytest.approx(int(row["peak_sharded_param"]), rel=1e-4)
    adam = memory.optimizer_bytes(x)[0, 0]
    assert adam == pytest.approx(int(row["peak_optstate"]), rel=1e-4)


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda r: f"{r['model']}-{r['world']}-{r['seq']}-{r['ac']}"
)
def test_the_peak_is_where_the_tracked_parts_say(row):
    """At the loss no gradient exists; at the embedding no activation; the step holds 20 P/N."""
    point = peak_point(traced(row), 0)
    step = 20 * int(row["params"]) / int(row["world"])
    if int(row["peak_incl_optimizer_step"]) == pytest.approx(step, rel=1e-4):
        assert point == "optimizer step"
    elif int(row["peak_activation"]) < 100:
        assert point == "gradient of the embedding being reduced"
    elif int(row["peak_sharded_grad"]) == 0:
        assert point == "loss"
    else:
        assert point in (*POINTS[1:4],)


def test_every_point_is_the_peak_of_some_run():
    seen = {peak_point(traced(row), 0) for row in ROWS}
    assert len(seen) >= 5


@pytest.mark.parametrize("row", table("fsdp_variants.csv"), ids=lambda r: r["variant"])
def test_accumulation_and_replicas_add_what_torch_tracks(row):
    model = load_model("llama-3.2-1b").model_copy(update={"tied_embeddings": False})
    one = {
        "dp": 8,
        "dp_replicate": int(row["replicas"]),
        "zero": 3,
        "recompute": "full",
        "num_microbatches": int(row["micro_steps"]),
    }
    x = inputs(model, one, seq_tokens=2048, stack="torchtitan")
    assert allocated(x) == pytest.approx(int(row["peak_bytes"]), rel=1e-4)


def test_parts_at_the_peak_sum_to_it_and_are_never_negative():
    rows = [
        {"dp": 8, "zero": zero, "num_microbatches": m, "recompute": kind, **pipeline}
        for zero in (2, 3)
        for m in (1, 8)
        for kind in ("none", "selective", "full")
        for pipeline in ({}, {"pp": 4, "schedule": "1f1b"})
    ]
    x = inputs(spec(), *rows, cluster="dgx-h100:8", stack="torchtitan")
    parts = [t(x) for t in memory.MEMORY_TERMS.values()]
    assert all((part >= 0).all() for part in parts)
    whole = np.where(x.stages.count > 0, sum(parts), 0.0)
    np.testing.assert_allclose(whole.max(axis=1), memory.peak_bytes(x))


def test_pipelines_keep_whole_gradients_until_the_last_micro_batch():
    """torch.distributed.pipelining turns gradient sync off until a stage's last backward."""
    rows = [
        {"dp": 8, "zero": 2, "pp": 2, "schedule": "1f1b", "num_microbatches": m} for m in (1, 8)
    ]
    x = inputs(spec(), *rows, cluster="dgx-h100:2", stack="torchtitan", seq_tokens=8192)
    one, many = memory.peak_gradients_bytes(x)[:, 0]
    parameters = memory.optimizer_bytes(x)[1, 0]  # 8 P over 8 shards
    assert many == pytest.approx(4 * parameters)
    assert one < many / 4

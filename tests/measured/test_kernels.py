"""Kernels of one H100 alone, timed apart from everything that the model was fitted to."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from planner.estimate.compute import attention_core_backward_s, attention_core_forward_s
from planner.estimate.inputs import Inputs
from planner.estimate.kernels import gemm_s
from planner.layouts.table import Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

LINES = (Path(__file__).parent / "h100_kernels.csv").read_text(encoding="utf-8").splitlines()
ROWS = list(csv.DictReader(line for line in LINES if not line.startswith("#")))
LAYOUT = {
    "tp": 1, "sp": 0, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "dp": 1, "dp_replicate": 1,
    "zero": 0, "num_microbatches": 1, "recompute": "none", "schedule": "none", "offload": "none",
    "dp_sync": "all-reduce",
}  # fmt: skip


def on_h100(kernel: str, batch: int = 1, heads: int = 32, seq: int = 4096) -> Inputs:
    """Inputs whose stack takes the accelerator's own rates: every factor of its own is 1."""
    model = load_model("llama-2-7b").model_copy(update={"heads": heads, "kv_heads": heads})
    work = Workload(seq_tokens=seq, global_batch=batch, stack="any")
    x = Inputs(
        model, load_cluster("dgx-h100:1"), work, Layouts.of([LAYOUT | {"micro_batch": batch}])
    )
    plain = {"attention_kernel": kernel, "attention": 1.0, "gemm": 1.0}
    x.stack = x.stack.__class__(**{**vars(x.stack), **plain})
    return x


def test_large_multiplies_take_what_they_take_and_a_training_run_at_full_power_a_little_more():
    """The derate of a GPU that trains for hours is what a cold card does not show."""
    x = on_h100("te")
    ratios = []
    for row in (r for r in ROWS if r["kind"] in ("forward", "dgrad", "wgrad")):
        m, n, k = (int(row[name]) for name in "mnk")
        shape = {"forward": (m, n, k), "dgrad": (m, k, n), "wgrad": (k, n, m)}[row["kind"]]
        ratios.append(float(gemm_s(x, *shape)) / float(row["seconds"]))
    assert len(ratios) == 24
    derate = x.cluster.accelerator.gemm.derate
    assert np.median(ratios) * derate == pytest.approx(
        0.9, abs=0.08
    )  # the table's rate: optimistic
    assert np.median(ratios) == pytest.approx(1.08, abs=0.08)
    assert np.quantile(ratios, 0.9) - np.quantile(ratios, 0.1) < 0.3


@pytest.mark.parametrize(("kernel", "within"), [("te", 0.15), ("fa2", 0.25)])
def test_fused_attention_forward_and_backward_take_what_they_take(kernel, within):
    ratios = []
    for row in (r for r in ROWS if r["kind"].startswith(kernel)):
        x = on_h100(kernel, *(int(row[name]) for name in "mnk"))
        forward = row["kind"].endswith("forward")
        seconds = (attention_core_forward_s if forward else attention_core_backward_s)(x)
        ratios.append(float(seconds[0]) / float(row["seconds"]))
    assert len(ratios) == 10
    assert np.abs(np.median(ratios) - 1) < within
    assert np.max(np.abs(np.log(ratios))) < np.log(1.5)

"""One layout at a time, and the tables of `tests/measured`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from planner.estimate.inputs import Inputs
from planner.layouts.rules import Context
from planner.layouts.table import Layouts
from planner.specs.catalog import load_cluster
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload

MEASURED = Path(__file__).parents[2] / "measured"
DEGREES = ("tp", "pp", "vpp", "cp", "ep", "etp", "dp", "dp_replicate", "micro_batch")


def table(name: str) -> list[dict[str, str]]:
    lines = (MEASURED / name).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def layouts(*rows: dict[str, Any]) -> Layouts:
    """Rows of a layout each; what is left out is one, zero or 'none'."""
    names = {"recompute": "none", "schedule": "none", "offload": "none", "dp_sync": "all-reduce"}
    plain = {**dict.fromkeys(DEGREES, 1), **names, "sp": 0, "zero": 0, "num_microbatches": 1}
    return Layouts.of([{**plain, **row} for row in rows])


def inputs(
    model: ModelSpec,
    *rows: dict[str, Any],
    cluster: str = "dgx-h100",
    every_stage: bool = False,
    **workload: Any,
) -> Inputs:
    asked = {"seq_tokens": 1024, "global_batch": 64, **workload}
    context = Context(model, load_cluster(cluster), Workload(**asked))
    return Inputs(*context, layouts(*rows), every_stage=every_stage)


def spec(**more: Any) -> ModelSpec:
    """A small model whose vocabulary needs no padding up to tp = 8."""
    shape = {
        "layers": 4,
        "hidden": 256,
        "heads": 8,
        "kv_heads": 8,
        "head_dim": 32,
        "ffn": 704,
        "vocab": 8192,
        "max_seq_tokens": 1 << 20,
    }
    return ModelSpec(name="small", **{**shape, **more})

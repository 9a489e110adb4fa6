"""Predict every run, and read what was measured; the two meet only in the record of a row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planner.estimate.flops import step_flops
from planner.estimate.inputs import Inputs
from planner.estimate.memory import (
    allocated_bytes,
    limit_bytes,
    peak_bytes,
    reserved_bytes,
    used_bytes,
)
from planner.estimate.running import judge
from planner.layouts.rules import Context
from planner.layouts.table import Layouts
from planner.validate.runs import Run
from planner.validate.seen import seen

GIB = 2**30
MEMORY_KINDS = {"allocated": "allocated", "active": "allocated", "reserved": "reserved"}
"""What torch's allocator counts; every other word is what nvidia-smi shows, context and all."""
LOGS_ALLOCATED = ("nanotron",)
"""Frameworks whose logs give the allocator's peak (nanotron: trainer.py, max_memory_allocated)."""
MEASURES = {"allocated": allocated_bytes, "reserved": reserved_bytes, "smi": used_bytes}
"""What each kind of measurement counts, by stage."""
LAST_RANK = "memory is for the last rank"
"""In a row's note: the peak is not that of the fullest GPU (Megatron-LM's log of its last rank)."""


def predicted(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one record a run, in order: prediction, measurement, error, or why it was skipped.

    Runs of one model, cluster and workload are scored together.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        if run.context is not None:
            m, c, w = run.context
            groups[f"{m!r}{c.name}{c.nodes}{c.node!r}{w!r}"].append(i)
    records = [_skipped(run) for run in runs]
    for rows in groups.values():
        for i, record in zip(rows, _scored([runs[i] for i in rows]), strict=True):
            records[i] = record
    return records


def _skipped(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "source": run.row["source"],
        "status": "skipped",
        "reason": run.reason,
        "assumed": run.assumed,
        "fitted_to": False,
        "step_time_s_predicted": None,
        "step_time_s_measured": None,
        "error": None,
        "peak_gib_predicted": None,
        "peak_gib_measured": None,
        "oom_predicted": None,
    }


def _scored(runs: Sequence[Run]) -> list[dict[str, Any]]:
    context = runs[0].context
    assert context is not None
    x = Inputs(*context, Layouts.of([run.layout or {} for run in runs]))
    times = [one.step_s for one in judge(context, x.layouts, recut=False)]
    limit = limit_bytes(x)
    needed = peak_bytes(x)
    measured = {kind: told(x) for kind, told in MEASURES.items()}
    last = x.stages.last > 0
    records = []
    for i, run in enumerate(runs):
        told = measured[_memory_kind(run.row)][i]
        shown = told[last[i]].max() if LAST_RANK in run.row.get("note", "") else told.max()
        records.append(_record(run, times[i], float(shown), bool(needed[i] > limit)))
    return records


def _record(run: Run, time_s: float, shown: float, oom: bool) -> dict[str, Any]:
    """Return a run's record; `shown` are bytes as the row's kind of measurement counts them."""
    assert run.context is not None
    seconds = measured_step_s(run.row, run.context)
    return {
        "id": run.id,
        "source": run.row["source"],
        "status": "ok",
        "reason": "",
        "assumed": run.assumed,
        "fitted_to": seen(run.row, run.context.cluster, run.context.workload.stack),
        "stack": run.context.workload.stack,
        "accelerator": run.context.cluster.accelerator.name,
        "step_time_s_predicted": time_s,
        "step_time_s_measured": seconds,
        "error": time_s / seconds - 1 if seconds else None,
        "peak_gib_predicted": shown / GIB,
        "peak_gib_measured": _number(run.row, "peak_mem_gib"),
        "memory_kind": _memory_kind(run.row),
        "oom_predicted": oom,
        "oom_measured": run.row.get("oom", "") in ("1", "true", "True"),
        "family": run.row.get("family", ""),
        "mfu_measured": _number(run.row, "mfu"),
    }


def _memory_kind(row: Mapping[str, str]) -> str:
    """Return what kind of peak a row states, or what its framework logs where it does not say."""
    stated = row.get("mem_kind", "")
    if not stated and row["framework"].startswith(LOGS_ALLOCATED):
        return "allocated"
    return MEMORY_KINDS.get(stated, "smi")


def _number(row: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(row.get(name) or "nan")
    except ValueError:
        return None
    return value if np.isfinite(value) and value > 0 else None


def measured_step_s(row: Mapping[str, str], context: Context) -> float | None:
    """Return the measured step time: as stated, or from tokens/s or TFLOP/s with its convention."""
    if (seconds := _number(row, "step_time_s")) is not None:
        return seconds
    gpus, work = float(row["gpus"]), context.workload
    if (rate := _number(row, "tokens_per_s_per_gpu")) is not None:
        return work.tokens / rate / gpus
    if (rate := _number(row, "samples_per_s")) is not None:
        return work.global_batch / rate
    flops = _number(row, "tflops_per_gpu")
    done = _counted_flops(row, context)
    return done / (flops * 1e12 * gpus) if flops and done else None


def _counted_flops(row: Mapping[str, str], context: Context) -> float | None:
    """Return the FLOPs of a step by the row's convention, None where it states none.

    `model` counts forward and backward with full attention (Megatron-Bridge: causal); 2021's
    Megatron counts the recomputed forward too (Narayanan et al. 2021, eq. 3).
    """
    convention = row.get("tflops_convention", "")
    model, work = context.model, context.workload
    if convention == "model":
        causal = row["framework"].startswith("Megatron-Bridge")
        return step_flops(model, work, causal=causal)
    if convention == "megatron2021":
        s, h = work.seq_tokens, model.hidden
        relative = 1 + s / (6 * h) + model.vocab / (16 * model.layers * h)
        return 96.0 * work.tokens * model.layers * h * h * relative
    if convention == "hardware":
        again = 4 / 3 if row.get("recompute", "").startswith("full") else 1.0
        return again * step_flops(model, work, causal=False)
    return None

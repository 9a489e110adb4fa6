"""Estimates in numbers for the layouts that are shown, and the terms behind one of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.estimate import (
    activations,
    again,
    buffers,
    communication,
    compute,
    experts,
    fp8_weights,
    fsdp,
    in_flight,
    layer,
    memory,
    muon,
    optimizer,
    params,
    pipelined,
    recompute,
    states,
    step,
)
from planner.estimate.applying import idle_terms
from planner.estimate.flops import step_flops
from planner.estimate.inputs import Inputs, Term
from planner.estimate.kernels import uses_fp8
from planner.estimate.running import Judged, judge, own_kinds
from planner.estimate.uncertainty import interval
from planner.layouts.rules import Context
from planner.layouts.table import Layouts

MEMORY_MODULES = (fp8_weights, recompute, states, activations, in_flight, buffers, fsdp, memory)
TIME_MODULES = (muon, optimizer, layer, pipelined, step)
MODULES = (params, experts, compute, again, communication, *MEMORY_MODULES, *TIME_MODULES)


def _terms() -> tuple[Term, ...]:
    found: dict[str, Term] = {}
    for module in MODULES:
        for value in vars(module).values():
            if isinstance(value, Term):
                found.setdefault(value.name, value)
    return tuple(found.values())


TERMS = _terms()
"""Every formula of the model, in the order in which they build on each other."""


def peak_flops_per_s(context: Context) -> float:
    """Return the dense peak that MFU is measured against: that of the precision trained in."""
    x = Inputs(*context, Layouts.empty())
    precision = "fp8" if uses_fp8(x) else context.workload.precision
    return context.cluster.accelerator.peak_flops_per_s(str(precision))


def estimate_record(
    context: Context, layouts: Layouts, row: int, judged: Judged | None = None
) -> dict[str, Any]:
    """Return one layout's estimate as the plan record takes it, every stage apart.

    Beside it, `stage_layers` is the cut of its layers that the estimate is of. `judged` is what is
    known already of how its pipeline runs.
    """
    one = layouts.take([row])
    judged = judged or judge(context, one)[0]
    x = Inputs(*context, one, kinds=own_kinds(context, judged), flows=judged.flows)
    parts = {name: float(value[0]) for name, value in step.time_parts(x, judged.ran).items()}
    total = judged.step_s
    within = interval(context.cluster, context.workload)
    gpus = int(one.gpus[0])
    tokens = context.workload.tokens / total
    full = step_flops(context.model, context.workload, causal=False)
    causal = step_flops(context.model, context.workload, causal=True)
    per_gpu = full / total / gpus
    peak = peak_flops_per_s(context)
    return {
        "stage_layers": judged.table,
        "simulated": judged.ran is not None,
        "step_time_s": total,
        "step_time_low_s": total * within.low,
        "step_time_high_s": total * within.high,
        "tokens_per_s": tokens,
        "tokens_per_s_per_gpu": tokens / gpus,
        "tflops_per_gpu": per_gpu / 1e12,
        "mfu": per_gpu / peak,
        "mfu_causal": causal / total / gpus / peak,
        "bubble_fraction": parts["bubble"] / total,
        "time_s": parts,
        "memory": _memory(x),
        "dropped_tokens": experts.dropped_share(context.model, context.workload),
    }


def _memory(x: Inputs) -> dict[str, Any]:
    columns = {name: t(x)[0] for name, t in memory.MEMORY_TERMS.items()}
    stages = [
        {name: float(column[p]) for name, column in columns.items()}
        for p in range(len(columns["weights"]))
    ]
    for stage in stages:
        stage["total"] = sum(stage.values())
    peak = max(stage["total"] for stage in stages)
    heaviest = [stage["total"] for stage in stages].index(peak)
    limit = memory.limit_bytes(x)
    return {
        "peak_bytes": peak,
        "limit_bytes": limit,
        "budget_bytes": memory.budget_bytes(x),
        "host_bytes": float(memory.host_bytes(x)[0]),
        "host_limit_bytes": x.cluster.host_memory_bytes,
        "at_risk": x.workload.risk_memory * limit < peak <= limit,
        "peak_point": fsdp.peak_point(x, heaviest) if x.stack.states == "fsdp2" else None,
        "stages": stages,
    }


def term_values(
    context: Context, layouts: Layouts, row: int, judged: Judged | None = None
) -> list[dict[str, Any]]:
    """Return every term of one layout: name, value, unit, formula, source and what it is.

    A term that differs by stage gives the heaviest stage's value; layer parts are summed.
    """
    one = layouts.take([row])
    judged = judged or judge(context, one)[0]
    x = Inputs(*context, one, kinds=own_kinds(context, judged), flows=judged.flows)
    idle = idle_terms(x)
    out = []
    for t in TERMS:
        value = np.atleast_1d(t(x)[0])
        parts = value.ndim > 1 or t.name in ("dense_layer_s", "moe_layer_s")
        out.append(
            {
                "name": t.name,
                "value": float(value.sum() if parts else value.max()),
                "unit": t.unit,
                "formula": t.formula,
                "source": str(t.source),
                "about": t.doc,
                "applies": t.name not in idle,
            }
        )
    return out

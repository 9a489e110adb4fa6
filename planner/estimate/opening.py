"""The memory of one layout opened stage by stage: each part, and what that part is made of.

What a part is made of is not written down here. The terms are evaluated while it is noted which
calls which, so that a term that is split, or that leans on another, shows by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from planner.estimate import fsdp, memory
from planner.estimate.in_flight import (
    activations_bytes,
    kept_activations_bytes,
    microbatches_in_flight,
)
from planner.estimate.inputs import FloatArray, Inputs, Term, term
from planner.estimate.recompute import kept_layer_bytes
from planner.estimate.running import judge, own_kinds
from planner.layouts.rules import Context
from planner.layouts.table import Layouts
from planner.sources import GPIPE_2019, KORTHIKANTI_2022, MEGATRON_CORE, TRANSFORMER_ENGINE

PART_UNITS = ("bytes", "parameters", "micro-batches", "layers")


@term(unit="layers", formula="layers dealt to the stage's chunks", source=MEGATRON_CORE)
def dense_layers(x: Inputs) -> FloatArray:
    """Dense layers that a stage holds."""
    return x.stages.dense_layers.astype(np.float64)


@term(
    unit="layers",
    formula="layers dealt to the stage's chunks, multi-token prediction on the last",
    source=MEGATRON_CORE,
)
def moe_layers(x: Inputs) -> FloatArray:
    """Layers with experts that a stage holds."""
    return x.stages.moe_layers.astype(np.float64)


@term(
    unit="bytes",
    formula="recompute none: all that backward needs; selective: some of it; full: 2 T h/sp",
    source=KORTHIKANTI_2022,
)
def kept_dense_layer_bytes(x: Inputs) -> FloatArray:
    """What one dense layer keeps of one micro-batch under the layout's recompute."""
    return np.where(x.stages.dense_layers > 0, kept_layer_bytes(x)[0][:, None], 0.0)


@term(
    unit="bytes",
    formula="recompute none: all that backward needs; selective: some of it; full: 2 T h/sp",
    source=KORTHIKANTI_2022,
)
def kept_moe_layer_bytes(x: Inputs) -> FloatArray:
    """What one layer with experts keeps of one micro-batch under the layout's recompute."""
    return np.where(x.stages.moe_layers > 0, kept_layer_bytes(x)[1][:, None], 0.0)


@term(
    unit="layers",
    formula="offload-layers of the stack; of L layers what any L - N keep is on the GPU at most",
    source=TRANSFORMER_ENGINE,
)
def offloaded_layers(x: Inputs) -> FloatArray:
    """First layers whose activations wait in the host's memory for their backward pass."""
    here = x.stages.dense_layers + x.stages.moe_layers
    away: FloatArray = np.minimum(x.stack.offload_layers, here).astype(np.float64)
    return away


@term(
    unit="bytes",
    formula="activations - those kept: the layer being recomputed, gradients of activations",
    source=GPIPE_2019,
)
def working_activations_bytes(x: Inputs) -> FloatArray:
    """What the one layer whose backward runs works on beside what is kept."""
    return np.maximum(activations_bytes(x) - kept_activations_bytes(x), 0.0)


FACTORS = (
    kept_dense_layer_bytes,
    dense_layers,
    kept_moe_layer_bytes,
    moe_layers,
    offloaded_layers,
    microbatches_in_flight,
)
SUMS = (kept_activations_bytes, working_activations_bytes)
"""Of activations held from forward to backward; under FSDP2 the peak may be at another time."""


class _Traced(Inputs):
    """Inputs of one layout, every stage apart, that note which term calls which."""

    def __init__(self, context: Context, layouts: Layouts) -> None:
        super().__init__(*context, layouts, kinds=own_kinds(context, judge(context, layouts)[0]))
        self.calls: dict[str, dict[str, Term]] = {}
        self._open: list[str] = []

    def of(self, t: Term) -> FloatArray:
        if self._open:
            self.calls.setdefault(self._open[-1], {})[t.name] = t
        self._open.append(t.name)
        try:
            return super().of(t)
        finally:
            self._open.pop()

    def stagewise(self, t: Term) -> FloatArray:
        """Return the term's value on every stage, shape (stages,)."""
        value = np.atleast_1d(t(self)[0])
        return np.broadcast_to(value, (self.stages.count.shape[1],)).astype(np.float64)

    def called_by(self, t: Term) -> list[Term]:
        """Return the terms that `t` calls itself, in order."""
        self.of(t)
        return list(self.calls.get(t.name, {}).values())


class _Row(NamedTuple):
    """One part of memory: the terms that stand for it, the last of them in most detail."""

    name: str
    chain: list[Term]
    bytes: FloatArray


def opened_memory(context: Context, layouts: Layouts, row: int) -> list[dict[str, Any]]:
    """Return every part of memory by stage, each with its own parts, and the total last."""
    x = _Traced(context, layouts.take([row]))
    rows = [_Row(name, _same(x, t), x.stagewise(t)) for name, t in memory.MEMORY_TERMS.items()]
    taken = {t.name for r in rows for t in r.chain}
    out = []
    for r in rows:
        parts = _parts(x, r, taken)
        taken |= {t.name for t in parts if t.unit == "bytes"}
        line = {**_line(r.chain[-1], r.bytes), "name": r.name, "about": r.chain[0].doc}
        line["terms"] = [t.name for t in r.chain]
        out.append({**line, "parts": [_line(p, x.stagewise(p)) for p in parts]})
    total = np.sum([r.bytes for r in rows], axis=0)
    names = " + ".join(r.name for r in rows)
    out.append({"name": "total", "unit": "bytes", "formula": names, "stages": total.tolist()})
    return out


def peak_points(context: Context, layouts: Layouts, row: int) -> list[str]:
    """Return the point of a step at which each stage peaks under FSDP2; nothing elsewhere."""
    x = _Traced(context, layouts.take([row]))
    if x.stack.states != "fsdp2":
        return []
    return [fsdp.peak_point(x, stage) for stage in range(int(x.layouts.pp[0]))]


def _line(t: Term, values: FloatArray) -> dict[str, Any]:
    return {
        "name": t.name,
        "unit": t.unit,
        "formula": t.formula,
        "source": str(t.source),
        "about": t.doc,
        "stages": values.tolist(),
    }


def _same(x: _Traced, t: Term) -> list[Term]:
    """Return the term, and those below it whose value it takes over as it is."""
    value = x.stagewise(t)
    if not value.any():
        return [t]
    for below in x.called_by(t):
        if below.unit == t.unit and np.array_equal(x.stagewise(below), value):
            return [t, *_same(x, below)]
    return [t]


def _parts(x: _Traced, row: _Row, taken: set[str]) -> list[Term]:
    """Return the terms that a part is made of: none that is told elsewhere or exceeds it."""
    found = x.called_by(row.chain[-1])
    if row.name == "activations":
        held = () if x.stack.states == "fsdp2" else SUMS
        found = [*FACTORS, *held, *found]
    parts = {t.name: t for t in found if t.unit in PART_UNITS and t.name not in taken}
    return [t for t in parts.values() if _inside(x, t, row)]


def _inside(x: _Traced, t: Term, row: _Row) -> bool:
    """Return whether a term can be a part of the row: not nothing, no more than all of it."""
    values = x.stagewise(t)
    if t.unit == "parameters" and t(x).ndim == 1:  # of one layer or one table, not of a stage
        return False
    within = t.unit != "bytes" or bool((values <= row.bytes * (1 + 1e-9)).all())
    return bool(values.any()) and within

"""Published runs as the fit sees them: measured seconds, weights, folds, and fast predictions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.step import step_s
from planner.estimate.uncertainty import generation
from planner.layouts.rules import Context
from planner.layouts.table import IntArray, Layouts
from planner.validate.predict import measured_step_s
from planner.validate.runs import Run, read_runs

SLOW_MFU, STALLED_MFU = 0.15, 0.05
"""nanotron's runs below these stall for reasons of that stack: a little weight, and none."""
SLOW_WEIGHT = 0.15
SOURCE_CAP, SOURCE_SHARE = 30.0, 0.08
"""A source of n runs weighs at most 30 + 0.08 n, or vTrain's 720 would decide everything."""
SAME = ("model", "hardware", "gpus", "dtype", "seq", "global_batch", "framework", "overlap")
FAMILY_FOLDS = 8
PROFILED = ("vTrain",)
"""Sources whose times are exactly linear in micro-batches and layers: 720 runs of 32 layers."""


class Unreduced(Inputs):
    """Inputs without the search for distinct rows, which costs more than it saves on few rows."""

    def _reduce(self, on: tuple[str, ...]) -> tuple[Inputs, IntArray] | None:
        return None


@dataclass
class Table:
    """Runs with a measured step time, in groups that share model, cluster and workload."""

    runs: list[Run]
    measured_s: FloatArray
    weight: FloatArray
    groups: list[tuple[Context, Layouts, IntArray]]
    source: NDArray[np.str_]
    stack: NDArray[np.str_]
    accelerator: NDArray[np.str_]
    generation: NDArray[np.str_]
    family: NDArray[np.str_]
    usual: NDArray[np.bool_]
    """False where nanotron stalls: those runs are not scored."""

    def __len__(self) -> int:
        return len(self.runs)


def read(path: Path) -> Table:
    """Return the runs of a table that can be predicted and whose step time was measured."""
    runs, seconds = [], []
    for run in read_runs(path):
        if run.context is None or run.layout is None:
            continue
        if (measured := measured_step_s(run.row, run.context)) is not None:
            runs.append(run)
            seconds.append(measured)
    mfu = np.array([_mfu(run) for run in runs])
    stack = np.array([_context(r).workload.stack.split("+")[0] for r in runs])
    nanotron = stack == "nanotron"
    weight = np.where(nanotron & (mfu < SLOW_MFU), SLOW_WEIGHT, 1.0)
    weight[nanotron & (mfu < STALLED_MFU)] = 0.0
    source = np.array([r.row["source"] for r in runs])
    names = np.array([_context(r).cluster.accelerator.name for r in runs])
    return Table(
        runs,
        np.array(seconds),
        _balanced(weight * _once(runs) * _alike(runs), source),
        _groups(runs),
        source,
        stack,
        names,
        np.array([generation(n) for n in names]),
        np.array([_family(r) for r in runs]),
        ~(nanotron & (mfu < SLOW_MFU)),
    )


def _context(run: Run) -> Context:
    assert run.context is not None
    return run.context


def _mfu(run: Run) -> float:
    try:
        return float(run.row.get("mfu") or 1.0)
    except ValueError:
        return 1.0


def _family(run: Run) -> str:
    row = run.row
    own = row.get("family") or f"{row.get('model', '')}|{row['hardware']}"
    return f"{row['source']}|{own}"


def _once(runs: Sequence[Run]) -> FloatArray:
    """Return 1/n for each of n runs of one job: releases repeat the same recipe."""
    keys = [(*(r.row.get(k, "") for k in SAME), repr(r.layout)) for r in runs]
    repeats = Counter(keys)
    return np.array([1.0 / repeats[k] for k in keys])


def _alike(runs: Sequence[Run]) -> FloatArray:
    """Return weights, 1 in the mean, that count every measured layer of `PROFILED` once.

    How often a layer stands in the table says how many pipelines can be made of it, not how often
    it was measured: small ones on few ranks would decide what wide ones cost.
    """
    keys = [_layer(r) if r.row["source"] in PROFILED else None for r in runs]
    times = Counter(keys)
    del times[None]
    mean = sum(times.values()) / max(len(times), 1)
    return np.array([1.0 if k is None else mean / times[k] for k in keys])


def _layer(run: Run) -> tuple[int, ...]:
    lay, model = run.layout or {}, _context(run).model
    return (model.hidden, int(lay["tp"]), int(lay["micro_batch"]))


def _balanced(weight: FloatArray, source: NDArray[np.str_]) -> FloatArray:
    out = weight.copy()
    for name in np.unique(source):
        mine = source == name
        total = weight[mine].sum()
        cap = SOURCE_CAP + SOURCE_SHARE * mine.sum()
        out[mine] *= min(1.0, cap / total) if total else 1.0
    return out


def _groups(runs: Sequence[Run]) -> list[tuple[Context, Layouts, IntArray]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        m, c, w = _context(run)
        found[f"{m!r}{c.name}{c.nodes}{c.node!r}{w!r}"].append(i)
    return [
        (_context(runs[at[0]]), Layouts.of([runs[i].layout or {} for i in at]), np.array(at))
        for at in found.values()
    ]


def family_folds(table: Table) -> IntArray:
    """Return each run's fold; runs of one family share it, families go round the folds by size."""
    sizes = Counter(table.family.tolist())
    order = {f: i % FAMILY_FOLDS for i, f in enumerate(sorted(sizes, key=lambda f: (-sizes[f], f)))}
    return np.array([order[f] for f in table.family])


def predictions(table: Table, contexts: Sequence[Context], only: IntArray) -> FloatArray:
    """Return the predicted seconds of the groups `only`; not-a-number elsewhere."""
    out = np.full(len(table), np.nan)
    for i in only:
        _, layouts, rows = table.groups[i]
        context = contexts[i]
        x = Unreduced(context.model, context.cluster, context.workload, layouts)
        out[rows] = step_s(x)
    return out

"""Full recompute by units of n layers, or by the first n layers of each chunk, counted exactly.

Chunks of one stage may be unlike (an end that the embedding fills, a layer left over), and which
layers have experts is the model's. So a table for each (pp, vpp, way of lying) is counted chunk by
chunk and stage by stage, once, and looked up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.modules import layers_each
from planner.layouts.split import chunks_of, dealt, in_order
from planner.layouts.table import IntArray
from planner.specs.model import ModelSpec


class Counts(NamedTuple):
    """Layers of every stage, shape (n, stages) or (layouts, kinds)."""

    points: FloatArray
    """Layers whose input is kept."""
    dense_left: FloatArray
    """Dense layers that are kept whole: those behind a block."""
    moe_left: FloatArray
    live: FloatArray
    """Layers that are made whole again at once: a unit's."""


@lru_cache(maxsize=4096)
def _table(
    model: ModelSpec, pp: int, vpp: int, folds: int, *, by_cost: bool
) -> tuple[Counts, Counts]:
    """Return what units and what blocks of 1, 2, 3 ... layers make of each stage."""
    table = chunks_of(model, pp, vpp, folds=folds, by_cost=by_cost)
    held = np.array(in_order(table, folds))
    start = np.cumsum(held) - held
    held[-1] += model.mtp_layers
    extra = (bool(model.experts),) * model.mtp_layers
    moe_until = np.concatenate([[0], np.cumsum((*model.moe_layers, *extra))])
    n = np.arange(1, held.max() + 1)[:, None]
    again = np.minimum(n, held)
    moe_left = moe_until[start + held] - moe_until[start + again]
    chunks = np.array(dealt(range(len(held)), len(table), folds))

    def stages(of_chunks: IntArray, *, most: bool = False) -> FloatArray:
        each = of_chunks[:, chunks]
        both: IntArray = each.max(axis=2) if most else each.sum(axis=2)
        if folds == 2:  # two copies of the model, from either end
            both = np.maximum(both, both[:, ::-1]) if most else both + both[:, ::-1]
        return both.astype(np.float64)

    none = stages(0 * again)
    units = Counts(stages(-(-held // n)), none, none, np.maximum(stages(again, most=True), 1.0))
    blocks = Counts(stages(again), stages(held - again - moe_left), stages(moe_left), none + 1.0)
    return units, blocks


def _looked_up(x: Inputs) -> FloatArray:
    """Return the counts of each kind of stage, shape (layouts, kinds * fields of Counts)."""
    lay, index = x.layouts, x.stages.index
    each, block = layers_each(x)
    by_cost = x.stack.split == "by-cost"
    keys, inverse = np.unique((lay.pp << 22) + (lay.vpp << 2) + lay.folds, return_inverse=True)
    out = np.empty((len(Counts._fields), len(lay), index.shape[1]))
    for at, key in enumerate(keys.tolist()):
        rows = np.flatnonzero(inverse == at)
        shape = key >> 22, (key >> 2) & ((1 << 20) - 1), key & 3
        units, blocks = _table(x.model, *shape, by_cost=by_cost)
        nth = np.minimum(each[rows], len(units.points))[:, None] - 1
        blocked = block[rows][:, None]
        for field, (unit, other) in enumerate(zip(units, blocks, strict=True)):
            found = (values[nth, index[rows]] for values in (other, unit))
            out[field, rows] = np.where(blocked, *found)
    return np.concatenate(list(out), axis=1)


def _evenly(x: Inputs) -> FloatArray:
    """Return the same of another cut than the stack's own, whose chunks are taken as alike."""
    s, lay = x.stages, x.layouts
    each, block = (column[:, None] for column in layers_each(x))
    chunks, layers = (lay.vpp * lay.copies)[:, None], s.dense_layers + s.moe_layers
    less, longer = np.divmod(layers, chunks)
    units = longer * -(-(less + 1) // each) + (chunks - longer) * -(-less // each)
    again = np.minimum(each * chunks, layers)
    dense_left = np.maximum(s.dense_layers - again, 0)
    moe_left = s.moe_layers - np.maximum(again - s.dense_layers, 0)
    live = np.minimum(each, np.maximum(less + (longer > 0), 1))
    parts = (
        np.where(block, again, units),
        np.where(block, dense_left, 0),
        np.where(block, moe_left, 0),
        np.where(block, 1, live),
    )
    return np.concatenate(parts, axis=1).astype(np.float64)


UNITS = ("pp", "vpp", "schedule", "recompute_units")


def counts(x: Inputs) -> Counts:
    """Return what full recompute makes of each kind of stage, shape (layouts, kinds)."""
    every = _evenly(x) if x.recut else x.by(UNITS, _looked_up)
    kinds = x.stages.count.shape[1]
    return Counts(*(every[:, at : at + kinds] for at in range(0, every.shape[1], kinds)))

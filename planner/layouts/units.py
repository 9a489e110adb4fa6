"""How many layers full recompute goes by: an axis of its own, as long as a layout's largest chunk.

Units of n layers keep the input of every n; blocks run the first n layers of each chunk again and
keep the others whole. Units longer than the largest chunk are as long as it, and a block of all its
layers is a unit of one: neither is a choice of its own. The choices are numbered 0 (what the
workload says: units of one layer), a unit of 2, a block of 1, a unit of 3, a block of 2, and so on,
so that a shorter chunk has the first of a longer one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.layouts.factored import OPTION
from planner.layouts.ranges import UNITS, Fix
from planner.layouts.rules import Context
from planner.layouts.split import chunks_of, fits
from planner.layouts.table import FOLDS, RECOMPUTE, IntArray
from planner.specs.model import ModelSpec
from planner.specs.stack import stack_named

FULL = RECOMPUTE.index("full")
RECOMPUTE_AT, UNITS_AT = OPTION.index("recompute"), OPTION.index("recompute_units")
TOLD_NOTHING = ("deepspeed", "torchtitan", "transformers")
"""Rules of stacks that cannot be told which modules or layers to recompute."""


def most_units(context: Context, fix: Fix, pp: int, vpp: int, schedule: int) -> int:
    """Return how many choices of units the layouts of a pipeline have."""
    stack = stack_named(context.workload.stack)
    if UNITS not in fix.opened or stack.rules in TOLD_NOTHING:
        return 1
    largest = _largest_chunk(
        context.model, pp, vpp, int(FOLDS[schedule]), by_cost=stack.split == "by-cost"
    )
    return 2 * largest - 1


@lru_cache(maxsize=1 << 14)
def _largest_chunk(model: ModelSpec, pp: int, vpp: int, folds: int, *, by_cost: bool) -> int:
    """Return the layers of the largest chunk; one where the model does not fill the pipeline."""
    if not fits(model.layers, pp, vpp, folds):
        return 1
    return max(map(max, chunks_of(model, pp, vpp, folds=folds, by_cost=by_cost)))


def layers_of(units: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Return the layers of some choices but the first, and where these are blocks, not units."""
    block = units % 2 == 0
    return np.where(block, units // 2, (units + 3) // 2), block


def with_units(options: Sequence[tuple[int, ...]], most: int) -> IntArray:
    """Return options as a table, those that recompute whole layers with each of `most` units."""
    table = np.array(options, dtype=np.int64).reshape(-1, len(OPTION))
    often = np.where(table[:, RECOMPUTE_AT] == FULL, most, 1)
    rows = np.repeat(np.arange(len(table)), often)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(often) - often, often)
    table = table[rows]
    table[:, UNITS_AT] = nth
    return table

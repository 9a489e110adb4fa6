"""Which layouts of a ranking are worth running action by action, and when enough have been.

Closed forms put all layouts in order; pipelines of unequal stages then take longer, or less, than
those say. So the leading layouts are run, lowest bound first, until no other layout's lower bound
(`bounds`) is under the best time found: none of them can be faster, whatever its closed form says.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from planner.estimate.bounds import whole_layers_s
from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.running import Judged, actions_of, judge, runs
from planner.layouts.rules import Context
from planner.layouts.table import IntArray, Layouts

SEEDS, BATCH = 8, 16
EACH = 1_000
"""Actions that setting up one layout takes as long as."""
MOST_TO_RUN = 600_000
"""Actions run for one ranking, most of a second; the rest keeps its closed form, and it is said."""


@dataclass(frozen=True)
class Leaders:
    """What was run, by row, and what was not though its bound would have let it win."""

    judged: dict[int, Judged] = field(default_factory=dict)
    pipelines: int = 0
    """Layouts with a pipeline, of all that fit."""
    left: int = 0
    """Of those not run, the ones that might still be faster than the best."""
    best_s: float = np.inf
    next_s: float = np.inf
    """The least bound of all that were not run."""


def leaders(
    context: Context,
    layouts: Layouts,
    step_s: FloatArray,
    least_s: FloatArray,
    worth_s: float = np.inf,
) -> Leaders:
    """Run the pipelines of enough `layouts` that none of the others can be the fastest.

    `step_s` are their closed forms and `least_s` lower bounds; both are exact without a pipeline,
    and `least_s` is sharpened in place for the rows that it is asked of. Only what may be faster
    than `worth_s` is run.
    """
    piped = layouts.pp > 1
    best = min(worth_s, float(step_s[~piped].min(initial=np.inf)))
    found: dict[int, Judged] = {}
    budget = MOST_TO_RUN
    actions = actions_of(layouts) + EACH
    seeds = np.flatnonzero(piped)[np.argsort(step_s[piped], kind="stable")[:SEEDS]]
    rows, sharpened = seeds[least_s[seeds] < best], False
    while len(rows):
        rows = rows[np.cumsum(actions[rows]) <= budget]
        if not len(rows):
            break
        budget -= int(actions[rows].sum())
        for row, one in zip(rows.tolist(), judge(context, layouts.take(rows)), strict=True):
            found[row] = one
            best = min(best, one.step_s)
        open_rows = _open(layouts, least_s, found, best)
        if len(open_rows) and not sharpened:
            least_s[open_rows] = np.maximum(
                least_s[open_rows], whole_layers_s(Inputs(*context, layouts.take(open_rows)))
            )
            sharpened = True
            open_rows = _open(layouts, least_s, found, best)
        some = max(BATCH, len(open_rows) // 2)
        rows = open_rows[np.argsort(least_s[open_rows], kind="stable")[:some]]
    others = np.delete(least_s, list(found))
    left = int((others[np.delete(piped, list(found))] < best).sum())
    return Leaders(found, int(piped.sum()), left, best, float(others.min(initial=np.inf)))


def _open(layouts: Layouts, least_s: FloatArray, found: dict[int, Judged], best: float) -> IntArray:
    """Return the rows with a pipeline that were not run and might be faster than the best."""
    waiting = (layouts.pp > 1) & (least_s < best) & runs(layouts)
    waiting[list(found)] = False
    return np.flatnonzero(waiting)

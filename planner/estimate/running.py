"""Pipelines run action by action: the makespan of a layout's own stages, and the cut that suits it.

What is shown of a layout, and the leading layouts of a ranking, are judged so: the usual cut of its
layers and the one whose slowest stage is fastest are both run, and the faster of those that fit is
the layout's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from planner.estimate.cutting import balanced, rooms, shape_of
from planner.estimate.inputs import Flows, Inputs
from planner.estimate.memory import budget_bytes, peak_bytes, stage_bytes
from planner.estimate.stages import Prices, prices
from planner.estimate.step import Ran, once_s, pressure_slowdown, step_s
from planner.layouts.rules import Context
from planner.layouts.split import (
    StageKinds,
    chunks_of,
    cut_stages,
    cuts_freely,
    in_order,
)
from planner.layouts.table import SCHEDULE, SPLITS, IntArray, Layouts
from planner.pipeline.actions import Shape
from planner.pipeline.graph import Graph, graph_of
from planner.pipeline.registry import schedule_named
from planner.pipeline.simulate import run
from planner.pipeline.steady import (
    NEVER_STEADY,
    Outcome,
    extended,
    laps_of,
    rounds_of,
    shorter,
    whole,
)
from planner.pipeline.timing import Links, StageTimes
from planner.specs.stack import stack_named

MOST_ACTIONS = 130_000
"""Actions of a pipeline that are still run for a plan: a tenth of a second."""
MOST_WHOLE = 400_000
"""The same where no steady phase shows in fewer, and all have to be run."""
WHOLE = 20_000
"""Up to so many actions a pipeline is run whole; more are run until they repeat."""
LAPS_OF = np.array([laps_of(name)[0] for name in SCHEDULE])
"""Micro-batches a rank in which each schedule is first looked at for a steady phase."""
GAIN = 1e-9
"""A cut has to be faster by so much (relative) to take the place of the usual one."""


@dataclass(frozen=True)
class Judged:
    """One layout: its cut and step time. The rest says how its pipeline ran, if it was run."""

    table: list[list[int]]
    step_s: float
    folds: int = 0
    makespan_s: float | None = None
    busiest: int = 0
    sending_s: float = 0.0
    idle_s: float = 0.0
    hidden_s: float = 0.0
    peak_bytes: float | None = None
    """Of its heaviest stage, where its cut is not the usual one."""
    flows: Flows | None = None
    """What a placement has the uplinks carry, one row; without one, what the estimate assumes."""

    @property
    def ran(self) -> Ran | None:
        """Return what `time_parts` takes of it."""
        if self.makespan_s is None:
            return None
        told = (self.makespan_s, self.sending_s, self.idle_s, self.hidden_s)
        makespan, sending, idle, hidden = (np.array([s]) for s in told)
        return Ran(makespan, np.array([self.busiest]), sending, idle, hidden)


def actions_of(layouts: Layouts) -> IntArray:
    """Return the actions that running each layout's pipeline takes, until they repeat."""
    m = layouts.num_microbatches
    repeats = m * _actions_of_one(layouts) > WHOLE
    once = np.isin(layouts.schedule, [SCHEDULE.index(name) for name in NEVER_STEADY])
    laps = LAPS_OF[layouts.schedule] + 1
    taken = np.where(repeats & ~once, np.minimum(m, laps * layouts.pp), m)
    return taken * _actions_of_one(layouts)


def _actions_of_one(layouts: Layouts) -> IntArray:
    return np.where(SPLITS[layouts.schedule], 3, 2) * layouts.pp * layouts.vpp


def runs(layouts: Layouts) -> np.ndarray:
    """Return which layouts have a pipeline that is small enough to be run for a plan."""
    return (layouts.pp > 1) & (actions_of(layouts) <= MOST_ACTIONS)


@lru_cache(maxsize=48)
def graph_named(name: str, shape: Shape) -> Graph | None:
    """Return the graph of a schedule at a size, None where it cannot run."""
    schedule = schedule_named(name)
    return None if schedule.refuses(shape) else graph_of(schedule.order(shape))


def usual_table(context: Context, layouts: Layouts, row: int) -> list[list[int]]:
    """Return the layers of each [stage][chunk] as the stack deals them when nobody says more."""
    by_cost = stack_named(context.workload.stack).split == "by-cost"
    pp, vpp, folds = (int(a[row]) for a in (layouts.pp, layouts.vpp, layouts.folds))
    return chunks_of(context.model, pp, vpp, folds=folds, by_cost=by_cost)


def judge(context: Context, layouts: Layouts, *, recut: bool = True) -> list[Judged]:
    """Return every layout's own cut, and how its pipeline runs with it.

    A layout that fits with the usual cut fits with its own, and is never slower. Without `recut`
    the usual cut is its own, as in a run that nobody has tuned.
    """
    usual = [usual_table(context, layouts, row) for row in range(len(layouts))]
    rows = np.flatnonzero(runs(layouts)).tolist()
    x = Inputs(*context, layouts)
    ways = layouts.folds.tolist()
    found = [
        Judged(table, float(s), way) for table, s, way in zip(usual, step_s(x), ways, strict=True)
    ]
    priced = prices(x)
    rest = _beside(x)
    for row in rows:
        found[row] = _run(layouts, row, priced, found[row], rest[row])
    if not (recut and cuts_freely(context.workload.stack)):
        return found
    others = {row: table for row in rows if (table := balanced(x, row, priced, None)) is not None}
    over = _better(context, layouts, priced, others, found)
    if over:
        again = layouts.take(over)
        most = rooms(context, again, [usual[row] for row in over])
        others = {
            row: table
            for row, room in zip(over, most, strict=True)
            if (table := balanced(x, row, priced, room)) is not None
        }
        _better(context, layouts, priced, others, found)
    peaks, budget = peak_bytes(x), budget_bytes(x)
    heavy = [row for row in rows if found[row].peak_bytes is None and peaks[row] > budget]
    _lighter(context, layouts, priced, heavy, found)
    return found


def lightened(context: Context, layouts: Layouts) -> list[Judged | None]:
    """Return layouts too heavy with the usual cut as the fastest cut that fits has them run.

    None where no cut fits, or the stack cuts as it likes.
    """
    if not cuts_freely(context.workload.stack):
        return [None] * len(layouts)
    usual = (usual_table(context, layouts, row) for row in range(len(layouts)))
    ways = layouts.folds.tolist()
    found = [Judged(table, np.inf, way) for table, way in zip(usual, ways, strict=True)]
    rows = np.flatnonzero(runs(layouts)).tolist()
    _lighter(context, layouts, prices(Inputs(*context, layouts)), rows, found)
    return [one if one.peak_bytes is not None else None for one in found]


def _lighter(
    context: Context, layouts: Layouts, priced: Prices, heavy: list[int], found: list[Judged]
) -> None:
    """Put the fastest cut that fits in the place of the usual one where that does not fit."""
    if not heavy:
        return
    some = layouts.take(heavy)
    x = Inputs(*context, some)
    left = rooms(context, some, [found[row].table for row in heavy])
    cuts = {
        row: table
        for at, (row, room) in enumerate(zip(heavy, left, strict=True))
        if (table := balanced(x, at, priced.take(heavy), room)) is not None
    }
    none = {row: replace(found[row], step_s=np.inf) for row in cuts}
    lighter: list[Judged] = [none.get(row, found[row]) for row in range(len(layouts))]
    _better(context, layouts, priced, cuts, lighter)
    for row in cuts:
        if lighter[row].peak_bytes is not None:
            found[row] = lighter[row]


def loaded(
    context: Context, layouts: Layouts, known: Sequence[Judged], flows: Flows
) -> list[Judged]:
    """Return layouts that were judged with uplinks that carry `flows`, row by row, cuts kept.

    Rows of which nothing but rings differs have the same pipeline, which is run once.
    """
    kinds = cut_stages(context.model, [one.table for one in known], layouts.folds.tolist())
    x = Inputs(*context, layouts, kinds=kinds, flows=flows)
    found = [replace(one, step_s=float(s)) for one, s in zip(known, step_s(x), strict=True)]
    priced, rest = prices(x), _beside(x)
    ran: dict[tuple[object, ...], Judged] = {}
    for row in np.flatnonzero(runs(layouts)).tolist():
        key = (*layouts.row(row).values(), str(known[row].table), *priced.key(row))
        if key not in ran:
            ran[key] = _run(layouts, row, priced, found[row], rest[row])
        found[row] = _beside_it(ran[key], found[row], rest[row])
    return [
        replace(one, peak_bytes=before.peak_bytes, flows=flows.take([row]))
        for row, (one, before) in enumerate(zip(found, known, strict=True))
    ]


def _beside_it(ran: Judged, closed: Judged, rest: _Rest) -> Judged:
    """Return a pipeline that was run with what another row has beside it."""
    if ran.makespan_s is None:
        return closed
    return replace(ran, step_s=(ran.makespan_s + rest.once_s) * rest.slowdown)


def _better(
    context: Context,
    layouts: Layouts,
    priced: Prices,
    others: Mapping[int, list[list[int]]],
    found: list[Judged],
) -> list[int]:
    """Put other cuts in the place of those found where faster; return rows that did not fit."""
    rows = [row for row, table in others.items() if table != found[row].table]
    if not rows:
        return []
    kinds = cut_stages(context.model, [others[row] for row in rows], layouts.folds[rows].tolist())
    x = Inputs(*context, layouts.take(rows), kinds=kinds)
    tried: dict[int, Judged] = {}
    over = []
    for row, rest in zip(rows, _beside(x), strict=True):
        ran = _run(layouts, row, priced, Judged(others[row], np.inf, found[row].folds), rest)
        if ran.step_s < found[row].step_s * (1 - GAIN):
            tried[row] = ran
    peaks = stage_bytes(x).max(axis=1) if tried else np.zeros(len(rows))
    for row, peak in zip(rows, peaks, strict=True):
        if row in tried and peak <= budget_bytes(x):
            found[row] = replace(tried[row], peak_bytes=float(peak))
        elif row in tried:
            over.append(row)
    return over


class _Rest(NamedTuple):
    """What a step has beside its pipeline: seconds once, and how much memory pressure stretches."""

    once_s: float
    slowdown: float


def _beside(x: Inputs) -> list[_Rest]:
    pairs = zip(once_s(x).tolist(), pressure_slowdown(x).tolist(), strict=True)
    return [_Rest(once, slowdown) for once, slowdown in pairs]


def _run(layouts: Layouts, row: int, priced: Prices, one: Judged, rest: _Rest) -> Judged:
    """Return a layout with its pipeline run, or as it was where its schedule cannot run so."""
    shape, name = shape_of(layouts, row), SCHEDULE[int(layouts.schedule[row])]
    folds, copies = int(layouts.folds[row]), int(layouts.copies[row])
    parts = priced.parts(row, in_order(one.table, folds), chunks=int(layouts.vpp[row]))
    times = StageTimes(*(np.tile(part, copies) for part in parts))
    ran = outcome(name, shape, times, priced.links(row, shape.stages))
    if ran is None:
        return one
    at = ran.busiest
    hidden = 0.0
    if times.hidden_s.any() and schedule_named(name).runs_both_at_once:
        apart = times.forward_s + times.backward_input_s + times.backward_weight_s
        mine = [at, shape.stages - 1 - at]  # there and back, or its own copy's and the other's
        hidden = shape.microbatches / copies * float(apart[mine].sum()) - float(ran.busy_s[at])
    return Judged(
        one.table,
        (ran.makespan_s + rest.once_s) * rest.slowdown,
        folds,
        ran.makespan_s,
        at,
        float(ran.blocked_s[at]),
        ran.bubble_s,
        max(hidden, 0.0),
    )


def outcome(name: str, shape: Shape, times: StageTimes, links: Links) -> Outcome | None:
    """Return what a pipeline takes: run whole, or until it repeats where it is long.

    None where the schedule cannot run so, or is too long and does not repeat soon.
    """
    actions = (3 if schedule_named(name).splits_backward else 2) * shape.stages * shape.microbatches
    for laps in laps_of(name) if actions > WHOLE and name not in NEVER_STEADY else ():
        less = shorter(name, shape, laps)
        graph = None if less is None else graph_named(name, less)
        if graph is not None:
            turn, m = rounds_of(name, shape), shape.microbatches
            if (found := extended(graph, times, links, turn=turn, microbatches=m)) is not None:
                return found
    graph = graph_named(name, shape) if actions <= MOST_WHOLE else None
    return None if graph is None else whole(run(graph, times, links))


def own_kinds(context: Context, one: Judged) -> StageKinds:
    """Return every stage of a layout's own cut."""
    return cut_stages(context.model, [one.table], [one.folds])

"""From rankings to the rows that are shown: limits kept, ordered by the objective, run once more.

Within one job only memory puts layouts in another order than time does: money, energy and tokens a
GPU are time, multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from planner.errors import InfeasibleError
from planner.estimate.leading import MOST_TO_RUN
from planner.estimate.running import Judged, actions_of, judge, runs
from planner.layouts.table import COLUMNS, IntArray, Layouts
from planner.objectives import Aim, Job, Objective, allowed_step_s, lower_envelope, score
from planner.plan import Search
from planner.rank import SHAPE, Ranking, put
from planner.settling import ROUNDS, not_run_like, settle
from planner.units import many
from planner.workflow.on_fabric import floor_s, floors_s, map_matters, on_fabric, on_maps
from planner.workflow.request import PlanRequest
from planner.workflow.rows import layout_record
from planner.workflow.spots import placed_layout
from planner.workflow.variants import with_unit

MOST_PLACED = 32
"""Jobs whose leading layouts are placed where several are looked at."""
LEADING = 4096
"""Rows of one job that are kept where several jobs are looked at, beside the best of each shape."""


@dataclass(frozen=True)
class Looked:
    """One job that was searched: its layouts by the aim, and the trade-offs among all of them."""

    request: PlanRequest
    ranking: Ranking
    """Those that meet the limits, best first."""
    search: Search
    fastest_s: float
    """Of all that fit, whatever the limits; on their maps of those that might meet them."""
    front: Ranking
    """Those that fit and that no other beats in both time and memory."""
    notes: tuple[str, ...] = ()
    on_paper_s: float | None = None
    """Of what `fastest_s` was on paper, where it is of maps."""
    within: int = 0
    """Layouts that fit and meet the limits."""
    asked: PlanRequest | None = None
    """The job as it was searched, where this is the part of it with one choice of units."""

    @property
    def meets(self) -> int:
        """Return how many of the rows that are kept meet the limits."""
        return len(self.ranking.layouts)

    @property
    def job(self) -> Job:
        """Return the GPUs and the tokens of a step."""
        return Job(self.ranking.gpus, self.request.workload.tokens)


class Spot(NamedTuple):
    """A row of one of several rankings."""

    at: int
    row: int


def taken(ranking: Ranking, rows: IntArray) -> Ranking:
    """Return some rows of a ranking, in that order."""
    place, layouts = {row: at for at, row in enumerate(rows.tolist())}, ranking.layouts
    judged = {place[r]: one for r, one in ranking.leaders.judged.items() if r in place}
    return replace(
        ranking,
        layouts=(layouts.only if len(rows) > LEADING else layouts.take)(rows),
        step_s=ranking.step_s[rows],
        peak_bytes=ranking.peak_bytes[rows],
        leaders=replace(ranking.leaders, judged=judged),
    )


def aimed(ranking: Ranking, aim: Aim, job: Job) -> Ranking:
    """Return the layouts that meet the limits, best first by the objective, then the fastest."""
    if not aim.limited and aim.objective is not Objective.MEMORY:
        return ranking
    rows = np.flatnonzero(ranking.step_s <= allowed_step_s(aim, job))
    time, peak = ranking.step_s[rows], ranking.peak_bytes[rows]
    return taken(ranking, rows[np.lexsort((peak, time, score(aim, job, time, peak)))])


def hopeful(request: PlanRequest, ranking: Ranking) -> Ranking:
    """Return the layouts that meet the limits, or might where they are placed, best first.

    A map may take less than paper, where every ring leaves a leaf; what it takes decides later.
    """
    job, aim = Job(ranking.gpus, request.workload.tokens), request.aim
    if not map_matters(request) or not len(ranking.layouts):
        return aimed(ranking, aim, job)
    least = np.minimum(floors_s(request, ranking), ranking.step_s)
    kept = taken(ranking, np.flatnonzero(least <= allowed_step_s(aim, job)))
    return aimed(kept, replace(aim, deadline_s=None, budget_usd=None, max_step_s=None), job)


def leading_rows(ranking: Ranking, top: int) -> Ranking:
    """Return the first rows of a ranking, and the first of each of the leading shapes."""
    first = np.arange(min(LEADING, len(ranking.layouts)))
    rows: IntArray = np.union1d(first, ranking.best_of_each_shape(top)).astype(np.int64)
    return taken(ranking, rows)


def parted(one: Looked) -> list[Looked]:
    """Return a job parted by the layers that its full recompute goes by, as the workload says it.

    What was counted, and within which limits, is of all parts together.
    """
    mine, beside = (r.layouts.recompute_units for r in (one.ranking, one.front))
    if not (mine.any() or beside.any()):
        return [one]
    out = []
    for unit in np.union1d(mine, beside).tolist():
        rows, others = np.flatnonzero(mine == unit), np.flatnonzero(beside == unit)
        ranking, front = _plain(one.ranking, rows), _plain(one.front, others)
        request = with_unit(one.request, unit)
        out.append(replace(one, request=request, ranking=ranking, front=front, asked=one.request))
    return out


def _plain(ranking: Ranking, rows: IntArray) -> Ranking:
    """Return some rows of a ranking with units as the workload says."""
    some = taken(ranking, rows)
    layouts = Layouts(**{name: getattr(some.layouts, name) for name in COLUMNS})
    return replace(some, layouts=layouts)


def envelope(ranking: Ranking) -> Ranking:
    """Return the layouts that no other beats in both time and memory, fastest first."""
    return taken(ranking, lower_envelope(ranking.step_s, ranking.peak_bytes))


def best_spots(found: Sequence[Looked], top: int) -> list[Spot]:
    """Return the best rows over all jobs, one a shape and job; ties go to the fewest GPUs."""
    spots, keys = [], []
    for at, one in enumerate(found):
        rows = one.ranking.best_of_each_shape(top)
        time, peak = one.ranking.step_s[rows], one.ranking.peak_bytes[rows]
        scores = score(one.request.aim, one.job, time, peak)
        spots += [Spot(at, row) for row in rows.tolist()]
        keys.append(np.stack([scores, time / one.job.tokens, np.full(len(rows), one.job.gpus)]))
    if not spots:
        return []
    columns = np.concatenate(keys, axis=1)
    ordered = [spots[i] for i in np.lexsort((columns[2], columns[1], columns[0])).tolist()]
    return (_one_a_shape(found, ordered) if found[0].request.search else ordered)[:top]


def _one_a_shape(found: Sequence[Looked], spots: Sequence[Spot]) -> list[Spot]:
    """Return the first of each shape: of a layout's variants the best is shown."""
    first: dict[tuple[int, ...], Spot] = {}
    for spot in spots:
        one = found[spot.at]
        degrees = (int(getattr(one.ranking.layouts, name)[spot.row]) for name in SHAPE)
        first.setdefault((one.request.workload.global_batch, *degrees), spot)
    return list(first.values())


def settled(found: Sequence[Looked], top: int) -> list[Looked]:
    """Return the jobs with the rows that are shown run action by action, and put where they belong.

    Running may slow a row down past others, or past a limit; those then move up and are run. Where
    uplinks are narrow, they are timed on the links that their placement gets.
    """
    by_time = found[0].request.aim.objective is not Objective.MEMORY
    if len(found) == 1 and by_time:
        return [_settled_by_time(found[0], top)]
    done = _run_shown(found, top)
    if by_time:
        return _placed(done, top)
    return _with_room(_on_maps(done, top) if map_matters(done[0].request) else done)


def _run_shown(found: Sequence[Looked], top: int) -> list[Looked]:
    """Return the jobs with the best rows over all of them run."""
    done, left = list(found), MOST_TO_RUN // 2
    for _ in range(ROUNDS):
        new = _to_run(done, best_spots(done, top))
        new, cost = _affordable(done, new, left)
        if not new:
            break
        left -= cost
        _run_spots(done, new)
    while new := _to_run(done, best_spots(done, top)):  # what is shown is run in any case
        _run_spots(done, new, alone=True)
    return done


def _run_spots(found: list[Looked], spots: Sequence[Spot], *, alone: bool = False) -> None:
    for at in sorted({spot.at for spot in spots}):
        found[at] = _run(found[at], [spot.row for spot in spots if spot.at == at], alone=alone)


def _settled_by_time(one: Looked, top: int) -> Looked:
    ranking = settle(one.request.context, one.ranking, top)
    one = _on_its_links(replace(one, ranking=ranking), top)
    if one.request.aim.limited:  # the front is of all that fit
        return one
    return replace(one, front=envelope(one.ranking))


def _placed(found: Sequence[Looked], top: int) -> list[Looked]:
    """Return the jobs with those whose rows are shown timed where they would be placed.

    So are jobs that could still be the best by a bound that holds whatever the map, best first.
    """
    done, placed, refusals = list(found), set[int](), list[InfeasibleError]()
    floors = _floors(found)
    while len(placed) < MOST_PLACED:
        spots = best_spots(done, top)
        waiting = [spot.at for spot in spots if spot.at not in placed]
        waiting = waiting or [at for at in _might_win(done, spots, floors) if at not in placed]
        if not waiting:
            return _any_left(done, refusals)
        placed.add(waiting[0])
        try:
            done[waiting[0]] = _on_its_links(done[waiting[0]], top)
        except InfeasibleError as error:
            done[waiting[0]] = _without_room(done[waiting[0]])
            refusals.append(error)
    return _said_open(_any_left(done, refusals), placed, floors)


def _said_open(found: list[Looked], placed: set[int], floors: dict[int, float]) -> list[Looked]:
    """Return the jobs, the best of them with how many others might win if they were placed too."""
    spots = best_spots(found, 1)
    left = [at for at in _might_win(found, spots, floors) if at not in placed]
    if left:
        first = found[spots[0].at]
        said = f"{many(len(left), 'more job')} might be better, were their layouts placed too"
        found[spots[0].at] = replace(first, notes=(*first.notes, said))
    return found


def _without_room(one: Looked) -> Looked:
    return replace(one, ranking=taken(one.ranking, np.arange(0)))


def _any_left(found: list[Looked], refusals: Sequence[InfeasibleError]) -> list[Looked]:
    """Return the jobs; raises InfeasibleError where none of them can be placed."""
    if refusals and not best_spots(found, 1):
        raise refusals[0]
    return found


def _floors(found: Sequence[Looked]) -> dict[int, float]:
    """Return what the objective makes of each job at the least, wherever its ranks are placed."""
    return {
        at: _score(one, floor_s(one.request, one.ranking))
        for at, one in enumerate(found)
        if one.meets
    }


def _might_win(
    found: Sequence[Looked], spots: Sequence[Spot], floors: dict[int, float]
) -> list[int]:
    """Return the jobs that may be better than the first of `spots`, most hopeful first."""
    if not spots:
        return []
    first = found[spots[0].at]
    best = _score(first, float(first.ranking.step_s[spots[0].row]))
    return sorted((at for at, floor in floors.items() if floor < best), key=floors.__getitem__)


def _score(one: Looked, step_s: float, peak_bytes: float = 0.0) -> float:
    time, peak = np.array([step_s]), np.array([peak_bytes])
    return float(score(one.request.aim, one.job, time, peak)[0])


def worth(one: Looked) -> float:
    """Return what the objective makes of the best row of a job; inf where none meets the limits."""
    if not one.meets:
        return np.inf
    return _score(one, float(one.ranking.step_s[0]), float(one.ranking.peak_bytes[0]))


def _on_maps(found: Sequence[Looked], top: int) -> list[Looked]:
    """Return the jobs with the rows that are shown timed on the links of their maps.

    For memory, which no map changes: only limits on time, and rows without room, reorder them.
    """
    done, refusals = list(found), list[InfeasibleError]()
    for _ in range(ROUNDS):
        new = [spot for spot in best_spots(done, top) if not _is_placed(done[spot.at], spot.row)]
        if not new:
            break
        for at in sorted({spot.at for spot in new}):
            one, rows = done[at], [spot.row for spot in new if spot.at == at]
            try:
                timed = on_maps(one.request, one.ranking, rows)
                done[at] = replace(one, ranking=aimed(timed, one.request.aim, one.job))
            except InfeasibleError as error:
                done[at] = _without_room(one)
                refusals.append(error)
    return _any_left(done, refusals)


def _is_placed(one: Looked, row: int) -> bool:
    judged = one.ranking.leaders.judged.get(row)
    return judged is not None and judged.flows is not None


def _with_room(found: Sequence[Looked]) -> list[Looked]:
    """Return the jobs without leading layouts whose tensor groups find no scale-up domain.

    Raises InfeasibleError where none can be placed.
    """
    done, refusal = list(found), None
    while spots := best_spots(done, 1):
        one, row = done[spots[0].at], spots[0].row
        if one.request.cluster.domain_nodes == 1:
            return done
        try:
            placed_layout(one.request, layout_record(one.ranking.layouts, row))
        except InfeasibleError as error:
            refusal = refusal or error
            done[spots[0].at] = replace(one, ranking=_without_like(one.ranking, row))
        else:
            return done
    if refusal is not None:
        raise refusal
    return done


def _without_like(ranking: Ranking, row: int) -> Ranking:
    """Return a ranking without the layouts of the same degrees as `row`."""
    columns = [getattr(ranking.layouts, name) for name in SHAPE]
    like = np.logical_and.reduce([column == column[row] for column in columns])
    return taken(ranking, np.flatnonzero(~like))


def _on_its_links(one: Looked, top: int) -> Looked:
    """Return a job with its leading layouts placed, timed so, and put in order again."""
    paper_s = float(one.ranking.step_s.min(initial=np.inf))
    ranking, notes = on_fabric(one.request, one.ranking, top)
    best = aimed(ranking, one.request.aim, one.job)
    one = replace(one, ranking=best, notes=(*one.notes, *notes))
    if not one.request.aim.limited or not map_matters(one.request) or not len(ranking.layouts):
        return one
    return replace(one, fastest_s=float(ranking.step_s.min()), on_paper_s=paper_s)


def _to_run(found: Sequence[Looked], spots: Sequence[Spot]) -> list[Spot]:
    """Return the rows whose pipelines are small enough to run, and were not."""
    fresh = [spot for spot in spots if spot.row not in found[spot.at].ranking.leaders.judged]
    return [spot for spot in fresh if runs(found[spot.at].ranking.layouts.take([spot.row]))[0]]


def _affordable(
    found: Sequence[Looked], spots: Sequence[Spot], most: int
) -> tuple[list[Spot], int]:
    """Return the first spots that may be run with `most` actions, and what they take."""
    costs = [int(actions_of(found[s.at].ranking.layouts.take([s.row]))[0]) for s in spots]
    number = int((np.cumsum(costs) <= most).sum())
    return list(spots[:number]), sum(costs[:number])


def _run(one: Looked, rows: list[int], *, alone: bool) -> Looked:
    """Return a job with some rows run, and all of them in order again.

    `alone` puts those of their shapes that were not run behind them: nothing better is known.
    """
    found = judge(one.request.context, one.ranking.layouts.take(rows))
    ranking = with_judged(one.ranking, dict(zip(rows, found, strict=True)))
    for row in rows if alone else ():
        like = not_run_like(ranking, row)
        least = np.nextafter(ranking.step_s[row], np.inf)
        ranking.step_s[like] = np.maximum(ranking.step_s[like], least)
    order = np.lexsort((ranking.peak_bytes, ranking.step_s))
    return replace(one, ranking=aimed(taken(ranking, order), one.request.aim, one.job))


def with_judged(ranking: Ranking, found: dict[int, Judged]) -> Ranking:
    """Return a ranking with what some rows take when run, in the order that they were in."""
    time, peak = ranking.step_s.copy(), ranking.peak_bytes.copy()
    put(found, time, peak)
    leaders = replace(ranking.leaders, judged=ranking.leaders.judged | found)
    return replace(ranking, step_s=time, peak_bytes=peak, leaders=leaders)

"""What would make a layout fit: one change, else two, else the nearest layout that fits.

Changes are found by the engine that ranks: all given fields but one are kept and the rest is
searched, so a mend is legal and its figures are those that `plan` would give it. Every value of
the changed field is tried. Where a rule makes other fields follow (`dp` always, the schedule after
vpp), they do, and the change says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from planner.errors import PlannerError
from planner.estimate.inputs import Inputs
from planner.estimate.running import judge
from planner.estimate.step import pressure_slowdown
from planner.explanation import Mend
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import FIXABLE, Choice, Fix
from planner.layouts.rules import Context, Mask
from planner.layouts.table import NAMES, OFFLOAD, IntArray, Layouts
from planner.rank import Ranking, nearest, rank
from planner.units import gib, many, seconds
from planner.workflow.completing import DEGREES, Completed
from planner.workflow.growing import on_more_gpus
from planner.workflow.request import PlanRequest, Progress, quiet, told_share
from planner.workflow.rows import layout_record
from planner.workflow.searching import search, usable_gpus

SINGLES, DOUBLES, NEAREST = 8, 3, 3
"""Mends shown that change one field, two fields, or whatever the nearest layouts take."""
WORTH_A_CHANGE = 0.002
"""Share of step time below which a change of a layout that runs is not worth telling."""
NEAR = 24
"""Nearest layouts among which the cheapest of one that is too big are looked for."""
FOLLOWERS = {
    "tp": ("sp", "etp", "zero"),
    "pp": ("vpp", "schedule", "zero"),
    "cp": ("zero", "dp_replicate"),
    "ep": ("etp",),
    "vpp": ("schedule",),
    "zero": ("dp_replicate",),
}
"""Field -> those that a rule may force to change with it; `dp` follows every degree."""
CODE_BITS = 30
"""Enough for any degree or micro-batch of a legal layout; two fit into 64."""
STATE = ("zero", "micro_batch", "recompute", "offload")
"""Fields that leave every group of ranks as it is."""
IDEAS = {
    "recompute": ("less recompute", "more recompute"),
    "micro_batch": ("smaller micro-batch", "larger micro-batch"),
    "zero": ("lower zero", "higher zero"),
    "sp": ("sp off", "sp on"),
    "schedule": ("fewer in flight", "fewer in flight"),
    "offload": ("less offload", "offload"),
    "dp_replicate": ("fewer replicas", "more replicas"),
    "dp_sync": ("all-reduce", "parameter server"),
}
"""What a smaller and a larger value of a field is called; degrees are 'smaller' and 'larger'."""


class _Given(NamedTuple):
    """The layout to mend: its row, the fields that were asked for, its GPUs and step time."""

    request: PlanRequest
    row: Mapping[str, int]
    names: tuple[str, ...]
    gpus: int
    step_s: float | None


def mends(
    request: PlanRequest, found: Completed, progress: Progress = quiet
) -> tuple[list[Mend], list[str]]:
    """Return layouts that fit, cheapest first, a larger machine last; and why there are no others.

    One change will do if any does (or two of `STATE`, where these cost less); else any two, else
    whatever the nearest layouts that fit take.
    """
    given = _given(request, found)
    if not found.legal:
        return _nearest(given, progress, cheapest=False)
    why: list[str] = []
    out = _by_change(given)
    if not out:
        out, why = _nearest(given, progress, cheapest=True)
    return [*out, *_on_more(given, any_layout=not out)], why


def _by_change(given: _Given) -> list[Mend]:
    """Return the mends that change one field, or two, cheapest first."""
    fields = list(dict.fromkeys([*given.names, "offload"]))
    single = _changed(given, combinations(fields, 1))[:SINGLES]
    if not single:
        return _changed(given, combinations(fields, 2))[:DOUBLES]
    double = _changed(given, combinations([f for f in fields if f in STATE], 2))
    return [*(m for m in double[:1] if m.step_time_s < single[0].step_time_s), *single]


def better(request: PlanRequest, found: Completed) -> list[Mend]:
    """Return layouts that change one given field and are faster than a layout that fits."""
    given = _given(request, found)
    names = [n for n in given.names if n != "offload" or given.row[n]]
    single = _changed(given, combinations(names, 1))
    return [m for m in single if m.slower is not None and m.slower < -WORTH_A_CHANGE][:SINGLES]


def sentences(found: Iterable[Mend]) -> list[str]:
    """Return each mend in a sentence: the change, the memory, the step time and its cost."""
    return [_sentence(mend) for mend in found]


def _sentence(mend: Mend) -> str:
    risk = ", at risk" if mend.at_risk else ""
    cost = "" if mend.slower is None else f" ({mend.slower:+.1%})"
    fits = f"fits ({gib(mend.peak_bytes)} of {gib(mend.limit_bytes)}{risk})"
    more = f"{mend.gpus:,} GPUs on {many(mend.nodes, 'node')}: " if mend.more_gpus else ""
    return f"{more}{mend.change or 'nothing'}: {fits}, {seconds(mend.step_time_s)} a step{cost}"


def _given(request: PlanRequest, found: Completed) -> _Given:
    """Return what to mend. With `dp` given but not cp, cp is kept as it is."""
    row = {name: int(getattr(found.layouts, name)[0]) for name in FIXABLE}
    asked = {*found.wanted, "cp"} if "dp" in found.wanted else {*found.wanted}
    names = tuple(n for n in FIXABLE if n in asked and n != "dp")
    took = None
    if found.legal:
        took = judge(request.context, found.layouts)[0].step_s
        if not found.feasible:  # what it would take if it fitted, with room to spare
            took /= float(pressure_slowdown(Inputs(*request.context, found.layouts))[0])
    return _Given(request, row, names, found.gpus, took)


def _changed(given: _Given, sets: Iterable[Sequence[str]]) -> list[Mend]:
    """Return the fastest layout that fits for each set of fields that change, fastest first."""
    found = []
    for changed in sets:
        best = [_fastest(ranking, rows) for ranking, rows in _changing(given, changed)]
        ranking, row = min(best, key=lambda b: float(b[0].step_s[b[1]]), default=(None, 0))
        if ranking is not None:
            found.append(_mend(given, ranking, row, changed))
    return sorted(found, key=lambda m: (m.step_time_s, m.peak_bytes))


def _fastest(ranking: Ranking, rows: IntArray) -> tuple[Ranking, int]:
    return ranking, int(rows[np.argmin(ranking.step_s[rows])])


def _changing(given: _Given, changed: Sequence[str]) -> Iterator[tuple[Ranking, IntArray]]:
    """Yield the layouts that fit with other values of just these fields, as rows of a ranking.

    Values that no legal layout has with all other given fields take those that may follow along.
    """
    context, gpus = given.request.context, given.gpus
    strict, loose = _all_but(given, changed), _all_but(given, [*changed, *_followers(changed)])
    ranking = rank(context, gpus, strict)
    rows = np.flatnonzero(_others(given, ranking.layouts, changed))
    if len(rows):
        yield ranking, rows
    if loose == strict:
        return
    legal = [Layouts.empty(), *legal_layouts(context, gpus, strict, Tally())]
    kept = _code(Layouts.concat(legal), changed)
    ranking = rank(context, gpus, loose)
    forced = ~np.isin(_code(ranking.layouts, changed), kept)
    rows = np.flatnonzero(_others(given, ranking.layouts, changed) & forced)
    if len(rows):
        yield ranking, rows


def _followers(changed: Sequence[str]) -> list[str]:
    return [f for name in changed for f in FOLLOWERS.get(name, ())]


def _all_but(given: _Given, free: Sequence[str]) -> Fix:
    """Return the given fields as fixed, but for some that are free."""
    fixed = {n: Choice(n, frozenset({given.row[n]})) for n in given.names if n not in free}
    if "offload" in free:
        fixed["offload"] = Choice("offload", frozenset(range(len(OFFLOAD))))
    return Fix(fixed)


def _others(given: _Given, lay: Layouts, changed: Sequence[str]) -> Mask:
    """Return the rows in which every one of the fields has another value than the given."""
    differ: Mask = np.all([getattr(lay, n) != given.row[n] for n in changed], axis=0)
    return differ


def _code(lay: Layouts, names: Sequence[str]) -> IntArray:
    """Return one number for what each row has in one or two fields."""
    code = np.zeros(len(lay), dtype=np.int64)
    for name in names:
        code = (code << CODE_BITS) | getattr(lay, name)
    return code


def _nearest(given: _Given, progress: Progress, *, cheapest: bool) -> tuple[list[Mend], list[str]]:
    """Return the nearest layouts that are legal and fit, or why there are none.

    With `cheapest`, the fastest of each kind of change among the nearest, by step time.
    """
    request = given.request
    healthy, _ = usable_gpus(request)
    try:
        gpus = min(given.gpus, healthy)
        ranking = rank(request.context, gpus, Fix(), tell=told_share(gpus, progress))
        if not ranking.feasible:
            ranking, _ = search(replace(request, fix={}), progress)
    except PlannerError:
        return [], []
    names = [*given.names] or [*DEGREES]
    near = nearest(ranking, dict(given.row), names, NEAR if cheapest else NEAREST)
    rows = _one_of_each(given, ranking, names, near) if cheapest else [int(row) for row in near]
    why = [] if rows else [_no_mend(ranking)]
    return [_mend(given, ranking, row, ()) for row in rows], why


def _one_of_each(
    given: _Given, ranking: Ranking, names: Sequence[str], rows: IntArray
) -> list[int]:
    """Return the fastest of `rows` for each set of fields that they change, fastest first."""
    found: dict[tuple[str, ...], int] = {}
    for row in sorted(rows, key=lambda row: float(ranking.step_s[row])):
        changed = (n for n in names if getattr(ranking.layouts, n)[row] != given.row[n])
        found.setdefault(tuple(changed), int(row))
    return list(found.values())[:NEAREST]


def _no_mend(ranking: Ranking) -> str:
    return (
        f"no layout of {ranking.gpus:,} GPUs fits: the lightest needs "
        f"{gib(ranking.lightest_bytes)}, {gib(ranking.budget_bytes)} may be used (--max-memory)"
    )


def _on_more(given: _Given, *, any_layout: bool) -> list[Mend]:
    """Return the given fields on the first larger machine on which they fit, dp growing.

    With `any_layout` any layout will do, on as many nodes as it takes.
    """
    fix = Fix() if any_layout else _all_but(given, ())
    found = on_more_gpus(given.request, given.gpus, fix, far=any_layout)
    return [_mend(given, found[1], 0, (), context=found[0])] if found else []


def _mend(
    given: _Given,
    ranking: Ranking,
    row: int,
    changed: Sequence[str],
    *,
    context: Context | None = None,
) -> Mend:
    """Return one row of a ranking as a mend of the given layout; changed fields come first.

    `context` is that of the ranking where it is a larger machine than was asked about.
    A schedule that nobody asked for goes with pp and vpp, so its change is not told.
    """
    lay, limit = ranking.layouts, ranking.limit_bytes
    other = {name: int(getattr(lay, name)[row]) for name in FIXABLE}
    order = dict.fromkeys((*changed, *given.names, *FIXABLE))
    told = [n for n in order if n in given.names or n != "schedule"]
    differ = [n for n in told if other[n] != given.row[n]]
    ideas = [_idea(n, given.row[n], other[n]) for n in changed]
    more = ranking.gpus > given.gpus
    around = context or given.request.context
    ran = ranking.leaders.judged.get(row) or judge(around, lay.take([row]))[0]
    took, peak = ran.step_s, ran.peak_bytes or float(ranking.peak_bytes[row])
    per_node = given.request.cluster.node.gpus
    return Mend(
        idea=" and ".join(ideas) or ("more GPUs" if more else ""),
        changes={n: (_plain(n, given.row[n]), _plain(n, other[n])) for n in differ},
        layout=layout_record(lay, row),
        gpus=ranking.gpus,
        nodes=-(-ranking.gpus // per_node),
        more_gpus=more,
        peak_bytes=peak,
        limit_bytes=limit,
        at_risk=peak > given.request.workload.risk_memory * limit,
        step_time_s=took,
        slower=None if given.step_s is None else took / given.step_s - 1,
    )


def _idea(name: str, old: int, new: int) -> str:
    less, more = IDEAS.get(name, (f"smaller {name}", f"larger {name}"))
    return more if new > old else less


def _plain(name: str, value: int) -> int | str | bool:
    if name in NAMES:
        return NAMES[name][value]
    return bool(value) if name == "sp" else value

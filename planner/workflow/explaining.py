"""One layout: completed where fields were left out, opened into terms, or mended if it won't do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from planner.errors import InfeasibleError, PlannerError, SpecError
from planner.estimate.inputs import Inputs
from planner.estimate.opening import opened_memory, peak_points
from planner.estimate.params import stage_dense_parameters, stage_expert_parameters
from planner.estimate.record import term_values
from planner.estimate.sync import gradient_sync, two_terabytes
from planner.explanation import Explanation, MemoryTerm, SyncRow, TermValue
from planner.layouts.ranges import FIXABLE, Fix, parse_fix
from planner.layouts.rules import broken_rules
from planner.layouts.table import NAMES, IntArray, Layouts
from planner.plan import Layout, RankedPlan
from planner.rank import Ranking, nearest, rank
from planner.specs.parameters import count_parameters
from planner.units import count, gib, seconds
from planner.workflow.planning import PlanRequest, layout_record, plain, ranked, search, usable_gpus

DEGREES = ("tp", "pp", "cp", "dp")
MENDS = 3
NEAR = 24
"""Nearest layouts among which the cheapest mends of one that is too big are looked for."""


@dataclass(frozen=True)
class Completed:
    """A layout with every field filled in, and whether it is legal and fits."""

    legal: bool
    feasible: bool
    layouts: Layouts
    gpus: int
    reasons: list[str] = field(default_factory=list)
    mends: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> Layout | None:
        """Return the layout as a record."""
        return layout_record(self.layouts, 0) if len(self.layouts) else None


def completed(request: PlanRequest, given: Mapping[str, str]) -> Completed:
    """Return the fastest legal layout that fits and has the given fields.

    If none fits, the lightest; if none is legal, one with defaults and every rule that it breaks.
    Raises SpecError for an unknown field or a value that is no single value.
    """
    fix = parse_fix(given)
    wanted = _single_values(fix)
    gpus, notes = _gpus_of(request, wanted)
    ranking = rank(request.context, gpus, fix)
    if not ranking.tally.legal and "dp" not in wanted and request.gpus is None:
        ranking, gpus, notes = _on_fewer(request, given, ranking, notes)
    if ranking.feasible:
        return Completed(True, True, ranking.layouts.take([0]), gpus, notes=notes)
    if ranking.tally.legal:
        short = ranking.lightest_bytes - ranking.budget_bytes
        share = f"{request.workload.max_memory:.0%} of {gib(ranking.limit_bytes)}"
        over = "out of memory" if ranking.lightest_bytes > ranking.limit_bytes else "too close"
        reason = (
            f"{over}: needs {gib(ranking.lightest_bytes)} per GPU, {gib(ranking.budget_bytes)} "
            f"may be used ({share}); {gib(short)} short"
        )
        lightest = ranking.lightest
        mends = _mends(request, layout_record(lightest, 0), wanted, gpus, cheapest=True)
        return Completed(True, False, lightest, gpus, [reason], mends, notes)
    guess = _filled(request, wanted, gpus)
    reasons = broken_rules(guess, 0, request.context)
    used = prod(int(getattr(guess, name)[0]) for name in DEGREES)
    if used != gpus or used > request.cluster.gpus:
        reasons.insert(0, f"tp*pp*cp*dp = {used:,} is not the {gpus:,} GPUs there are")
    reasons = reasons or [f"no layout of {gpus:,} GPUs has these fields"]
    mends = _mends(request, layout_record(guess, 0), wanted, gpus)
    return Completed(False, False, guess, gpus, reasons, mends, notes)


def _on_fewer(
    request: PlanRequest, given: Mapping[str, str], ranking: Ranking, notes: list[str]
) -> tuple[Ranking, int, list[str]]:
    """Return the search on as many GPUs as any layout with these fields can use."""
    try:
        other, said = search(replace(request, fix=dict(given)), lambda _: None)
    except InfeasibleError:
        return ranking, ranking.gpus, notes
    return other, other.gpus, said


def _single_values(fix: Fix) -> dict[str, int]:
    values: dict[str, int] = {}
    for name, choice in fix.choices.items():
        if (only := choice.only) is None:
            raise SpecError(f"{name}={choice.text}: --layout takes one value a field")
        values[name] = only
    return values


def _gpus_of(request: PlanRequest, wanted: Mapping[str, int]) -> tuple[int, list[str]]:
    """Return the GPUs of the layout: the product of its degrees where tp, pp and dp are given."""
    gpus, notes = usable_gpus(request)
    if request.gpus is None and all(name in wanted for name in ("tp", "pp", "dp")):
        used = prod(wanted.get(name, 1) for name in DEGREES)
        if used < gpus:
            return used, [*notes, f"uses {used:,} of {gpus:,} GPUs"]
    return gpus, notes


def _filled(request: PlanRequest, wanted: Mapping[str, int], gpus: int) -> Layouts:
    """Return the given fields with plain defaults for the others, legal or not."""
    batch = request.workload.global_batch
    row: dict[str, int | str] = dict(plain(1, 1, batch).row(0))
    for name, value in wanted.items():
        row[name] = NAMES[name][value] if name in NAMES else value
    if "dp" not in wanted:
        row["dp"] = max(1, gpus // (int(row["tp"]) * int(row["pp"]) * int(row["cp"])))
    if "sp" not in wanted and int(row["tp"]) > 1 and request.model.experts:
        row["sp"] = 1
    if "schedule" not in wanted and int(row["pp"]) > 1:
        row["schedule"] = "interleaved" if int(row["vpp"]) > 1 else "1f1b"
    row["num_microbatches"] = max(1, batch // (int(row["dp"]) * int(row["micro_batch"])))
    return Layouts.of([row])


def _mends(
    request: PlanRequest,
    layout: Layout,
    wanted: Mapping[str, int],
    gpus: int,
    *,
    cheapest: bool = False,
) -> list[str]:
    """Return the nearest layouts that are legal and fit, as the changes that lead to them.

    With `cheapest`, the fastest of each kind of change among the nearest, by step time.
    """
    healthy, _ = usable_gpus(request)
    try:
        ranking = rank(request.context, gpus if gpus <= healthy else healthy, Fix())
        if not ranking.feasible:
            ranking, _ = search(replace(request, fix={}), lambda _: None)
    except PlannerError:
        return []
    target = {name: _code(layout, name) for name in FIXABLE}
    names = [name for name in FIXABLE if name in wanted] or list(DEGREES)
    out = []
    near = nearest(ranking, target, names, NEAR if cheapest else MENDS)
    for row in _cheapest(ranking, target, names, near) if cheapest else near:
        other = layout_record(ranking.layouts, int(row))
        changed = [
            f"{name}={getattr(layout, name)} -> {getattr(other, name)}"
            for name in (
                *names,
                *(n for n in ("recompute", "zero", "micro_batch") if n not in names),
            )
            if getattr(layout, name) != getattr(other, name)
        ]
        fits = f"{gib(float(ranking.peak_bytes[row]))} of {gib(ranking.limit_bytes)}"
        took = seconds(float(ranking.step_s[row]))
        out.append(f"{', '.join(changed) or 'nothing'}: fits ({fits}), {took} a step")
    return out or [_no_mend(ranking)]


def _cheapest(
    ranking: Ranking, target: Mapping[str, int], names: Sequence[str], rows: IntArray
) -> list[int]:
    """Return the fastest of `rows` for each set of fields that they change, fastest first."""
    found: dict[tuple[str, ...], int] = {}
    for row in sorted(rows, key=lambda row: float(ranking.step_s[row])):
        changed = (n for n in names if getattr(ranking.layouts, n)[row] != target[n])
        found.setdefault(tuple(changed), int(row))
    return list(found.values())[:MENDS]


def _no_mend(ranking: Ranking) -> str:
    return (
        f"no layout of {ranking.gpus:,} GPUs fits: the lightest needs "
        f"{gib(ranking.lightest_bytes)}, {gib(ranking.budget_bytes)} may be used (--max-memory)"
    )


def _code(layout: Layout, name: str) -> int:
    value = getattr(layout, name)
    return NAMES[name].index(value) if name in NAMES else int(value)


def explain(request: PlanRequest, layout: Mapping[str, str]) -> Explanation:
    """Return one layout opened into its terms, compared with the best, mended if it won't do.

    Raises SpecError for an unknown field, InfeasibleError when no GPU is healthy.
    """
    found = completed(request, layout)
    if found.layout is None:
        raise InfeasibleError("; ".join(found.reasons))
    given = parse_fix(layout).choices
    assumed = {n: v for n, v in found.layouts.row(0).items() if n in FIXABLE and n not in given}
    sync = _gradient_sync(request, found.layouts) if found.legal else []
    if not found.legal:
        return Explanation(
            legal=False,
            feasible=False,
            reasons=found.reasons,
            mends=found.mends,
            assumed=assumed,
            layout=found.layout,
            gradient_sync=sync,
            notes=found.notes,
        )
    opened = ranked(request, found.layouts, 0, 1)
    terms = [TermValue.model_validate(t) for t in term_values(request.context, found.layouts, 0)]
    memory = opened_memory(request.context, found.layouts, 0)
    parameters = count_parameters(request.model).total
    return Explanation(
        legal=True,
        feasible=found.feasible,
        reasons=found.reasons,
        mends=found.mends,
        assumed=assumed,
        layout=found.layout,
        estimate=opened.estimate,
        stage_layers=opened.stage_layers,
        terms=terms,
        memory_terms=[MemoryTerm.model_validate(t) for t in memory],
        peak_points=peak_points(request.context, found.layouts, 0),
        compared=_compared(request, opened, found.gpus),
        gradient_sync=sync,
        notes=[*found.notes, two_terabytes(parameters, 2.0)],
    )


def _gradient_sync(request: PlanRequest, layouts: Layouts) -> list[SyncRow]:
    """Return what one synchronisation of the parameters that a GPU holds moves, by scheme.

    The heaviest stage over its dp * cp replicas, in the width the stack reduces gradients in. An
    expert's own, smaller group is taken for the dense one: an upper bound.
    """
    replicas = int(layouts.dp[0] * layouts.cp[0])
    if replicas == 1:
        return []
    x = Inputs(*request.context, layouts)
    held = float((stage_dense_parameters(x) + stage_expert_parameters(x)).max())
    rows = gradient_sync(held, replicas, x.stack.gradient_reduce_bytes)
    return [SyncRow.model_validate({**r._asdict(), "source": str(r.source)}) for r in rows]


def _compared(request: PlanRequest, opened: RankedPlan, gpus: int) -> list[str]:
    """Return how the layout compares with the fastest of the same number of GPUs, by part."""
    ranking = rank(request.context, gpus, Fix())
    if not ranking.feasible:
        return []
    best = ranked(request, ranking.layouts, 0, 1)
    mine, theirs = opened.estimate, best.estimate
    slower = mine.step_time_s / theirs.step_time_s - 1
    place = int((ranking.step_s < mine.step_time_s * (1 - 1e-12)).sum()) + 1
    if slower <= 1e-9:
        return [f"this is the fastest of {count(ranking.feasible)} layouts that fit"]
    lines = [
        f"{slower:.1%} slower than the best that fits ({best.layout.short()}: "
        f"{seconds(theirs.step_time_s)} a step); {place:,} of {ranking.feasible:,}"
        if opened.feasible
        else f"the best that fits is {best.layout.short()}: {seconds(theirs.step_time_s)} a step"
    ]
    parts = {n: mine.time_s[n] - theirs.time_s.get(n, 0.0) for n in mine.time_s}
    for name, lost in sorted(parts.items(), key=lambda item: -abs(item[1])):
        if abs(lost) > 0.002 * theirs.step_time_s:
            lines.append(f"{name}: {'+' if lost > 0 else '-'}{seconds(abs(lost))}")
    return lines

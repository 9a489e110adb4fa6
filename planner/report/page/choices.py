"""What a plan was chosen among, and what other hardware would do to it: two tables of the page."""

from __future__ import annotations

from planner.plan import Plan, Sensitivity, Size, WhatIf, option_text
from planner.report.page.markup import Html, TableCell, section, table, tag
from planner.report.ranked import OPTIONS
from planner.report.tradeoffs import ONE_SIDED, amount, slope
from planner.units import GIB, seconds


def sizes(plan: Plan) -> Html:
    """Return every node count and batch that was looked at, the chosen one marked."""
    chosen = [OPTIONS[name] for name in plan.best.options]
    headings = ["nodes", "batch", *chosen, "step", "GiB", plan.objective.unit]
    headings.append("best layout, or why none")
    first = (plan.best.layout.gpus, plan.best.global_batch, plan.best.options)
    rows = [_size(plan, size) for size in plan.sizes]
    marked = {
        row: "best" if (size.gpus, size.global_batch, size.options) == first else "off"
        for row, size in enumerate(plan.sizes)
        if not size.layout or (size.gpus, size.global_batch, size.options) == first
    }
    return section(
        "sizes",
        "Nodes and batches",
        tag("p", f"Chosen by {plan.objective.name}: every one of these was looked at."),
        table(
            headings,
            rows,
            kinds=["n", "n", *["k"] * len(chosen), "n", "n", "n", "k"],
            sortable=True,
            marked=marked,
        ),
    )


def _size(plan: Plan, size: Size) -> list[TableCell]:
    job: list[TableCell] = [
        (f"{size.nodes:,}", size.nodes),
        (f"{size.global_batch:,}", size.global_batch),
        *(option_text(value) for value in size.options.values()),
    ]
    if not size.layout or size.step_time_s is None or size.value is None:
        return [*job, "", "", "", size.reason]
    peak = (size.peak_bytes or 0.0) / GIB
    return [
        *job,
        (seconds(size.step_time_s), size.step_time_s),
        (f"{peak:.1f}", peak),
        (amount(size.value, plan.objective).split()[0], size.value),
        size.layout.short(),
    ]


def hardware(plan: Plan) -> Html:
    """Return what halving and doubling each hardware figure does to the best plan."""
    factors = [case.factor for case in plan.sensitivity[0].cases]
    headings = ["figure"]
    for factor in factors:
        headings += [f"this plan at x {factor:g}", f"best at x {factor:g}"]
    base = plan.best.estimate.step_time_s
    rows = [_figure(row, base) for row in plan.sensitivity]
    about = (
        "Step time with one figure changed. The elasticity is per cent of step time for each per "
        "cent of the figure."
    )
    if any(row.why_none for row in plan.sensitivity):
        about += f" {ONE_SIDED}."
    kinds = ["k", *["n", "k"] * len(factors), "n"]
    return section(
        "hardware",
        "What other hardware would do",
        tag("p", about),
        table([*headings, "elasticity"], rows, kinds=kinds),
    )


def _figure(row: Sensitivity, base_s: float) -> list[TableCell]:
    cells: list[TableCell] = [row.about]
    for case in row.cases:
        cells += [_own(case, base_s), _best(case, base_s)]
    return [*cells, slope(row)]


def _own(case: WhatIf, base_s: float) -> str:
    if not case.first_fits or case.first_step_time_s is None:
        return "no room"
    return f"{case.first_step_time_s / base_s - 1:+.1%}"


def _best(case: WhatIf, base_s: float) -> str:
    if case.layout is None or case.step_time_s is None:
        return "nothing fits"
    if case.same_layout:
        return "the same"
    return f"{case.layout.short()} ({case.step_time_s / base_s - 1:+.1%})"

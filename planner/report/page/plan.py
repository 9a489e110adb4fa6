"""The page of a plan: what to expect, what else there is, what it costs, where it runs."""

from __future__ import annotations

from collections.abc import Sequence

from planner.plan import Estimate, Plan, RankedPlan
from planner.report.page import choices, figures
from planner.report.page.commands import Command, commands
from planner.report.page.document import Section, document
from planner.report.page.gantt import gantt
from planner.report.page.markup import (
    Html,
    TableCell,
    bullets,
    cards,
    figure,
    join,
    panels,
    section,
    table,
    tag,
)
from planner.report.page.placement import placement_map
from planner.report.ranked import COLUMNS, JOB, same_everywhere, shown_fields
from planner.simulation import Simulated
from planner.units import GIB, count, gib, seconds

MEMORY_TABS = 6


def plan_page(
    plan: Plan, items: Sequence[Command], *, tie: float, pipeline: Simulated | None = None
) -> str:
    """Return the page of a plan; step times within `tie` (a share) of the best are marked as ties.

    `pipeline` is the best plan's, as `simulate` runs it; without it there is no such section.
    Raises SpecError when the charts' library is not installed.
    """
    request, best = plan.request, plan.best
    work, cluster = request.workload, request.cluster
    used = best.layout.gpus
    gpus = f"{used:,}" if used == cluster.gpus else f"{used:,} of {cluster.gpus:,}"
    subtitle = (
        f"{gpus} GPUs, {cluster.nodes:,} nodes of {cluster.node.gpus} {cluster.accelerator.name}; "
        f"{work.global_batch:,} sequences of {work.seq_tokens:,} tokens a step "
        f"({count(work.tokens)}), {work.precision.value}, {work.optimizer.value}, "
        f"stack {work.stack}"
    )
    headline = join(_headline(best), tag("p", "The layout: ", tag("code", best.layout.short())))
    parts = [
        Section("plans", "Plans", _plans(plan, tie)),
        Section("time", "Time", _time(plan)),
        Section("memory", "Memory", _memory(plan)),
        Section("front", "Pareto front", _front(plan)),
    ]
    if plan.sizes:
        parts.append(Section("sizes", "Sizes", choices.sizes(plan)))
    if plan.sensitivity:
        parts.append(Section("hardware", "Hardware", choices.hardware(plan)))
    if pipeline:
        body = section("pipeline", "The pipeline of the best plan", gantt(pipeline))
        parts.append(Section("pipeline", "Pipeline", body))
    if plan.placement:
        parts.append(Section("placement", "Placement", _placement(plan)))
    if items:
        body = section("commands", "Commands", commands(items))
        parts.append(Section("commands", "Commands", body))
    parts.append(Section("notes", "Notes", _notes(plan, tie)))
    title = f"{request.model.name} on {cluster.name}"
    return document(title, subtitle, headline, parts)


def _headline(best: RankedPlan) -> Html:
    cost = best.estimate
    share = cost.memory.peak_bytes / cost.memory.limit_bytes
    risk = ", close to the limit" if cost.memory.at_risk else ""
    waits = "of the step, what the busiest stage waits" if best.layout.pp > 1 else ""
    return cards(
        [
            ("Step time", seconds(cost.step_time_s), _range(cost)),
            ("Tokens/s", count(cost.tokens_per_s), ""),
            ("Tokens/s a GPU", f"{cost.tokens_per_s_per_gpu:,.0f}", ""),
            ("MFU", f"{cost.mfu:.1%}", f"{cost.mfu_causal:.1%} with causal attention halved"),
            ("TFLOP/s a GPU", f"{cost.tflops_per_gpu:,.0f}", ""),
            ("Pipeline bubble", f"{cost.bubble_fraction:.1%}", waits),
            ("Peak memory", gib(cost.memory.peak_bytes), f"{share:.0%} of what there is{risk}"),
        ]
    )


def _range(cost: Estimate) -> str:
    """Return how sure the step time is, in words."""
    if not (cost.step_time_low_s and cost.step_time_high_s):
        return ""
    low, high = seconds(cost.step_time_low_s), seconds(cost.step_time_high_s)
    return f"4 of 5 published runs of such a stack would take {low} to {high}"


def _plans(plan: Plan, tie: float) -> Html:
    """Return the ranked table, with what the columns leave out."""
    layouts = [p.layout for p in plan.plans]
    fields = shown_fields(layouts)
    jobs = [f for f in JOB if len({getattr(p, f) for p in plan.plans}) > 1]
    # what it takes comes first: a phone shows half the columns until it is swept sideways
    headings = ["#", "step", "vs best", *(JOB[f] for f in jobs), *(COLUMNS[f] for f in fields)]
    headings += ["tokens/s/GPU", "MFU", "bubble", "GiB"]
    kinds = [
        *["n"] * 3,
        *("n" for _ in jobs),
        *("n" if isinstance(getattr(layouts[0], f), int) else "k" for f in fields),
    ]
    kinds += ["n"] * 4
    rows = [_row(p, jobs, fields, plan.best, tie) for p in plan.plans]
    marked = {i: _mark(p) for i, p in enumerate(plan.plans) if _mark(p)}
    limit = gib(plan.best.estimate.memory.limit_bytes)
    same = same_everywhere(layouts, fields)
    remarks = [
        f"GiB is the peak of the fullest GPU, which has {limit} to give.",
        f"In every row: {same}." if same else "",
        f"\u2248: within {tie:.0%} of the best, which is less than the estimate's own error.",
        "*: fits, but so close to the limit that allocators may thrash."
        if any(p.estimate.memory.at_risk for p in plan.plans)
        else "",
        *(f"#{p.rank} is {p.note}." for p in plan.plans if p.note),
    ]
    looked = (
        f"{plan.search.enumerated:,} layouts enumerated, {plan.search.legal:,} legal, "
        f"{plan.search.feasible:,} fit in memory."
    )
    return section(
        "plans",
        "Ranked plans",
        tag("p", looked),
        table(headings, rows, kinds=kinds, sortable=True, marked=marked),
        bullets(r for r in remarks if r),
    )


def _row(
    plan: RankedPlan, jobs: Sequence[str], fields: Sequence[str], best: RankedPlan, tie: float
) -> list[TableCell]:
    cost, lay = plan.estimate, plan.layout
    slower = cost.step_time_s / best.estimate.step_time_s - 1
    near = " \u2248" if plan.tie or 0 < slower <= tie else ""
    peak = cost.memory.peak_bytes / GIB
    star = "*" if cost.memory.at_risk else ""
    degrees: list[TableCell] = [_word(getattr(lay, f)) for f in fields]
    return [
        (f"#{plan.rank}", plan.rank),
        (seconds(cost.step_time_s), cost.step_time_s),
        (f"{slower:+.1%}{near}" if slower else "best", slower),
        *((f"{getattr(plan, f) or 0:,}", getattr(plan, f) or 0) for f in jobs),
        *degrees,
        (f"{cost.tokens_per_s_per_gpu:,.0f}", cost.tokens_per_s_per_gpu),
        (f"{cost.mfu:.1%}", cost.mfu),
        (f"{cost.bubble_fraction:.1%}", cost.bubble_fraction),
        (f"{peak:.1f}{star}" if plan.feasible else f"{peak:.1f} does not fit", peak),
    ]


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "-" if value == "none" else str(value)


def _mark(plan: RankedPlan) -> str:
    if plan.rank == 1:
        return "best"
    if not plan.feasible:
        return "bad"
    return "off" if plan.note else ""


def _time(plan: Plan) -> Html:
    cost = plan.best.estimate
    chart, bars = figures.time_chart(plan.plans)
    terms = sorted(((n, a) for n, a in cost.time_s.items() if a > 0), key=lambda i: (-i[1], i[0]))
    rows: list[list[TableCell]] = [
        [name, (seconds(amount), amount), f"{amount / cost.step_time_s:.1%}"]
        for name, amount in terms
    ]
    words = ", ".join(f"{name} {amount / cost.step_time_s:.0%}" for name, amount in terms[:4])
    about = f"Stacked bars of the step time of each plan. The best: {words}."
    return section(
        "time",
        "Where the step goes",
        tag(
            "p",
            "Exposed seconds: what is hidden behind other work does not count. "
            "Whiskers hold 4 of 5 published runs of such a stack."
            if cost.step_time_high_s
            else "Exposed seconds: what is hidden behind other work does not count.",
        ),
        figure("time-chart", chart, about=about, rows=bars),
        tag(
            "details",
            tag("summary", "The best plan in figures"),
            table(["part", "time", "share"], rows, kinds=["k", "n", "n"]),
        ),
    )


def _memory(plan: Plan) -> Html:
    shown = plan.plans[:MEMORY_TABS]
    items = [(f"#{p.rank}", _memory_of(p, index)) for index, p in enumerate(shown)]
    return section("memory", "Memory of one GPU by pipeline stage", panels("memory", items))


def _memory_of(plan: RankedPlan, index: int) -> Html:
    memory = plan.estimate.memory
    chart, bars = figures.memory_chart(plan)
    fullest = max(range(len(memory.stages)), key=lambda i: memory.stages[i].total)
    layout = plan.layout.short().replace(",", " ")
    about = (
        f"Plan {plan.rank}, {layout}: stage {fullest} is the fullest, with "
        f"{gib(memory.peak_bytes)} of {gib(memory.limit_bytes)}."
    )
    names = list(figures.MEMORY_COLOURS)
    rows: list[list[TableCell]] = [
        [str(i), *((f"{getattr(s, n) / GIB:.2f}", getattr(s, n)) for n in (*names, "total"))]
        for i, s in enumerate(memory.stages)
    ]
    return join(
        tag("p", about),
        figure(f"memory-chart-{index}", chart, about=about, rows=bars),
        tag(
            "details",
            tag("summary", "GiB of every stage"),
            table(["stage", *names, "total"], rows, kinds=["n"] * (len(names) + 2)),
        ),
    )


def _front(plan: Plan) -> Html:
    best = figures.front([p for p in plan.plans if p.feasible])
    words = ", ".join(
        f"#{p.rank} ({seconds(p.estimate.step_time_s)}, {gib(p.estimate.memory.peak_bytes)})"
        for p in best
    )
    text = f"Of the plans listed, none is both faster and lighter than these: {words}."
    return section(
        "front",
        "Step time against memory",
        tag("p", text),
        figure("front-chart", figures.front_chart(plan.plans, plan.pareto), about=text),
    )


def _placement(plan: Plan) -> Html:
    if plan.placement is None or not plan.placement.ranks:
        return section("placement", "Placement", tag("p", "The plan has no placement."))
    return section("placement", "Placement", placement_map(plan.placement))


def _notes(plan: Plan, tie: float) -> Html:
    """Return the plan's notes, how sure it is, and why other layouts fell out."""
    rejected = sorted(plan.search.rejected.items(), key=lambda item: (-item[1], item[0]))
    rows: list[list[TableCell]] = [[(f"{number:,}", number), reason] for reason, number in rejected]
    sure = (
        f"Step times are estimates. Two that differ by less than {tie:.0%} cannot be told apart; "
        "try both for a few steps, and calibrate the cluster with what you measure."
    )
    sources = [
        f"Model: {plan.request.model.source}" if plan.request.model.source else "",
        f"Cluster: {plan.request.cluster.source}" if plan.request.cluster.source else "",
    ]
    return section(
        "notes",
        "Notes",
        bullets([*plan.notes, sure, *(s for s in sources if s)]),
        tag("h3", "Why layouts fell out"),
        table(["layouts", "reason"], rows, kinds=["n", "t"]),
    )

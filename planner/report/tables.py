"""The report of a plan: what was found, what it costs, why it won.

Reports take records and lay them out; differences and shares of what a record holds are the only
arithmetic here. Everything fits 80 columns, and colour says nothing that letters do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.plan import Estimate, Layout, Plan, Search
from planner.report.bars import single
from planner.report.losing import why_lost
from planner.report.memory import memory_report
from planner.report.parts import indented, notes, title
from planner.report.placing import placement_lines
from planner.report.ranked import ranked_table
from planner.report.text import printable
from planner.report.tradeoffs import objective_lines, tradeoffs
from planner.units import count, many, seconds

REASONS_SHOWN = 6


def plan_report(plan: Plan) -> RenderableType:
    """Return the whole report of `meshwright plan`."""
    contenders = [p for p in plan.plans if not p.note]
    parts: list[RenderableType] = [
        heading(plan),
        search_line(plan.search),
        Text(),
        ranked_table(plan.plans, plan.objective.name),
        Text(),
        title("The winner"),
        indented(plan.best.layout.short()),
        *objective_lines(plan),
        layers_line(plan.best.layout, plan.best.estimate, plan.best.stage_layers),
        Text(),
        time_report(plan.best.estimate),
        Text(),
        memory_report(plan.best.estimate.memory),
    ]
    if plan.placement:
        lines = placement_lines(plan.placement)
        parts += [Text(), title("Placement"), *map(indented, lines)]
    if len(contenders) > 1:
        parts += [Text(), *why_lost(plan, contenders[1])]
    parts.append(tradeoffs(plan))
    parts += rejections(plan.search)
    parts += notes(plan.notes)
    return Group(*parts)


def heading(plan: Plan) -> Text:
    """Return what was asked, on one or two lines."""
    work, cluster = plan.request.workload, plan.request.cluster
    used = plan.best.layout.gpus
    nodes = many(cluster.nodes, "node")
    gpus = f"{used} GPUs" if used == cluster.gpus else f"{used} of {cluster.gpus} GPUs"
    first = Text(printable(plan.request.model.name), "bold").append(
        f" on {printable(cluster.name)}: {gpus}, {nodes} of {cluster.node.gpus} "
        f"{printable(cluster.accelerator.name)}\n",
        "not bold",
    )
    words = [
        f"{work.global_batch} sequences of {work.seq_tokens} tokens a step ({count(work.tokens)})",
        work.precision.value,
        work.optimizer.value,
        f"stack {printable(work.stack)}",
    ]
    return first.append(", ".join(words), "not bold")


def search_line(search: Search) -> Text:
    """Return how many layouts were looked at, in one line."""
    return Text(
        f"{search.enumerated:,} layouts enumerated, {search.legal:,} legal, "
        f"{search.feasible:,} fit in memory"
    )


def layers_line(
    layout: Layout, estimate: Estimate, stage_layers: Sequence[Sequence[int]]
) -> RenderableType:
    """Return micro-batches, layers per stage, dropped tokens and the causal MFU, in a sentence."""
    batches = many(layout.num_microbatches, "micro-batch", "micro-batches")
    words = [f"{batches} of {layout.micro_batch} a step"]
    held = [sum(chunks) for chunks in stage_layers]
    if len(held) > 1:
        words.append(f"layers per stage: {_runs(held)}")
    if estimate.dropped_tokens > 0:
        words.append(f"{estimate.dropped_tokens:.2%} of tokens dropped by expert capacity")
    words.append(f"MFU {estimate.mfu_causal:.1%} when causal attention counts half")
    if estimate.step_time_low_s and estimate.step_time_high_s:
        low, high = seconds(estimate.step_time_low_s), seconds(estimate.step_time_high_s)
        words.append(f"4 of 5 published runs of such a stack would take {low} to {high} a step")
    return indented("; ".join(words))


def _runs(values: Sequence[int]) -> str:
    """Return '7, 14 x 8, 7' for equal neighbours."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][1] == value:
            runs[-1][0] += 1
        else:
            runs.append([1, value])
    return ", ".join(f"{n} x {v}" if n > 1 else str(v) for n, v in runs)


def time_report(estimate: Estimate) -> RenderableType:
    """Return where the step time goes: one bar a term, longest first."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    for name, amount in by_size(estimate.time_s):
        share = amount / estimate.step_time_s
        table.add_row(f"  {printable(name)}", seconds(amount), f"{share:.1%}", single(share, 40))
    return Group(title(f"Where the {seconds(estimate.step_time_s)} of a step go"), table)


def by_size(amounts: dict[str, float]) -> list[tuple[str, float]]:
    """Return the amounts that are not nothing, largest first."""
    return sorted(((n, a) for n, a in amounts.items() if a > 0), key=lambda i: (-i[1], i[0]))


def rejections(search: Search) -> list[RenderableType]:
    """Return the most frequent reasons why layouts fell out."""
    if not search.rejected:
        return []
    ranked = sorted(search.rejected.items(), key=lambda item: (-item[1], item[0]))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    # a single one left over is named: the line that would count it is as long
    shown = REASONS_SHOWN + (len(ranked) == REASONS_SHOWN + 1)
    for reason, number in ranked[:shown]:
        table.add_row(f"  {number:,}", Text(printable(reason)))
    if more := ranked[shown:]:
        rest = sum(number for _, number in more)
        table.add_row(f"  {rest:,}", f"for {len(more)} other reasons (--json has them all)")
    return [Text(), title("Layouts rejected"), table]

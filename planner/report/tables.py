"""The report of a plan: what was found, what it costs, why it won.

Reports take records and lay them out; differences and shares of what a record holds are the only
arithmetic here. Everything fits 80 columns, and colour says nothing that letters do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from planner.plan import Estimate, Layout, Plan, RankedPlan, Search
from planner.report.bars import single
from planner.report.memory import memory_report
from planner.report.placing import placement_lines
from planner.report.text import printable
from planner.units import GIB, count, gib, seconds

ALWAYS = ("tp", "pp", "dp", "zero")
COLUMNS = {
    "tp": "tp",
    "pp": "pp",
    "vpp": "vpp",
    "cp": "cp",
    "ep": "ep",
    "etp": "etp",
    "dp": "dp",
    "dp_replicate": "dpr",
    "zero": "zero",
    "micro_batch": "mb",
    "recompute": "recomp",
    "sp": "sp",
    "schedule": "schedule",
    "offload": "offload",
    "dp_sync": "dp sync",
}
"""Layout field -> heading; the fields left out follow from these and the request."""
PLAIN = {"vpp": 1, "cp": 1, "ep": 1, "etp": 1, "dp_replicate": 1, "recompute": "none"}
PLAIN |= {"offload": "none", "dp_sync": "all-reduce"}
"""Values that go without saying when every row has them."""
OPTIONAL = ("bubble", "MFU")
"""Columns that a narrow terminal does without, in this order."""
REASONS_SHOWN = 6


def plan_report(plan: Plan) -> RenderableType:
    """Return the whole report of `meshwright plan`."""
    contenders = [p for p in plan.plans if not p.note]
    parts: list[RenderableType] = [
        heading(plan),
        search_line(plan.search),
        Text(),
        ranked_table(plan.plans),
        Text(),
        title(f"The winner: {plan.best.layout.short()}"),
        layers_line(plan.best.layout, plan.best.estimate, plan.best.stage_layers),
        Text(),
        time_report(plan.best.estimate),
        Text(),
        memory_report(plan.best.estimate.memory),
    ]
    if plan.placement:
        lines = placement_lines(plan.placement, plan.request.cluster)
        parts += [Text(), title("Placement"), *map(indented, lines)]
    if len(contenders) > 1:
        parts += [Text(), *why_lost(contenders[0], contenders[1])]
    parts += rejections(plan.search)
    parts += notes(plan.notes)
    return Group(*parts)


def title(text: str) -> Text:
    """Return a section's heading."""
    return Text(printable(text), "bold")


def indented(text: str) -> RenderableType:
    """Return `text` two columns in, also where it wraps."""
    grid = Table.grid(padding=0)
    grid.add_column(width=2)
    grid.add_column(overflow="fold")
    grid.add_row("", Text(printable(text)))
    return grid


def notes(sentences: Iterable[str]) -> list[RenderableType]:
    """Return the notes as a list, under a heading; nothing when there are none."""
    rows = [indented(f"- {sentence}") for sentence in sentences]
    return [Text(), title("Notes"), *rows] if rows else []


def heading(plan: Plan) -> Text:
    """Return what was asked, on one or two lines."""
    work, cluster = plan.request.workload, plan.request.cluster
    used = plan.best.layout.gpus
    gpus = f"{used} GPUs" if used == cluster.gpus else f"{used} of {cluster.gpus} GPUs"
    first = Text(printable(plan.request.model.name), "bold").append(
        f" on {printable(cluster.name)}: {gpus}, {cluster.nodes} nodes of {cluster.node.gpus} "
        f"{printable(cluster.accelerator.name)}\n",
        "not bold",
    )
    words = [
        f"{work.global_batch} sequences of {work.seq_tokens} tokens a step ({count(work.tokens)})",
        work.precision.value,
        f"stack {printable(work.stack)}",
    ]
    return first.append(", ".join(words), "not bold")


def search_line(search: Search) -> Text:
    """Return how many layouts were looked at, in one line."""
    return Text(
        f"{search.enumerated:,} layouts enumerated, {search.legal:,} legal, "
        f"{search.feasible:,} fit in memory"
    )


class _Ranked:
    """The table of ranked layouts, in the roomiest form that the width allows.

    First without the columns in `OPTIONAL`, then with each layout as one text that wraps.
    """

    def __init__(self, plans: Sequence[RankedPlan]) -> None:
        self.plans = plans

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fields = shown_fields([p.layout for p in self.plans])
        unbounded = options.update(width=1000)
        for dropped in range(len(OPTIONAL) + 1):
            table = self._table(fields, OPTIONAL[:dropped])
            if Measurement.get(console, unbounded, table).maximum <= options.max_width:
                yield table
                return
        yield self._table(None, ())

    def _table(self, fields: Sequence[str] | None, dropped: Sequence[str]) -> Table:
        rows = [_cells(plan, fields, dropped) for plan in self.plans]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        for heading in rows[0]:
            text = heading == "layout"
            table.add_column(
                heading, justify="left" if text else "right", no_wrap=not text, overflow="fold"
            )
        for plan, row, after in zip(self.plans, rows, [*self.plans[1:], None], strict=True):
            table.add_row(
                *row.values(),
                style="bold" if plan.rank == 1 else "dim" if plan.note else "",
                end_section=after is not None and bool(after.note) and not plan.note,
            )
        return table


def ranked_table(plans: Sequence[RankedPlan]) -> RenderableType:
    """Return the ranked table: layout fields that vary or matter, the figures, the footnotes."""
    layouts = [p.layout for p in plans]
    limit = gib(plans[0].estimate.memory.limit_bytes)
    lines: list[RenderableType] = [_Ranked(plans)]
    lines.append(indented(f"GiB: peak memory of the fullest GPU; it has {limit} to give"))
    if same := same_everywhere(layouts, shown_fields(layouts)):
        lines.append(indented(f"in every row: {same}"))
    if any(p.estimate.memory.at_risk and not _over(p.estimate) for p in plans):
        lines.append(indented("* fits, but so close to the limit that allocators may thrash"))
    if any(_over(p.estimate) for p in plans):
        lines.append(indented("! does not fit in memory"))
    lines += [indented(f"#{p.rank} is {p.note}") for p in plans if p.note]
    return Group(*lines)


def shown_fields(layouts: Sequence[Layout]) -> list[str]:
    """Return the layout fields worth a column: the main degrees, and whatever varies."""
    return [f for f in COLUMNS if f in ALWAYS or _varies(layouts, f)]


def same_everywhere(layouts: Sequence[Layout], fields: Sequence[str]) -> str:
    """Return 'field=value' of fields without a column whose value does not go without saying."""
    first = layouts[0]
    rest = [f for f in COLUMNS if f not in fields and not _implied(layouts, f)]
    pairs = ((f, getattr(first, f)) for f in rest)
    return ", ".join(f"{f}={_word(v)}" for f, v in pairs if PLAIN.get(f) != v)


def _varies(layouts: Sequence[Layout], field: str) -> bool:
    return len({getattr(x, field) for x in layouts}) > 1 and not _implied(layouts, field)


def _implied(layouts: Sequence[Layout], field: str) -> bool:
    """Return whether other columns say it: sp goes with tp, the schedule with pp and vpp."""
    if field == "sp":
        return all(x.sp == (x.tp > 1) for x in layouts)
    if field == "schedule":
        return all(x.schedule == _usual_schedule(x) for x in layouts)
    return False


def _usual_schedule(layout: Layout) -> str:
    if layout.pp == 1:
        return "none"
    return "interleaved" if layout.vpp > 1 else "1f1b"


def _cells(
    plan: RankedPlan, fields: Sequence[str] | None, dropped: Sequence[str]
) -> dict[str, str]:
    """Return heading -> text of one row; without `fields` the layout is one text."""
    estimate, memory = plan.estimate, plan.estimate.memory
    mark = "!" if _over(estimate) else "*" if memory.at_risk else " "
    cells = {"#": str(plan.rank)}
    if fields is None:
        cells["layout"] = plan.layout.short().replace(",", " ")
    else:
        cells |= {COLUMNS[f]: _word(getattr(plan.layout, f)) for f in fields}
    cells |= {
        "step": seconds(estimate.step_time_s),
        "tok/s/GPU": f"{estimate.tokens_per_s_per_gpu:,.0f}",
        "MFU": f"{estimate.mfu:.1%}",
        "bubble": f"{estimate.bubble_fraction:.1%}",
        "GiB": f"{memory.peak_bytes / GIB:.1f}{mark}",
    }
    return {name: text for name, text in cells.items() if name not in dropped}


def _over(estimate: Estimate) -> bool:
    return estimate.memory.peak_bytes > estimate.memory.limit_bytes


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return {"none": "-", "selective": "sel"}.get(str(value), str(value))


def layers_line(
    layout: Layout, estimate: Estimate, stage_layers: Sequence[Sequence[int]]
) -> RenderableType:
    """Return micro-batches, layers per stage, dropped tokens and the causal MFU, in a sentence."""
    words = [f"{layout.num_microbatches} micro-batches of {layout.micro_batch} a step"]
    held = [sum(chunks) for chunks in stage_layers]
    if len(held) > 1:
        words.append(f"layers per stage: {_runs(held)}")
    if estimate.dropped_tokens > 0:
        words.append(f"{estimate.dropped_tokens:.2%} of tokens dropped by expert capacity")
    words.append(f"MFU {estimate.mfu_causal:.1%} when causal attention counts half")
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


def why_lost(best: RankedPlan, second: RankedPlan) -> list[RenderableType]:
    """Return the runner-up's difference to the winner, term by term."""
    ours, theirs = best.estimate, second.estimate
    slower = theirs.step_time_s - ours.step_time_s
    lines: list[RenderableType] = [
        title(f"Why #{second.rank} lost: {second.layout.short()}"),
        indented(
            f"slower by {seconds(slower)} ({slower / ours.step_time_s:.1%}), "
            f"peak memory {(theirs.memory.peak_bytes - ours.memory.peak_bytes) / GIB:+.2f} GiB"
        ),
    ]
    names = list(dict.fromkeys((*ours.time_s, *theirs.time_s)))
    gaps = {n: theirs.time_s.get(n, 0.0) - ours.time_s.get(n, 0.0) for n in names}
    told = [(n, g) for n, g in gaps.items() if abs(g) >= 5e-4 * ours.step_time_s]
    told.sort(key=lambda item: (-abs(item[1]), item[0]))
    words = [f"{printable(n)} {'+' if g > 0 else '-'}{seconds(abs(g))}" for n, g in told]
    if words:
        lines.append(indented(", ".join(words)))
    return lines


def rejections(search: Search) -> list[RenderableType]:
    """Return the most frequent reasons why layouts fell out."""
    if not search.rejected:
        return []
    ranked = sorted(search.rejected.items(), key=lambda item: (-item[1], item[0]))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for reason, number in ranked[:REASONS_SHOWN]:
        table.add_row(f"  {number:,}", Text(printable(reason)))
    if more := ranked[REASONS_SHOWN:]:
        rest = sum(number for _, number in more)
        table.add_row(f"  {rest:,}", f"for {len(more)} other reasons (--json has them all)")
    return [Text(), title("Layouts rejected"), table]

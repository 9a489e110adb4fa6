"""The ranked table: layout fields that vary or matter, and the figures that people compare."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

from planner.plan import Layout, RankedPlan, option_text
from planner.report.parts import indented
from planner.units import GIB, gib, seconds

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
OPTIONS = {
    "precision": "precision",
    "stack": "stack",
    "recompute_modules": "modules",
    "recompute_method": "method",
    "recompute_layers": "layers",
}
"""Field of the workload that --search chose -> heading, where rows differ in it."""
JOB = {"nodes": "nodes", "global_batch": "batch"}
"""Field of a row -> heading, where rows differ in it."""
OPTIONAL = ("bubble", "MFU", "tok/s/GPU")
"""Columns that a narrow terminal does without, in this order."""


class _Ranked:
    """The table of ranked layouts, in the roomiest form that the width allows.

    First without the columns in `OPTIONAL`, then with each layout as one text that wraps.
    """

    def __init__(self, plans: Sequence[RankedPlan], objective: str) -> None:
        self.plans = plans
        self.objective = objective

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fields = shown_fields([p.layout for p in self.plans])
        unbounded = options.update(width=1000)
        optional = OPTIONAL[:-1] if self.objective == "tokens-per-gpu" else OPTIONAL
        for dropped in range(len(optional) + 1):
            table = self._table(fields, optional[:dropped])
            if Measurement.get(console, unbounded, table).maximum <= options.max_width:
                yield table
                return
        yield self._table(None, ())

    def _table(self, fields: Sequence[str] | None, dropped: Sequence[str]) -> Table:
        jobs = [f for f in JOB if len({getattr(p, f) for p in self.plans}) > 1]
        jobs += [f for f in OPTIONS if len(_chosen(self.plans, f)) > 1]
        rows = [_cells(plan, fields, dropped, jobs, self.objective) for plan in self.plans]
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


def ranked_table(plans: Sequence[RankedPlan], objective: str = "step-time") -> RenderableType:
    """Return the ranked table: layout fields that vary or matter, the figures, the footnotes."""
    layouts = [p.layout for p in plans]
    limit = gib(plans[0].estimate.memory.limit_bytes)
    lines: list[RenderableType] = [_Ranked(plans, objective)]
    lines.append(indented(f"GiB: peak memory of the fullest GPU; it has {limit} to give"))
    same = [same_everywhere(layouts, shown_fields(layouts))]
    same += [f"{f}={t}" for f in OPTIONS for t in _only(plans, f)]
    if any(same):
        lines.append(indented(f"in every row: {', '.join(filter(None, same))}"))
    if any(p.tie for p in plans):
        lines.append(indented("\u2248 too close to #1 to be told apart from it"))
    if any(p.estimate.memory.at_risk and not _over(p) for p in plans):
        lines.append(indented("* fits, but so close to the limit that allocators may thrash"))
    if any(_over(p) for p in plans):
        lines.append(indented("! does not fit in memory"))
    lines += [indented(f"#{p.rank} is {p.note}") for p in plans if p.note]
    return Group(*lines)


def _chosen(plans: Sequence[RankedPlan], field: str) -> set[str]:
    """Return what --search chose for a field, over all rows that it was searched for."""
    return {option_text(p.options[field]) for p in plans if field in p.options}


def _only(plans: Sequence[RankedPlan], field: str) -> list[str]:
    """Return the one choice of all rows, where there is one that does not go without saying."""
    chosen = _chosen(plans, field)
    return [*chosen] if len(chosen) == 1 and chosen != {"-"} else []


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
    plan: RankedPlan,
    fields: Sequence[str] | None,
    dropped: Sequence[str],
    jobs: Sequence[str],
    objective: str,
) -> dict[str, str]:
    """Return heading -> text of one row; without `fields` the layout is one text."""
    estimate, memory = plan.estimate, plan.estimate.memory
    mark = "!" if _over(plan) else "*" if memory.at_risk else " "
    cells = {"#": str(plan.rank)}
    cells |= {JOB[f]: f"{getattr(plan, f) or 0:,}" for f in jobs if f in JOB}
    cells |= {OPTIONS[f]: option_text(plan.options.get(f)) for f in jobs if f in OPTIONS}
    if fields is None:
        cells["layout"] = plan.layout.short().replace(",", " ")
    else:
        cells |= {COLUMNS[f]: _word(getattr(plan.layout, f)) for f in fields}
    cells |= {
        "step": ("\u2248" if plan.tie else "") + seconds(estimate.step_time_s),
        **_rates(plan, objective),
        "tok/s/GPU": f"{estimate.tokens_per_s_per_gpu:,.0f}",
        "MFU": f"{estimate.mfu:.1%}",
        "bubble": f"{estimate.bubble_fraction:.1%}",
        "GiB": f"{memory.peak_bytes / GIB:.1f}{mark}",
    }
    return {name: text for name, text in cells.items() if name not in dropped}


def _rates(plan: RankedPlan, objective: str) -> dict[str, str]:
    """Return heading -> text of what the objective counts, where no other column shows it."""
    usd, mwh = plan.usd_per_trillion_tokens, plan.mwh_per_trillion_tokens
    if objective == "cost" and usd is not None:
        return {"USD/T": f"{usd:,.0f}"}
    return {"MWh/T": f"{mwh:,.1f}"} if objective == "energy" and mwh is not None else {}


def _over(plan: RankedPlan) -> bool:
    memory = plan.estimate.memory
    return not plan.feasible or memory.peak_bytes > memory.limit_bytes


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return {"none": "-", "selective": "sel"}.get(str(value), str(value))

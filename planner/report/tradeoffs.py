"""What a plan leaves to choose: node counts and batches, trade-offs, and what the hardware does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.objectives import pareto
from planner.plan import Chosen, FrontPoint, Plan, Sensitivity, Size, WhatIf, option_text
from planner.report.parts import indented, title
from planner.report.ranked import OPTIONS
from planner.report.text import printable
from planner.units import GIB, count, many, seconds

SIZES_SHOWN, POINTS_SHOWN, NEAREST = 12, 6, 3
DEAR = 2.0
"""Layouts of the front that take more GPU time a token than so many times the least are not shown:
the lightest of all may take a hundred times as long."""


def objective_lines(plan: Plan) -> list[RenderableType]:
    """Return what the plan was chosen for, unless that is the step time, and the whole run."""
    goal, run = plan.objective, plan.best.run
    lines: list[RenderableType] = []
    if goal.name != "step-time" and goal.value is not None:
        best = "fewest" if goal.name == "gpus" else "least"
        best = "most" if goal.name == "tokens-per-gpu" else best
        lines.append(indented(f"{best} {printable(goal.name)}: {amount(goal.value, goal)}"))
    if run:
        words = [f"{count(run.tokens)} tokens in {run.steps:,} steps take {long_time(run.seconds)}"]
        words += [f"{count(run.usd)} USD"] if run.usd else []
        words += [f"{run.mwh:,.0f} MWh at the GPUs"] if run.mwh else []
        lines.append(indented(", ".join(words)))
    return lines


def amount(value: float, goal: Chosen) -> str:
    """Return an objective's value with its unit."""
    match goal.name:
        case "step-time":
            return seconds(value)
        case "memory":
            return f"{value / GIB:.1f} GiB"
        case "gpus":
            return f"{value:,.0f} GPUs"
        case "energy":
            return f"{value:,.1f} {printable(goal.unit)}"
        case _:
            return f"{value:,.0f} {printable(goal.unit)}"


def long_time(amount_s: float) -> str:
    """Return the length of a run: '12.3 days', '5.6 hours'."""
    day, hour = 86_400.0, 3600.0
    return f"{amount_s / day:,.1f} days" if amount_s >= 2 * day else f"{amount_s / hour:,.1f} hours"


def sizes_section(plan: Plan) -> list[RenderableType]:
    """Return the best layout of every job worth having: none with fewer GPUs is as fast."""
    told = [size for size in plan.sizes if size.layout]
    if len(told) < 2:
        return _without_answer(plan.sizes)
    shown = _worthwhile(plan, told)
    batches = len({size.global_batch for size in plan.sizes}) > 1
    own = plan.objective.name not in ("step-time", "memory", "gpus")
    table = _table()
    chosen = [OPTIONS[name] for name in shown[0].options]
    headings = ["nodes", *(["batch"] if batches else []), *chosen, "step", "GiB"]
    for heading in [*headings, *([_short_unit(plan.objective)] if own else [])]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best layout", overflow="fold")
    for size in shown:
        table.add_row(*_size_cells(size, plan.objective, batches=batches, own=own))
    more, none = len(told) - len(shown), len(plan.sizes) - len(told)
    words = [f"{more:,} more"] if more else []
    words += [f"{none:,} without an answer"] if none else []
    left = [indented(f"{' and '.join(words)}: --json has them all")] if words else []
    return [Text(), title("The best layout of each size"), table, *left]


def _without_answer(sizes: Sequence[Size]) -> list[RenderableType]:
    """Return why the sizes next to the only answer have none."""
    none = [size for size in sizes if not size.layout]
    if not none:
        return []
    lines = [f"{many(size.nodes, 'node')}: {printable(size.reason)}" for size in none[-NEAREST:]]
    return [Text(), title("Why not fewer"), *map(indented, lines)]


def _worthwhile(plan: Plan, sizes: Sequence[Size]) -> list[Size]:
    """Return the sizes that no smaller one beats in time a token, thinned, the best among them."""
    times = np.array([(size.step_time_s or 0.0) / size.global_batch for size in sizes])
    gpus = np.array([size.gpus for size in sizes], dtype=np.float64)
    first = (plan.best.layout.gpus, plan.best.global_batch, plan.best.options)
    rows = set(pareto((gpus, times)).tolist())
    rows |= {i for i, size in enumerate(sizes) if _job(size) == first}
    if len({size.gpus for size in sizes}) == 1:  # nothing but its options differs
        rows = set(range(len(sizes)))
        sizes = [sizes[i] for i in np.argsort(times, kind="stable")]
    good = [sizes[row] for row in sorted(rows)]
    keys = [_job(size) for size in good]
    kept = {*_evenly(len(good), SIZES_SHOWN), *([keys.index(first)] if first in keys else [])}
    return [good[row] for row in sorted(kept)]


def _job(size: Size) -> tuple[int, int, dict[str, Any]]:
    return size.gpus, size.global_batch, size.options


def _size_cells(size: Size, goal: Chosen, *, batches: bool, own: bool) -> list[str]:
    cells = [f"  {size.nodes:,}", *([f"{size.global_batch:,}"] if batches else [])]
    cells += map(option_text, size.options.values())
    cells.append(seconds(size.step_time_s or 0.0))
    cells.append(f"{(size.peak_bytes or 0.0) / GIB:.1f}")
    digits = 1 if goal.name == "energy" else 0
    cells += [f"{size.value:,.{digits}f}"] if own and size.value is not None else []
    return [*cells, size.layout.short().replace(",", " ") if size.layout else ""]


def _short_unit(goal: Chosen) -> str:
    units = {"cost": "USD/T", "energy": "MWh/T", "tokens-per-gpu": "tok/s/GPU"}
    return units.get(goal.name, printable(goal.unit))


def _evenly(number: int, most: int) -> list[int]:
    if number <= most:
        return list(range(number))
    return [round(i * (number - 1) / (most - 1)) for i in range(most)]


def tradeoff_section(plan: Plan) -> list[RenderableType]:
    """Return some layouts of the Pareto front, from the fastest to the lightest."""
    points = plan.pareto
    if len(points) < 2:
        return []
    several = len({p.gpus for p in points}) > 1
    spent = [p.gpus / p.tokens_per_s for p in points]
    worth = [p for p, each in zip(points, spent, strict=True) if each <= DEAR * min(spent)]
    shown = [worth[row] for row in _evenly(len(worth), POINTS_SHOWN)]
    table = _table()
    for heading in ["  step", "GiB", *(["nodes"] if several else [])]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("layout", overflow="fold")
    for point in shown:
        table.add_row(*_point_cells(point, several=several))
    beaten = "no other beats them in all of step time, memory and GPUs"
    beaten = beaten if several else "no other is both faster and lighter"
    about = f"{len(shown)} of {len(points):,} layouts of the Pareto front: {beaten}"
    lines: list[RenderableType] = [Text(), title("What trades for what"), table, indented(about)]
    if not all(point.simulated or point.layout.pp == 1 for point in shown):
        lines.append(indented("~ closed form; its pipeline was not run"))
    return lines


def _point_cells(point: FrontPoint, *, several: bool) -> list[str]:
    sure = point.simulated or point.layout.pp == 1
    step = f"{'' if sure else '~'}{seconds(point.step_time_s)}"
    nodes = [f"{point.nodes:,}"] if several else []
    return [
        f"  {step}",
        f"{point.peak_bytes / GIB:.1f}",
        *nodes,
        point.layout.short().replace(",", " "),
    ]


def sensitivity_section(plan: Plan) -> list[RenderableType]:
    """Return what halving and doubling each hardware figure does to the winner."""
    if not plan.sensitivity:
        return []
    table = _table()
    table.add_column("  figure", no_wrap=True)
    for case in plan.sensitivity[0].cases:
        for heading in (f"x {case.factor:g}", "best"):
            table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("elasticity", justify="right", no_wrap=True)
    base = plan.best.estimate.step_time_s
    for row in plan.sensitivity:
        cells = [text for case in row.cases for text in _case_cells(case, base)]
        elasticity = slope(row)
        table.add_row(f"  {printable(row.about)}", *cells, elasticity)
    others = [_other(row, case) for row in plan.sensitivity for case in row.cases if case.layout]
    lines = [
        "step time of this layout with one figure changed, and of the best layout then ('same' "
        "where it is this one); elasticity: per cent of step time for one of the figure",
        *([ONE_SIDED] if any(row.why_none for row in plan.sensitivity) else []),
        *filter(None, others),
    ]
    return [Text(), title("What the hardware does to it"), table, *map(indented, lines)]


ONE_SIDED = (
    "* where this layout has no room at one factor, the elasticity is told of the other side only"
)


def slope(row: Sensitivity) -> str:
    """Return the elasticity, with a star where it is one-sided, or that there is none."""
    if row.elasticity is None:
        return "none: no room"
    return f"{row.elasticity:+.2f}" + ("*" if row.why_none else "")


def _case_cells(case: WhatIf, base_s: float) -> tuple[str, str]:
    ours = "no room"
    if case.first_fits and case.first_step_time_s is not None:
        ours = f"{case.first_step_time_s / base_s - 1:+.1%}"
    if case.step_time_s is None:
        return ours, "nothing fits"
    return ours, "same" if case.same_layout else f"{case.step_time_s / base_s - 1:+.1%}"


def _other(row: Sensitivity, case: WhatIf) -> str:
    """Return which layout wins in a case, where it is another one."""
    if case.layout is None or case.same_layout:
        return ""
    return f"{row.about} x {case.factor:g}: {case.layout.short()}"


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)


def tradeoffs(plan: Plan) -> RenderableType:
    """Return all that the plan leaves to choose."""
    return Group(*sizes_section(plan), *tradeoff_section(plan), *sensitivity_section(plan))

"""The page of a sweep: how the figures follow each axis, every point, and why some failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from planner.report.page import sweep_figures as charts
from planner.report.page.axes import (
    Row,
    apart,
    described,
    flat,
    merged,
    short,
    shown,
    varying,
    whatever,
)
from planner.report.page.commands import Command, commands
from planner.report.page.document import Section, document
from planner.report.page.markup import (
    Html,
    TableCell,
    cards,
    figure,
    join,
    panels,
    section,
    table,
    tag,
)
from planner.units import GIB, count, seconds

AXES_SHOWN = 6
ROWS_SHOWN = 2000
FAILED_SHOWN = 200
OK = "ok"


def sweep_page(rows: Sequence[Row], name: str, items: Sequence[Command]) -> str:
    """Return the page of a sweep's rows, which came from the file `name`.

    Raises SpecError when the charts' library is not installed.
    """
    answered = [row for row in rows if row.get("status") == OK]
    failed = [row for row in rows if row.get("status") != OK]
    names = varying(rows)
    parts = []
    if answered:
        parts.append(Section("scaling", "Scaling", _scaling(answered)))
        parts.append(Section("time", "Time", _time(answered, names)))
    parts.append(Section("points", "Points", _points(rows, names)))
    if failed:
        parts.append(Section("failures", "No answer", _failures(failed, names)))
    if items:
        body = section("commands", "Commands", commands(items))
        parts.append(Section("commands", "Commands", body))
    same = sorted({str(row.get("model")) for row in rows} - {"None"})
    models = ", ".join(same[:4]) + (f" and {len(same) - 4} more" if len(same) > 4 else "")
    axes = ", ".join(short(n) for n in names) or "nothing"
    subtitle = f"{models or 'no model'}; varied: {axes}"
    return document(f"Sweep {name}", subtitle, _headline(rows, answered, names), parts)


def _headline(rows: Sequence[Row], answered: Sequence[Row], names: Sequence[str]) -> Html:
    failed = len(rows) - len(answered)
    items = [
        ("Points", f"{len(rows):,}", f"{len(answered):,} with an answer"),
        ("Without one", f"{failed:,}", "reasons below" if failed else ""),
    ]
    for heading, column in (("Most tokens/s", "tokens_per_s"), ("Highest MFU", "mfu")):
        found = [(float(v), row) for row in answered if isinstance(v := row.get(column), float)]
        if found:
            value, row = max(found, key=lambda pair: pair[0])
            text = f"{value:.1%}" if column == "mfu" else count(value)
            items.append((heading, text, described(row, names)))
    return cards(items)


def _scaling(answered: Sequence[Row]) -> Html:
    """Return, for each axis, curves of every metric under tabs."""
    names = varying(answered)
    if not names:
        return section("scaling", "Scaling", tag("p", "Nothing varies among the points."))
    parts: list[Html | None] = []
    for number, axis in enumerate(names[:AXES_SHOWN]):
        tabs = [
            (metric.heading, _curves(answered, axis, names, metric, f"curve-{number}-{index}"))
            for index, metric in enumerate(charts.METRICS)
        ]
        parts += [
            tag("h3", f"Along {short(axis)}"),
            tag("p", _why_flat(axis), class_="dim") if flat(answered, axis, names) else None,
            panels(f"scaling-{number}", tabs),
        ]
    if len(names) > AXES_SHOWN:
        rest = ", ".join(short(n) for n in names[AXES_SHOWN:])
        parts.append(tag("p", f"Without a chart: {rest}.", class_="dim"))
    return section("scaling", "Scaling", *parts)


def _why_flat(axis: str) -> str:
    """Return that nothing happens along an axis, and why where that can be told from its name."""
    if not axis.endswith("_oversubscription"):
        return f"Flat: a step takes as long at every {short(axis)}."
    return (
        f"Flat: no step here waits for what {short(axis)} changes. A job under one leaf uses no "
        "uplink, and rings that cross one once need little of it."
    )


def _series_told(
    answered: Sequence[Row], axis: str, names: Sequence[str], metric: charts.Metric
) -> str:
    """Return what the lines of a chart are named by; nothing where no more than the axis varies."""
    beside = apart(answered, axis, names)
    if not beside:
        return ""
    told = [name.split(", ") for name in merged(answered, axis, names, metric.column)]
    merges = [n for n in beside if any(whatever(n) in values for values in told)]
    if len(told) == 1:
        return f"One line: the figures are the same at any {' and '.join(map(short, beside))}."
    of = f"The series, by {', '.join(map(short, beside))}."
    same = " and ".join(f"'{whatever(n)}'" for n in merges)
    return f"{of} Under {same} the figures are the same whatever it is." if merges else of


def _curves(
    answered: Sequence[Row], axis: str, names: Sequence[str], metric: charts.Metric, anchor: str
) -> Html:
    """Return the curves of one metric along an axis, and how many series are left out."""
    chart, lines, more = charts.curves(answered, axis, names, metric)
    about = f"{metric.heading} along {short(axis)}, {lines} series"
    told = _series_told(answered, axis, names, metric)
    return join(
        tag("p", told, class_="dim") if told else None,
        figure(anchor, chart, about=about, lines=lines),
        tag("p", f"{more:,} more series are in the table only.", class_="dim") if more else None,
    )


def _time(answered: Sequence[Row], names: Sequence[str]) -> Html:
    chart, bars = charts.time_chart(answered, names)
    more = len(answered) - bars
    about = f"Stacked bars: the parts of the step of {bars} points."
    return section(
        "time",
        "Where the step goes",
        tag("p", f"The bars, by {', '.join(('point', *map(short, names)))}.", class_="dim"),
        figure("time-chart", chart, about=about, rows=bars),
        tag("p", f"The first {bars} points; {more:,} more are in the file.", class_="dim")
        if more
        else None,
    )


def _points(rows: Sequence[Row], names: Sequence[str]) -> Html:
    """Return every point as a table that sorts."""
    headings = ["point", *(short(n) for n in names), "step", "tokens/s", "tokens/s/GPU", "MFU"]
    split = any(row.get("splits") for row in rows)
    headings += ["GiB", *["splits"] * split, "layout"]
    kinds = ["n", *["k"] * len(names), *["n"] * (5 + split), "t"]
    listed = rows[:ROWS_SHOWN]
    more = len(rows) - len(listed)
    cells = [_row(row, names, split=split) for row in listed]
    marked = {i: "bad" for i, row in enumerate(listed) if row.get("status") != OK}
    return section(
        "points",
        "Points",
        table(headings, cells, kinds=kinds, sortable=True, marked=marked),
        tag("p", f"{more:,} more are in the file.", class_="dim") if more else None,
    )


def _row(row: Row, names: Sequence[str], *, split: bool) -> list[TableCell]:
    def cell(name: str, form: str, per: float = 1.0) -> tuple[str, float | str]:
        value = row.get(name)
        if not isinstance(value, int | float):
            return "-", ""
        return format(value / per, form), float(value)

    step = row.get("step_time_s")
    asked = [(shown(row.get(n)), str(row.get(n) or "")) for n in names]
    if row.get("status") == OK:
        outcome = str(row.get("layout")).replace(",", ", ")
    else:
        outcome = f"{row.get('status')}, see below"
    return [
        (str(row.get("point")), str(row.get("point"))),
        *asked,
        (seconds(step), float(step)) if isinstance(step, int | float) else ("-", ""),
        cell("tokens_per_s", ",.0f"),
        cell("tokens_per_s_per_gpu", ",.0f"),
        cell("mfu", ".1%"),
        cell("memory_peak_bytes", ".1f", GIB),
        *([cell("splits", ",.0f")] if split else []),
        outcome,
    ]


def _failures(failed: Sequence[Row], names: Sequence[str]) -> Html:
    """Return how many points failed in which way, and each with its reason."""
    by_status = Counter(str(row.get("status")) for row in failed)
    told = ", ".join(f"{number:,} {status}" for status, number in sorted(by_status.items()))
    rows = [
        [
            str(row.get("point")),
            str(row.get("status")),
            join(
                tag("div", described(row, names), class_="dim"),
                str(row.get("reason") or ""),
                tag("div", f"hint: {row['hint']}", class_="dim") if row.get("hint") else None,
            ),
        ]
        for row in failed[:FAILED_SHOWN]
    ]
    more = len(failed) - len(rows)
    return section(
        "failures",
        "Points without an answer",
        tag("p", f"{told}."),
        table(["point", "status", "why"], rows, kinds=["n", "k", "t"]),
        tag("p", f"{more:,} more are in the file.", class_="dim") if more else None,
    )

"""The charts of a sweep as plain data: how each figure follows each axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from planner.report.page.axes import Row, described, is_number, merged, short, shown
from planner.report.page.figures import TIME_COLOURS, coloured
from planner.report.page.markup import label
from planner.units import GIB

Chart = Mapping[str, Any]
LINES = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99"),
    *("#999999", "#77aadd", "#bbcc33", "#ffaabb"),
)
SERIES_SHOWN = len(LINES)
BARS_SHOWN = 40
NAME_LETTERS = 26
TICKS = 8
"""Values of an axis up to which each has its tick, where none lie close."""
SPREAD = 8
"""An axis whose largest value is this many times the smallest is drawn in logarithms."""


class Metric(NamedTuple):
    """A figure to follow: its heading, its column, and what the column is divided by."""

    heading: str
    column: str
    per: float = 1.0


METRICS = (
    Metric("tokens/s", "tokens_per_s"),
    Metric("tokens/s a GPU", "tokens_per_s_per_gpu"),
    Metric("MFU, %", "mfu", 0.01),
    Metric("seconds a step", "step_time_s"),
    Metric("peak GiB a GPU", "memory_peak_bytes", GIB),
)


def curves(
    rows: Sequence[Row], axis: str, names: Sequence[str], metric: Metric
) -> tuple[Chart, int, int]:
    """Return a line for each series of `rows` (points with an answer), how many, and the others.

    Along GPUs, tokens/s gets a dotted line of perfect scaling from each series' first point.
    """
    every = list(merged(rows, axis, names, metric.column).items())
    lines = every[:SERIES_SHOWN]
    numeric = all(is_number(row.get(axis)) for row in rows)
    traces = []
    for (name, points), colour in zip(lines, LINES, strict=False):
        traces.append(_line(name, points, axis, metric, colour, numeric=numeric))
        if axis == "gpus" and metric.column == "tokens_per_s" and len(points) > 1:
            traces.append(_perfect(points, colour))
    x = _axis(rows, axis, numeric=numeric)
    y: dict[str, Any] = {"title": {"text": metric.heading}, "rangemode": "tozero"}
    if axis == "gpus" and metric.column == "tokens_per_s" and x.get("type") == "log":
        y |= {"type": "log", "dtick": "D2", "tickformat": "~s"}
    layout = {"xaxis": x, "yaxis": y, "showlegend": len(lines) > 1}
    return {"data": traces, "layout": layout}, len(lines), len(every) - len(lines)


def _line(
    name: str, points: Sequence[Row], axis: str, metric: Metric, colour: str, *, numeric: bool
) -> dict[str, Any]:
    y = [_number(row, metric.column) / metric.per for row in points]
    return {
        "type": "scatter",
        "mode": "lines+markers" if numeric else "markers",
        "name": label(name or "all"),
        "x": [row.get(axis) if numeric else label(shown(row.get(axis))) for row in points],
        "y": y,
        "text": [label(str(row.get("layout") or "").replace(",", " ")) for row in points],
        "marker": {"color": colour, "size": 9},
        "line": {"color": colour},
        "hovertemplate": "%{x}: %{y:.4g}<br>%{text}<extra></extra>",
    }


def _perfect(points: Sequence[Row], colour: str) -> dict[str, Any]:
    first = points[0]
    each = _number(first, "tokens_per_s") / max(1.0, _number(first, "gpus"))
    gpus = [_number(row, "gpus") for row in points]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": gpus,
        "y": [each * n for n in gpus],
        "line": {"color": colour, "dash": "dot", "width": 1},
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _axis(rows: Sequence[Row], axis: str, *, numeric: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"title": {"text": label(short(axis))}}
    if not numeric:
        return out | {"type": "category"}
    values = sorted({_number(row, axis) for row in rows})
    logarithms = values[0] > 0 and values[-1] / values[0] >= SPREAD
    steps = [b - a for a, b in pairwise(values)]
    if logarithms or (len(values) <= TICKS and min(steps, default=0) * TICKS >= sum(steps)):
        out |= {"tickvals": values, "ticktext": [f"{v:,g}" for v in values]}
    return out | ({"type": "log"} if logarithms else {})


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def time_chart(rows: Sequence[Row], names: Sequence[str]) -> tuple[Chart, int]:
    """Return the share of the step that each part takes, a bar a point, and how many bars."""
    shown_rows = rows[:BARS_SHOWN]
    every = list(dict.fromkeys(n for row in shown_rows for n in row if n.startswith("time_s.")))
    used = [n for n in every if any(_number(row, n) > 0 for row in shown_rows)]
    colours = coloured([n.removeprefix("time_s.") for n in used], TIME_COLOURS)
    bars = [label(_named(row, names)) for row in shown_rows]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label(name.removeprefix("time_s.")),
            "y": bars,
            "x": [_share(row, name) for row in shown_rows],
            "customdata": [_number(row, name) for row in shown_rows],
            "marker": {"color": colours[name.removeprefix("time_s.")]},
            "text": [label(described(row, names)) for row in shown_rows],
            "textposition": "none",
            "hovertemplate": "%{text}<br>%{x:.1%}, %{customdata:.4g} s<extra>"
            + label(name.removeprefix("time_s."))
            + "</extra>",
        }
        for name in used
    ]
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "share of the step"}, "tickformat": ".0%", "range": [0, 1]},
        "yaxis": {"autorange": "reversed", "type": "category"},
    }
    return {"data": traces, "layout": layout}, len(shown_rows)


def _share(row: Row, name: str) -> float:
    whole = _number(row, "step_time_s")
    return _number(row, name) / whole if whole else 0.0


def _named(row: Row, names: Sequence[str]) -> str:
    """Return a point's number and as many of its values as a phone has room for."""
    text = f"{row.get('point')}: {', '.join(shown(row.get(name)) for name in names)}"
    return text if len(text) <= NAME_LETTERS else f"{text[: NAME_LETTERS - 1]}\u2026"

"""The charts of a plan as plain data; the colours of page and text are the page's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planner.objectives import lower_envelope
from planner.plan import FrontPoint, RankedPlan
from planner.report.memory import grouped, terms_of
from planner.report.page.markup import label
from planner.units import GIB

Chart = Mapping[str, Any]
MEMORY_COLOURS = {
    "weights": "#4477aa",
    "gradients": "#aa3377",
    "optimizer": "#228833",
    "activations": "#ccbb44",
    "logits": "#66ccee",
    "buffers": "#ee6677",
    "overhead": "#999999",
}
TIME_COLOURS = {
    "compute": "#4477aa",
    "tp": "#ee6677",
    "cp": "#66ccee",
    "ep": "#ccbb44",
    "dp": "#228833",
    "pp": "#aa3377",
    "host": "#ee8866",
    "bubble": "#bbbbbb",
    "optimizer": "#44bb99",
    "overhead": "#888888",
}
SPARE = ("#99ddff", "#ffaabb", "#aaaa00", "#77aadd", "#bbcc33", "#eedd88")
"""Tol's bright and light schemes, which colour-blind people can tell apart (personal.sron.nl)."""
BARS_SHOWN = 24
WHISKERS = "4 of 5 published runs"
FAR = 2.0
"""A point of the front that takes this many times the slowest plan listed is left out."""
NEAR = 1.5
"""A plan that needs more than this many times the memory there is would flatten the others."""


def coloured(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return a colour for every name; those not known get spare ones in order."""
    others = [name for name in names if name not in known]
    spare = {name: SPARE[i % len(SPARE)] for i, name in enumerate(others)}
    return {name: known.get(name) or spare[name] for name in names}


def memory_chart(plan: RankedPlan) -> tuple[Chart, int]:
    """Return memory per stage as stacked bars, and how many bars; like neighbours share one."""
    memory = plan.estimate.memory
    groups = list(grouped(memory.stages, memory.limit_bytes))
    if len(groups) > BARS_SHOWN:  # the ends and the heaviest tell the story
        heaviest = sorted(groups, key=lambda g: -g[2].total)[: BARS_SHOWN - 2]
        keep = {id(g) for g in (groups[0], groups[-1], *heaviest)}
        groups = [g for g in groups if id(g) in keep]
    names = [f"stage {a}" if a == b else f"stages {a}-{b}" for a, b, _ in groups]
    terms = [n for n in MEMORY_COLOURS if any(terms_of(s)[n] > 0 for _, _, s in groups)]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": term,
            "y": names,
            "x": [terms_of(stage)[term] / GIB for _, _, stage in groups],
            "marker": {"color": MEMORY_COLOURS[term]},
            "hovertemplate": "%{y}: %{x:.2f} GiB<extra>" + term + "</extra>",
        }
        for term in terms
    ]
    limit = memory.limit_bytes / GIB
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "GiB on one GPU"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category"},
        "shapes": [{"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": limit, "x1": limit}],
        "annotations": [
            {"x": limit, "y": 0, "yref": "paper", "xanchor": "right", "yanchor": "bottom",
             "xshift": -3, "text": f"limit {limit:.1f}"}
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}, len(groups)


def time_chart(plans: Sequence[RankedPlan]) -> tuple[Chart, int]:
    """Return where the step of each plan goes, as stacked bars, and how many bars.

    One that does not fit and is far slower as well would flatten the others, and is left out.
    """
    longest = 1.5 * max((p.estimate.step_time_s for p in plans if p.feasible), default=float("inf"))
    near = [p for p in plans if p.feasible or p.estimate.step_time_s <= longest]
    shown = near[:BARS_SHOWN]
    names = [f"#{p.rank}" if p.feasible else f"#{p.rank}, does not fit" for p in shown]
    every = list(dict.fromkeys(name for plan in shown for name in plan.estimate.time_s))
    terms = [n for n in every if any(p.estimate.time_s.get(n, 0) > 0 for p in shown)]
    colours = coloured(terms, TIME_COLOURS)
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label(term),
            "y": names,
            "x": [plan.estimate.time_s.get(term, 0.0) for plan in shown],
            "customdata": [
                plan.estimate.time_s.get(term, 0.0) / plan.estimate.step_time_s for plan in shown
            ],
            "marker": {"color": colours[term]},
            "hovertemplate": "%{y}: %{x:.4g} s, %{customdata:.1%}<extra>"
            + label(term)
            + "</extra>",
        }
        for term in terms
    ]
    traces += [_whiskers(names, shown)] if any(p.estimate.step_time_high_s for p in shown) else []
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "seconds a step"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category"},
    }
    return {"data": traces, "layout": layout}, len(shown)


def _whiskers(names: Sequence[str], plans: Sequence[RankedPlan]) -> dict[str, Any]:
    """Return the range of 4 of 5 published runs of such a stack, around the end of each bar."""
    costs = [p.estimate for p in plans]
    took = [c.step_time_s for c in costs]
    lows, highs = [c.step_time_low_s for c in costs], [c.step_time_high_s for c in costs]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": WHISKERS,
        "y": names,
        "x": took,
        "marker": {"color": "#777777", "size": 3},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, (h or t) - t) for h, t in zip(highs, took, strict=True)],
            "arrayminus": [max(0.0, t - (low or t)) for low, t in zip(lows, took, strict=True)],
            "color": "#777777",
            "thickness": 1.5,
        },
        "customdata": [
            f"{low or t:.4g} to {high or t:.4g} s"
            for low, high, t in zip(lows, highs, took, strict=True)
        ],
        "hovertemplate": "%{y}: %{customdata}<extra>" + WHISKERS + "</extra>",
    }


def front(plans: Sequence[RankedPlan]) -> list[RankedPlan]:
    """Return the plans that no other beats in both step time and memory, fastest first."""
    times = np.array([p.estimate.step_time_s for p in plans])
    peaks = np.array([p.estimate.memory.peak_bytes for p in plans])
    return [plans[row] for row in lower_envelope(times, peaks).tolist()]


def front_chart(plans: Sequence[RankedPlan], points: Sequence[FrontPoint] = ()) -> Chart:
    """Return step time against memory, with the Pareto front of the plans that fit.

    `points` are those of all layouts that were scored, also those that are not listed.
    """
    fits = [p for p in plans if p.feasible]
    best = front(fits)
    limit = plans[0].estimate.memory.limit_bytes / GIB
    over = [p for p in plans if not p.feasible and _peak(p) <= NEAR * limit]
    slowest = max(p.estimate.step_time_s for p in plans)
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [p.estimate.step_time_s for p in best],
            "y": [_peak(p) for p in best],
            "line": {"shape": "hv", "color": "#4477aa", "width": 2},
            "hoverinfo": "skip",
        },
        _points("beaten in both", [p for p in fits if p not in best], "#999999", "circle-open"),
        _points("does not fit", over, "#ee6677", "x"),
        _points("on the front", best, "#4477aa", "circle"),
        _unlisted([p for p in points if p.rank is None], slowest),
    ]
    peaks = [limit, *(_peak(p) for p in (*fits, *over)), *traces[-1]["y"]]
    room = 0.12 * (max(peaks) - min(peaks)) or 0.1 * limit
    layout = {
        "xaxis": {"title": {"text": "seconds a step"}},
        "yaxis": {
            "title": {"text": "peak GiB on one GPU"},
            "range": [max(0.0, min(peaks) - room), max(peaks) + room],
        },
        "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit}],
        "annotations": [
            {"x": 1, "xref": "paper", "y": limit, "xanchor": "right", "yanchor": "bottom",
             "text": f"limit {limit:.1f} GiB"}
        ],
    }  # fmt: skip
    return {"data": [t for t in traces if t["x"]], "layout": layout}


def _unlisted(points: Sequence[FrontPoint], slowest_s: float) -> dict[str, Any]:
    """Return the points of the front over all layouts, those left out that are far slower."""
    near = [p for p in points if p.step_time_s <= FAR * slowest_s]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "front of all layouts",
        "x": [p.step_time_s for p in near],
        "y": [p.peak_bytes / GIB for p in near],
        "customdata": [label(p.layout.short().replace(",", " ")) for p in near],
        "text": [f"{p.nodes:,} nodes" for p in near],
        "marker": {"color": "#66ccee", "size": 6, "symbol": "diamond"},
        "hovertemplate": "%{x:.4g} s, %{y:.1f} GiB, %{text}<br>%{customdata}<extra></extra>",
    }


def _peak(plan: RankedPlan) -> float:
    return plan.estimate.memory.peak_bytes / GIB


def _points(name: str, plans: Sequence[RankedPlan], colour: str, symbol: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text" if symbol == "circle" else "markers",
        "name": name,
        "x": [p.estimate.step_time_s for p in plans],
        "y": [_peak(p) for p in plans],
        "text": [f"#{p.rank}" for p in plans],
        "textposition": "bottom center",
        "customdata": [label(p.layout.short().replace(",", " ")) for p in plans],
        "marker": {"color": colour, "size": 10, "symbol": symbol},
        "hovertemplate": "%{text}: %{x:.4g} s, %{y:.1f} GiB<br>%{customdata}<extra></extra>",
    }

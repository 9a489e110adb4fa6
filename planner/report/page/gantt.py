"""The pipeline as it runs: a bar for every action, a row for every stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planner.pipeline.actions import TOGETHER
from planner.report.page.markup import Html, TableCell, figure, join, table, tag
from planner.simulation import Simulated
from planner.units import seconds

BARS_SHOWN = 3000
"""More make a phone slow; the steady phase only repeats."""
BARS_A_STAGE = 96
"""More are narrower than a phone's screen can show apart."""
KINDS = ("forward", "backward", "backward of inputs", "backward of weights")
OUTLINE = "rgba(0,0,0,0.35)"
COLOURS = ("#4477aa", "#ccbb44", "#ee8866", "#228833")

Chart = Mapping[str, Any]


def gantt(found: Simulated) -> Html:
    """Return the pipeline's chart, its idle time, and what each stage does with its time."""
    record = found.record
    until = window_s(found)
    whole = until >= record.makespan_s
    part = "" if whole else f" The chart shows the first {seconds(until)}."
    about = (
        f"Schedule {record.schedule}, {record.num_microbatches:,} micro-batches: "
        f"{seconds(record.makespan_s)}. The busiest stage waits {seconds(record.bubble_s)}, the "
        f"bubble ({record.bubble_fraction:.1%} of the step); a stage waits "
        f"{seconds(record.idle_s)} on average ({record.idle_fraction:.1%} of the pipeline's time)."
        f"{part}"
    )
    rows: list[list[TableCell]] = [
        [
            str(r.stage),
            (seconds(r.forward_s), r.forward_s),
            (seconds(r.backward_s), r.backward_s),
            (seconds(r.busy_s), r.busy_s),
            (seconds(r.sending_s), r.sending_s),
            (seconds(r.idle_s), r.idle_s),
            (f"{r.peak_in_flight:.2f}", r.peak_in_flight),
        ]
        for r in record.ranks
    ]
    headings = ["stage", "forward", "backward", "busy", "sending", "idle", "held at most"]
    return join(
        tag("p", about),
        figure("gantt-chart", gantt_chart(found, until), about=about, rows=len(record.ranks)),
        tag(
            "details",
            tag("summary", "The time of each stage"),
            table(headings, rows, kinds=["n"] * len(headings)),
            tag("p", "Held at most: micro-batches whose activations a stage keeps.", class_="dim"),
        ),
    )


def window_s(found: Simulated) -> float:
    """Return up to when actions are drawn, so that there are not too many."""
    line = found.timeline
    lengths = [len(actions) for actions in line.order.actions]
    most = max(BARS_A_STAGE, 4 * len(lengths))  # a pipeline fills, and some of its steady phase
    ends = [float(line.makespan_s)]
    if lengths[0] > most:
        ends.append(float(np.sort(line.start_s[: lengths[0]])[most]))
    if len(line.start_s) > BARS_SHOWN:
        ends.append(float(np.sort(line.start_s)[BARS_SHOWN]))
    return min(ends)


def gantt_chart(found: Simulated, until_s: float) -> Chart:
    """Return the actions that start before `until_s` as bars, one trace a kind."""
    line = found.timeline
    rows = np.concatenate([np.asarray(actions) for actions in line.order.actions])
    lengths = [len(actions) for actions in line.order.actions]
    ranks = np.repeat(np.arange(len(lengths)), lengths)
    kinds, early = rows[:, 0] % TOGETHER, line.start_s < until_s
    traces = []
    for code, (name, colour) in enumerate(zip(KINDS, COLOURS, strict=True)):
        chosen = np.flatnonzero(early & (kinds == code))
        if not len(chosen):
            continue
        starts = line.start_s[chosen]
        ends = np.minimum(line.end_s[chosen], until_s)
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": [f"stage {rank}" for rank in ranks[chosen].tolist()],
                "base": starts.tolist(),
                "x": (ends - starts).tolist(),
                "customdata": rows[chosen, 2].tolist(),
                "marker": {"color": colour, "line": {"width": 0.5, "color": OUTLINE}},
                "hovertemplate": "%{y}, micro-batch %{customdata}: %{base:.4g} s<extra>"
                f"{name}</extra>",
            }
        )
    layout = {
        "barmode": "overlay",
        "bargap": 0.15,
        "xaxis": {"title": {"text": "seconds"}, "range": [0, until_s]},
        "yaxis": {
            "autorange": "reversed",
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [f"stage {rank}" for rank in range(len(lengths))],
        },
    }
    return {"data": traces, "layout": layout}

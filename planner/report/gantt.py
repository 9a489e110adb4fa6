"""A pipeline drawn in letters: one line a rank, one column a slice of time.

The figure of a forward is its micro-batch's last digit, the letter of a backward the same counted
from a, so that one can follow a micro-batch also where there are no colours. Where all of it does
not fit a line, the fill and the drain are drawn and the steady phase between them is cut out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from rich.text import Text

from planner.pipeline.actions import BACKWARD_WEIGHT, FORWARD, TOGETHER
from planner.pipeline.timeline import Timeline
from planner.units import seconds

IDLE, SENDING, WEIGHT, GAP = ".", "-", "w", " ~ "
DIGITS, LETTERS = "0123456789", "abcdefghij"
STYLES = {"forward": "black on blue", "backward": "black on green", "weight": "black on yellow"}
MOST_RANKS = 24
COLUMNS_AN_ACTION = 2
"""Columns that the shortest usual action should be given before time is cut out."""


class Window(NamedTuple):
    """A stretch of time and the columns that it is drawn with."""

    begin_s: float
    end_s: float
    columns: int


def gantt(line: Timeline, width: int) -> list[Text]:
    """Return the chart, one line a rank (at most 24, the middle left out), and its time axis."""
    ranks = line.order.shape.ranks
    margin = len(f"{ranks - 1} ")
    windows = _windows(line, max(20, width - margin - 2))
    shown = _shown(ranks)
    lines = []
    for rank in shown:
        if rank < 0:
            lines.append(Text(f"{'':>{margin}}... {ranks - MOST_RANKS} stages more", "dim"))
            continue
        text = Text(f"{rank:>{margin - 1}} |")
        for i, window in enumerate(windows):
            text.append(GAP if i else "", "dim").append(_drawn(line, rank, window))
        lines.append(text.append("|"))
    return [*lines, _axis(windows, margin)]


def legend(line: Timeline) -> str:
    """Return what the signs mean."""
    split = any((a[:, 0] % TOGETHER == BACKWARD_WEIGHT).any() for a in line.order.actions)
    weights = f", {WEIGHT} weight gradients apart" if split else ""
    return (
        f"0-9 forward of a micro-batch (its last digit), a-j its backward{weights}, - send, . idle"
    )


def _shown(ranks: int) -> list[int]:
    """Return the ranks to draw; -1 stands for those left out."""
    if ranks <= MOST_RANKS:
        return list(range(ranks))
    half = MOST_RANKS // 2
    return [*range(half), -1, *range(ranks - half, ranks)]


def _windows(line: Timeline, columns: int) -> list[Window]:
    """Return the whole time where it is legible at that width, else its start and its end."""
    lengths = line.end_s - line.start_s
    usual = float(np.median(lengths))
    whole = line.makespan_s
    readable = columns / COLUMNS_AN_ACTION * usual
    if whole <= readable or usual == 0.0:
        return [Window(0.0, whole, columns)]
    each = (columns - len(GAP)) // 2
    # a fill longer than the window is drawn whole, if coarser; never more than all of it
    reach = max(each / COLUMNS_AN_ACTION * usual, 1.25 * _fill_s(line))
    if reach >= 0.45 * whole:
        return [Window(0.0, whole, columns)]
    return [Window(0.0, reach, each), Window(whole - reach, whole, each)]


def _fill_s(line: Timeline) -> float:
    """Return when the last rank first acts."""
    return float(line.start_s[line.graph.first[:-1]].max())


def _drawn(line: Timeline, rank: int, window: Window) -> Text:
    """Return one rank's stretch: in each column the action that takes most of it."""
    span = line.of(rank)
    edges = np.linspace(window.begin_s, window.end_s, window.columns + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    starts, ends = line.start_s[span], line.end_s[span]
    at = np.clip(np.searchsorted(starts, middle, side="right") - 1, 0, None)
    sent = ends + line.sending_s[span]
    state = (middle >= starts[at]) * (1 + (middle >= ends[at]) + (middle >= sent[at]))
    signs = (IDLE, None, SENDING, IDLE)
    text = Text()
    for now, (kind, _, microbatch) in zip(
        state.tolist(), line.order.actions[rank][at].tolist(), strict=True
    ):
        sign = signs[now]
        text.append(*(_sign(kind % TOGETHER, microbatch) if sign is None else (sign, "dim")))
    return text


def _sign(kind: int, microbatch: int) -> tuple[str, str]:
    if kind == FORWARD:
        return DIGITS[microbatch % 10], STYLES["forward"]
    if kind == BACKWARD_WEIGHT:
        return WEIGHT, STYLES["weight"]
    return LETTERS[microbatch % 10], STYLES["backward"]


def _axis(windows: list[Window], margin: int) -> Text:
    """Return the times at the ends of each window."""
    words = []
    for window in windows:
        begin, end = seconds(window.begin_s), seconds(window.end_s)
        words.append(f"{begin}{end:>{window.columns - len(begin)}}")
    return Text(" " * (margin + 1) + (" " * len(GAP)).join(words), "dim")

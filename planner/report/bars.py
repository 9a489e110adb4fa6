"""Bars of letters: a stacked bar that reads the same in colour, in a log file and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.text import Text

EMPTY = "."
BACKGROUNDS = {
    "weights": "on blue",
    "gradients": "on magenta",
    "optimizer": "on green",
    "activations": "on yellow",
    "logits": "on cyan",
    "buffers": "on red",
    "overhead": "on bright_black",
}
LETTERS = {
    "weights": "W",
    "gradients": "G",
    "optimizer": "O",
    "activations": "A",
    "logits": "L",
    "buffers": "B",
    "overhead": "X",
}
"""Fields of `planner.plan.StageMemory`, and the letter that each is drawn with."""


def cells(amounts: Sequence[float], limit: float, width: int) -> list[int]:
    """Return whole cells per amount for a bar where `limit` is `width` cells.

    Edges are rounded, not lengths, so that the cells add up to the rounded total; a bar longer
    than the limit is cut there.
    """
    edges, total = [0], 0.0
    for amount in amounts:
        total += amount
        edges.append(min(width, round(width * total / limit)))
    return [high - low for low, high in pairwise(edges)]


def stacked(parts: Mapping[str, float], limit: float, width: int) -> Text:
    """Return '|WWGGOOAA......|': one letter a cell, the rest of the limit empty."""
    bar = Text("|")
    lengths = cells(list(parts.values()), limit, width)
    for name, length in zip(parts, lengths, strict=True):
        bar.append(LETTERS[name] * length, f"black {BACKGROUNDS[name]}")
    bar.append(EMPTY * (width - sum(lengths)), "dim")
    over = sum(parts.values()) > limit
    return bar.append("!" if over else "|", "bold red" if over else "")


def legend(names: Sequence[str]) -> Text:
    """Return the letters of the terms that occur, 'W=weights G=gradients'."""
    words = Text()
    for name in names:
        words.append(LETTERS[name], f"black {BACKGROUNDS[name]}").append(f"={name} ")
    words.rstrip()
    return words


def single(share: float, width: int) -> str:
    """Return a bar of `share` (0..1) of `width` cells; anything above nothing shows one."""
    return "#" * max(1 if share > 0 else 0, round(share * width))

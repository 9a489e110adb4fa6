"""Pieces that every report is made of."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from planner.report.text import printable


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

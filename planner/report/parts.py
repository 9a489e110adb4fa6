"""Pieces that every report is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
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


class Named:
    """A name, perhaps without a blank, that wraps behind its own separators: 'a-b_c', 'a/b,c'."""

    def __init__(self, text: str) -> None:
        self.text = printable(text)
        self.words = re.split(r"(?<=[-_/,:= ])(?=[^-_/,:= ])", self.text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(len, self.words))
        return Measurement(longest, len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = [""]
        for word in self.words:
            if lines[-1] and len(lines[-1] + word.rstrip()) > options.max_width:
                lines.append("")
            lines[-1] += word
        yield Text("\n".join(line.rstrip() for line in lines), overflow="fold")


def notes(sentences: Iterable[str]) -> list[RenderableType]:
    """Return the notes as a list, under a heading; nothing when there are none."""
    rows = [indented(f"- {sentence}") for sentence in sentences]
    return [Text(), title("Notes"), *rows] if rows else []

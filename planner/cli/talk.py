"""What goes where: results to stdout, talk to stderr, colours and progress only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from planner.report.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

NARROWEST = 72
"""Columns below which figures would be cut; a terminal's own wrapping is the lesser evil."""


def say(sentence: str) -> None:
    """Write one sentence to stderr."""
    typer.echo(printable(sentence), err=True)


def answer_json(document: dict[str, Any]) -> None:
    """Write the one JSON document of a `--json` answer to stdout."""
    import json

    typer.echo(json.dumps(document, allow_nan=False, separators=(",", ":")))


def show(*parts: RenderableType) -> None:
    """Write a report to stdout, as wide as the terminal; a pipe gets 80 columns, or COLUMNS."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, emoji=False, markup=False)
    console.width = max(console.width, NARROWEST)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    text = captured.get()
    if not console.is_terminal:  # padding is for colours; in a file it is noise
        text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    typer.echo(text, nl=False)


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the present step on stderr; silent unless that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    console = Console(file=sys.stderr, highlight=False, emoji=False, markup=False)
    with console.status(what) as status:
        yield lambda step: status.update(printable(step))

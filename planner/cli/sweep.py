"""`meshwright sweep`: a grid of plans, resumable after a kill."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import options as o
from planner.cli.talk import answer_json, say
from planner.errors import InfeasibleError, SpecError
from planner.report.text import printable

if TYPE_CHECKING:
    from planner.sweep import Summary

EXAMPLES = """\
\b
Examples:
  meshwright sweep study.yaml -o out.jsonl
  meshwright sweep study.yaml -o out.parquet --jobs 8
  meshwright sweep study.yaml -o out.csv --dask tcp://10.0.0.1:8786 --json
\b
A study, with `fixed:` for all points and `axes:` whose product is the grid:
  fixed: {model: llama-3.1-70b, cluster: dgx-h100, seq: 8192, global_batch: 512}
  axes:
    nodes: [8, 16, 32]
    cluster.fabric.leaf_oversubscription: [1, 2, 4]
\b
Names: model, cluster, nodes, gpus, seq, global_batch, precision, optimizer, stack, fix,
max_memory, risk_memory, expert_imbalance, capacity_factor; and paths such as fix.tp, model.layers,
cluster.accelerator, cluster.fabric.efficiency. `nodes, global_batch: [[8, 256], [16, 512]]`
varies two together. Spec files are looked for beside the study.
"""
EVERY_S = 5.0
"""Seconds between two lines of progress where there is no terminal."""
Tell = Callable[[int, int], None]


def sweep(
    study: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY.yaml", help="Fixed values, and axes of others.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Table to write: .jsonl, .csv or .parquet, one row a point.",
            show_default=False,
        ),
    ],
    *,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=1024, help="Processes. Default: one a core."),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Use the workers of this Dask scheduler instead."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start over where OUT is of another study.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Plan every point of a study, and write one row a point.

    Each finished point is safe in OUT.journal.jsonl at once. After a kill, or Ctrl-C, the same
    command goes on where it ended and writes the same bytes. A point without an answer gets a row
    that says why.
    """
    if dask is not None and jobs is not None:
        raise SpecError("--jobs: does not go with --dask, whose workers do the work")
    from planner.sweep import sweep as run
    from planner.sweep.runners import cores

    try:
        with _progress() as begin:
            summary = run(study, output, jobs=jobs or cores(), dask=dask, force=force, begin=begin)
    except KeyboardInterrupt:
        say("interrupted; finished points are kept, and the same command goes on")
        raise
    if as_json:
        answer_json(_document(summary, output))
    else:
        typer.echo(_sentence(summary, output))
    if not summary.statuses["ok"]:
        raise InfeasibleError(
            f"none of the {summary.points:,} points has an answer",
            hint=f"the reasons are in {output}, column 'reason'",
            answered=as_json,
        )


def _document(summary: Summary, output: Path) -> dict[str, object]:
    return {
        "schema": "meshwright.sweep/1",
        "study": summary.study,
        "out": str(output),
        "points": summary.points,
        "resumed": summary.resumed,
        **summary.statuses,
        "timing": {"total_s": summary.total_s},
    }


def _sentence(summary: Summary, output: Path) -> str:
    counts = [f"{number:,} {status}" for status, number in summary.statuses.items() if number]
    earlier = f"; {summary.resumed:,} were done before" if summary.resumed else ""
    points = f"{summary.points:,} point{'s' * (summary.points != 1)}"
    return printable(f"{points}: {', '.join(counts)}{earlier}. wrote {output}")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], Tell]]:
    """Yield `begin(points, done)`, which returns whom to tell of progress: a bar, or lines."""
    if not sys.stderr.isatty():
        yield _lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rest]}"),
        console=Console(file=sys.stderr, highlight=False, emoji=False, markup=False),
        transient=True,
    )

    def begin(points: int, done: int) -> Tell:
        task = bar.add_task("sweep", total=points, completed=done, rest="")
        pace = _Pace(points, done)

        def tell(now: int, failed: int) -> None:
            bar.update(task, completed=now, rest=pace.words(now, failed))

        return tell

    with bar:
        yield begin


def _lines(points: int, done: int) -> Tell:
    """Return whom to tell where there is no terminal: a line at most every few seconds."""
    if done:
        say(f"{points - done:,} of {points:,} points to do; the others are done, or were refused")
    pace = _Pace(points, done)
    said = time.monotonic()

    def tell(now: int, failed: int) -> None:
        nonlocal said
        if now < points and time.monotonic() - said >= EVERY_S:
            said = time.monotonic()
            say(f"{now:,} of {points:,} points, {pace.words(now, failed)}")

    return tell


class _Pace:
    """Rate and time left, from the points finished since the start of this run."""

    def __init__(self, points: int, done: int) -> None:
        self.points, self.before, self.started = points, done, time.monotonic()

    def words(self, done: int, failed: int) -> str:
        """Return '3.2 points/s, 0:01:07 left, 2 without an answer'."""
        from datetime import timedelta

        elapsed = max(1e-9, time.monotonic() - self.started)
        rate = (done - self.before) / elapsed
        left = timedelta(seconds=round((self.points - done) / rate)) if rate else "?"
        words = f"{rate:.3g} points/s, {left} left"
        return f"{words}, {failed:,} without an answer" if failed else words

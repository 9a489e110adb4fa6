"""`meshwright calibrate`: a cluster's numbers fitted to its owner's own measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import options as o
from planner.cli.talk import answer_json, progress, say, show
from planner.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from planner.calibrate.calibrating import Calibration, Given
    from planner.calibrate.figure import Figure, Prediction, Residual

EXAMPLES = """\
\b
Examples:
  meshwright calibrate dgx-h100 --nccl-tests all_reduce.log --nccl-tests all_gather.log -o my.yaml
  meshwright calibrate dgx-h100 --gemm gemm.csv --steps runs.csv -o my.yaml
  meshwright calibrate dgx-h100 --profile trace.json.gz --stack torchtitan
  meshwright plan llama-3.1-70b my.yaml:64
"""
SHOWN_STEPS = 12
LONGEST_NAME = 120
STEPS_KIND = "step"


def calibrate(
    cluster: o.Cluster,
    *,
    nccl_tests: Annotated[
        list[str] | None,
        typer.Option(
            "--nccl-tests",
            metavar="LOG",
            help="Log of nccl-tests or rccl-tests; OP=LOG where it does not say. Repeat for more.",
            show_default=False,
        ),
    ] = None,
    gemm: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Timed multiplies: m, n, k, dtype, seconds (or time_us, tflops).",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="TRACE",
            help="Trace of torch.profiler (.json, .json.gz) or SQLite export of nsys. Repeatable.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        Path | None,
        typer.Option(
            metavar="RUNS.csv",
            help="Measured steps, with the columns that `validate` reads.",
            show_default=False,
        ),
    ] = None,
    stack: Annotated[
        str, typer.Option(help="Stack of the profiles, and of steps whose framework is not known.")
    ] = "any",
    ranks: Annotated[
        int | None,
        typer.Option(min=2, max=1_000_000, help="Ranks of logs without a header."),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Nodes of logs without a header."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Overlay to write.", show_default=False),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Fit a cluster's numbers to measurements of your own, and write what differs as an overlay.

    The overlay extends CLUSTER and stands wherever a CLUSTER may. What the measurements do not pin
    down stays as it ships; outliers are left out and counted.
    """
    from planner.calibrate.calibrating import Given, calibrate

    given = Given(
        logs=tuple(nccl_tests or ()),
        gemm=gemm,
        steps=steps,
        profiles=tuple(profile or ()),
        ranks=ranks,
        nodes=nodes,
        stack=stack,
    )
    _refuse_early(given, out)
    from planner.calibrate.overlay import base_of
    from planner.specs.catalog import load_cluster

    base, count = base_of(cluster, out)
    before = load_cluster(cluster)
    with progress("reading") as step:
        found = calibrate(before, given, step)
    written = _written(found, base, count, out) if out and found.figures else None
    if as_json:
        answer_json(found.document(written))
        return
    show(*_report(found, written))
    if out and not written:
        say(f"{out} not written: what ships predicts these measurements as well")


def _refuse_early(given: Given, out: Path | None) -> None:
    """Raise SpecError where there is nothing to read, or nowhere to write."""
    if not given.files:
        raise SpecError(
            "nothing to calibrate with",
            hint="give --nccl-tests, --gemm, --profile or --steps; see meshwright calibrate --help",
        )
    if out and (out.is_dir() or not out.parent.is_dir()):
        what = "is a folder" if out.is_dir() else f"{out.parent}: no such folder"
        raise SpecError(f"-o: {out}: {what}", hint="give a file in a folder that exists")


def _written(found: Calibration, base: str, nodes: int | None, out: Path) -> Path:
    """Write the overlay, whole or not at all, and return its path."""
    from planner.calibrate.overlay import checked, overlay_text
    from planner.files import write_whole

    text = overlay_text(base, nodes, found.figures, found.after, found.files)
    checked(text, out)
    write_whole(out, text)
    return out


def _report(found: Calibration, written: Path | None) -> Iterable[RenderableType]:
    from rich.text import Text

    from planner.report.parts import indented, title

    if found.figures:
        yield title(f"Figures of {found.before.name} that differ")
        yield _figures(found.figures)
        yield Text()
        yield title("Fits")
        yield _fits(found.figures)
    else:
        yield Text(f"No figure of {found.before.name} changed.")
    if found.found.residuals:
        yield Text()
        yield title("Errors by size")
        yield _residuals(found.found.residuals)
    if found.found.predictions:
        yield Text()
        yield title("Predictions")
        yield from _predictions(found.found.predictions)
    for heading, sentences in (("Notes", found.facts), ("Warnings", found.warnings)):
        if sentences:
            yield Text()
            yield title(heading)
            yield from (indented(f"- {sentence}") for sentence in sentences)
    if written:
        yield Text()
        yield indented(f"{written} holds what differs; use it wherever a CLUSTER may stand.")


def _figures(figures: Sequence[Figure]) -> RenderableType:
    from planner.report.parts import Named

    table = _table("figure", "before", "after", "", "+-")
    for figure in figures:
        before = "-" if figure.before is None else f"{figure.before:.4g}"
        spread = f"{min(figure.spread, 9.99):.0%}"
        table.add_row(Named(figure.name), before, f"{figure.after:.4g}", figure.unit, spread)
    return table


def _fits(figures: Sequence[Figure]) -> RenderableType:
    from planner.report.parts import Named

    table = _table("fit", "points", "outliers", "median", "now", "p90", "left out", "R2")
    for group, q in {f.group: f.quality for f in figures}.items():
        unseen = "too few" if q.median_unseen is None else f"{q.median_unseen:.1%}"
        table.add_row(
            Named(group),
            f"{q.points:,}",
            f"{q.dropped:,}",
            f"{q.median_before:.1%}",
            f"{q.median_after:.1%}",
            f"{q.p90_after:.1%}",
            unseen,
            "-" if q.r2 is None else f"{q.r2:.3f}",
        )
    return table


def _residuals(residuals: Sequence[Residual]) -> RenderableType:
    from planner.report.parts import Named

    table = _table("fit", "size", "points", "median", "now")
    for one in residuals:
        cells = (f"{one.before:+.1%}", f"{one.after:+.1%}")
        table.add_row(Named(one.fit), one.size, f"{one.points:,}", *cells)
    return table


def _predictions(predictions: Sequence[Prediction]) -> Iterable[RenderableType]:
    from planner.report.parts import Named, indented
    from planner.units import seconds

    table = _table("what", "measured", "before", "", "after", "")
    steps = [p for p in predictions if p.kind == STEPS_KIND]
    for one in [p for p in predictions if p.kind != STEPS_KIND] + steps[:SHOWN_STEPS]:
        measured = "-" if one.measured_s is None else seconds(one.measured_s)
        cells = []
        for value in (one.before_s, one.after_s):
            cells += [seconds(value), _off(value, one)]
        table.add_row(Named(one.what[:LONGEST_NAME]), measured, *cells)
    yield table
    if len(steps) > SHOWN_STEPS:
        yield indented(f"and {len(steps) - SHOWN_STEPS:,} more steps; --json has all")


def _off(value: float, one: Prediction) -> str:
    """Return how far a prediction is from what was measured, or from what it was."""
    if one.measured_s:
        return f"{value / one.measured_s - 1:+.1%}"
    return f"{value / one.before_s - 1:+.1%}" if value != one.before_s else ""


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table

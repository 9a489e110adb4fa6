"""`meshwright simulate`: the pipeline of a saved plan, action by action."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from planner.cli import options as o
from planner.cli.talk import answer_json, say, show
from planner.errors import SpecError

EXAMPLES = """\
\b
Examples:
  meshwright plan llama-3.1-405b dgx-h100:128 --json > plan.json
  meshwright simulate plan.json
  meshwright simulate plan.json -o trace.json
  meshwright simulate plan.json --straggler stage=3:1.2
  meshwright simulate plan.json --schedule 1f1b --balance
  meshwright simulate plan.json --schedule zbv --json
"""
STRAGGLER = re.compile(r"(?:stage=)?(\d{1,9}):([0-9.]{1,20})")
LARGEST_FACTOR = 1000


def simulate(
    plan_file: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN.json",
            help="Plan written by `meshwright plan --json` or `-o`.",
            show_default=False,
        ),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write a trace for Perfetto or chrome://tracing.",
            show_default=False,
        ),
    ] = None,
    straggler: Annotated[
        list[str] | None,
        typer.Option(
            metavar="stage=N:X",
            help="What if stage N (from 0) took X times as long? May be given several times.",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Run another schedule: gpipe, 1f1b, interleaved, looped-bfs, zb-h1, "
            "interleaved-zb, zbv, dualpipev, dualpipe.",
            show_default=False,
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=1024, help="Chunks a rank holds (vpp).", show_default=False
        ),
    ] = None,
    microbatches: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=10_000_000,
            help="Run so many micro-batches instead of the plan's.",
            show_default=False,
        ),
    ] = None,
    balance: Annotated[
        bool,
        typer.Option(
            "--balance",
            help="What if the layers were cut so that the slowest stage is fastest (exact)?",
        ),
    ] = False,
    plan_rank: Annotated[
        int, typer.Option(metavar="N", min=1, help="Which row of the plan's table to run.")
    ] = 1,
    as_json: o.Json = False,
) -> None:
    """Run the pipeline of a saved plan action by action: a chart, idle time, a trace file.

    Stage times are those of the estimate, with the embedding, the head and uneven layers where
    they stand; the closed form that ranking uses is shown beside.
    """
    factors = _factors(straggler or [])
    if plan_file.is_char_device():  # /dev/zero has no end
        raise SpecError(f"{plan_file}: is a device, not a plan")
    if output is not None:
        _refuse_early(plan_file, output)
    from planner import workflow
    from planner.plan import Plan

    found = workflow.simulate(
        workflow.SimulationRequest(
            Plan.read(plan_file),
            plan_rank=plan_rank,
            schedule=schedule,
            chunks=chunks,
            microbatches=microbatches,
            straggler=factors,
            balance=balance,
        )
    )
    if output is not None:
        from planner.report.trace import trace_text

        _write(output, trace_text(found))
    if as_json:
        answer_json(found.record.model_dump(mode="json", by_alias=True))
        return
    from planner.report.simulation import simulation_report

    show(*simulation_report(found))


def _factors(texts: list[str]) -> dict[int, float]:
    """Return {stage: factor} of 'stage=3:1.2' texts, several of them comma-separated or not."""
    out: dict[int, float] = {}
    for text in (part.strip() for word in texts for part in word.split(",")):
        match = STRAGGLER.fullmatch(text)
        factor = _number(match[2]) if match else math.nan
        if match is None or not 0 < factor <= LARGEST_FACTOR:
            raise SpecError(
                f"--straggler {text!r}: takes stage=N:X, X above 0 and at most {LARGEST_FACTOR}",
                hint="--straggler stage=3:1.2 makes stage 3 a fifth slower",
            )
        stage = int(match[1])
        if stage in out:
            raise SpecError(
                f"--straggler: stage {stage} is given twice (x{out[stage]:g} and x{factor:g})",
                hint=f"stage={stage}:{out[stage] * factor:g} is both of them together",
            )
        out[stage] = factor
    return out


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _refuse_early(source: Path, output: Path) -> None:
    """Raise SpecError for paths that will not do, before any time is spent."""
    if output.exists() and not output.is_file():
        raise SpecError(f"-o: {output} is not a regular file")
    if output.exists() and source.exists() and output.samefile(source):
        raise SpecError(f"-o: {output} is the plan itself", hint="name another file")
    if not output.absolute().parent.is_dir():
        raise SpecError(f"-o: {output.parent} is no folder", hint="make it, or name another")


def _write(output: Path, text: str) -> None:
    from planner.files import write_whole

    try:
        write_whole(output, text)
    except OSError as error:
        raise SpecError(f"-o: {output} cannot be written ({error.strerror or error})") from error
    say(f"wrote {output}")

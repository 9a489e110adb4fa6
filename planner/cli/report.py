"""`meshwright report`: one HTML page of a plan or a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import options as o
from planner.cli.talk import answer_json
from planner.errors import PlannerError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.plan import Plan
    from planner.report.page import Command
    from planner.simulation import Simulated

LINES_SHOWN = 8
ACTIONS_RUN = 1_000_000
"""A pipeline of more actions than this is run with fewer micro-batches, which the page says."""
EXAMPLES = """\
\b
Examples:
  meshwright plan llama-3.1-70b dgx-h100:32 --json > plan.json
  meshwright report plan.json -o report.html
  meshwright report out.jsonl -o report.html
"""


def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN.json|OUT",
            help="A saved plan, or the .jsonl, .csv or .parquet of a sweep.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Page to write (.html).", show_default=False
        ),
    ],
    *,
    as_json: o.Json = False,
) -> None:
    """Write one self-contained HTML page: charts, tables, placement map, commands to copy.

    It loads nothing from the network, reads on a phone and in print, and is dark where the reader
    likes it dark.
    """
    _refuse_early(source, output)
    suffix = source.suffix.lower()
    try:
        text = _of_plan(source) if suffix == ".json" else _of_sweep(source)
    except (ArithmeticError, ValueError, LookupError, RecursionError) as error:
        raise SpecError(
            f"{source}: its figures contradict each other ({type(error).__name__}: {error})",
            hint="was it edited by hand? write it anew with `meshwright plan` or `sweep`",
        ) from error
    _write(output, text)
    if as_json:
        kind = "plan" if suffix == ".json" else "sweep"
        answer_json({"schema": "meshwright.report/1", "kind": kind, "written": str(output)})
    else:
        typer.echo(f"wrote {output}")


def _refuse_early(source: Path, output: Path) -> None:
    """Raise SpecError for paths that will not do, before any time is spent."""
    if source.suffix.lower() not in (".json", ".jsonl", ".csv", ".parquet"):
        raise SpecError(
            f"{source}: a report is of a plan (.json) or of a sweep (.jsonl, .csv, .parquet)"
        )
    if source.exists() and not source.is_file():
        raise SpecError(f"{source}: is not a regular file")
    if output.suffix.lower() not in (".html", ".htm"):
        raise SpecError(f"-o: {output} does not end in .html")
    if output.exists() and not output.is_file():
        raise SpecError(f"-o: {output} is not a regular file")
    if not output.absolute().parent.is_dir():
        raise SpecError(f"-o: {output.parent} is no folder", hint="make it, or name another")


def _write(output: Path, text: str) -> None:
    from planner.files import write_whole

    try:
        write_whole(output, text)
    except OSError as error:
        raise SpecError(f"-o: {output} cannot be written ({error.strerror or error})") from error


def _of_plan(source: Path) -> str:
    from planner.plan import Plan
    from planner.report.page import plan_page
    from planner.workflow.remarks import NEAR_TIE

    found = Plan.read(source)
    if not found.plans:
        raise SpecError(f"{source}: holds no plans")
    for row in found.plans:
        cost = row.estimate
        if cost.step_time_s <= 0 or cost.memory.limit_bytes <= 0 or not cost.memory.stages:
            raise SpecError(f"{source}: plan {row.rank} has no step time, memory limit or stages")
    commands = list(_commands(found, source))
    return plan_page(found, commands, tie=NEAR_TIE, pipeline=_pipeline(found))


def _pipeline(found: Plan) -> Simulated | None:
    """Return the best plan's pipeline, run; None where there is none, or it cannot be run."""
    from planner.workflow import SimulationRequest, simulate

    layout = found.best.layout
    if layout.pp == 1:
        return None
    most = max(layout.pp, ACTIONS_RUN // (4 * layout.pp * layout.vpp))
    fewer = most // layout.pp * layout.pp if layout.num_microbatches > most else None
    try:
        return simulate(SimulationRequest(found, microbatches=fewer))
    except PlannerError:
        return None


def _of_sweep(source: Path) -> str:
    from planner.report.page import sweep_page
    from planner.sweep.tables import read_rows

    return sweep_page(read_rows(source), source.name, [])


def _commands(found: Plan, source: Path) -> Iterator[Command]:
    """Yield what to type: how each framework starts the plan, and how to look further."""
    from planner.report.page import Command

    for target in _targets(found.request.workload.stack):
        try:
            yield from _starting(found, source, target)
        except PlannerError as error:
            yield Command(target, f"{error.message} {error.hint}".strip())
    yield from _looking_further(found)


def _targets(stack: str) -> tuple[str, ...]:
    """Return every target, that of the plan's own stack first."""
    from planner.emit import EMITTER_NAMES
    from planner.emit.wrapped import started_for

    profile = stack.partition("+")[0]
    if profile == "any":
        return EMITTER_NAMES
    try:
        own = profile if profile in EMITTER_NAMES else started_for(stack)[0]
    except SpecError:  # a stack that this version does not know
        return EMITTER_NAMES
    return (own, *(name for name in EMITTER_NAMES if name != own))


def _starting(found: Plan, source: Path, target: str) -> Iterator[Command]:
    """Yield the command that writes a bundle, and those that its README starts it with."""
    from planner.emit import bundle
    from planner.emit.base import shell_line
    from planner.report.page import Command

    texts = {artifact.path: artifact.text for artifact in bundle(found, target)}
    words = ["meshwright", "emit", _word(source), "--target", target, "-o", "launch"]
    yield Command(target, "Write the launch files:", shell_line(words))
    start = texts["README.md"].partition("\n## Start\n")[2].partition("\n## ")[0]
    blocks = [block.strip("\n").removeprefix("bash\n") for block in start.split("```")[1::2]]
    where = f"Start it, in launch/{target}:"
    for number, block in enumerate(blocks):
        yield Command(target, where if number == 0 else "Or:", block)
    lines = texts.get("commands.txt", "").splitlines()
    if lines:
        more = f" (the first {LINES_SHOWN} of {len(lines):,})" if len(lines) > LINES_SHOWN else ""
        about = f"One line on each node{more}, in launch/{target}:"
        yield Command(target, about, "\n".join(lines[:LINES_SHOWN]))


def _looking_further(found: Plan) -> Iterator[Command]:
    """Yield commands that ask again, where the plan's specs are the shipped ones."""
    from planner.emit.base import shell_line
    from planner.report.page import Command
    from planner.specs.catalog import load_cluster, load_model

    request, work = found.request, found.request.workload
    cluster = f"{request.cluster.name}:{request.cluster.nodes}"
    try:
        shipped = (
            load_model(request.model.name) == request.model
            and load_cluster(cluster) == request.cluster
        )
    except PlannerError:
        shipped = False
    if not shipped:
        return
    asked = [request.model.name, cluster, "--seq", str(work.seq_tokens)]
    asked += ["--global-batch", str(work.global_batch), "--precision", work.precision.value]
    if work.optimizer.value != "adamw":
        asked += ["--optimizer", work.optimizer.value]
    asked += ["--stack", work.stack]
    layout = ["--layout", found.best.layout.short()]
    yield Command(
        "explain",
        "Every term, down to its source:",
        shell_line(["meshwright", "explain", *asked, *layout]),
    )
    again = ["meshwright", "plan", *asked, *_aim_words(found)]
    yield Command("explain", "Plan again:", shell_line(again))


def _aim_words(found: Plan) -> list[str]:
    """Return the options that say what the plan was chosen for, and within which limits."""
    goal = found.objective
    amounts = {
        "--price": goal.usd_per_gpu_hour if "--price" in goal.usd_source else None,
        "--power": goal.watts_per_gpu if "--power" in goal.watts_source else None,
        "--tokens": goal.tokens,
        "--deadline": goal.deadline_s,
        "--budget": goal.budget_usd,
        "--max-step-time": goal.max_step_time_s,
    }
    words = [] if goal.name == "step-time" else ["--objective", goal.name]
    for option, amount in amounts.items():
        words += [] if amount is None else [option, f"{amount:.12g}"]
    return words


def _word(path: Path) -> str:
    return f"./{path}" if str(path).startswith("-") else str(path)

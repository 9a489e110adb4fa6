"""`meshwright emit`: launch files of a saved plan, and whether edited ones still agree with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import completing
from planner.cli import options as o
from planner.cli.names import TARGETS
from planner.cli.talk import answer_json, say
from planner.errors import SpecError
from planner.report.text import printable

if TYPE_CHECKING:
    from planner.cli.bundles import Refused
    from planner.plan import Plan

EXAMPLES = """\
\b
Examples:
  meshwright plan llama-3.1-8b dgx-h100:2 --json > plan.json
  meshwright emit plan.json --target torchrun,megatron -o launch
  meshwright emit plan.json --target slurm -o job
  meshwright emit plan.json --placement moved.json --target slurm -o job
  meshwright emit --check launch
"""


def emit(
    plan_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="PLAN.json",
            help="Plan written by `meshwright plan --json` or `-o`.",
            show_default=False,
        ),
    ] = None,
    *,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"What to write for: {TARGETS}.",
            autocompletion=completing.targets,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write into."),
    ] = None,
    placement: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACED.json",
            help="Start the ranks where this place --json has them, not where the plan does.",
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Say whether edited files still agree with their plan."),
    ] = None,
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Write the launch files of a saved plan, one folder a framework.

    A framework that cannot express the plan is refused with the nearest layout that it can, the
    others are written: exit code 1, or 2 where nothing is. With --check the bundle in DIR is read
    instead: exit code 2 and a sentence for each thing that disagrees.
    """
    if check is not None:
        if plan_file or target or output or placement or force:
            raise SpecError("--check: takes no PLAN.json and no other option but --json")
        _check(check, as_json=as_json)
        return
    if plan_file is None:
        raise SpecError("missing argument 'PLAN.json'", hint="see meshwright emit --help")
    if target is None or output is None:
        name = "--target" if target is None else "--output / -o"
        raise SpecError(f"missing option '{name}'", hint="see meshwright emit --help")
    targets = _targets(plan_file, target, output, force=force)
    _write(_plan(plan_file, placement), targets, output, force=force, as_json=as_json)


def _targets(plan_file: Path, target: str, output: Path, *, force: bool) -> tuple[str, ...]:
    from planner.cli import bundles

    if plan_file.is_char_device():  # /dev/zero has no end
        raise SpecError(f"{plan_file}: is a device, not a plan")
    targets = bundles.targets_of(target)
    bundles.refuse_early(output, targets, force=force)
    return targets


def _plan(plan_file: Path, placement: Path | None) -> Plan:
    from planner.plan import Placement, Plan

    plan = Plan.read(plan_file)
    if placement is None:
        return plan
    from planner.workflow import replaced

    return replaced(plan, Placement.read(placement))


def _write(
    plan: Plan, targets: tuple[str, ...], output: Path, *, force: bool, as_json: bool
) -> None:
    from planner.cli import bundles
    from planner.workflow import whose_figures

    paths, refused = bundles.write(output, plan, targets, force=force)
    gone = {one.target for one in refused}
    for name in targets:
        if name not in gone and (told := whose_figures(plan, name)):
            say(told)
    if paths and as_json:
        answer_json(_written(paths, refused))
    for path in () if as_json else paths:
        typer.echo(f"wrote {path}")
    if paths:
        bundles.tell(refused)
    bundles.end_with(refused, targets, answered=bool(paths))


def _written(paths: list[Path], refused: list[Refused]) -> dict[str, Any]:
    """Return the document of what was written and refused."""
    why = [{"target": t, "reason": e.message, "hint": e.hint} for t, e in refused]
    written = [str(path) for path in paths]
    return {"schema": "meshwright.emit/1", "written": written, "refused": why}


def _check(folder: Path, *, as_json: bool) -> None:
    from planner.workflow import check

    found = check(folder)
    wrong = sum(len(bundle.problems) for bundle in found)
    if as_json:
        rows = [
            {"folder": str(f.folder), "target": f.target, "problems": f.problems} for f in found
        ]
        answer_json({"schema": "meshwright.emit-check/1", "ok": not wrong, "bundles": rows})
    else:
        for bundle in found:
            for problem in bundle.problems:
                typer.echo(printable(f"{bundle.folder}: {problem}"))
            if not bundle.problems:
                typer.echo(f"{bundle.folder}: agrees with its plan ({bundle.target})")
    if wrong:
        raise SpecError(
            f"{folder}: {wrong} {'things disagree' if wrong > 1 else 'thing disagrees'} with the "
            "plan",
            hint="mend them, or write the bundle again: meshwright emit PLAN.json --target ... -o",
        )

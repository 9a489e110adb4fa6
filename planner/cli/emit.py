"""`meshwright emit`: launch files of a saved plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli import options as o
from planner.cli.talk import answer_json
from planner.errors import SpecError

EXAMPLES = """\
\b
Examples:
  meshwright plan llama-3.1-8b dgx-h100:2 --json > plan.json
  meshwright emit plan.json --target torchrun,megatron -o launch
"""


def emit(
    plan_file: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN.json",
            help="Plan written by `meshwright plan --json` or `-o`.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Frameworks to write for: torchrun,megatron,...",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder to write into.", show_default=False
        ),
    ],
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Write the launch files of a saved plan, one folder a framework.

    A framework that cannot express the plan is refused, and nothing is written.
    """
    from planner.cli import bundles
    from planner.plan import Plan

    if plan_file.is_char_device():  # /dev/zero has no end
        raise SpecError(f"{plan_file}: is a device, not a plan")
    targets = bundles.targets_of(target)
    bundles.refuse_early(output, targets, force=force)
    written = bundles.write(output, Plan.read(plan_file), targets, force=force)
    if as_json:
        answer_json({"schema": "meshwright.emit/1", "written": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(f"wrote {path}")

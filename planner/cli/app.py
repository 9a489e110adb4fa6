"""The command line: one file a command, and `main`, the one place where an error ends.

Commands import what they need when they run, so that `--help` costs no numpy and no pydantic.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from planner import __version__
from planner.cli import (
    calibrate,
    emit,
    explain,
    gradient_sync,
    place,
    plan,
    report,
    simulate,
    specs,
    sweep,
    validate,
)
from planner.cli.talk import say
from planner.errors import PlannerError

INTERRUPTED = 130
READER_GONE = 141
"""What a shell reports for a program that SIGPIPE ended; `meshwright ... | head` is no failure."""
OURS = 70
"""EX_SOFTWARE of sysexits.h: the fault is ours."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 96}

app = typer.Typer(
    name="meshwright",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=SETTINGS,
)
app.command(
    "plan", short_help="Find the fastest layout, place it, and say why.", epilog=plan.EXAMPLES
)(plan.plan)
app.command("explain", epilog=explain.EXAMPLES)(explain.explain)
app.command("place", epilog=place.EXAMPLES)(place.place)
app.command("emit", epilog=emit.EXAMPLES)(emit.emit)
app.command("sweep", short_help="Plan a grid of points, one row each.", epilog=sweep.EXAMPLES)(
    sweep.sweep
)
app.command("report", short_help="One HTML page of a plan or a sweep.", epilog=report.EXAMPLES)(
    report.report
)
app.command(
    "simulate", short_help="Run a plan's pipeline action by action.", epilog=simulate.EXAMPLES
)(simulate.simulate)
app.command(
    "validate", short_help="Predict published runs; errors by source.", epilog=validate.EXAMPLES
)(validate.validate)
app.command(
    "calibrate", short_help="Fit a cluster to your measurements.", epilog=calibrate.EXAMPLES
)(calibrate.calibrate)
app.command("gradient-sync", epilog=gradient_sync.EXAMPLES)(gradient_sync.gradient_sync)
app.add_typer(
    specs.app,
    name="specs",
    short_help="What ships, and what a file resolves to.",
    epilog=specs.EXAMPLES,
)

EXAMPLES = """\
\b
Examples:
  meshwright plan llama-3.1-70b dgx-h100:32
  meshwright explain llama-3.1-70b dgx-h100:32 --layout tp=8,pp=4
  meshwright specs list

\b
Exit codes: 0 done, 1 no feasible answer, 2 bad usage or input, 130 interrupted.
"""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"meshwright {__version__}")
        raise typer.Exit


@app.callback(epilog=EXAMPLES)
def meshwright(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Find how to split a model over GPUs: the fastest layout, placed and ready to launch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's) and return the exit code.

    With MESHWRIGHT_DEBUG=1 errors keep their traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(words or ["--help"], prog_name="meshwright", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        if os.environ.get("MESHWRIGHT_DEBUG") == "1":
            traceback.print_exc()
        return _ended_by(error)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit:  # what is left of a broken pipe that Typer has met
        _drop_output()
        code = READER_GONE
    return code if isinstance(code, int) else 0


def _ended_by(error: Exception) -> int:
    """Say what ended the command, in one message, and return the exit code."""
    match error:
        case BrokenPipeError():
            _drop_output()
            code, message, hint = READER_GONE, "", ""
        case PlannerError():
            code, message, hint = error.exit_code, error.message, error.hint
        case typer.TyperException():
            code, message, hint = 2, _lower_first(error.format_message()), _see_help(error)
        case typer.Abort():
            code, message, hint = INTERRUPTED, "", ""
        case OSError():
            _drop_output()
            code, message, hint = 2, f"{error.filename or 'output'}: {error.strerror or error}", ""
        case MemoryError():
            code, message = 2, "out of memory"
            hint = "ask for less: a smaller cluster, or more fields in --fix"
        case _:
            code, message = OURS, f"internal error: {type(error).__name__}: {error}"
            hint = "a defect of meshwright, please report it; MESHWRIGHT_DEBUG=1 shows where"
    _complain(message, hint)
    return code


def _complain(message: str, hint: str = "") -> None:
    if message:
        say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def _see_help(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'meshwright'} --help"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _drop_output() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())

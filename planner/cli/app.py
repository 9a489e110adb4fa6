"""The command line: one file a command, and `main`, the one place where an error ends.

Commands are loaded when they are called, and import what they need when they run, so that `--help`
costs no numpy and no pydantic.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from planner import __version__
from planner.cli import completing
from planner.cli.talk import answer_json, say
from planner.errors import InfeasibleError, PlannerError

INTERRUPTED = 130
READER_GONE = 141
"""What a shell reports for a program that SIGPIPE ended; `meshwright ... | head` is no failure."""
OURS = 70
"""EX_SOFTWARE of sysexits.h: the fault is ours."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 96}
COMMANDS = {
    "plan": ("plan", "plan", "Find the fastest layout, place it, and say why."),
    "explain": ("explain", "explain", "Open one layout: every term, formula and source."),
    "import": ("importing", "import_job", "Read an existing job; compare it with the best."),
    "place": ("place", "place", "Map every rank of a layout to a host and a GPU."),
    "emit": ("emit", "emit", "Write the launch files of a saved plan."),
    "sweep": ("sweep", "sweep", "Plan a grid of points, one row each."),
    "report": ("report", "report", "One HTML page of a plan or a sweep."),
    "simulate": ("simulate", "simulate", "Run a plan's pipeline action by action."),
    "validate": ("validate", "validate", "Predict published runs; errors by source."),
    "calibrate": ("calibrate", "calibrate", "Fit a cluster to your measurements."),
    "gradient-sync": (
        "gradient_sync",
        "gradient_sync",
        "What one gradient synchronisation moves.",
    ),
    "specs": ("specs", "app", "What ships, and what a file resolves to."),
}
"""Name -> module of this package, what of it is the command, and its line in the list."""


def build(only: str | None = None) -> typer.Typer:
    """Return the whole command line, or with `only` one in which just that command is real.

    The others have a name and a line of help; so a run loads what it needs and nothing else.
    """
    built = typer.Typer(
        name="meshwright",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings=SETTINGS,
    )
    built.callback(epilog=EXAMPLES)(meshwright)
    for name, (module, attribute, about) in COMMANDS.items():
        if only is not None and name != only:
            built.command(name, short_help=about)(_stub)
            continue
        loaded = import_module(f"planner.cli.{module}")
        command, epilog = getattr(loaded, attribute), loaded.EXAMPLES
        if isinstance(command, typer.Typer):
            built.add_typer(command, name=name, short_help=about, epilog=epilog)
        else:
            built.command(name, short_help=about, epilog=epilog)(command)
    return built


def __getattr__(name: str) -> typer.Typer:
    """Return the whole command line as `app`, for whoever looks into it."""
    if name == "app":
        return build()
    raise AttributeError(name)


def _stub() -> None:
    """Stand for a command that this run does not call."""


EXAMPLES = """\
\b
Examples:
  meshwright plan llama-3.1-70b dgx-h100:32
  meshwright explain llama-3.1-70b dgx-h100:32 --layout tp=8,pp=4
  meshwright specs list

\b
Exit codes: 0 done, 1 no feasible answer, 2 bad usage or input, 130 interrupted.
"""

WELCOME = """\
meshwright: how to split a model over GPUs, where each rank goes, and what to type to start it.

Start with one of these
  meshwright plan llama-3.1-70b dgx-h100:32        the fastest layout on 32 nodes, and why
  meshwright import train.sh --cluster dgx-h100    a job that you run: what would be faster?
  meshwright specs list llama                      models, clusters and GPUs that are known

Then
  meshwright plan ... -o launch --target megatron  files that start it
  meshwright explain ... --layout tp=8,pp=4        what any number is made of
  meshwright --help                                every command; each has --help with examples

A model is a name, a YAML file or a Hugging Face config.json; a cluster a name or a YAML file, with
:N for N nodes. Words: docs/glossary.md. From a name to a running job: docs/tutorial.md.
Completion by the tab key: meshwright --install-completion"""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"meshwright {__version__}")
        raise typer.Exit


def meshwright(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            callback=completing.install,
            is_eager=True,
            help="Set up completion by the tab key in this shell.",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            callback=completing.show,
            is_eager=True,
            help="Print the script that does it.",
        ),
    ] = False,
) -> None:
    """Find how to split a model over GPUs: the fastest layout, placed and ready to launch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: the process's) and return the exit code.

    With MESHWRIGHT_DEBUG=1 errors keep their traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    completes = completing.VARIABLE in os.environ
    try:
        if completes:
            completing.serve()
        elif not words:
            typer.echo(WELCOME)
            return 0
        cli = build(None if completes else words[0] if words[0] in COMMANDS else "")
        code = cli(words, prog_name="meshwright", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        if os.environ.get("MESHWRIGHT_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        if isinstance(error, InfeasibleError) and "--json" in words and not error.answered:
            answer_json(_no_answer(words[0], error))
        return _ended_by(error)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as ended:  # what is left of a broken pipe that Typer has met
        if completes:
            return ended.code if isinstance(ended.code, int) else 0
        _drop_output()
        code = READER_GONE
    return code if isinstance(code, int) else 0


EMPTY: dict[str, dict[str, Any]] = {
    "plan": {"plans": [], "placement": None},
    "explain": {"legal": False, "feasible": False, "terms": []},
    "place": {"status": "infeasible", "ranks": []},
    "import": {"best": None, "better": []},
    "calibrate": {"written": None, "figures": [], "predictions": []},
    "emit": {"written": []},
    "simulate": {"stages": []},
}
"""Command -> what its document holds where there is no answer, beside why."""
SCHEMAS = {"simulate": "simulation"}


def _no_answer(command: str, error: InfeasibleError) -> dict[str, Any]:
    """Return the document of a command that has no feasible answer: its schema, empty, and why."""
    return {
        "schema": f"meshwright.{SCHEMAS.get(command, command)}/1",
        **EMPTY.get(command, {}),
        "reasons": [error.message],
        "hint": error.hint,
    }


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

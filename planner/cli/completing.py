"""Shell completion: names of models, clusters, stacks, targets and layout fields.

Runs at every press of the tab key, so it reads file names and imports no numpy and no pydantic.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import typer

from planner.cli.names import LAYOUT_FIELDS, TARGETS
from planner.errors import SpecError

VARIABLE = "_MESHWRIGHT_COMPLETE"
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
PRECISIONS = ("bf16", "fp16", "fp8")
OPTIMIZERS = ("adamw", "adamw-8bit", "sgd", "muon")
FOLDERS = {
    "model": ("model_specs", "."),
    "cluster": ("hardware_specs", "clusters"),
    "accelerator": ("hardware_specs", "accelerators"),
}
"""As `planner.specs.catalog` has them, which is not imported: it loads pydantic."""


def names(kind: str) -> list[str]:
    """Return the shipped names of a kind, sorted."""
    from planner.files import data_folder

    folder, inner = FOLDERS[kind]
    return sorted(path.stem for path in (data_folder(folder) / inner).glob("*.yaml"))


def models(incomplete: str) -> list[str]:
    """Return the shipped models that begin with what is typed."""
    return _begun(names("model"), incomplete)


def clusters(incomplete: str) -> list[str]:
    """Return the shipped clusters that begin with what is typed."""
    return _begun(names("cluster"), incomplete)


def specs(incomplete: str) -> list[str]:
    """Return the names of every kind that begin with what is typed."""
    return _begun(sorted(n for kind in FOLDERS for n in names(kind)), incomplete)


def stacks(incomplete: str) -> list[str]:
    """Return the stacks that begin with what is typed."""
    from planner.specs.profiles import STACKS

    return _begun(sorted(STACKS), incomplete)


def precisions(incomplete: str) -> list[str]:
    """Return the precisions that begin with what is typed."""
    return _begun(PRECISIONS, incomplete)


def optimizers(incomplete: str) -> list[str]:
    """Return the optimizers that begin with what is typed."""
    return _begun(OPTIMIZERS, incomplete)


def targets(incomplete: str) -> list[str]:
    """Return the targets for the last word of a comma-separated list."""
    return _listed(TARGETS.split(", "), incomplete)


def layout_fields(incomplete: str) -> list[str]:
    """Return `field=` for the last part of a layout."""
    return _listed([f"{name}=" for name in LAYOUT_FIELDS], incomplete)


def _begun(known: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in known if name.startswith(incomplete)]


def _listed(known: Iterable[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{n}" for n in known if n.startswith(last) and n not in taken]


def serve() -> None:
    """Register the shells that Typer knows: what `_MESHWRIGHT_COMPLETE` asks for needs them."""
    from typer._completion_classes import completion_init

    completion_init()


def install(wanted: bool) -> None:
    """Put the completion script into the start-up file of the current shell, and say where."""
    if not wanted:
        return
    from typer._completion_shared import install as put

    shell, path = put(shell=_shell(), prog_name="meshwright", complete_var=VARIABLE)
    typer.echo(f"{shell} completion is in {path}; it works in new shells")
    raise typer.Exit


def show(wanted: bool) -> None:
    """Print the completion script of the current shell."""
    if not wanted:
        return
    from typer._completion_shared import get_completion_script

    typer.echo(get_completion_script(prog_name="meshwright", complete_var=VARIABLE, shell=_shell()))
    raise typer.Exit


def _shell() -> str:
    """Return the shell that this runs in, or else that of the login; SpecError for an unknown."""
    from typer._completion_shared import _get_shell_name

    found = _get_shell_name() or Path(os.environ.get("SHELL", "")).name
    if found not in SHELLS:
        raise SpecError(
            f"completion: {found[:40]!r} is no shell that is known", hint=f"for {', '.join(SHELLS)}"
        )
    return found

"""Launch bundles on disk: refused before the search starts, written whole after it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from planner.cli.options import words_of
from planner.errors import SpecError

if TYPE_CHECKING:
    from planner.emit.base import Artifact
    from planner.plan import Plan


def targets_of(text: str | None) -> tuple[str, ...]:
    """Return the targets of `--target a,b`, each once.

    Raises SpecError for a target that does not exist.
    """
    from planner.emit import emitter_named

    targets = tuple(dict.fromkeys(words_of(text, option="--target")))
    for target in targets:
        emitter_named(target)
    return targets


def refuse_early(folder: Path | None, targets: tuple[str, ...], *, force: bool) -> None:
    """Raise SpecError for a folder that cannot take the files, before any time is spent."""
    if folder is None:
        if targets:
            raise SpecError("--target: there is no folder to write into", hint="add -o DIR")
        return
    from planner.emit.base import refuse_if_not_ours

    try:
        refuse_if_not_ours(folder, force=force)
        above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    except OSError as error:
        raise SpecError(f"-o: {folder}: {error.strerror}") from error
    if not above.is_dir():
        raise SpecError(f"-o: {above} is a file", hint="name a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise SpecError(f"-o: {above} may not be written to", hint="name another folder")


def write(
    folder: Path,
    found: Plan,
    targets: tuple[str, ...],
    *,
    force: bool,
    instead: Callable[[str], Plan] | None = None,
) -> list[Path]:
    """Write DIR/plan.json and one folder a target, all or nothing; return the paths written.

    A target that cannot express `found` gets the plan that `instead(target)` returns, and so does
    every target of a plan for no stack in particular, whose times are no framework's. Raises
    SpecError for a target that cannot express it when there is no `instead`, and names the
    nearest layout that it can.
    """
    from planner.emit.base import Artifact, write_bundle

    artifacts = [Artifact("plan.json", found.to_json())]
    for target in targets:
        artifacts += _of_target(found, target, instead)
    write_bundle(folder, artifacts, force=force)
    return [folder / "plan.json", *(folder / target for target in targets)]


def _of_target(found: Plan, target: str, instead: Callable[[str], Plan] | None) -> list[Artifact]:
    from planner.emit import bundle, emitter_named
    from planner.workflow import refuse

    if instead is None:
        refuse(found, target)
    own = found.request.workload.stack != "any" and not emitter_named(target).unsupported(found)
    plan = found if own or instead is None else instead(target)
    return [a._replace(path=f"{target}/{a.path}") for a in bundle(plan, target)]

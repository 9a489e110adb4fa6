"""Launch bundles on disk: refused before the search where that is known, written whole after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from planner.cli.options import words_of
from planner.cli.talk import say
from planner.errors import InfeasibleError, PlannerError, SpecError

if TYPE_CHECKING:
    from planner.emit.base import Artifact
    from planner.plan import Plan
    from planner.workflow import PlanRequest


class Refused(NamedTuple):
    """A target that cannot run what is asked, and why."""

    target: str
    error: PlannerError


class Written(NamedTuple):
    """The paths that were written, and the targets that were not."""

    paths: list[Path]
    refused: list[Refused]


def targets_of(text: str | None) -> tuple[str, ...]:
    """Return the targets of `--target a,b`, each once.

    Raises SpecError for a target that does not exist.
    """
    from planner.emit import emitter_named

    targets = tuple(dict.fromkeys(words_of(text, option="--target")))
    for target in targets:
        emitter_named(target)
    return targets


def stack_told(target: str) -> str:
    """Return the stack that a single target runs, and say that layouts are ranked for it.

    What is shown is then what is written.
    """
    from planner.workflow import stack_of

    stack = stack_of(target, "any")
    say(f"ranked by the rules and speed of stack {stack}, as {target} runs; --stack for another")
    return stack


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


def foreseen(request: PlanRequest, targets: tuple[str, ...]) -> list[Refused]:
    """Return the targets that can run nothing of what is asked, known before the search."""
    from planner.workflow import refuse_foreseen

    refused = []
    for target in targets:
        try:
            refuse_foreseen(request, target)
        except PlannerError as error:
            refused.append(Refused(target, error))
    return refused


def write(
    folder: Path,
    found: Plan,
    targets: Iterable[str],
    *,
    force: bool,
    instead: Callable[[str], Plan] | None = None,
) -> Written:
    """Write DIR/plan.json and one folder a target, all at once; return what and what not.

    A target that cannot express `found` gets the plan that `instead(target)` returns, and so does
    every target of a plan for no stack in particular, whose times are no framework's. A target
    that cannot run that either is refused by itself, and the others are written. Where there is no
    `instead` and all are refused, nothing is written.
    """
    from planner.emit.base import Artifact, write_bundle

    artifacts, refused = [Artifact("plan.json", found.to_json())], list[Refused]()
    names = ["plan.json"]
    for target in targets:
        try:
            artifacts += _of_target(found, target, instead)
            names.append(target)
        except PlannerError as error:
            refused.append(Refused(target, error))
    if instead is None and refused and len(names) == 1:
        return Written([], refused)
    write_bundle(folder, artifacts, force=force)
    return Written([folder / name for name in names], refused)


def end_with(refused: list[Refused], targets: tuple[str, ...], *, answered: bool) -> None:
    """Raise that targets were refused, if any: InfeasibleError where the rest is `answered`.

    Where nothing is written, one target alone keeps its own message, and several the kind of it.
    """
    if not refused:
        return
    if answered:
        raise InfeasibleError(f"no files for {_names(refused)}; the rest is written", answered=True)
    if len(targets) == 1:
        raise refused[0].error
    tell(refused)
    raise type(refused[0].error)(f"no files for {_names(refused)}; nothing is written")


def tell(refused: list[Refused]) -> None:
    """Say why each target is refused, and what would mend it."""
    for target, error in refused:
        say(f"no files for {target}: {error.message}")
        if error.hint:
            say(f"  hint: {error.hint}")


def _names(refused: list[Refused]) -> str:
    return ", ".join(target for target, _ in refused)


def _of_target(found: Plan, target: str, instead: Callable[[str], Plan] | None) -> list[Artifact]:
    from planner.emit import bundle, emitter_named
    from planner.workflow import refuse

    if instead is None:
        refuse(found, target)
    own = found.request.workload.stack != "any" and not emitter_named(target).unsupported(found)
    plan = found if own or instead is None else instead(target)
    return [a._replace(path=f"{target}/{a.path}") for a in bundle(plan, target)]

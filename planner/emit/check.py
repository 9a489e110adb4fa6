"""Check a bundle that was edited by hand: is it whole, and does it still say what its plan says?

The bundle is made anew from its own `plan.json` and compared with what stands there, fact by fact
(`planner.emit.facts`). Whether the placement in `plan.json` is sound is `planner.place.check`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from planner.emit import EMITTER_NAMES, emitter_named
from planner.emit.base import MARKER, hosts_are_placeholders, listed_files, one_line, safe_host
from planner.emit.facts import disagreements
from planner.emit.kinds import ADDRESS, KINDS
from planner.emit.shared import fingerprint
from planner.errors import SpecError
from planner.plan import Plan

RANK_MAP = "rank_map.json"
LARGEST_BYTES = 256 * 1024**2


class Found(NamedTuple):
    """One bundle: its folder, its target (none where unknown), its plan, what is wrong with it."""

    folder: Path
    target: str | None
    plan: Plan | None
    problems: list[str]


def bundles_in(folder: Path) -> list[Path]:
    """Return `folder` when it is a bundle, or else the folders of bundles right under it.

    Raises SpecError when there is none.
    """
    try:
        if not folder.is_dir():
            raise SpecError(f"{folder}: is not a folder", hint="name a bundle, or what -o named")
        if (folder / RANK_MAP).is_file() or folder.resolve().name in EMITTER_NAMES:
            return [folder]
        under = sorted(p for p in folder.iterdir() if p.is_dir())
        held = {name.partition("/")[0] for name in listed_files(folder / MARKER) if "/" in name}
        found = [p for p in under if (p / RANK_MAP).is_file() or p.name in held]
    except OSError as error:
        raise SpecError(f"{folder}: cannot be read ({error.strerror})") from error
    if not found:
        raise SpecError(
            f"{folder}: holds no launch bundle", hint="name the folder that -o named, or one in it"
        )
    return found


def missing_files(folder: Path) -> list[str]:
    """Return a sentence for each file that `bundle.json` in `folder` lists and that is not there.

    Where there is no such list (in the folder of one target), none is missing.
    """
    if not (folder / MARKER).exists():
        return []
    if not (listed := listed_files(folder / MARKER)):
        return [f"{MARKER}: is not the list of a bundle's files"]
    gone = sorted(name for name in listed if not (folder / name).is_file())
    return [f"{one_line(name)}: is missing" for name in gone]


def check_bundle(folder: Path) -> Found:
    """Return what is wrong with one bundle, a sentence each."""
    target = _target(folder)
    try:
        plan = Plan.read(folder / "plan.json")
        if target is None:
            raise SpecError(f"{folder / RANK_MAP}: does not say for which target it is")
        emitter = emitter_named(target)
        if refused := emitter.unsupported(plan):
            return Found(folder, target, plan, [f"plan.json: {s}" for s in refused])
        expected = emitter.emit(plan)
    except SpecError as error:
        message = error.message.removeprefix(f"{folder}/")
        return Found(folder, target, None, [message])
    problems = _of_another_plan(folder, plan)
    for artifact in expected:
        problems += _of_file(folder, artifact.path, artifact.text, plan)
    return Found(folder, target, plan, problems)


def _target(folder: Path) -> str | None:
    named = _said(folder, "target")
    return next((t for t in EMITTER_NAMES if t in (named, folder.resolve().name)), None)


def _said(folder: Path, key: str) -> Any:
    """Return what the rank map says under `key`, None where it cannot be read."""
    try:
        return json.loads((folder / RANK_MAP).read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _of_another_plan(folder: Path, plan: Plan) -> list[str]:
    """Return a sentence where `plan.json` is not the plan that the files were written from."""
    if _said(folder, "planned") == fingerprint(plan):
        return []
    return ["plan.json: is not the plan that the other files were written from (rank_map.json)"]


def _of_file(folder: Path, name: str, expected: str, plan: Plan) -> list[str]:
    """Return what is wrong with one file."""
    try:
        return text_problems(name, expected, _text(folder / name), plan)
    except SpecError as error:
        return [f"{name}: {error.message}"]


def text_problems(name: str, expected: str, text: str, plan: Plan) -> list[str]:
    """Return a sentence for each value of a file's text that is not as the plan has it."""
    made_up = hosts_are_placeholders(plan)
    if name in ("hosts.txt", "hostfile") and made_up:
        return _filled_in(name, expected, text)
    if (kind := KINDS.get(name)) is None:
        return []
    if name == "run.sh" and made_up:
        kind = kind._replace(yours=(*kind.yours, *ADDRESS))
    return disagreements(name, kind, expected, text)


def _text(file: Path) -> str:
    """Return what a file holds. Raises SpecError that says why it cannot be read."""
    try:
        if not file.is_file():
            raise SpecError("is missing")
        if file.stat().st_size > LARGEST_BYTES:
            raise SpecError(f"is larger than {LARGEST_BYTES // 1024**2} MiB")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SpecError("is not UTF-8 text") from error


def _filled_in(name: str, expected: str, text: str) -> list[str]:
    """Return what is wrong with a list of hosts whose made-up names may have been replaced."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    planned = [line.split() for line in expected.splitlines()]
    if len(rows) != len(planned):
        return [f"{name}: has {len(rows)} hosts, the plan has {len(planned)}"]
    out = []
    for number, (row, plain) in enumerate(zip(rows, planned, strict=True), 1):
        if row[1:] != plain[1:]:
            out.append(f"{name}: line {number} is {' '.join(row)}, the plan has {' '.join(plain)}")
        try:
            safe_host(row[0])
        except SpecError as error:
            out.append(f"{name}: line {number}: {error.message.removeprefix('cluster.hosts: ')}")
    if len({row[0].lower() for row in rows}) < len(rows):
        out.append(f"{name}: names a host twice")
    return out

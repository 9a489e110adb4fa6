"""What an emitter is, and how a bundle reaches the disk: whole or not at all, and never by harm.

Emitters are pure: a plan in, texts out. Anything that a shell, a host file or a comment will read
goes through `shell_line`, `safe_host` or `one_line` here, so that quoting has one home.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Protocol

from planner.errors import SpecError
from planner.plan import Placement, Plan
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload

if TYPE_CHECKING:
    from planner.emit.capabilities import Capabilities

MARKER = "bundle.json"
"""Lists the files of a bundle; `write_bundle --force` replaces only what it lists."""
BUNDLE_SCHEMA = "meshwright.bundle/1"
HOST_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class Artifact(NamedTuple):
    """One file of a bundle. `path` is relative, with forward slashes."""

    path: str
    text: str
    executable: bool = False


class Emitter(Protocol):
    """Turns a plan into the files of one framework.

    `emit` returns the whole bundle: `shared.shared_artifacts(...)` and the framework's own files.
    """

    @property
    def name(self) -> str:
        """Return what `--target` takes, such as 'torchrun'."""

    @property
    def stack(self) -> str:
        """Return the training stack whose legality rules fit, such as 'torchtitan'.

        'any' for schedulers, which go by that of the framework that they start.
        """

    @property
    def tested_with(self) -> str:
        """Return the framework and version whose own parser read these files in the tests."""

    @property
    def can(self) -> Capabilities:
        """Return, field by field, what the framework and this bundle express."""

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return one sentence for each thing of the model or the job that no layout mends."""

    def unsupported(self, plan: Plan) -> list[str]:
        """Return one sentence for each thing that this framework cannot express."""

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return the files; writing them is `write_bundle`'s."""


def shell_line(argv: Sequence[str]) -> str:
    """Return the words as one line for a POSIX shell, each quoted where it must be.

    A word that starts with a dash stays an option: write `--flag=value`, or a path from './'.
    """
    return shlex.join(argv)


def one_line(text: str) -> str:
    """Return `text` on one line without control characters, fit for a comment or a heading."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def safe_host(host: str) -> str:
    """Return `host` as it is when it is a host name by RFC 1123.

    Raises SpecError otherwise: a host reaches host files and ssh-like tools that split on spaces,
    commas, colons and '@', so odd names are refused rather than quoted.
    """
    if len(host) <= 253 and all(HOST_LABEL.fullmatch(label) for label in host.split(".")):
        return host
    raise SpecError(
        f"cluster.hosts: {one_line(host)[:80]!r} is not a host name",
        hint="RFC 1123: labels of 1-63 letters, digits and inner hyphens, joined by dots",
    )


def placed(plan: Plan) -> Placement:
    """Return the placement of the best plan, checked against its layout.

    Raises SpecError when there is none, or when its ranks are not 0..N-1 in node order with
    the same number of GPUs, counted from 0, on every host: launchers can start nothing else.
    """
    place = plan.placement
    if place is None or not place.ranks:
        raise SpecError(
            "the plan has no placement, so no rank has a host",
            hint="write the plan with: meshwright plan MODEL CLUSTER --json > plan.json",
        )
    gpus = plan.best.layout.gpus
    if len(place.ranks) != gpus:
        raise SpecError(f"placement.ranks holds {len(place.ranks)} ranks, the layout uses {gpus}")
    hosts, per_node = [safe_host(h) for h in place.hosts], place.gpus_per_node
    for index, row in enumerate(place.ranks):
        expected = (index, index % per_node)
        in_order = index // per_node < len(hosts) and row.host == hosts[index // per_node]
        if (row.rank, row.gpu) != expected or not in_order:
            raise SpecError(
                f"placement.ranks[{index}]: rank {row.rank} on {row.host}, GPU {row.gpu} is out "
                f"of order; expected rank {index} on GPU {index % per_node} of its host",
                hint=f"launchers number {per_node} ranks a host, host by host, GPUs from 0",
            )
    return place


def hosts_are_placeholders(plan: Plan) -> bool:
    """Return whether the hosts are made-up names, because the cluster lists none."""
    return not plan.request.cluster.names_hosts


def write_bundle(folder: Path, artifacts: Sequence[Artifact], *, force: bool) -> None:
    """Write the files into a temporary folder beside `folder`, then rename it into place.

    `folder` may be absent or empty. With `force` it may also be an earlier bundle, that is, hold a
    `bundle.json` of ours that lists every file in it (`__pycache__` aside): the old folder is
    renamed away, the new one takes its name, and only then is the old one deleted; if the second
    rename fails, the old one comes back. A file that we did not write is never deleted.

    Where the current folder is `folder`, or in it, whoever stands there must not lose the ground:
    then the files are moved into it one by one, each whole.

    Raises SpecError for a path that is a file, a folder that is not empty (without `force`) or not
    ours (with it), and for anything that the file system refuses.
    """
    target = Path(os.path.realpath(folder))
    try:
        refuse_if_not_ours(folder, force=force)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".meshwright."))
        try:
            _fill(scratch / "new", artifacts)
            if _stands_in(target):
                _move_into(target, scratch / "new")
            else:
                _swap(target, scratch / "new", scratch / "old")
        finally:
            shutil.rmtree(scratch / "new", ignore_errors=True)
            with contextlib.suppress(OSError):  # an old bundle that could not go back is kept
                scratch.rmdir()
    except OSError as error:
        raise SpecError(
            f"{folder}: the bundle cannot be written ({error.strerror})",
            hint="name a folder that you may write to with -o",
        ) from error


def refuse_if_not_ours(folder: Path, *, force: bool) -> None:
    """Raise SpecError when `folder` holds something that `write_bundle` would not replace."""
    target = Path(os.path.realpath(folder))
    if not target.exists():
        return
    if not target.is_dir():
        raise SpecError(f"{folder}: is a file", hint="name a folder with -o")
    present = sorted(_files(target))
    if not present and not any(target.iterdir()):
        return
    if not force:
        raise SpecError(
            f"{folder}: is not empty ({one_line(present[0]) if present else 'it holds folders'})",
            hint="name another folder, or replace an earlier bundle with --force",
        )
    listed = listed_files(target / MARKER)
    strangers = [name for name in present if name not in listed]
    if not present or strangers:
        shown = ", ".join(one_line(name) for name in strangers[:3]) or "folders only"
        raise SpecError(
            f"{folder}: holds what no bundle of ours wrote ({shown}), so it is not replaced",
            hint=_whole_folder(folder, target) or "move those files away, or name another folder",
        )


def _whole_folder(folder: Path, target: Path) -> str:
    """Return a hint where `target` is the folder of one launch target in a bundle of several."""
    names = {name.partition("/")[0] for name in listed_files(target.parent / MARKER) if "/" in name}
    if target.name not in names:
        return ""
    return f"it is a part of the bundle one folder up: -o {folder / '..'} with all its targets"


def _files(folder: Path) -> Iterator[str]:
    """Yield every file under `folder` by its relative path; links count as files."""
    for root, folders, names in os.walk(folder):
        links = [f for f in folders if (Path(root) / f).is_symlink()]
        folders[:] = [f for f in folders if f != "__pycache__" and f not in links]
        for name in (*names, *links):
            yield (Path(root) / name).relative_to(folder).as_posix()


def listed_files(marker: Path) -> frozenset[str]:
    """Return the files that a bundle's marker lists, itself too; none when it is not ours."""
    try:
        data = json.loads(marker.read_text(encoding="utf-8"))
        if data["schema"] == BUNDLE_SCHEMA:
            return frozenset((MARKER, *map(str, data["files"])))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return frozenset()


def _fill(folder: Path, artifacts: Sequence[Artifact]) -> None:
    """Write every artifact and the marker under the new `folder`."""
    paths = sorted(a.path for a in artifacts)
    if len(set(paths)) < len(paths) or MARKER in paths:
        raise ValueError(f"two artifacts share a path: {paths}")
    marker = json.dumps({"schema": BUNDLE_SCHEMA, "files": paths}, indent=1) + "\n"
    folder.mkdir()
    folder.chmod(0o755)
    for artifact in (*artifacts, Artifact(MARKER, marker)):
        relative = PurePosixPath(artifact.path)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"artifact {artifact.path!r} leaves the bundle")
        file = folder / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(artifact.text)
        file.chmod(0o755 if artifact.executable else 0o644)


def _swap(target: Path, fresh: Path, old: Path) -> None:
    """Give `fresh` the name `target`; what stood there becomes `old`, and comes back on failure."""
    stood = target.exists()
    if stood:
        target.rename(old)
    try:
        fresh.rename(target)
    except BaseException:
        if stood:
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _stands_in(target: Path) -> bool:
    """Return whether the current folder is `target`, or in it."""
    here = Path(os.path.realpath(os.curdir))
    return target == here or target in here.parents


def _move_into(target: Path, fresh: Path) -> None:
    """Move every file of `fresh` into `target`, and take away what an older bundle has beside it.

    The marker lists old and new files until the end, so that a run cut short can be repeated.
    """
    new, old = listed_files(fresh / MARKER), listed_files(target / MARKER)
    both = {"schema": BUNDLE_SCHEMA, "files": sorted((new | old) - {MARKER})}
    (fresh / ".both").write_text(json.dumps(both), encoding="utf-8")
    (fresh / ".both").replace(target / MARKER)
    for name in sorted(new - {MARKER}):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh / name).replace(target / name)
    for name in sorted(old - new):
        (target / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others of its folder follow, or are kept
            shutil.rmtree((target / name).parent / "__pycache__", ignore_errors=True)
            (target / name).parent.rmdir()
    (fresh / MARKER).replace(target / MARKER)

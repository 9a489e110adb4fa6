"""The journal beside OUT: one line a finished point, on the disk before the next one counts.

A kill can tear the last line only, since lines are appended and nothing is ever changed in place;
that line is cut off when the sweep goes on. The lock is the kernel's (`flock`), so that a killed
run leaves none behind.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from planner import __version__
from planner.errors import SpecError
from planner.specs.parse import shown
from planner.sweep.evaluate import Outcome

JOURNAL_SCHEMA: Final = "meshwright.sweep-journal/1"
LINE_BYTES = 2**20
"""No line of ours is longer; a file with longer ones is something else."""


@dataclass(frozen=True)
class Journal:
    """An open, locked journal; `done` holds the outcomes of earlier runs by point id."""

    path: Path
    handle: int
    done: dict[str, Outcome]

    def append(self, point: str, outcome: Outcome, took_s: float) -> None:
        """Add one finished point; it is on the disk when this returns.

        Raises SpecError when the disk is full or fails.
        """
        _write(self.path, self.handle, {"id": point, "took_s": took_s, "outcome": outcome})


def journal_of(out: Path) -> Path:
    """Return where the journal of OUT stands."""
    return out.with_name(f"{out.name}.journal.jsonl")


@contextmanager
def journal(out: Path, study: str, *, force: bool) -> Iterator[Journal]:
    """Yield the journal of `out` for the study with the hash `study`, locked until the end.

    Raises SpecError when another run holds it, when it is of another study or another version
    (`force` empties it then), or when it cannot be written.
    """
    path = journal_of(out)
    fresh = not path.exists()
    if fresh and out.exists() and not force:
        raise SpecError(
            f"-o: {shown(out)} is there already, and no sweep of ours wrote it",
            hint="name another file, or replace it with --force",
        )
    handle = _open(path)
    try:
        _lock(handle, out)
        done = _resume(path, handle, study, force=force)
        yield Journal(path, handle, done)
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise _refused(path, error) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SpecError(f"-o: {shown(path)} is not a regular file")
    return handle


def _lock(handle: int, out: Path) -> None:
    import fcntl  # noqa: PLC0415  not on Windows, where everything else imports

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise _refused(out, error) from error
        raise SpecError(
            f"-o: another sweep is writing {shown(out)} right now",
            hint="wait for it, or name another file",
        ) from error


def _resume(path: Path, handle: int, study: str, *, force: bool) -> dict[str, Outcome]:
    """Return the points done before; leave the file with whole lines only, header first."""
    header = {"schema": JOURNAL_SCHEMA, "version": __version__, "study": study}
    lines = [] if force and not _is_of(path, header) else list(_whole_lines(path))
    size = sum(length for _, length in lines)
    try:
        os.ftruncate(handle, size)
    except OSError as error:
        raise _refused(path, error) from error
    if not lines:
        _write(path, handle, header)
        _sync_folder(path.parent)
        return {}
    _refuse_other(path, lines[0][0], header)
    return {str(line["id"]): line["outcome"] for line, _ in lines[1:]}


def _is_of(path: Path, header: dict[str, str]) -> bool:
    try:
        first = next(_whole_lines(path), None)
    except SpecError:
        return False
    return first is not None and first[0] == header


def _refuse_other(path: Path, found: dict[str, Any], header: dict[str, str]) -> None:
    if found == header:
        return
    if found.get("schema") != JOURNAL_SCHEMA:
        what = "is no journal of a sweep"
    elif found.get("version") != header["version"]:
        what = f"was begun by meshwright {shown(found.get('version'), 20)}, this is {__version__}"
    else:
        what = "is of another study, or of this one before it or its specs were changed"
    raise SpecError(
        f"-o: {shown(path)} {what}",
        hint="name another file with -o, or start over with --force",
    )


def _whole_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each whole line as data, with its length in bytes; a torn last line is left out.

    Raises SpecError for a line that is not ours with more behind it: no kill does that.
    """
    number = 0
    with path.open("rb") as file:
        while raw := file.readline(LINE_BYTES):
            number += 1
            data = _parsed(raw)
            if data is None or (number > 1 and not _is_point(data)):
                if file.read(1):
                    raise SpecError(
                        f"-o: {shown(path)}, line {number}: not written by a sweep",
                        hint="name another file with -o, or start over with --force",
                    )
                return
            yield data, len(raw)


def _parsed(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _is_point(data: dict[str, Any]) -> bool:
    outcome = data.get("outcome")
    return isinstance(data.get("id"), str) and isinstance(outcome, dict) and "status" in outcome


def _write(path: Path, handle: int, line: dict[str, Any]) -> None:
    """Append one line and wait for the disk. A line that does not fit is cut off again."""
    raw = json.dumps(line, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
    try:
        while raw:
            raw = raw[os.write(handle, raw) :]
        os.fsync(handle)
    except OSError as error:
        raise _refused(path, error) from error


def _sync_folder(folder: Path) -> None:
    """Make the journal's name durable too, where the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def _refused(path: Path, error: OSError) -> SpecError:
    return SpecError(
        f"-o: {shown(path)} cannot be written ({error.strerror or error})",
        hint="the points finished so far are kept; the same command goes on"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        else "name a file in a folder that you may write to",
    )

"""Run a command in this process as a stranger would, and say what it broke of its promises.

The promises: exit code 0, 1 or 2; never a traceback; at most 5 s of CPU; where it fails a message,
nothing on stdout and no file; where it succeeds with --json, one JSON document; no escapes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from planner.cli import app as cli

LIMIT_S = 5.0
KEPT = (".journal.jsonl", ".lock")
"""Files that a sweep leaves for the next run by design."""


class Hang(BaseException):
    """Raised by the timer; no command catches it."""


class Output(io.TextIOWrapper):
    """A text stream over memory that has a file descriptor to spare, as a real one has."""

    def __init__(self) -> None:
        self.held = io.BytesIO()
        super().__init__(self.held, encoding="utf-8", errors="strict", newline="")

    def text(self) -> str:
        self.flush()
        return self.held.getvalue().decode()


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang after so many seconds of CPU time of this process."""

    def ended(_: int, __: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ended)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def call(words: Sequence[str]) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command."""
    out, err = Output(), Output()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited(LIMIT_S):
        code = cli.main(list(words))
    return code, out.text(), err.text()


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


def broken(words: Sequence[str], given: dict[str, bytes]) -> list[str]:
    """Return the promises that a command breaks in a folder that holds just the given files."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, data in given.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        before = files(folder)
        os.chdir(folder)
        try:
            code, out, err = call(words)
        except Hang:
            return [f"takes more than {LIMIT_S:g} s"]
        except BaseException as error:  # SystemExit, or what main let through
            return [f"lets {type(error).__name__} through: {error}"]
        finally:
            os.chdir(here)
        return [*_by_code(words, code, out, err), *_left(code, files(folder) - before)]


def _by_code(words: Sequence[str], code: int, out: str, err: str) -> Iterator[str]:
    if code not in (0, 1, 2):
        yield f"exit code {code}: {err[-300:]}"
    if "Traceback" in err or "internal error" in err:
        yield f"traceback: {err[-300:]}"
    if any(ord(c) < 32 and c not in "\n\t" for c in out + err):
        yield "prints control characters"
    answered = code == 0 or (code == 1 and out)
    if answered and "--json" in words and not {"--help", "-h", "--version"} & set(words):
        with contextlib.suppress(ValueError):
            json.loads(out)
            return
        yield f"--json prints no JSON: {out[:200]!r}"
    if code in (1, 2) and "check" not in words and "--check" not in words:
        if err.count("error:") < 1:
            yield f"exit code {code} without a message"
        if out and not (code == 1 and "--json" in words):
            yield f"fails and prints {out[:100]!r}"


def _left(code: int, new: set[str]) -> Iterator[str]:
    if code:
        new = {name for name in new if not name.endswith(KEPT) and name != "out.jsonl"}
        if new:
            yield f"fails and leaves {sorted(new)[:3]}"
    if any("/." in f"/{name}" and not name.endswith(KEPT) for name in new):
        yield f"leaves temporary files: {sorted(new)[:3]}"

"""Forked: the items of one long job on several cores, results in order, the same as on one.

Processes, since the arrays of one part are so small that threads queue for the interpreter: two
threads took as long as one. A forked process starts in milliseconds with all that is known so far.
Where there is no fork (or other threads, whose locks it would copy), the job runs here.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_fork() -> bool:
    """Return whether a copy of this process can do a part of its work."""
    return hasattr(os, "fork") and os.uname().sysname == "Linux" and threading.active_count() == 1


def in_order(job: Callable[[int], T], items: range, cores: int) -> Iterator[T]:
    """Yield job(item) for all items, in order, computed by `cores` copies of this process.

    What a copy does not give back (it was killed, or the job failed) is computed here, where an
    error has its traceback.
    """
    cores = min(cores, len(items))
    if cores < 2 or not can_fork():
        yield from map(job, items)
        return
    copies = [_copy(job, items[at::cores]) for at in range(cores)]
    try:
        for at, item in enumerate(items):
            found = _next(copies[at % cores][1])
            yield job(item) if found is None else found[0]
    finally:
        for pid, pipe in copies:
            pipe.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _next(pipe: BinaryIO) -> tuple[Any] | None:
    """Return a copy's next result in a tuple, None where there is none to come."""
    try:
        found: tuple[Any] = pickle.load(pipe)
    except (EOFError, pickle.UnpicklingError):
        return None
    return found


def _copy(job: Callable[[int], Any], items: range) -> tuple[int, BinaryIO]:
    """Return the process id of a copy that does some items, and the pipe of its results."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, os.fdopen(reading, "rb")
    try:  # the copy: it leaves without a word, whatever happens
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            for item in items:
                pickle.dump((job(item),), pipe, protocol=pickle.HIGHEST_PROTOCOL)
                pipe.flush()  # what is left in the buffer would hold up the reader, and it us all
    finally:
        os._exit(0)

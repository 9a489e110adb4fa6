"""Who does the work: this process, processes beside it, or the workers of a Dask cluster.

Each runner takes requests by point id and yields outcomes in the order in which they come. All
keep only a few points in flight, so that a hundred thousand of them cost no memory, and none of
them lets one point's death take others along.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import NamedTuple

from planner import __version__
from planner.sweep.evaluate import Outcome, evaluate, failure
from planner.workflow import PlanRequest

AHEAD = 2
"""Points in flight per process: one at work, one waiting, so that no process idles."""
DIED = "the process that worked on it died; was it out of memory?"


class Task(NamedTuple):
    """One point to work on."""

    id: str
    request: PlanRequest


class Done(NamedTuple):
    """One point worked on, and how long that took."""

    id: str
    outcome: Outcome
    took_s: float


def work(task: Task) -> Done:
    """Return the outcome of one point."""
    started = time.perf_counter()
    outcome = evaluate(task.request)
    return Done(task.id, outcome, round(time.perf_counter() - started, 6))


def version() -> str:
    """Return the version at work, which must be the same everywhere."""
    return __version__


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def here(tasks: Iterable[Task]) -> Generator[Done]:
    """Work on the points one after the other, in this process."""
    yield from map(work, tasks)


def in_processes(tasks: Iterable[Task], jobs: int) -> Generator[Done]:
    """Work on the points in `jobs` processes.

    When a process dies, the points in flight are tried again one at a time, which tells the one
    that kills from those that were beside it.
    """
    queue, suspects = deque(tasks), deque[Task]()
    while queue or suspects:
        lost: list[Task] = []
        if suspects:
            yield from _round(suspects, 1, 1, lost)
            if lost:  # it was alone
                yield Done(lost[0].id, failure(DIED), 0.0)
        else:
            yield from _round(queue, jobs, AHEAD * jobs, lost)
            suspects.extend(lost)


def _round(queue: deque[Task], jobs: int, most: int, lost: list[Task]) -> Generator[Done]:
    """Work until `queue` is empty or a process dies; what was in flight then is in `lost`."""
    strangers = multiprocessing.active_children()
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin)
    running: dict[Future[Done], Task] = {}
    finished = False
    try:
        while (queue or running) and not lost:
            while queue and len(running) < most:
                task = queue.popleft()
                try:
                    running[_submit(pool, task)] = task
                except BrokenProcessPool:
                    lost.append(task)
                    break
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                task = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(task)
                else:
                    yield future.result()
        lost.extend(running.values())
        finished = True
    finally:
        pool.shutdown(wait=finished, cancel_futures=True)
        if not finished:  # interrupted: nobody waits for a point that may take a minute
            for child in multiprocessing.active_children():
                if child not in strangers:
                    child.terminate()


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[Done]:
    """Submit a task; a process that this starts never sees Ctrl-C, which is ours to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(work, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """Set up a process that was just started: it ends when the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """Wait for the parent's death; a pool's processes would wait for work for ever."""
    wait_for([sentinel])
    os._exit(1)

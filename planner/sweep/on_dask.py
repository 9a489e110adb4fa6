"""Dask: the points on the workers of a cluster that is there already, given by its address."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterable
from importlib import import_module
from typing import Any

from planner import __version__
from planner.errors import SpecError
from planner.specs.parse import shown
from planner.sweep.evaluate import failure
from planner.sweep.runners import DIED, Done, Task, version, work

CONNECT_S = 15.0
FIRST_WORKER_S = 30.0
AHEAD = 3
"""Points in flight per thread: the scheduler is further away than a process on this machine."""
GONE = "the same command goes on where this one ended"


def on_dask(tasks: Iterable[Task], address: str) -> Generator[Done]:
    """Work on the points on the cluster whose scheduler listens at `address`.

    Raises SpecError when Dask is not installed, nobody answers, there is no worker, a worker runs
    another version, or the scheduler goes away.
    """
    distributed = _distributed()
    client = _connected(distributed, address)
    try:
        threads = _threads(client, address)
        queue = iter(tasks)
        at_work: dict[Any, Task] = {}
        coming = distributed.as_completed(loop=client.loop)

        def refill() -> None:
            while len(at_work) < AHEAD * threads and (task := next(queue, None)):
                future = client.submit(work, task, pure=False)
                at_work[future] = task
                coming.add(future)

        refill()
        for future in coming:
            task = at_work.pop(future)
            if future.status == "finished":
                yield Done(*future.result())
            else:
                yield Done(task.id, _lost(future, address), 0.0)
            refill()
    except (OSError, asyncio.CancelledError) as error:
        raise _away(address, error) from error
    finally:
        client.close()


def _distributed() -> Any:
    try:
        return import_module("distributed")
    except ImportError as error:
        raise SpecError(
            f"--dask: Dask is not installed ({error})", hint="pip install 'meshwright[sweep]'"
        ) from error


def _connected(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise SpecError(
            f"--dask: no Dask scheduler answers at {shown(address, 80)} "
            f"({shown(error, 200) or type(error).__name__})",
            hint="an address such as tcp://10.0.0.1:8786, as `dask scheduler` prints it",
        ) from error


def _threads(client: Any, address: str) -> int:
    """Return the threads of all workers, once there is one, all of our own version."""
    until = time.monotonic() + FIRST_WORKER_S
    while not (threads := client.nthreads()):
        if time.monotonic() > until:
            raise SpecError(
                f"--dask: the scheduler at {shown(address, 80)} has no worker",
                hint=f"start one: dask worker {shown(address, 80)}",
            )
        time.sleep(0.1)
    try:
        versions = client.run(version)
    except Exception as error:  # whatever the worker raised when it looked for the package
        raise SpecError(
            f"--dask: a worker cannot load meshwright ({shown(error, 200)})",
            hint=f"install meshwright {__version__} where the workers run",
        ) from error
    for worker, there in sorted(versions.items()):
        if there != __version__:
            raise SpecError(
                f"--dask: worker {shown(worker, 80)} runs meshwright {shown(there, 20)}, "
                f"this is {__version__}",
                hint="results of two versions do not belong in one file",
            )
    return sum(threads.values())


def _lost(future: Any, address: str) -> Any:
    """Return the outcome of a point that Dask gave up; raise SpecError if it gave up altogether."""
    if future.status in ("cancelled", "lost"):
        raise _away(address, None)
    error = future.exception()
    if type(error).__name__ == "KilledWorker":
        return failure(DIED)
    return failure(f"the worker failed: {type(error).__name__}: {shown(error, 300)}")


def _away(address: str, error: BaseException | None) -> SpecError:
    why = f" ({shown(error, 200)})" if error and str(error) else ""
    return SpecError(
        f"--dask: the scheduler at {shown(address, 80)} went away{why}",
        hint=f"finished points are kept; {GONE}",
    )

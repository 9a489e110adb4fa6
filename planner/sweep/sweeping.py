"""The whole road of a sweep: study, points, journal, work, and the file at the end."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from planner.errors import SpecError
from planner.specs.parse import shown
from planner.sweep.evaluate import FAILED, INFEASIBLE, OK, REFUSED, Outcome
from planner.sweep.journal import Journal, journal
from planner.sweep.on_dask import on_dask
from planner.sweep.points import Point, points_of
from planner.sweep.runners import Done, Task, here, in_processes
from planner.sweep.study import read_study
from planner.sweep.tables import Row, format_of, write_rows

Tell = Callable[[int, int], None]
"""Called with the points finished so far, in this and earlier runs, and how many of them failed."""


@dataclass(frozen=True)
class Summary:
    """What a sweep did; `resumed` points were finished by earlier runs."""

    study: str
    points: int
    resumed: int
    statuses: dict[str, int]
    total_s: float


def sweep(
    study_file: Path,
    out: Path,
    *,
    jobs: int,
    dask: str | None = None,
    force: bool = False,
    begin: Callable[[int, int], Tell] = lambda points, done: lambda done, failed: None,
) -> Summary:
    """Work on every point of a study that is not in the journal of `out`, then write `out`.

    `begin` is told how many questions there are and how many are done, and returns whom to tell of
    progress. Raises SpecError for a study, a journal or an `out` that will not do.
    """
    started = time.perf_counter()
    format_of(out)
    if not out.parent.is_dir():
        raise SpecError(f"-o: {shown(out.parent)} is no folder", hint="make it, or name another")
    if out.is_dir():
        raise SpecError(f"-o: {shown(out)} is a folder", hint="name a file")
    study = read_study(study_file)
    points = points_of(study, study_file)
    with journal(out, _hash(points), force=force) as book:
        outcomes = {point.id: point.refused for point in points if point.refused}
        outcomes |= {p.id: book.done[p.id] for p in points if p.id in book.done}
        resumed = sum(point.id in book.done for point in points)
        tasks = _tasks(points, outcomes)
        questions = len({point.id for point in points})
        tell = begin(questions, questions - len(tasks))
        if tasks:
            with closing(_runner(tasks, jobs, dask)) as results:
                _collect(results, book, outcomes, tell)
        rows = [_row(point, outcomes[point.id]) for point in points]
        write_rows(out, rows)
    statuses = Counter(str(row["status"]) for row in rows)
    return Summary(
        study=study.name,
        points=len(points),
        resumed=resumed,
        statuses={name: statuses[name] for name in (OK, INFEASIBLE, REFUSED, FAILED)},
        total_s=time.perf_counter() - started,
    )


def _hash(points: Sequence[Point]) -> str:
    """Return a hash that two studies share only if they ask the same questions in one order."""
    text = "\n".join(point.id for point in points)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def _tasks(points: Sequence[Point], outcomes: dict[str, Outcome]) -> list[Task]:
    """Return what is left to do; points that resolve to the same question are asked once."""
    left = {p.id: p.request for p in points if p.request and p.id not in outcomes}
    return [Task(id_, request) for id_, request in left.items()]


def _runner(tasks: list[Task], jobs: int, dask: str | None) -> Generator[Done]:
    if dask is not None:
        return on_dask(tasks, dask)
    return in_processes(tasks, min(jobs, len(tasks))) if jobs > 1 else here(tasks)


def _collect(
    results: Generator[Done], book: Journal, outcomes: dict[str, Outcome], tell: Tell
) -> None:
    """Keep each outcome as it comes, on disk first; what failed by accident is not kept there."""
    failed = sum(outcome["status"] != OK for outcome in outcomes.values())
    for done in results:
        if done.outcome["status"] != FAILED:
            book.append(done.id, done.outcome, done.took_s)
        outcomes[done.id] = done.outcome
        failed += done.outcome["status"] != OK
        tell(len(outcomes), failed)


def _row(point: Point, outcome: Outcome) -> Row:
    """Return one line of the table: what was asked, then what came out."""
    return {"point": point.index, "id": point.id, **point.inputs, **outcome}

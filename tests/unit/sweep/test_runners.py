"""A process that dies costs its own point and no other."""

from __future__ import annotations

import os
import time
from contextlib import closing

import pytest

from planner.errors import InfeasibleError, SpecError
from planner.sweep.evaluate import evaluate
from planner.sweep.on_dask import on_dask
from planner.sweep.points import points_of
from planner.sweep.runners import DIED, Task, here, in_processes
from planner.sweep.study import read_study


class Bomb:
    """A request that ends the process which unpickles it, as the kernel ends one out of memory."""

    def __reduce__(self) -> object:
        return os._exit, (9,)


@pytest.fixture
def tasks(study):
    path = study({"nodes": [1, 2], "fix.tp": [1, 2, 8]})
    return [Task(p.id, p.request) for p in points_of(read_study(path), path)]


def test_processes_give_what_this_process_gives(tasks):
    alone = {done.id: done.outcome for done in here(tasks)}
    assert {done.id: done.outcome for done in in_processes(tasks, 2)} == alone
    assert "ok" in {outcome["status"] for outcome in alone.values()}


def test_a_point_that_kills_its_process_fails_alone(tasks):
    bombs = [Task("bomb1", Bomb()), *tasks[:3], Task("bomb2", Bomb())]
    outcomes = {done.id: done.outcome for done in in_processes(bombs, 2)}
    assert len(outcomes) == len(bombs)
    assert {id_ for id_, outcome in outcomes.items() if outcome["status"] == "failed"} == {
        "bomb1",
        "bomb2",
    }
    assert outcomes["bomb1"]["reason"] == DIED


def test_leaving_early_waits_for_nobody(tasks):
    with closing(in_processes(tasks * 500, 2)) as results:  # minutes of work
        next(results)
        started = time.monotonic()
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (InfeasibleError("full"), "infeasible"),
        (SpecError("wrong"), "refused"),
        (MemoryError(), "failed"),
        (ZeroDivisionError("x"), "failed"),
    ],
)
def test_whatever_fails_becomes_a_row_with_its_reason(tasks, monkeypatch, raised, status):
    def fail(_: object) -> None:
        raise raised

    monkeypatch.setattr("planner.sweep.evaluate.plan", fail)
    outcome = evaluate(tasks[0].request)
    assert outcome["status"] == status
    assert outcome["reason"]


@pytest.mark.parametrize("address", ["nowhere", "tcp://127.0.0.1:1", "http://127.0.0.1:1", ""])
def test_a_scheduler_that_is_not_there_is_said(tasks, address, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("planner.sweep.on_dask.CONNECT_S", 0.5)
    with pytest.raises(SpecError, match="--dask: no Dask scheduler answers"):
        next(on_dask(tasks, address))

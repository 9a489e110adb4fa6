"""Clusters and layouts to place: only the degrees and the switches matter here."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from ortools.sat.python import cp_model
from small_clusters import make_cluster, make_layout

from planner.plan import Layout
from planner.specs.cluster import ClusterSpec


@pytest.fixture(scope="session")
def cluster_of() -> Callable[..., ClusterSpec]:
    return make_cluster


@pytest.fixture(scope="session")
def layout_of() -> Callable[..., Layout]:
    return make_layout


@pytest.fixture(scope="session")
def counted() -> Callable[[list[int], int, int], int | None]:
    """The counts model: another formulation of the fewest cuts."""
    return fewest_cuts_by_counts


def fewest_cuts_by_counts(rooms: list[int], stages: int, columns: int) -> int | None:
    """Return the optimum of the counts model: cells of each stage under each leaf.

    Between two stages min(count, next count) cells of a leaf can be matched; the rest is cut.
    """
    model = cp_model.CpModel()
    count = [[model.new_int_var(0, columns, "") for _ in range(stages)] for _ in rooms]
    for room, row in zip(rooms, count, strict=True):
        model.add(sum(row) <= room)
    for stage in range(stages):
        model.add(sum(row[stage] for row in count) == columns)
    kept = []
    for row, stage in itertools.product(count, range(stages - 1)):
        both = model.new_int_var(0, columns, "")
        model.add(both <= row[stage])
        model.add(both <= row[stage + 1])
        kept.append(both)
    model.maximize(sum(kept))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = 20
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None
    assert status == cp_model.OPTIMAL
    return columns * (stages - 1) - round(solver.objective_value)

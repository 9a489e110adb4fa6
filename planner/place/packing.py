"""Packing: which leafs share split pipelines, so that the fewest pipeline edges leave a leaf.

A leaf with room for C cells takes C // stages whole pipelines; that never costs an optimum (a cell
of a split pipeline can always be exchanged for one of a pipeline made whole). What is left is
one remainder a leaf. A group of k leafs whose remainders together hold t pipelines splits them at
k - 1 edges, and no group does with fewer: a group is a connected graph of leafs and pipelines. So
the question left is how to group remainders, and only how many leafs have each remainder matters:
at most stages^2 integers, whatever the size of the cluster. `solve.remainder_groups` answers it.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.place.cells import Grid


@dataclass(frozen=True)
class Run:
    """Leafs filled one after the other with `columns` pipelines, stage by stage.

    At most one pipeline crosses each border between two of them, whatever their order.
    """

    leafs: tuple[int, ...]
    columns: int


@dataclass(frozen=True)
class Packing:
    """Runs in leaf order, and the fewest cut cell edges proven possible."""

    runs: tuple[Run, ...]
    bound: int


def pack(rooms: Mapping[int, int], pod_of: Mapping[int, int], grid: Grid) -> Packing | None:
    """Return how `grid` fills leafs with `rooms` cells; None when the cells do not all fit.

    Where it costs no further cut, the job stays inside the tightest pod that holds it, and split
    pipelines inside a pod.
    """
    if sum(rooms.values()) < grid.stages * grid.columns:
        return None
    pods = _pods(rooms, pod_of, grid)
    for inside in pods:
        if runs := _whole(inside, grid):
            return Packing(runs, 0)
    if runs := _whole(rooms, grid):
        return Packing(runs, 0)
    best = _split(rooms, pod_of, grid)
    for inside in pods if len(set(pod_of.values())) > 1 else ():
        inner = _split(inside, pod_of, grid)
        if _cuts(inner.runs) == best.bound:
            return Packing(inner.runs, best.bound)
    return best


def _pods(rooms: Mapping[int, int], pod_of: Mapping[int, int], grid: Grid) -> list[dict[int, int]]:
    """Return the rooms of each pod that could hold the grid, the tightest pod first."""
    pods: dict[int, dict[int, int]] = defaultdict(dict)
    for leaf, room in rooms.items():
        pods[pod_of[leaf]][leaf] = room
    sized = [(sum(inside.values()), pod, inside) for pod, inside in pods.items()]
    return [s[2] for s in sorted(sized, key=lambda s: s[:2]) if s[0] >= grid.stages * grid.columns]


def _whole(rooms: Mapping[int, int], grid: Grid) -> tuple[Run, ...] | None:
    """Return runs without any split, on few and tight leafs; None when there is no such packing."""
    by_columns: dict[int, deque[int]] = defaultdict(deque)
    for leaf, room in sorted(rooms.items(), key=lambda item: (item[1], item[0])):
        by_columns[room // grid.stages].append(leaf)
    by_columns.pop(0, None)
    left, runs = grid.columns, []
    while left > 0 and by_columns:
        columns = min((c for c in by_columns if c >= left), default=max(by_columns))
        runs.append(Run((by_columns[columns].popleft(),), min(columns, left)))
        left -= columns
        if not by_columns[columns]:
            del by_columns[columns]
    return tuple(sorted(runs, key=lambda r: r.leafs)) if left <= 0 else None


def _split(rooms: Mapping[int, int], pod_of: Mapping[int, int], grid: Grid) -> Packing:
    """Return runs for a grid of which some pipelines must be split."""
    # ortools takes longer to import than most placements take to find, and few need it
    from planner.place.solve import remainder_groups  # noqa: PLC0415

    whole = sum(room // grid.stages for room in rooms.values())
    remainders = Counter(room % grid.stages for room in rooms.values())
    groups, bound = remainder_groups(remainders, stages=grid.stages, wanted=grid.columns - whole)
    leafs = _assign(groups, rooms, pod_of, grid.stages)
    rest = sorted(set(rooms) - {leaf for group in leafs for leaf in group})
    runs, left = [], grid.columns
    for group in [*leafs, *((leaf,) for leaf in rest)]:
        columns = min(left, sum(rooms[leaf] for leaf in group) // grid.stages)
        left -= columns
        if columns:
            runs.append(Run(group, columns))
    return Packing(tuple(sorted(runs, key=lambda r: r.leafs)), bound)


def _assign(
    groups: Sequence[tuple[int, ...]],
    rooms: Mapping[int, int],
    pod_of: Mapping[int, int],
    stages: int,
) -> list[tuple[int, ...]]:
    """Return leafs for each group of remainders, from one pod where one still has them all."""
    free: dict[int, dict[int, deque[int]]] = defaultdict(lambda: defaultdict(deque))
    for leaf, room in sorted(rooms.items()):
        free[pod_of[leaf]][room % stages].append(leaf)
    taken = []
    for group in groups:
        need = Counter(group)
        pods = [p for p in free if all(len(free[p][r]) >= n for r, n in need.items())]
        leafs = [next(free[p][r] for p in pods or free if free[p][r]).popleft() for r in group]
        taken.append(tuple(sorted(leafs)))
    return taken


def _cuts(runs: Sequence[Run]) -> int:
    return sum(len(run.leafs) - 1 for run in runs)

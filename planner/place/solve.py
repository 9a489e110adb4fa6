"""Solve: the two CP-SAT models. Nothing else in the program imports ortools.

One worker, a fixed seed and a limit in deterministic seconds: the same question gets the same
answer on every machine. (Two workers were measured to differ from run to run.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from ortools.sat.python import cp_model

Cut = tuple[int, frozenset[tuple[int, int]]]
"""A pipeline edge (or several alike): its weight, and the pairs of units that it joins."""


def _solver(limit: float) -> cp_model.CpSolver:
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = limit
    return solver


def remainder_groups(
    leafs: Mapping[int, int], *, stages: int, wanted: int, limit: float = 4.0
) -> tuple[list[tuple[int, ...]], int]:
    """Return groups of remainders that hold `wanted` split pipelines, and a bound on their cuts.

    `leafs` maps a remainder (free cells left of a leaf, 1 to stages - 1; 0 is passed over) to the
    number of leafs that have it; together they must hold `wanted` pipelines. A group is a path in
    a graph whose nodes are running sums modulo `stages`: it starts at its first remainder, each
    further leaf is an arc and costs one cut, and an arc that passes `stages` completes a pipeline.
    Without proof inside `limit` (deterministic seconds) the bound is below the cuts.
    """
    sizes = sorted(r for r in leafs if r > 0)
    model = cp_model.CpModel()
    start = {r: model.new_int_var(0, leafs[r], f"start{r}") for r in sizes}
    arc = {
        (at, r): model.new_int_var(0, leafs[r], f"arc{at}_{r}")
        for at in range(1, stages)
        for r in sizes
    }
    into: dict[int, list[cp_model.LinearExprT]] = {at: [] for at in range(stages)}
    for r in sizes:
        into[r].append(start[r])
        model.add(start[r] + sum(arc[at, r] for at in range(1, stages)) <= leafs[r])
    for (at, r), flow in arc.items():
        into[(at + r) % stages].append(flow)
    for at in range(1, stages):  # at 0 every group ends: to go on would cost a cut for nothing
        model.add(sum(arc[at, r] for r in sizes) <= sum(into[at]))
    cuts = sum(arc.values())
    model.add(sum(flow for (at, r), flow in arc.items() if at + r >= stages) >= wanted)
    model.add(cuts >= wanted)  # implied, and without it the relaxation's bound is far too low
    model.minimize(cuts)
    solver = _solver(limit)
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return [tuple(Counter(leafs).elements())], wanted
    starts = {r: solver.value(var) for r, var in start.items()}
    arcs = {key: solver.value(var) for key, var in arc.items() if solver.value(var)}
    return _paths(starts, arcs, stages), math.ceil(solver.best_objective_bound - 1e-6)


def _paths(
    starts: Mapping[int, int], arcs: dict[tuple[int, int], int], stages: int
) -> list[tuple[int, ...]]:
    """Return the flow as paths of remainders, those of one leaf left out."""
    beginnings = [r for r, count in sorted(starts.items()) for _ in range(count)]
    groups = [_walk((r,), r, arcs, stages) for r in beginnings]
    while arcs:  # cycles that no path met
        at, _ = min(arcs)
        groups.append(_walk((), at, arcs, stages))
    return [group for group in groups if len(group) > 1]


def _walk(
    group: tuple[int, ...], at: int, arcs: dict[tuple[int, int], int], stages: int
) -> tuple[int, ...]:
    """Return `group` with the arcs that lead on from `at`, which are used up."""
    while step := next((key for key in arcs if key[0] == at), None):
        arcs[step] -= 1
        if not arcs[step]:
            del arcs[step]
        group += (step[1],)
        at = (at + step[1]) % stages
    return group


def leaf_of_units(
    cuts: Sequence[Cut],
    rooms: Sequence[int],
    hint: Sequence[int],
    *,
    at_least: int = 0,
    limit: float = 0.5,
) -> tuple[list[int], int]:
    """Return a leaf (index into `rooms`) for each unit, and a bound on the weight of the cuts.

    The plain model, one boolean per unit and leaf: for layouts whose stages end inside a node,
    which have no grid to count in, and only for few units. `hint` is a placement to start from,
    returned when nothing better is found.
    """
    model = cp_model.CpModel()
    units, leafs = range(len(hint)), range(len(rooms))
    on = [[model.new_bool_var(f"u{u}_leaf{k}") for k in leafs] for u in units]
    split = [model.new_bool_var(f"cut{n}") for n in range(len(cuts))]
    for u in units:
        model.add_exactly_one(on[u])
        for k in leafs:
            model.add_hint(on[u][k], hint[u] == k)
    for k in leafs:
        model.add(sum(on[u][k] for u in units) <= rooms[k])
    for n, (_, pairs) in enumerate(cuts):
        model.add_hint(split[n], any(hint[a] != hint[b] for a, b in pairs))
        for a, b in sorted(pairs):
            for k in leafs:
                model.add_bool_or(~on[a][k], on[b][k], split[n])
    weight = sum(w * split[n] for n, (w, _) in enumerate(cuts))
    model.add(weight >= at_least)
    model.minimize(weight)
    solver = _solver(limit)
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return list(hint), at_least
    found = [next(k for k in leafs if solver.value(on[u][k])) for u in units]
    return found, max(at_least, math.ceil(solver.best_objective_bound - 1e-6))

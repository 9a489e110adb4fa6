"""Moving: after a failure, a map that keeps every rank it can where it was.

A checkpoint sits on local disks and a warm host costs nothing, so the first question after a
failure is how few ranks must move, and only then how good the map is. Ranks of nodes that are gone
must move; nobody else has to, as long as one spare node is left for each. Which spare: the one
that splits the fewest pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from math import lcm, prod

import numpy as np
from numpy.typing import NDArray

from planner.errors import InfeasibleError, SpecError
from planner.place.groups import IntArray, coordinates, splits
from planner.place.hosts import FreeNodes
from planner.place.relax import many
from planner.place.tree import Tree
from planner.plan import Layout, Placement

GONE = -1
MOVES_SAID = 16
TRIED = 512  # sets of leafs for the lost nodes up to which all are tried, not only the nearest


@dataclass(frozen=True)
class Units:
    """What is placed, `ranks` consecutive ones a node, and where the nodes stand."""

    layout: Layout
    ranks: int
    tree: Tree


def kept_nodes(
    layout: Layout, ranks: int, free: FreeNodes, old: Placement, *, spare: IntArray
) -> IntArray:
    """Return the node of every unit of `ranks` ranks that can stay, `GONE` for the others.

    A node stays with the very GPUs that it had, or with its first ones, or, where the nodes of
    `spare` are too few to take its place, with any: launchers count GPUs from 0.

    Raises SpecError where `old` places another layout, or fills nodes otherwise.
    """
    axes = coordinates(layout)
    told = {kind: [getattr(r, kind) for r in old.ranks] for kind in axes}
    alike = len(old.ranks) == layout.gpus and all(
        np.array_equal(told[kind], axes[kind]) for kind in axes
    )
    hosts = [r.host for r in old.ranks]
    whole = alike and all(len({*hosts[n : n + ranks]}) == 1 for n in range(0, len(hosts), ranks))
    if not whole or len({*hosts}) * ranks != len(hosts):
        raise SpecError(
            f"the earlier placement has {len(old.ranks):,} ranks of another layout than the "
            f"{layout.gpus:,} to place",
            hint="give the layout that was placed, field by field",
        )
    index = {host: node for node, host in enumerate(free.hosts)}
    nodes = np.array([index.get(host, GONE) for host in hosts[::ranks]], dtype=np.int64)
    stays = np.isin(nodes, free.with_gpus(ranks))
    whole_nodes = stays & (
        np.isin(nodes, free.with_first_gpus(ranks)) | _as_before(free, nodes, old)
    )
    enough = len(np.setdiff1d(spare, nodes)) >= int((~whole_nodes).sum())
    return np.where(whole_nodes if enough else stays, nodes, GONE)


def _as_before(free: FreeNodes, nodes: IntArray, old: Placement) -> NDArray[np.bool_]:
    """Return which nodes still have the very GPUs that they had."""
    gpus = np.array([r.gpu for r in old.ranks], dtype=np.int64).reshape(len(nodes), -1)
    known = gpus < free.healthy.shape[1]
    healthy = free.healthy[nodes[:, None], np.where(known, gpus, 0)]
    found: NDArray[np.bool_] = (known & healthy).all(axis=1)
    return found


def on_old_gpus(free: FreeNodes, kept: IntArray, ranks: int, old: Placement) -> FreeNodes:
    """Return `free` with only the GPUs used before, on nodes that stay and still have them all."""
    healthy = free.healthy.copy()
    for unit in np.flatnonzero(kept != GONE).tolist():
        gpus = [r.gpu for r in old.ranks[unit * ranks : (unit + 1) * ranks]]
        node = kept[unit]
        if max(gpus) < healthy.shape[1] and healthy[node, gpus].all():
            healthy[node] = False
            healthy[node, gpus] = True
    return replace(free, healthy=healthy)


def with_spares(units: Units, usable: IntArray, kept: IntArray) -> IntArray:
    """Return `kept` with a spare node for each lost one, splitting few pipelines.

    Raises InfeasibleError where tensor groups span nodes and their scale-up domain has no spare.
    """
    nodes, spare = kept.copy(), np.setdiff1d(usable, kept)
    lost = np.flatnonzero(kept == GONE).tolist()
    if lcm(units.ranks, units.layout.tp) > units.ranks:
        return _inside_domains(units, spare, nodes)
    for unit in lost:
        nodes[unit] = _nearest(units, spare, nodes, unit)
        spare = spare[spare != nodes[unit]]
    return _tried(units, np.setdiff1d(usable, kept), kept, nodes)


def moved_ranks(old: Placement, new: Sequence[tuple[str, int]]) -> int:
    """Return how many ranks have another host or GPU than before."""
    return sum((r.host, r.gpu) != place for r, place in zip(old.ranks, new, strict=True))


def moves_said(old: Placement, new: Placement) -> list[str]:
    """Return which ranks move from which host to which, a sentence a host; MOVES_SAID at most."""
    pairs = zip(old.ranks, new.ranks, strict=True)
    moved = [(a.host, b.host, b.rank) for a, b in pairs if (a.host, a.gpu) != (b.host, b.gpu)]
    said = []
    for (before, after), group in groupby(moved, key=lambda move: move[:2]):
        ranks = [rank for *_, rank in group]
        some = f"rank {ranks[0]} moves" if len(ranks) == 1 else f"ranks {_span(ranks)} move"
        way = f"to other GPUs of {after}" if before == after else f"from {before} to {after}"
        said.append(f"{some} {way}")
    more = len(said) - MOVES_SAID
    return (
        said if more <= 0 else [*said[:MOVES_SAID], f"and {more:,} more hosts change their ranks"]
    )


def _span(ranks: Sequence[int]) -> str:
    whole = ranks[-1] - ranks[0] + 1 == len(ranks)
    return f"{ranks[0]} to {ranks[-1]}" if whole else ", ".join(map(str, ranks))


def gone_ranks(free: FreeNodes, kept: IntArray, ranks: int, old: Placement) -> int:
    """Return how many ranks cannot stay: their node or their very GPU is gone."""
    stay = 0
    for unit in np.flatnonzero(kept != GONE).tolist():
        gpus = [r.gpu for r in old.ranks[unit * ranks : (unit + 1) * ranks]]
        stay += sum(g < free.healthy.shape[1] and bool(free.healthy[kept[unit], g]) for g in gpus)
    return len(old.ranks) - stay


def _nearest(units: Units, spare: IntArray, nodes: IntArray, unit: int) -> int:
    """Return the spare node that is under the same leaf as most pipeline neighbours of `unit`."""
    tree = units.tree
    near = [nodes[n] for n in _neighbours(units, unit, len(nodes)) if nodes[n] != GONE]
    leafs, pods = tree.leaf[near], tree.pod[near]
    shared = [((leafs == tree.leaf[s]).sum(), (pods == tree.pod[s]).sum()) for s in spare]
    return int(spare[max(range(len(spare)), key=lambda n: (*shared[n], -n))])


def _neighbours(units: Units, unit: int, count: int) -> list[int]:
    """Return those of `count` units that pipeline edges join to `unit`."""
    layout, ranks = units.layout, units.ranks
    stage = layout.tp * layout.cp * layout.dp
    first, last = unit * ranks, (unit + 1) * ranks - 1
    ends = {(end + step) // ranks for end in (first, last) for step in (-stage, stage)}
    return sorted(n for n in ends if 0 <= n < count and n != unit)


def _tried(units: Units, spare: IntArray, kept: IntArray, nodes: IntArray) -> IntArray:
    """Return the best of all choices of leafs for the lost units, where these are few."""
    tree = units.tree
    lost = np.flatnonzero(kept == GONE).tolist()
    leafs, rooms = np.unique(tree.leaf[spare], return_counts=True)
    if not lost or prod([len(leafs)] * len(lost)) > TRIED:
        return nodes

    def cut(leaf_of_unit: IntArray) -> int:
        return splits(units.layout, np.repeat(leaf_of_unit, units.ranks))

    at = tree.leaf[nodes]
    best, fewest = at[lost], cut(at)
    for choice in product(range(len(leafs)), repeat=len(lost)):
        if (np.bincount(choice, minlength=len(leafs)) <= rooms).all():
            at[lost] = leafs[list(choice)]
            if (found := cut(at)) < fewest:
                best, fewest = at[lost], found
    free = {leaf: iter(spare[tree.leaf[spare] == leaf].tolist()) for leaf in leafs.tolist()}
    nodes[lost] = [next(free[leaf]) for leaf in best.tolist()]
    return nodes


def _inside_domains(units: Units, spare: IntArray, nodes: IntArray) -> IntArray:
    """Return nodes for tensor groups that span several: lost ones from the domain of the rest."""
    tree, tp = units.tree, units.layout.tp
    size = lcm(units.ranks, tp) // units.ranks
    for block in nodes.reshape(-1, size):  # rows are views: what is written there is kept
        lost = np.flatnonzero(block == GONE)
        if not len(lost):
            continue
        domains, room = np.unique(tree.domain[spare], return_counts=True)
        wide = domains[room >= len(lost)]
        stays = tree.domain[block[block != GONE]]
        fitting = wide[wide == stays[0]] if len(stays) else wide
        if not len(fitting):
            raise InfeasibleError(
                f"no scale-up domain has {many(len(lost), 'spare node')} for a tensor-parallel "
                f"group of {tp}, without moving others",
                hint="leave --moved-from out to place all ranks anew",
            )
        taken = spare[tree.domain[spare] == fitting[0]][: len(lost)]
        block[lost] = taken
        spare = np.setdiff1d(spare, taken)
    return nodes

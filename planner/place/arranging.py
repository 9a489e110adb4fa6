"""Arranging: the usable nodes of a cluster, filled with as few split pipelines as possible."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from planner.place.cells import Grid, block_sizes, grid_of, ranks_per_node
from planner.place.expand import nodes_of
from planner.place.fastest import Cells
from planner.place.general import arrange
from planner.place.groups import IntArray
from planner.place.hosts import FreeNodes
from planner.place.packing import pack
from planner.place.relax import (
    Legal,
    Wanted,
    anything,
    left_out,
    many,
    too_few_domains,
    too_few_nodes,
    uneven,
)
from planner.place.tree import Tree
from planner.plan import Layout
from planner.specs.cluster import ClusterSpec
from planner.specs.links import FabricKind
from planner.specs.mixing import type_of_node

NAMED = 3
"""Leafs that are named where more could be."""


@dataclass(frozen=True)
class Job:
    """What is placed where: the layout, its even share of ranks a node, the nodes it can use."""

    cluster: ClusterSpec
    layout: Layout
    free: FreeNodes
    tree: Tree
    ranks: int
    usable: IntArray
    thinned: bool = False
    """Whether nodes run fewer ranks than they could if enough of them were whole."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Why hosts are avoided that are not unhealthy: slow, or busy."""
    legal: Legal = anything
    """Whether another layout would do, for advice."""

    @property
    def nodes(self) -> int:
        """Return the nodes that the layout takes."""
        return self.layout.gpus // self.ranks

    def spans(self, nodes: IntArray) -> dict[str, IntArray]:
        """Return each rank's node, domain (where larger than a node), leaf and pod."""
        tree = self.tree
        out = {"node": nodes, "domain": tree.domain[nodes], "leaf": tree.leaf[nodes]}
        if self.cluster.domain_nodes == 1:
            del out["domain"]
        out["pod"] = tree.pod[nodes]
        return {name: np.repeat(index, self.ranks) for name, index in out.items()}


@dataclass(frozen=True)
class Map:
    """The node of every unit, a lower bound on splits, and what to say about it."""

    nodes: IntArray
    bound: int
    notes: tuple[str, ...] = ()
    cells: Cells | None = None
    scope: str = ""


def job_of(
    cluster: ClusterSpec,
    layout: Layout,
    free: FreeNodes,
    *,
    others: Mapping[str, str] = MappingProxyType({}),
    tree: Tree | None = None,
    ranks_before: int | None = None,
    legal: Legal = anything,
) -> Job:
    """Return the job; raises InfeasibleError where too few nodes have enough healthy GPUs.

    Nodes run as many ranks as they can, or as they did before; on their first GPUs, as launchers
    count them, where enough nodes have those. `others` says of nodes that are
    avoided why, where they are not unhealthy.
    """
    counts = ranks_per_node(cluster, layout)
    tree = tree or Tree.of(cluster)
    if ranks_before in counts:
        counts = [ranks_before]
    for ranks in counts:
        usable = free.with_gpus(ranks)
        if layout.gpus // ranks <= len(usable):
            first = free.with_first_gpus(ranks)
            usable = first if layout.gpus // ranks <= len(first) else usable
            thinned = ranks < counts[0]
            return Job(cluster, layout, free, tree, ranks, usable, thinned, others, legal)
    raise too_few_nodes(Wanted(cluster, layout, free, legal), counts[0], others)


def arranged(job: Job, *, keep: bool) -> Map:
    """Return the map for the strictest domain rule that there is room for."""
    sizes = block_sizes(job.cluster, job.layout, job.ranks, keep)
    for size in sizes:
        blocks = job.tree.blocks(job.usable, size)
        if len(blocks) * size >= job.nodes:
            notes = () if size == sizes[0] else (_loosened(job, sizes[0]),)
            found = _on_grid(job, blocks) or _in_general(job, blocks)
            return replace(found, notes=(*notes, *found.notes))
    wanted = Wanted(job.cluster, job.layout, job.free, job.legal)
    raise too_few_domains(wanted, job.nodes // size, size, len(blocks))


def _on_grid(job: Job, blocks: IntArray) -> Map | None:
    """Return the best map by counting cells per leaf; None without a grid, or without room."""
    grid = grid_of(job.layout, job.ranks, blocks.shape[1])
    if grid is None:
        return None
    cells = job.tree.cells(blocks, grid.cell_nodes)
    if not len(cells):
        return None
    leafs, first = np.unique(job.tree.leaf[cells[:, 0]], return_index=True)
    cells_of = dict(zip(leafs.tolist(), np.split(cells, first[1:]), strict=True))
    pod_of = dict(zip(leafs.tolist(), job.tree.pod[cells[first, 0]].tolist(), strict=True))
    rooms = {leaf: len(rows) for leaf, rows in cells_of.items()}
    packing = pack(rooms, pod_of, grid)
    if packing is None:
        return None
    nodes = nodes_of(packing, cells_of, grid)
    leaf_order = tuple(leaf for run in packing.runs for leaf in run.leafs)
    return Map(
        nodes,
        packing.bound * grid.pipelines,
        _grid_notes(grid, rooms, packing.bound),
        Cells(grid, cells, leaf_order),
        _scope(grid),
    )


def _in_general(job: Job, blocks: IntArray) -> Map:
    """Return a good map of blocks without a grid, and what can be proved about it."""
    leaf_of_block = job.tree.leaf[blocks[:, 0]]
    which, bound = arrange(job.layout, leaf_of_block, blocks.shape[1] * job.ranks)
    if grid_of(job.layout, job.ranks, blocks.shape[1]) is None:
        stage = job.layout.tp * job.layout.cp * job.layout.dp
        why = f"a stage of {stage} ranks ends inside a node of {job.ranks}"
    else:
        why = "the free nodes do not hold every stage of every pipeline under one leaf"
    return Map(blocks[which].reshape(-1), bound, (f"{why}: placed by search over single nodes",))


def hostname_order(job: Job) -> IntArray:
    """Return the usable nodes as a sorted host file lists them, numbers by value.

    Names made from `host_pattern` are in that order already.
    """
    if not job.cluster.names_hosts:
        return job.usable[: job.nodes]

    def natural(node: int) -> list[int | str]:
        parts = re.split(r"([0-9]{1,18})", job.free.hosts[node])
        return [int(part) if n % 2 else part for n, part in enumerate(parts)]

    return np.array(sorted(job.usable.tolist(), key=natural)[: job.nodes], dtype=np.int64)


def _scope(grid: Grid) -> str:
    """Return the maps that a bound on splits is about."""
    if grid.cell_nodes > 1:
        return (
            f"maps that keep the {grid.cell_nodes} nodes of {many(grid.pipelines, 'replica')} of "
            "a stage under one leaf"
        )
    return "maps of whole nodes"


def _grid_notes(grid: Grid, rooms: dict[int, int], cuts: int) -> tuple[str, ...]:
    notes = []
    if grid.cell_nodes > 1 and cuts:
        notes.append(
            f"groups of {grid.cell_nodes} nodes that hold one stage of {grid.pipelines} "
            f"pipeline{'s' * (grid.pipelines > 1)} are kept under one leaf; "
            "splits are the fewest among such maps"
        )
    if (most := max(rooms.values())) < grid.stages:
        notes.append(
            f"no leaf holds a whole pipeline of {grid.stages * grid.cell_nodes} nodes: "
            f"the largest has {most * grid.cell_nodes} free"
        )
    return tuple(notes)


def notes_of(job: Job, told: frozenset[str] = frozenset()) -> list[str]:
    """Return what to say of nodes that are not used, or not in full; nothing of hosts `told`."""
    notes = []
    if job.thinned:
        notes.append(_thinned(job))
    elif job.ranks < min(job.cluster.node.gpus, job.layout.gpus):
        notes.append(uneven(job.cluster, job.layout, job.ranks))
    for kind, nodes in left_out(job.free, job.ranks, job.others, told).items():
        few = f"{many(nodes, 'node')} with fewer than {job.ranks} healthy GPUs"
        notes.append(f"{few if kind == 'unhealthy' else many(nodes, f'{kind} node')} left out")
    if lacking := len(job.free.with_gpus(job.ranks)) - len(job.usable):
        notes.append(
            f"{many(lacking, 'node')} with enough healthy GPUs, but not the first {job.ranks}, "
            "left out: launchers count GPUs from 0"
        )
    if spare := len(job.usable) - job.nodes:
        notes.append(many(spare, "spare node"))
    return notes


def gpus_said(job: Job, gpus: IntArray) -> list[str]:
    """Return how many nodes run ranks on GPUs that no launch file can express."""
    rows = gpus.reshape(-1, job.ranks)
    odd = int((rows != np.arange(job.ranks)).any(axis=1).sum())
    if not odd:
        return []
    return [
        f"{many(odd, 'node')} with ranks on other GPUs than the first {job.ranks}: launch files "
        "cannot say so, and `emit` refuses this map; repair them or leave them out whole"
    ]


def rails_said(job: Job, gpus: IntArray) -> list[str]:
    """Return how many nodes run their ranks on other GPUs than most do, on a rail fabric.

    `gpus` is the GPU of every rank. Their peers are on other rails; that is not priced.
    """
    if job.cluster.fabric.kind is not FabricKind.RAIL or job.ranks == job.cluster.node.gpus:
        return []
    slots, counts = np.unique(gpus.reshape(-1, job.ranks), axis=0, return_counts=True)
    odd = int(counts.sum() - counts.max())
    if len(slots) == 1 or job.nodes == 1:
        return []
    return [
        f"{many(odd, 'node')} with ranks on other rails than their peers: what they exchange "
        "changes rail inside a node or above the leaf, which is not priced"
    ]


def types_said(job: Job, nodes: IntArray) -> list[str]:
    """Return how many pipelines stand on nodes of one type, where the cluster mixes several."""
    if not job.cluster.mix:
        return []
    types = np.array(type_of_node(job.cluster), dtype=np.int64)[nodes]
    layout = job.layout
    by_pipeline = np.repeat(types, job.ranks).reshape(layout.pp, layout.dp, -1)
    one = int((by_pipeline == by_pipeline[:1, :, :1]).all(axis=(0, 2)).sum())
    if one == layout.dp:
        kinds = [job.cluster.mix[n].name for n in np.unique(types).tolist()]
        alone = f" ({kinds[0]})" if len(kinds) == 1 else ""
        return [f"every pipeline stands on nodes of one type{alone}"]
    return [f"{one:,} of {many(layout.dp, 'pipeline')} on nodes of one type, the others on several"]


def spares_said(job: Job, nodes: IntArray) -> list[str]:
    """Return where the spare nodes stand: one under its own leaf replaces a node for nothing."""
    spare = np.setdiff1d(job.usable, nodes)
    used = np.unique(job.tree.leaf[nodes])
    if not len(spare) or len(used) == 1:
        return []
    held = np.isin(used, job.tree.leaf[spare])
    if held.all():
        return ["every leaf used has a spare node for one that fails"]
    if not held.any():
        return ["no leaf used has a spare node: one that fails is replaced from another leaf"]
    bare = [job.cluster.leaf_name(leaf) for leaf in used[~held].tolist()]
    named = ", ".join(bare[:NAMED]) + (f" and {len(bare) - NAMED:,} more" * (len(bare) > NAMED))
    some = f"{held.sum():,} of the {len(used):,} leafs used {'have' if held.sum() > 1 else 'has'}"
    return [
        f"{some} a spare node for one that fails; under {named} one that fails is replaced from "
        "another leaf"
    ]


def _thinned(job: Job) -> str:
    most = ranks_per_node(job.cluster, job.layout)[0]
    whole, needed = len(job.free.with_gpus(most)), job.layout.gpus // most
    return (
        f"only {many(whole, 'node')} with {most} healthy GPUs, {needed:,} would be needed: "
        f"{job.ranks} ranks each on {many(job.nodes, 'node')}"
    )


def _loosened(job: Job, wished: int) -> str:
    return (
        f"too few free nodes share scale-up domains to keep every group of {wished} nodes "
        "(context or expert parallelism) inside one; some of those groups cross domains"
    )

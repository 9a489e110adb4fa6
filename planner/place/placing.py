"""Placing: the road from a cluster and a layout to a checked map of ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.errors import InfeasibleError
from planner.place.cells import Grid, block_sizes, grid_of, ranks_per_node
from planner.place.check import check_placement
from planner.place.expand import nodes_of, rank_places
from planner.place.general import arrange
from planner.place.groups import IntArray, splits, tiers
from planner.place.hosts import FreeNodes, free_nodes
from planner.place.packing import pack
from planner.place.tree import Tree
from planner.plan import Layout, Placement
from planner.specs.cluster import ClusterSpec


@dataclass(frozen=True)
class _Job:
    """What is placed where: the layout, its even share of ranks a node, the nodes it can use."""

    cluster: ClusterSpec
    layout: Layout
    free: FreeNodes
    tree: Tree
    ranks: int
    usable: IntArray

    @property
    def nodes(self) -> int:
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
class _Map:
    """The node of every unit, a lower bound on splits, and what to say about it."""

    nodes: IntArray
    bound: int
    notes: tuple[str, ...] = ()


def place(
    cluster: ClusterSpec,
    layout: Layout,
    *,
    unhealthy: Sequence[str] = (),
    keep_ep_in_domain: bool = True,
) -> Placement:
    """Return the map of ranks with the fewest pipeline edges that leave a leaf, checked.

    Nodes are whole: every node used runs the same number of consecutive ranks, so a list of hosts
    expresses the map. A tensor-parallel group stays inside a node, or a scale-up domain where that
    is larger; with `keep_ep_in_domain` context and expert groups that fit into such a domain stay
    inside one too, where there is room. The ranks that hold one stage of a pipeline share a leaf.
    `unhealthy` is read as by `free_nodes`.

    Raises SpecError for unknown hosts, and InfeasibleError when there are too few nodes.
    """
    job = _job(cluster, layout, free_nodes(cluster, unhealthy))
    found = _arranged(job, keep=keep_ep_in_domain)
    spans = job.spans(found.nodes)
    lost = splits(layout, spans["leaf"])
    bound = min(found.bound, lost)
    by_name = job.spans(_hostname_order(job))
    placement = Placement(
        status="optimal" if bound == lost else "feasible",
        objective=lost,
        bound=bound,
        splits=lost,
        ranks=rank_places(
            layout, job.free, job.tree, found.nodes, job.ranks, cluster.leaf_name
        ),
        tiers=tiers(layout, spans),
        baseline={"splits": splits(layout, by_name["leaf"]), "tiers": tiers(layout, by_name)},
        notes=[*found.notes, *_notes(job)],
    )
    check_placement(cluster, layout, placement, unhealthy=unhealthy)
    return placement


def _job(cluster: ClusterSpec, layout: Layout, free: FreeNodes) -> _Job:
    ranks = ranks_per_node(cluster, layout)
    usable = free.with_gpus(ranks)
    needed = layout.gpus // ranks
    if needed > len(usable):
        fits = len(usable) * ranks // (layout.tp * layout.cp * layout.pp)
        message = (
            f"needs {_many(needed, 'node')} with {ranks} healthy GPUs; "
            f"{len(usable):,} of {cluster.nodes:,} have them; short by {needed - len(usable):,}"
        )
        if ranks < min(cluster.node.gpus, layout.gpus):
            message += f" ({_uneven(cluster, layout, ranks)})"
        hint = f"lower dp to at most {fits}, or add nodes" if fits else "lower pp, or add nodes"
        raise InfeasibleError(message, hint=hint)
    return _Job(cluster, layout, free, Tree.of(cluster), ranks, usable)


def _arranged(job: _Job, *, keep: bool) -> _Map:
    """Return the map for the strictest domain rule that there is room for."""
    sizes = block_sizes(job.cluster, job.layout, job.ranks, keep)
    for size in sizes:
        blocks = job.tree.blocks(job.usable, size)
        if len(blocks) * size >= job.nodes:
            notes = () if size == sizes[0] else (_loosened(job, sizes[0]),)
            found = _on_grid(job, blocks) or _in_general(job, blocks)
            return _Map(found.nodes, found.bound, (*notes, *found.notes))
    needed = job.nodes // size
    raise InfeasibleError(
        f"needs {needed} groups of {size} nodes, each inside one scale-up domain of "
        f"{job.cluster.domain_nodes} nodes; there is room for {len(blocks)}; "
        f"short by {needed - len(blocks)}",
        hint="lower dp, or tp so that its groups waste fewer nodes of a domain",
    )


def _on_grid(job: _Job, blocks: IntArray) -> _Map | None:
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
    return _Map(nodes, packing.bound * grid.pipelines, _grid_notes(grid, rooms, packing.bound))


def _in_general(job: _Job, blocks: IntArray) -> _Map:
    """Return a good map of blocks without a grid, and what can be proved about it."""
    leaf_of_block = job.tree.leaf[blocks[:, 0]]
    which, bound = arrange(job.layout, leaf_of_block, blocks.shape[1] * job.ranks)
    if grid_of(job.layout, job.ranks, blocks.shape[1]) is None:
        stage = job.layout.tp * job.layout.cp * job.layout.dp
        why = f"a stage of {stage} ranks ends inside a node of {job.ranks}"
    else:
        why = "the free nodes do not hold every stage of every pipeline under one leaf"
    return _Map(blocks[which].reshape(-1), bound, (f"{why}: placed by search over single nodes",))


def _hostname_order(job: _Job) -> IntArray:
    """Return the usable nodes as a sorted host file lists them, numbers by value.

    Names made from `host_pattern` are in that order already.
    """
    if not job.cluster.names_hosts:
        return job.usable[: job.nodes]

    def natural(node: int) -> list[int | str]:
        parts = re.split(r"([0-9]{1,18})", job.free.hosts[node])
        return [int(part) if n % 2 else part for n, part in enumerate(parts)]

    return np.array(sorted(job.usable.tolist(), key=natural)[: job.nodes], dtype=np.int64)


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


def _notes(job: _Job) -> list[str]:
    notes = []
    if job.ranks < min(job.cluster.node.gpus, job.layout.gpus):
        notes.append(_uneven(job.cluster, job.layout, job.ranks))
    if left_out := job.cluster.nodes - len(job.usable):
        notes.append(f"{_many(left_out, 'node')} with fewer than {job.ranks} healthy GPUs left out")
    if spare := len(job.usable) - job.nodes:
        notes.append(_many(spare, "spare node"))
    return notes


def _uneven(cluster: ClusterSpec, layout: Layout, ranks: int) -> str:
    return (
        f"{layout.gpus:,} ranks in tensor-parallel groups of {layout.tp} do not fill nodes of "
        f"{cluster.node.gpus} GPUs evenly: {ranks} ranks a node, the other GPUs idle"
    )


def _loosened(job: _Job, wished: int) -> str:
    return (
        f"too few free nodes share scale-up domains to keep every group of {wished} nodes "
        "(context or expert parallelism) inside one; some of those groups cross domains"
    )


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"

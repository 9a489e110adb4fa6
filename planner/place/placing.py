"""Placing: the road from a cluster and a layout to a checked map of ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.place.bound import least_loads
from planner.place.cells import Grid, block_sizes, grid_of, ranks_per_node
from planner.place.certificate import Choice, Rule, certificate
from planner.place.check import check_placement
from planner.place.clock import Clock
from planner.place.expand import gpus_of, nodes_of, rank_places
from planner.place.fastest import (
    BY_NAME,
    MATTERS,
    UNDER_LEAF,
    Cells,
    fastest,
    order_times,
    remarks,
    scored,
)
from planner.place.general import arrange
from planner.place.groups import IntArray, splits, tiers
from planner.place.hosts import FreeNodes, free_nodes
from planner.place.moving import (
    Units,
    gone_ranks,
    kept_nodes,
    moved_ranks,
    on_old_gpus,
    with_spares,
)
from planner.place.packing import pack
from planner.place.relax import many, too_few_domains, too_few_nodes, uneven
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
    cells: Cells | None = None
    scope: str = ""


def place(
    cluster: ClusterSpec,
    layout: Layout,
    *,
    unhealthy: Sequence[str] = (),
    keep_ep_in_domain: bool = True,
    busy: Sequence[str] = (),
    clock: Clock | None = None,
    pipelines: Rule = "under-leaf",
    moved_from: Placement | None = None,
) -> Placement:
    """Return the map of ranks with the fewest pipeline edges that leave a leaf, checked.

    With `pipelines="fastest"` and a clock, the map with the least step time over all orders of
    filling leafs; with a clock, either way, the step time of both is told. With `moved_from`, the
    map with the fewest ranks elsewhere than in that one, and what placing anew would give.

    Nodes are whole: every node used runs the same number of consecutive ranks, so a list of hosts
    expresses the map. A tensor-parallel group stays inside a node, or a scale-up domain where that
    is larger; with `keep_ep_in_domain` context and expert groups that fit into such a domain stay
    inside one too, where there is room. The ranks that hold one stage of a pipeline share a leaf.
    `unhealthy` is read as by `free_nodes`; `busy` says which of it other jobs hold, for the
    advice when there are too few nodes.

    Raises SpecError for unknown hosts, and InfeasibleError when there are too few nodes.
    """
    job = _job(cluster, layout, free_nodes(cluster, unhealthy), busy)
    found = _arranged(job, keep=keep_ep_in_domain)
    by_name = _hostname_order(job)
    choice = _chosen(job, found, by_name, clock, pipelines)
    free = job.free
    if moved_from is not None:
        choice, free = _least_moved(job, choice, moved_from, clock)
    spans, named = job.spans(choice.nodes), job.spans(by_name)
    lost = splits(layout, spans["leaf"])
    leafs = [cluster.leaf_name(leaf) for leaf in job.tree.leaf[choice.nodes].tolist()]
    placement = Placement(
        **certificate(choice, lost, found.bound, found.scope),
        splits=lost,
        ranks=rank_places(layout, free, choice.nodes, job.ranks, leafs),
        tiers=tiers(layout, spans),
        baseline={"splits": splits(layout, named["leaf"]), "tiers": tiers(layout, named)}
        | choice.baseline,
        orders=choice.orders,
        notes=[*(found.notes if choice.nodes is found.nodes else ()), *_notes(job), *choice.notes],
    )
    check_placement(cluster, layout, placement, unhealthy=unhealthy)
    return placement


def _chosen(
    job: _Job, found: _Map, by_name: IntArray, clock: Clock | None, pipelines: Rule
) -> Choice:
    """Return the map that the rule asks for, with step times where there is a clock."""
    if clock is None:
        return Choice(found.nodes)
    maps = {UNDER_LEAF: found.nodes, BY_NAME: by_name}
    all_scored = scored(clock, job.tree, job.ranks, maps, found.cells)
    # names in a row may tear a tensor group that spans nodes out of its scale-up domain
    whole = job.layout.tp <= job.cluster.node.gpus
    open_to = [one for one in all_scored if whole or one.words != BY_NAME]
    rule = pipelines if clock.contended else "under-leaf"
    best = fastest(open_to) if rule == "fastest" else all_scored[0]
    return Choice(
        nodes=best.nodes,
        question="least-step-time" if pipelines == "fastest" else "fewest-splits",
        seconds=best.seconds,
        bound_s=min(_bound(job, clock), best.seconds),
        orders=order_times(all_scored),
        baseline={"step_time_s": all_scored[1].seconds},
        notes=remarks(clock, open_to, best),
    )


def _bound(job: _Job, clock: Clock) -> float:
    """Return a step time that no map on the usable nodes beats."""
    if not clock.contended:
        return clock.bound()
    switches = (job.tree.leaf[job.usable], job.tree.pod[job.usable])
    return clock.bound(least_loads(job.layout, job.ranks, switches))


def _least_moved(
    job: _Job, anew: Choice, old: Placement, clock: Clock | None
) -> tuple[Choice, FreeNodes]:
    """Return the map with the fewest moved ranks, priced beside `anew`, and the GPUs it may use."""
    layout, ranks = job.layout, job.ranks
    kept = kept_nodes(layout, ranks, job.free, old)
    free = on_old_gpus(job.free, kept, ranks, old)
    nodes = with_spares(Units(layout, ranks, job.tree), job.usable, kept)

    def moves(to: IntArray, on: FreeNodes) -> int:
        gpus = gpus_of(on, to, ranks).tolist()
        hosts = (on.hosts[n] for n in to.tolist() for _ in range(ranks))
        return moved_ranks(old, list(zip(hosts, gpus, strict=True)))

    moved, others = moves(nodes, free), moves(anew.nodes, job.free)
    orders, took = anew.orders, None
    if clock is not None:
        words = "every rank that can stays"
        (swapped,) = scored(clock, job.tree, ranks, {words: nodes}, None)
        orders, took = [*order_times([swapped]), *anew.orders], swapped.seconds
    choice = replace(
        anew,
        nodes=nodes,
        question="fewest-moved-ranks",
        seconds=took,
        orders=orders,
        moved=moved,
        must_move=gone_ranks(job.free, kept, ranks, old),
        notes=[_price(moved, others, took, anew.seconds)],
    )
    return choice, free


def _price(moved: int, others: int, took: float | None, anew: float | None) -> str:
    """Return what moves, and what placing anew would move and gain."""
    words = f"{many(moved, 'rank')} of the earlier map move; placing anew would move {others:,}"
    if took is None or anew is None:
        return words
    gain = took / anew - 1
    return f"{words} and " + (f"be {gain:.1%} faster" if gain >= MATTERS else "be no faster")


def _job(cluster: ClusterSpec, layout: Layout, free: FreeNodes, busy: Sequence[str]) -> _Job:
    ranks = ranks_per_node(cluster, layout)
    usable = free.with_gpus(ranks)
    needed = layout.gpus // ranks
    if needed > len(usable):
        raise too_few_nodes(cluster, layout, ranks, free, busy)
    return _Job(cluster, layout, free, Tree.of(cluster), ranks, usable)


def _arranged(job: _Job, *, keep: bool) -> _Map:
    """Return the map for the strictest domain rule that there is room for."""
    sizes = block_sizes(job.cluster, job.layout, job.ranks, keep)
    for size in sizes:
        blocks = job.tree.blocks(job.usable, size)
        if len(blocks) * size >= job.nodes:
            notes = () if size == sizes[0] else (_loosened(job, sizes[0]),)
            found = _on_grid(job, blocks) or _in_general(job, blocks)
            return replace(found, notes=(*notes, *found.notes))
    raise too_few_domains(job.cluster, job.layout, job.nodes // size, size, len(blocks))


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
    leaf_order = tuple(leaf for run in packing.runs for leaf in run.leafs)
    return _Map(
        nodes,
        packing.bound * grid.pipelines,
        _grid_notes(grid, rooms, packing.bound),
        Cells(grid, cells, leaf_order),
        _scope(grid),
    )


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


def _notes(job: _Job) -> list[str]:
    notes = []
    if job.ranks < min(job.cluster.node.gpus, job.layout.gpus):
        notes.append(uneven(job.cluster, job.layout, job.ranks))
    if left_out := job.cluster.nodes - len(job.usable):
        notes.append(f"{many(left_out, 'node')} with fewer than {job.ranks} healthy GPUs left out")
    if spare := len(job.usable) - job.nodes:
        notes.append(many(spare, "spare node"))
    return notes


def _loosened(job: _Job, wished: int) -> str:
    return (
        f"too few free nodes share scale-up domains to keep every group of {wished} nodes "
        "(context or expert parallelism) inside one; some of those groups cross domains"
    )

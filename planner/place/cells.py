"""Cells: what is placed. Never single ranks: nodes' worth of ranks, and groups of such nodes.

Launchers give consecutive ranks to a node, the same number to each, so a list of nodes is a whole
placement. Node u of that list runs the ranks [u*q, (u+1)*q): the *unit* u. Units that must share a
scale-up domain form a *block*; units that hold one stage of a whole number of pipelines form a
*cell*. In most layouts the cells make a grid of stages x columns, and any matching of the cells of
one stage with those of the next is allowed, which is why counting them per leaf is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.errors import InfeasibleError, SpecError
from planner.plan import Layout
from planner.specs.cluster import ClusterSpec


@dataclass(frozen=True)
class Grid:
    """`stages` x `columns` cells of `cell_nodes` nodes; one cut edge splits `pipelines`."""

    stages: int
    columns: int
    cell_nodes: int
    pipelines: int


def ranks_per_node(cluster: ClusterSpec, layout: Layout) -> list[int]:
    """Return the ranks that every node may run, most first: its GPUs and an even split decide.

    Fewer than the most takes more nodes, but nodes with fewer healthy GPUs.

    Raises InfeasibleError when a tensor-parallel group is larger than the scale-up domain, and
    SpecError when the expert groups do not divide a stage.
    """
    stage, experts = layout.tp * layout.cp * layout.dp, layout.ep * layout.etp
    if stage % experts:
        raise SpecError(
            f"layout: ep * etp ({experts}) does not divide tp * cp * dp ({stage})",
            hint="expert groups are cut from the ranks of one stage",
        )
    if layout.tp > cluster.domain_gpus:
        raise InfeasibleError(
            f"a tensor-parallel group of {layout.tp} GPUs is larger than the scale-up domain of "
            f"{cluster.domain_gpus} GPUs",
            hint=f"lower tp to at most {cluster.domain_gpus}",
        )

    def fits(ranks: int) -> bool:
        if layout.tp <= cluster.node.gpus:
            return layout.gpus % ranks == 0 and ranks % layout.tp == 0
        return layout.gpus % ranks == 0 and math.lcm(layout.tp, ranks) <= cluster.domain_gpus

    most = min(cluster.node.gpus, layout.gpus)
    return [ranks for ranks in range(most, 0, -1) if fits(ranks)]


def block_sizes(cluster: ClusterSpec, layout: Layout, ranks: int, keep: bool) -> list[int]:
    """Return the blocks to try, in nodes, strictest first; the last holds TP groups only.

    With `keep`, blocks also hold the tp*cp groups and the expert groups that are no larger than a
    scale-up domain.
    """
    domain = cluster.domain_gpus
    least = math.lcm(ranks, layout.tp)
    context, experts = layout.tp * layout.cp, layout.ep * layout.etp
    wishes = [(context, experts), (experts,), ()]
    sizes = []
    for wish in wishes if keep and cluster.domain_nodes > 1 and layout.gpus > ranks else [()]:
        size = math.lcm(least, *(w for w in wish if w <= domain))
        if size <= domain and size // ranks not in sizes and layout.gpus % size == 0:
            sizes.append(size // ranks)
    return sizes


def grid_of(layout: Layout, ranks: int, block_nodes: int) -> Grid | None:
    """Return the grid of cells, or None when a stage ends inside a node."""
    stage, replica = layout.tp * layout.cp * layout.dp, layout.tp * layout.cp
    if ranks % stage == 0:
        return Grid(layout.pp * stage // ranks, 1, 1, layout.dp)
    if stage % ranks == 0:
        cell = math.lcm(replica, block_nodes * ranks)
        return Grid(layout.pp, stage // cell, cell // ranks, cell // replica)
    return None

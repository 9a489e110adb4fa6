"""Expand: from runs of leafs to nodes in rank order, and from nodes to one record a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from planner.place.cells import Grid
from planner.place.groups import IntArray, coordinates
from planner.place.hosts import FreeNodes
from planner.place.packing import Packing
from planner.plan import Layout, RankPlace


def nodes_of(packing: Packing, cells_of: Mapping[int, IntArray], grid: Grid) -> IntArray:
    """Return the node of every unit; `cells_of` maps a leaf to its cells, [cell, node].

    Pipelines fill the leafs one after the other, stage by stage, so data-parallel replicas are
    numbered by leaf and the ring of every stage visits a leaf once.
    """
    filled = [
        np.concatenate([cells_of[leaf] for leaf in run.leafs])[: run.columns * grid.stages]
        for run in packing.runs
    ]
    slots = np.concatenate(filled).reshape(grid.columns, grid.stages, grid.cell_nodes)
    return slots.swapaxes(0, 1).reshape(-1)


def gpus_of(free: FreeNodes, nodes: IntArray, ranks: int) -> IntArray:
    """Return the GPU of every rank: the first `ranks` healthy ones of each node."""
    return np.argsort(~free.healthy[nodes], axis=1, kind="stable")[:, :ranks].reshape(-1)


def rank_places(
    layout: Layout, free: FreeNodes, nodes: IntArray, ranks: int, leafs: Sequence[str]
) -> list[RankPlace]:
    """Return one record a rank, in rank order; `leafs` names the leaf of each of `nodes`."""
    host = [free.hosts[n] for n in nodes.tolist() for _ in range(ranks)]
    leaf = [name for name in leafs for _ in range(ranks)]
    axes = {kind: steps.tolist() for kind, steps in coordinates(layout).items()}
    columns = [range(layout.gpus), host, gpus_of(free, nodes, ranks).tolist(), leaf]
    columns += [axes[kind] for kind in ("tp", "cp", "ep", "dp", "pp")]
    make = RankPlace.model_construct  # validation would take ten times as long
    return [
        make(rank=r, host=h, gpu=g, leaf=k, tp=t, cp=c, ep=e, dp=d, pp=p)
        for r, h, g, k, t, c, e, d, p in zip(*columns, strict=True)
    ]

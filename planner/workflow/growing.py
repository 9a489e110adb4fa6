"""How many more GPUs would do: larger machines of the same kind, tried one after the other."""

from __future__ import annotations

from planner.layouts.ranges import Choice, Fix
from planner.layouts.rules import Context
from planner.layouts.table import RECOMPUTE
from planner.rank import Ranking, rank
from planner.specs.cluster import ClusterSpec
from planner.specs.links import FabricKind
from planner.workflow.request import PlanRequest

HALVES = (3, 4, 6, 8, 12, 16)
"""Times half the GPUs there are, for fields that are kept."""
FAR_HALVES = (*HALVES, 24, 32, 48, 64, 96, 128)
"""The same, where nothing fits on what there is."""
MOST_NODES = 131_072
"""As many as a cluster may have."""
LEAST = {"recompute": RECOMPUTE.index("full"), "micro_batch": 1}
"""What every layout that needs little memory has: enough to see whether anything fits."""


def on_more_gpus(
    request: PlanRequest, gpus: int, fix: Fix, *, far: bool
) -> tuple[Context, Ranking] | None:
    """Return the first larger machine on which any layout fits, and those that do."""
    for halves in FAR_HALVES if far else HALVES:
        more = gpus * halves // 2
        cluster = grown(request.cluster, more) if gpus * halves % 2 == 0 else None
        if cluster is None:
            continue
        context = Context(request.model, cluster, request.workload)
        if not rank(context, more, _lightest(fix)).feasible:
            continue
        ranking = rank(context, more, fix)
        if ranking.feasible:
            return context, ranking
    return None


def _lightest(fix: Fix) -> Fix:
    light = {name: Choice(name, frozenset({value})) for name, value in LEAST.items()}
    return Fix({**light, **fix.choices})


def grown(cluster: ClusterSpec, gpus: int) -> ClusterSpec | None:
    """Return the cluster with nodes for so many GPUs, hosts unnamed; None if it cannot have them.

    GPUs beyond one node come in whole nodes.
    """
    per_node = cluster.node.gpus
    if gpus > per_node and gpus % per_node:
        return None
    nodes = max(cluster.nodes, -(-gpus // per_node))
    if nodes == cluster.nodes:
        return cluster
    alone = cluster.fabric.kind is FabricKind.NONE or not cluster.node.nics
    if alone or nodes > MOST_NODES:
        return None
    named = cluster.model_dump(mode="json", exclude={"hosts", "leafs"})
    return ClusterSpec.model_validate({**named, "nodes": nodes})

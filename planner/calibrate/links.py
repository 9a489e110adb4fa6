"""Links: latency and bandwidth of collectives inside a scale-up domain and between nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from planner.calibrate.between import fit_fabric
from planner.calibrate.figure import (
    Found,
)
from planner.calibrate.inside import fit_inside
from planner.calibrate.nccl import Log
from planner.specs.cluster import ClusterSpec


def inside_domain(cluster: ClusterSpec, log: Log) -> bool:
    """Return whether all ranks of a log share scale-up links."""
    return log.nodes <= cluster.domain_nodes


def fit_links(cluster: ClusterSpec, logs: Sequence[Log]) -> tuple[Found, ClusterSpec]:
    """Return what the logs say of the links, and the cluster with them put in."""
    found = Found()
    for log in logs:
        found.warnings += log.warnings
    usable = list(_usable(cluster, logs, found))
    inner: dict[tuple[str, int], list[Log]] = defaultdict(list)
    for log in usable:
        if inside_domain(cluster, log):
            inner[log.op, log.ranks].append(log)
    for (op, ranks), same in sorted(inner.items()):
        cluster = fit_inside(cluster, op, ranks, same, found)
    outer = [log for log in usable if not inside_domain(cluster, log)]
    if outer:
        cluster = fit_fabric(cluster, outer, found)
    return found, cluster


def _usable(cluster: ClusterSpec, logs: Sequence[Log], found: Found) -> Iterator[Log]:
    """Yield the logs that this cluster can have run and that its numbers speak of."""
    for log in logs:
        per_node = log.ranks // log.nodes
        if per_node > cluster.node.gpus:
            found.warnings.append(
                f"{log.file}: {per_node} ranks a node, but {cluster.name} has "
                f"{cluster.node.gpus} GPUs a node: left out"
            )
        elif log.op == "send_recv":
            best = max(t.bytes / t.time_s for t in log.timings)
            found.facts.append(
                f"{log.file}: sends reach {best / 1e9:.1f} GB/s a GPU; no figure is fitted to them"
            )
        elif log.nodes > 1 and not inside_domain(cluster, log) and not cluster.node.nics:
            found.warnings.append(f"{log.file}: {cluster.name} has no network: left out")
        else:
            yield log

"""Links between nodes: all logs together give the few numbers that the estimate knows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from planner.calibrate.figure import (
    Found,
    Quality,
    figures_of,
)
from planner.calibrate.fitted import FEWEST, at_sizes, by_size, columns, op_of, worth
from planner.calibrate.nccl import Log
from planner.calibrate.probe import probe
from planner.calibrate.solve import FloatArray, Number, solve
from planner.estimate.collectives import all_to_all_s, group_s
from planner.specs.cluster import ClusterSpec

FABRIC_FROM_BYTES = 2**20
"""Messages below are left out between nodes: NCCL sends them by trees, which have another latency
than the rings that carry gradients and parameters."""
TREE_NODES = 3
"""All-reduce over so many nodes passes the NICs' rate, by trees (hardware tables); where more nodes
were measured it says nothing about them."""


def fit_fabric(cluster: ClusterSpec, logs: Sequence[Log], found: Found) -> ClusterSpec:
    """Fit the fabric's few numbers to all logs that cross it; return the cluster with them."""
    rings = _rings(logs, found)
    several = [log for log in rings if log.op != "all_to_all"]
    mixed = [log for log in rings if log.op == "all_to_all"]
    for these, names in (
        (several, ("efficiency", "latency_us", "step_latency_us")),
        (mixed, ("all_to_all_efficiency",)),
    ):
        if these:
            cluster = _fit_some(cluster, these, names, found)
    return cluster


def _rings(logs: Sequence[Log], found: Found) -> list[Log]:
    """Return the logs without all-reduce over two or three nodes, where there are others."""
    wide = [log for log in logs if log.nodes > TREE_NODES or log.op != "all_reduce"]
    left = [log for log in logs if log not in wide]
    if wide and left:
        found.facts.append(
            f"{', '.join(log.file for log in left)}: all-reduce over at most {TREE_NODES} nodes "
            "goes by trees; not used, since other logs show rings"
        )
        return wide
    if left:
        found.warnings.append(
            f"{left[0].file}: all-reduce over at most {TREE_NODES} nodes passes the NICs' rate by "
            "trees; larger groups will be slower than these figures say: measure 4 nodes or more"
        )
    return list(logs)


WIDTHS = {
    "efficiency": 0.5,
    "latency_us": 1.0,
    "step_latency_us": 1.0,
    "all_to_all_efficiency": 0.7,
}


def _fit_some(
    cluster: ClusterSpec, logs: Sequence[Log], names: Sequence[str], found: Found
) -> ClusterSpec:
    sizes, measured, of = columns(logs, least=FABRIC_FROM_BYTES)
    group = f"{'all_to_all' if logs[0].op == 'all_to_all' else 'rings'} between nodes"
    file = logs[0].file
    if len(np.unique(sizes)) < FEWEST:
        found.warnings.append(
            f"{file}: {len(np.unique(sizes))} sizes of 1 MiB and more where {FEWEST} are needed "
            "between nodes: left out"
        )
        return cluster

    def predict(values: FloatArray) -> FloatArray:
        out = np.zeros(len(sizes))
        with_it = _with_fabric(cluster, dict(zip(names, values.tolist(), strict=True)))
        for i, log in enumerate(logs):
            out[of == i] = across_s(with_it, log, sizes[of == i])
        return out

    shipped = [float(getattr(cluster.fabric, name)) for name in names]
    high = [1.0 if name.endswith("efficiency") else 1e6 for name in names]
    numbers = [
        Number(name, max(value, 0.01), WIDTHS[name], low=1e-4, high=most)
        for name, value, most in zip(names, shipped, high, strict=True)
    ]
    solution = replace(
        solve(predict, measured, numbers, keep_untold=True),
        before=np.log(predict(np.array(shipped)) / measured),
    )
    quality = Quality.of(solution, measured)
    if not worth(found, group, quality, file):
        return cluster
    for name, value, most in zip(names, solution.values.tolist(), high, strict=True):
        if most == 1.0 and value > 0.999:
            found.warnings.append(
                f"{file}: fabric.{name} would be above 1; either the NICs of {cluster.name} are "
                "faster than its file says, or the groups are too small to show the network"
            )
    units = ["us" if name.endswith("_us") else "" for name in names]
    places = [(("fabric", n), u, v) for n, u, v in zip(names, units, shipped, strict=True)]
    figures = figures_of(group, solution, quality, places)
    found.figures += figures
    changed = _with_fabric(cluster, {f.path[-1]: f.after for f in figures})
    before = predict(np.array(shipped))
    told = predict(np.array([getattr(changed.fabric, name) for name in names]))
    found.residuals += by_size(group, sizes, before, told, measured)
    for i, log in enumerate(logs):
        mine = of == i
        after = across_s(changed, log, sizes[mine])
        what = f"{log.op} on {log.nodes} nodes"
        found.predictions += at_sizes(what, sizes[mine], before[mine], after, measured[mine])
    return changed


def across_s(cluster: ClusterSpec, log: Log, sizes: FloatArray) -> FloatArray:
    """Return what the estimate says of a log's collective over its nodes, size by size."""
    x = probe(cluster.model_copy(update={"nodes": log.nodes, "hosts": None, "leafs": None}))
    per_node = log.ranks // log.nodes
    n = np.full(len(sizes), log.ranks)
    stride = np.full(len(sizes), max(1, cluster.node.gpus // per_node))
    if log.op == "all_to_all":
        sent = sizes * (log.ranks - 1) / log.ranks
        return np.asarray(all_to_all_s(x, sent, stride, n), dtype=np.float64)
    return np.asarray(group_s(x, op_of(log.op), sizes, stride, n), dtype=np.float64)


def _with_fabric(cluster: ClusterSpec, values: Mapping[str, float]) -> ClusterSpec:
    return cluster.model_copy(update={"fabric": cluster.fabric.model_copy(update=dict(values))})

"""Links: latency and bandwidth of collectives inside a scale-up domain and between nodes.

Inside, each operation and number of ranks is measured on its own (alpha, bandwidth, gamma of
planner/estimate/collectives.py). Between nodes all logs together give the fabric's efficiency, its
latency and the latency of a ring's step: that is all that the estimate knows of a network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from planner.calibrate.figure import (
    Figure,
    Found,
    Prediction,
    Quality,
    Residual,
    figures_of,
    residuals,
    rounded,
)
from planner.calibrate.nccl import Log
from planner.calibrate.peaks import impossible_bus
from planner.calibrate.probe import probe
from planner.calibrate.solve import FloatArray, Number, solve
from planner.estimate.collectives import all_to_all_s, bus_bytes, group_s, inside_s
from planner.specs.cluster import ClusterSpec
from planner.specs.links import Collective, CollectiveFit

FABRIC_FROM_BYTES = 2**20
"""Messages below are left out between nodes: NCCL sends them by trees, which have another latency
than the rings that carry gradients and parameters."""
TREE_NODES = 3
"""All-reduce over so many nodes passes the NICs' rate, by trees (hardware tables); where more nodes
were measured it says nothing about them."""
FEWEST = 5
"""Sizes of one log below which its latency and its bandwidth cannot be told apart."""
CONTRADICTORY = 0.25
"""Median error after a fit above which the measurements cannot be believed together."""
SMALL_BYTES, LARGE_BYTES = 2**20, 2**26
SHOWN_BYTES = (2**20, 2**26, 2**30)
OPS: tuple[str, ...] = get_args(Collective)


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
        cluster = _fit_inside(cluster, op, ranks, same, found)
    outer = [log for log in usable if not inside_domain(cluster, log)]
    if outer:
        cluster = _fit_fabric(cluster, outer, found)
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


# --- inside a domain ----------------------------------------------------------------------------

UNITS = {"alpha_us": "us", "gb_per_s": "GB/s", "gamma_us_per_sqrt_kb": "us/sqrt(kB)"}


def _fit_inside(
    cluster: ClusterSpec, op: str, ranks: int, logs: Sequence[Log], found: Found
) -> ClusterSpec:
    """Fit one collective on one number of GPUs; return the cluster with it put in."""
    sizes, measured, _ = _columns(logs)
    group, file = f"{op} {ranks}", logs[0].file
    if len(np.unique(sizes)) < FEWEST:
        found.warnings.append(
            f"{file}: {len(np.unique(sizes))} sizes of {op} on {ranks} GPUs where "
            f"{FEWEST} are needed: left out"
        )
        return cluster
    at = cluster.model_copy(update={"nodes": max(log.nodes for log in logs)})
    n = np.full(len(sizes), ranks)
    before = np.asarray(inside_s(probe(at), _op(op), sizes, n), dtype=np.float64)
    volume = np.asarray(bus_bytes(_op(op), sizes, n), dtype=np.float64)

    def predict(values: FloatArray) -> FloatArray:
        alpha_us, gb_per_s, gamma = values.tolist()
        bent = gamma * 1e-6 * np.sqrt(volume / 1e3)
        return np.asarray(alpha_us * 1e-6 + volume / (gb_per_s * 1e9) + bent)

    listed = next((f for f in cluster.scale_up.collectives if (f.op, f.gpus) == (op, ranks)), None)
    start = _by_eye(volume, measured)
    shipped = [getattr(listed, name) for name in UNITS] if listed else [*start[:2], 0.15]
    numbers = [
        Number("alpha_us", max(shipped[0], 0.01), 2.0, low=1e-2),
        Number("gb_per_s", shipped[1], 2.0, low=1e-3),
        Number("gamma_us_per_sqrt_kb", max(shipped[2], 0.02), 1.5),
    ]
    solution = replace(
        solve(predict, measured, numbers, start=start), before=np.log(before / measured)
    )
    quality = Quality.of(solution, measured)
    if not worth(found, group, quality, file):
        return cluster
    alpha_us, gb_per_s, _ = solution.values.tolist()
    if reason := impossible_bus(cluster, op, gb_per_s):
        found.warnings.append(f"{file}: {group}: {reason}")
        return cluster
    if volume.max() / (gb_per_s * 1e9) < alpha_us * 1e-6:
        found.warnings.append(
            f"{file}: the largest message of {group} is still bound by latency, so its bandwidth "
            "is a guess; measure up to 1 GB"
        )
    values = {name: rounded(v) for name, v in zip(UNITS, solution.values.tolist(), strict=True)}
    found.figures += [
        Figure(
            ("scale_up", "collectives", group, name),
            unit,
            float(getattr(listed, name)) if listed else None,
            values[name],
            float(spread),
            quality,
            group,
        )
        for (name, unit), spread in zip(UNITS.items(), solution.spread, strict=True)
    ]
    after = predict(np.array(list(values.values())))
    found.predictions += _at_sizes(f"{op} on {ranks} GPUs", sizes, before, after, measured)
    found.residuals += _by_size(group, sizes, before, after, measured)
    fit = CollectiveFit.model_validate({"op": op, "gpus": ranks, **values})
    others = tuple(f for f in cluster.scale_up.collectives if f is not listed)
    links = cluster.scale_up.model_copy(update={"collectives": (*others, fit)})
    return cluster.model_copy(update={"scale_up": links})


def _by_eye(volume: FloatArray, measured: FloatArray) -> tuple[float, float, float]:
    """Return where to start: latency of the small messages, bandwidth of the large ones."""
    big, small = volume >= np.quantile(volume, 0.8), volume <= np.quantile(volume, 0.2)
    alpha_us = float(np.median(measured[small])) * 1e6
    gb_per_s = float(np.median(volume[big] / measured[big])) / 1e9
    return max(alpha_us, 0.1), max(gb_per_s, 0.01), 0.1


# --- between nodes ------------------------------------------------------------------------------


def _fit_fabric(cluster: ClusterSpec, logs: Sequence[Log], found: Found) -> ClusterSpec:
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
    sizes, measured, of = _columns(logs, least=FABRIC_FROM_BYTES)
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
    found.residuals += _by_size(group, sizes, before, told, measured)
    for i, log in enumerate(logs):
        mine = of == i
        after = across_s(changed, log, sizes[mine])
        what = f"{log.op} on {log.nodes} nodes"
        found.predictions += _at_sizes(what, sizes[mine], before[mine], after, measured[mine])
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
    return np.asarray(group_s(x, _op(log.op), sizes, stride, n), dtype=np.float64)


def _with_fabric(cluster: ClusterSpec, values: Mapping[str, float]) -> ClusterSpec:
    return cluster.model_copy(update={"fabric": cluster.fabric.model_copy(update=dict(values))})


# --- shared -------------------------------------------------------------------------------------


def _op(op: str) -> Collective:
    if op not in OPS:
        raise ValueError(op)
    return cast(Collective, op)


def _columns(
    logs: Sequence[Log], *, least: float = 0.0
) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """Return bytes, seconds and the log's index of every timing of at least so many bytes."""
    rows = [
        (t.bytes, t.time_s, i)
        for i, log in enumerate(logs)
        for t in log.timings
        if t.bytes >= least
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2].astype(np.int64)


def worth(
    found: Found,
    group: str,
    quality: Quality,
    file: str,
    *,
    least_gain: float = 0.0,
    weighed: bool = False,
) -> bool:
    """Count the fit and say what is wrong with it; return whether its figures are used.

    They are where they bring the median error down by more than `least_gain`, if that is given. A
    fit that is `weighed` stays off on purpose, and contradicts nothing.
    """
    found.fits += 1
    idle = least_gain and quality.median_after > quality.median_before - least_gain
    if quality.worse or idle:
        found.warnings.append(
            f"{file}: what ships predicts {group} as well ({quality.median_before:.1%} against "
            f"{quality.median_after:.1%}); nothing changed"
        )
        return False
    if quality.median_after > CONTRADICTORY and not weighed:
        found.warnings.append(
            f"{file}: {group} is {quality.median_after:.0%} off in the median even after the fit: "
            "the measurements contradict each other, or the formula does not hold here"
        )
    return True


def _by_size(
    group: str, sizes: FloatArray, before: FloatArray, after: FloatArray, measured: FloatArray
) -> list[Residual]:
    """Return the errors of small, middling and large messages."""
    small, large = sizes < SMALL_BYTES, sizes >= LARGE_BYTES
    rows = {"below 1 MiB": small, "1 to 64 MiB": ~small & ~large, "from 64 MiB": large}
    return residuals(group, rows, np.log(before / measured), np.log(after / measured))


def _at_sizes(
    what: str, sizes: FloatArray, before: FloatArray, after: FloatArray, measured: FloatArray
) -> list[Prediction]:
    """Return the predictions at a few sizes of those measured."""
    out = []
    for size in SHOWN_BYTES:
        if len(at := np.flatnonzero(sizes == size)):
            i = int(at[np.argsort(measured[at])[len(at) // 2]])
            label = f"{what}, {size // 2**20:,} MiB"
            kind = "collective"
            out.append(
                Prediction(label, kind, float(before[i]), float(after[i]), float(measured[i]))
            )
    return out

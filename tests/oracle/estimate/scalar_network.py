"""Times of collectives in plain Python: alpha-beta inside a domain, rings over the NICs outside.

As docs/model.md says them, section Network. Figures of the machine come from its YAML.
"""

from __future__ import annotations

from itertools import pairwise
from math import log2, sqrt

from planner.specs.cluster import ClusterSpec


def moved(op: str, buffer: float, n: int) -> float:
    """Bytes on the bus of one rank: 2 (n-1)/n for an all-reduce, (n-1)/n for the others."""
    return (2 if op == "all_reduce" else 1) * (n - 1) / n * buffer


def between(x: float, points: list[tuple[float, float]]) -> float:
    """Linear interpolation, constant outside."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def inside_figures(c: ClusterSpec, op: str, n: int) -> tuple[float, float, float]:
    """Latency, bytes a second and seconds per root byte among n GPUs of one domain."""
    rows = sorted((f for f in c.scale_up.collectives if f.op == op), key=lambda f: f.gpus)
    size = log2(max(n, 1))
    figures = [
        between(size, [(log2(f.gpus), getattr(f, name)) for f in rows])
        for name in ("alpha_us", "gb_per_s", "gamma_us_per_sqrt_kb")
    ]
    beyond = max(n - rows[-1].gpus, 0)
    return (figures[0] + beyond) * 1e-6, figures[1] * 1e9, figures[2] * 1e-6 / sqrt(1e3)


def inside(c: ClusterSpec, op: str, buffer: float, n: int) -> float:
    if n == 1:
        return 0.0
    alpha, rate, gamma = inside_figures(c, op, n)
    volume = moved(op, buffer, n)
    return alpha + volume / rate + gamma * sqrt(volume)


def neighbours(c: ClusterSpec, stride: int, n: int) -> int:
    """How many of n ranks, `stride` GPUs apart, share a domain."""
    return min(max(c.domain_gpus_used // stride, 1), n)


def nic(c: ClusterSpec) -> float:
    return c.node.nic_bytes_per_s / c.node.gpus


def leaving(c: ClusterSpec, tp: int, pp: int, stride: int, n: int) -> float:
    """How much slower rings between leafs, and between pods, are than the NICs that feed them."""
    in_node = min(max(c.node.gpus // stride, 1), n)
    slow = 1.0
    nodes = [(c.leaf_nodes, c.fabric.leaf_oversubscription)]
    if c.pod_nodes:
        nodes.append((c.pod_nodes, c.fabric.pod_oversubscription))
    for many, ways in nodes:
        below = many * c.node.gpus
        if c.gpus > below:
            share = min(tp * in_node * pp, below) / below
            slow = max(slow, ways / c.fabric.routing_efficiency * share)
    return slow


def ring(
    c: ClusterSpec, op: str, buffer: float, ranks: tuple[int, int], slowdown: float = 1.0
) -> float:
    """A collective of n ranks that stand `stride` GPUs apart."""
    stride, n = ranks
    if n == 1:
        return 0.0
    local = neighbours(c, stride, n)
    if local >= n or c.nodes == 1:
        return inside(c, op, buffer, n)
    rate = c.fabric.efficiency * nic(c) * local / slowdown
    if local > 1:
        rate = min(rate, inside_figures(c, op, local)[1])
    latency = c.fabric.latency_us + (n - 1) * c.fabric.step_latency_us
    return latency * 1e-6 + moved(op, buffer, n) / rate


def exchange(c: ClusterSpec, sent: float, stride: int, n: int) -> float:
    """An all-to-all in which each of n ranks sends so much, spread over its peers."""
    if n == 1:
        return 0.0
    local = neighbours(c, stride, n)
    alpha, rate, _ = inside_figures(c, "all_to_all", max(local, 2))
    here = alpha + sent * (local - 1) / (n - 1) / rate
    if local == n:
        return here
    leaf = c.leaf_nodes * c.node.gpus
    ways = c.fabric.leaf_oversubscription / c.fabric.routing_efficiency
    slow = ways if stride * n > leaf else 1.0
    out = sent * (n - local) / (n - 1) / (c.fabric.all_to_all_efficiency * nic(c) / slow)
    return max(here, c.fabric.latency_us * 1e-6 * sqrt(n / local) + out)


def send(c: ClusterSpec, sent: float, row: dict[str, int]) -> float:
    """One message between stages, which lie a whole stage of GPUs apart."""
    if c.gpus <= c.domain_gpus_used:
        link = 0.6 * c.scale_up.bytes_per_s
        return c.scale_up.latency_us * 1e-6 + sent / link
    leaf = c.leaf_nodes * c.node.gpus
    ways = c.fabric.leaf_oversubscription / c.fabric.routing_efficiency
    slow = ways if row["tp"] * row["cp"] * row["pp"] > leaf else 1.0
    return c.fabric.latency_us * 1e-6 + sent / (c.fabric.efficiency * nic(c) / slow)

"""Time of one collective on the links that its group crosses.

Inside a scale-up domain: alpha + V/B + gamma*sqrt(V), fitted to nccl-tests. Between domains: the
ring's bandwidth is what the NICs of a domain give the group together, and each of its n-1 steps has
a latency. V is what nccl-tests' bus bandwidth counts: 2(n-1)/n of the buffer for all-reduce,
(n-1)/n for the others.
"""

from __future__ import annotations

import numpy as np

from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.kernels import Array
from planner.layouts.table import IntArray
from planner.specs.cluster import ClusterSpec
from planner.specs.links import Collective, CollectiveFit

UNMEASURED_SHARE = 0.75
"""Bus bandwidth over link rate where a scale-up domain has no measured collective."""


def bus_bytes(op: Collective, buffer_bytes: Array, n: IntArray) -> FloatArray:
    """Return the bytes that each rank sends: 2(n-1)/n (all-reduce) or (n-1)/n of the buffer."""
    factor = 2.0 if op == "all_reduce" else 1.0
    return factor * (n - 1) / np.maximum(n, 1) * buffer_bytes


def _fits(x: Inputs, op: Collective) -> list[CollectiveFit]:
    found = [f for f in x.cluster.scale_up.collectives if f.op == op]
    return sorted(found, key=lambda f: f.gpus)


def _inside_parameters(
    x: Inputs, op: Collective, n: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (alpha_s, bytes_per_s, gamma in s per sqrt(byte)) for groups of `n` in a domain."""
    fits = _fits(x, op)
    if not fits:
        link = x.cluster.scale_up
        share = np.ones(n.shape) * UNMEASURED_SHARE
        if link.topology == "mesh":  # a pair of a mesh has one link of the peers' links
            share = share * np.minimum(n - 1, x.cluster.domain_gpus - 1)
            share = share / max(1, x.cluster.domain_gpus - 1)
        steps = 2 * (n - 1) if op == "all_reduce" else n - 1
        alpha = np.asarray(link.latency_us * 1e-6 + steps * 1e-6, dtype=np.float64)
        return alpha, np.maximum(share, 1e-3) * link.bytes_per_s, np.zeros(n.shape)
    at = np.log2([f.gpus for f in fits])
    size = np.log2(np.maximum(n, 1))
    alpha = np.interp(size, at, [f.alpha_us for f in fits]) * 1e-6
    beyond = np.maximum(n - fits[-1].gpus, 0) * 1e-6
    rate = np.interp(size, at, [f.gb_per_s for f in fits]) * 1e9
    gamma = np.interp(size, at, [f.gamma_us_per_sqrt_kb for f in fits])
    return alpha + beyond, rate, gamma * 1e-6 / np.sqrt(1e3)


def inside_s(x: Inputs, op: Collective, buffer_bytes: Array, n: IntArray) -> FloatArray:
    """Return the seconds of a collective among `n` ranks of one scale-up domain (0 for n = 1)."""
    alpha, rate, gamma = _inside_parameters(x, op, n)
    volume = bus_bytes(op, buffer_bytes, n)
    return np.where(n > 1, alpha + volume / rate + gamma * np.sqrt(volume), 0.0)


def ranks_per_domain(x: Inputs, stride: IntArray, n: IntArray) -> IntArray:
    """Return how many of `n` ranks, `stride` GPUs apart, share a scale-up domain."""
    room = x.cluster.domain_gpus_used // np.maximum(stride, 1)
    local: IntArray = np.clip(room, 1, np.maximum(n, 1))
    return local


def expert_ranks_per_domain(x: Inputs) -> IntArray:
    """Return how many ranks of an expert group share a scale-up domain, those of a map if known."""
    local = ranks_per_domain(x, x.layouts.etp, x.layouts.ep)
    return np.maximum(local - x.flows.apart, 1) if x.flows else local


def uplinks(cluster: ClusterSpec) -> list[tuple[int, float]]:
    """Return, per tier (leaf, pod), the GPUs below its uplinks and how oversubscribed these are.

    Hashed flows that collide take their share off the uplinks too (`routing_efficiency`).
    """
    fabric = cluster.fabric
    tiers = [(cluster.leaf_nodes * cluster.node.gpus, fabric.leaf_oversubscription)]
    if cluster.pod_nodes:
        tiers.append((cluster.pod_nodes * cluster.node.gpus, fabric.pod_oversubscription))
    return [(below, ways / fabric.routing_efficiency) for below, ways in tiers]


def uplink_slowdown(flow_gpus: FloatArray, below_gpus: int, oversubscription: float) -> FloatArray:
    """Return how much slower than its NICs traffic is that `flow_gpus` NICs send up at once.

    The uplinks carry 1/oversubscription of the NICs of the `below_gpus` GPUs below them:
    max(1, oversubscription * flow / below).
    """
    up = oversubscription * np.minimum(flow_gpus, below_gpus) / below_gpus
    slow: FloatArray = np.maximum(1.0, up)
    return slow


def leaf_slowdown(x: Inputs, stride: IntArray, n: IntArray) -> FloatArray:
    """Return how much slower a ring between leafs is than the NICs that feed it.

    Pipelines are placed leaf by leaf, so each of the tp*pp rings of a stage leaves a leaf on as
    many NICs as it has ranks in a node; uplinks carry 1/oversubscription of the NICs below them.
    The same one level up, between pods. See docs/model.md, section Network. With `x.flows` it is
    the rings of a placement that leave, not pp.
    """
    lay = x.layouts
    in_node = np.clip(x.cluster.node.gpus // np.maximum(stride, 1), 1, np.maximum(n, 1))
    slow = np.ones(len(lay))
    for tier, (below, ways) in enumerate(uplinks(x.cluster)):
        rings = x.flows.rings[:, tier] if x.flows else np.where(lay.gpus > below, lay.pp, 0)
        flow = (lay.tp * in_node * rings).astype(np.float64)
        slow = np.maximum(slow, uplink_slowdown(flow, below, ways))
    return slow


def _flow_slowdown(x: Inputs, flow_gpus: FloatArray) -> FloatArray:
    """Return the slow-down of the worse tier; `flow_gpus` is [layout, tier]."""
    slow = np.ones(len(x.layouts))
    for tier, (below, ways) in enumerate(uplinks(x.cluster)):
        slow = np.maximum(slow, uplink_slowdown(flow_gpus[:, tier], below, ways))
    return slow


def nic_bytes_per_s(x: Inputs) -> float:
    """Return one GPU's share of its node's NICs, one direction."""
    return x.cluster.node.nic_bytes_per_s / x.cluster.node.gpus


def group_s(
    x: Inputs,
    op: Collective,
    buffer_bytes: Array,
    stride: IntArray,
    n: IntArray,
    *,
    slowdown: FloatArray | float = 1.0,
) -> FloatArray:
    """Return the seconds of a collective among `n` ranks that stand `stride` GPUs apart.

    All ranks of the group in one domain feed the ring through their own NICs; inside the domain the
    ring is bounded by the scale-up links. `slowdown` is `leaf_slowdown` for groups whose rings
    leave the leaf, as those of data parallelism do.
    """
    n = np.maximum(n, 1)
    local = ranks_per_domain(x, stride, n)
    within = inside_s(x, op, buffer_bytes, n)
    if x.cluster.nodes == 1:
        return within
    fabric = x.cluster.fabric
    _, inner_rate, _ = _inside_parameters(x, op, np.maximum(local, 2))
    outer_rate = fabric.efficiency * nic_bytes_per_s(x) * local / slowdown
    rate = np.where(local > 1, np.minimum(inner_rate, outer_rate), outer_rate)
    latency = fabric.latency_us * 1e-6 + (n - 1) * fabric.step_latency_us * 1e-6
    across = latency + bus_bytes(op, buffer_bytes, n) / np.maximum(rate, 1.0)
    return np.where(n == 1, 0.0, np.where(local >= n, within, across))


def all_to_all_s(
    x: Inputs,
    sent_bytes: Array,
    stride: IntArray,
    n: IntArray,
    *,
    inside_share: FloatArray | float = 1.0,
    outside_share: FloatArray | float = 1.0,
    local: IntArray | None = None,
) -> FloatArray:
    """Return the seconds in which each of `n` ranks sends `sent_bytes`, spread over its peers.

    What stays in the domain goes over its links, the rest through the rank's own share of the NICs
    (NCCL uses one NIC per GPU for all-to-all: nccl-tests issues 130, 267). The shares say what a
    dispatcher that sends one copy per rank or domain leaves of the two. `local` ranks share a
    domain, by default as many as fit; a group that fewer share is no faster for it, though both
    kinds of links work at once.
    """
    n = np.maximum(n, 1)
    most = ranks_per_domain(x, stride, n)
    local = most if local is None else local
    peers = np.maximum(n - 1, 1)
    inside = np.asarray(sent_bytes) * (most - 1) / peers * inside_share
    outside = np.asarray(sent_bytes) * (n - local) / peers * outside_share
    alpha, rate, _ = _inside_parameters(x, "all_to_all", np.maximum(most, 2))
    total = alpha + inside / rate
    if x.cluster.nodes > 1:
        fabric = x.cluster.fabric
        leaf, ways = uplinks(x.cluster)[0]
        slow = np.where(stride * n > leaf, ways, 1.0)
        if x.flows:
            slow = _flow_slowdown(x, x.flows.experts)
        nic = fabric.all_to_all_efficiency * nic_bytes_per_s(x) / slow
        latency = fabric.latency_us * 1e-6 * np.sqrt(np.maximum(n / local, 1.0))
        total = np.where(local < n, np.maximum(total, latency + outside / nic), total)
    return np.where(n > 1, total, 0.0)


def point_to_point_s(x: Inputs, sent_bytes: Array) -> FloatArray:
    """Return the seconds of one activation sent from a stage to the next."""
    lay = x.layouts
    stage = lay.tp * lay.cp * lay.dp
    link = x.cluster.scale_up.bytes_per_s * 0.6
    within = x.cluster.scale_up.latency_us * 1e-6 + np.asarray(sent_bytes) / link
    if x.cluster.nodes == 1:
        return within
    fabric = x.cluster.fabric
    leaf, ways = uplinks(x.cluster)[0]
    pipeline = lay.tp * lay.cp * lay.pp
    slow = np.where(pipeline > leaf, ways, 1.0)
    if x.flows:
        slow = _flow_slowdown(x, x.flows.sends)
    nic = fabric.efficiency * nic_bytes_per_s(x) / slow
    across = fabric.latency_us * 1e-6 + np.asarray(sent_bytes) / nic
    return np.where(stage * lay.pp <= x.cluster.domain_gpus_used, within, across)

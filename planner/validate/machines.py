"""The cluster that a row ran on: a shipped one, with the row's node and network put in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from planner.errors import SpecError
from planner.specs.catalog import load_cluster
from planner.specs.cluster import ClusterSpec
from planner.validate.fields import whole
from planner.validate.vocabulary import CLOUD, HARDWARE, NETWORK, Machine, longest_prefix

cached_cluster = lru_cache(maxsize=64)(load_cluster)


def cluster_of(row: Mapping[str, str], gpus: int, assumed: dict[str, str]) -> ClusterSpec:
    """Return the cluster with as many nodes as `gpus` fill; raises SpecError for unknown words."""
    machine = longest_prefix(row["hardware"], HARDWARE)
    if machine is None:
        raise SpecError(f"hardware: {row['hardware'][:40]!r} is not known")
    link = row.get("inter_link", "")
    machine = _in_cloud(row["hardware"], link, machine)
    return _cluster(machine, link, whole(row, "gpus_per_node", 0), gpus, assumed)


def nodes_of(cluster: ClusterSpec, row: Mapping[str, str], gpus: int) -> ClusterSpec:
    """Return as many nodes of `cluster` as `gpus` fill, for a row that ran on it.

    Raises SpecError for a row whose hardware is another GPU, or that has no room there.
    """
    machine = longest_prefix(row["hardware"], HARDWARE)
    own = cluster.accelerator.name
    if machine is not None:
        named = cached_cluster(machine.cluster).accelerator.name
        if named.split("-", 1)[0] != own.split("-", 1)[0]:
            raise SpecError(f"hardware: {row['hardware'][:40]!r} is not the {own} of this cluster")
    per_node = cluster.node.gpus
    nodes = max(1, -(-gpus // per_node))
    if nodes > 1 and not cluster.node.nics:
        raise SpecError(f"gpus: {gpus} on nodes of {per_node} without a network")
    return cluster.model_copy(update={"nodes": nodes, "hosts": None, "leafs": None})


def _in_cloud(hardware: str, link: str, machine: Machine) -> Machine:
    named = longest_prefix(link, CLOUD) or {}
    found = longest_prefix(hardware, named)
    return Machine(found) if found else machine


def _cluster(
    machine: Machine, link: str, per_node: int, gpus: int, assumed: dict[str, str]
) -> ClusterSpec:
    base = cached_cluster(machine.cluster)
    node = base.node
    changes: dict[str, float] = {}
    if machine.gpus or per_node:
        changes["gpus"] = per_node or machine.gpus
    network = longest_prefix(link, NETWORK)
    if network is None and machine.nics:
        network = (machine.nics, machine.nic_gbit_per_s)
    if network:
        changes["nics"], changes["nic_gbit_per_s"] = network
    nodes = max(1, -(-gpus // int(changes.get("gpus", node.gpus))))
    if nodes > 1 and not network:
        assumed["inter_link"] = f"{machine.cluster}: {node.nics} x {node.nic_gbit_per_s:g} Gb/s"
    changed = base.node.model_copy(update=changes)
    return base.model_copy(update={"node": changed, "nodes": nodes})

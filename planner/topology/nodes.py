"""Node state: `scontrol show nodes` text and `kubectl get nodes -o json`, to hosts and health.

Slurm's states are those of sinfo(1); a node that another job holds is busy, not broken. Kubernetes
says how many GPUs are allocatable, not which: the last indices are taken to be the missing ones,
as the device plugin numbers what is left from 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from planner.errors import SpecError
from planner.specs.hostlist import HOSTNAME
from planner.specs.parse import parse_json, shown

State = Literal["free", "busy", "down"]

_BROKEN = {
    *("DOWN", "DRAIN", "DRAINED", "DRAINING", "ERROR", "FAIL", "FAILING", "FUTURE", "INVAL"),
    *("INVALID_REG", "MAINT", "MAINTENANCE", "NO_RESPOND", "NOT_RESPONDING", "POWERED_DOWN"),
    *("POWERING_DOWN", "POWERING_UP", "POWER_DOWN", "POWER_UP", "REBOOT", "REBOOT_ISSUED"),
    *("REBOOT_REQUESTED", "UNKNOWN", "BLOCKED"),
}
_BUSY = {"ALLOCATED", "MIXED", "COMPLETING", "RESERVED"}
_MARKS = {"*": "NOT_RESPONDING", "~": "POWERED_DOWN", "#": "POWERING_UP", "!": "POWER_DOWN"}
_MARKS |= {"%": "POWERING_DOWN", "$": "MAINT", "@": "REBOOT", "^": "REBOOT_ISSUED"}

_GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe")
_PRODUCTS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name")
_LABELS = (
    # (leaf, pod), nearest the node first; sources: Topograph's node labels (v0.5 and v1), AWS EKS
    # and GKE documentation of topology labels
    ("network.topology.nvidia.com/leaf", "network.topology.nvidia.com/spine"),
    ("fabric.topograph.run/tier-0", "fabric.topograph.run/tier-1"),
    ("network.topology.nvidia.com/block", "network.topology.nvidia.com/spine"),
    ("topology.k8s.aws/network-node-layer-3", "topology.k8s.aws/network-node-layer-2"),
    ("cloud.google.com/gce-topology-subblock", "cloud.google.com/gce-topology-block"),
    ("cloud.provider.com/topology-rack", "cloud.provider.com/topology-block"),
)


@dataclass(frozen=True)
class NodeState:
    """One host: whether it can be used, its working GPUs (None: not said), and its switches."""

    host: str
    state: State = "free"
    gpus: int | None = None
    leaf: str | None = None
    pod: str = ""
    why: str = ""
    kind: str = ""
    """The type of its GPUs as the scheduler calls it: 'h100', 'NVIDIA-A100-SXM4-80GB'."""


def node_states(text: str, origin: str) -> list[NodeState]:
    """Return the nodes that `scontrol show nodes` (also -o) or `kubectl get nodes -o json` lists.

    Raises SpecError, naming `origin`, for any other text.
    """
    if text.lstrip().startswith("{"):
        found = _from_kubernetes(parse_json(text, origin), origin)
    elif "NodeName=" in text:
        found = _from_scontrol(text, origin)
    else:
        raise SpecError(
            f"{origin}: neither `scontrol show nodes` text nor `kubectl get nodes -o json`",
            hint="write one of them into the file as it is printed",
        )
    if not found:
        raise SpecError(f"{origin}: lists no node")
    hosts = [node.host for node in found]
    if len(set(hosts)) < len(hosts):
        twice = Counter(hosts).most_common(1)[0][0]
        raise SpecError(f"{origin}: node {twice!r} is listed twice")
    if odd := next((host for host in hosts if not HOSTNAME.fullmatch(host)), None):
        raise SpecError(f"{origin}: {shown(odd, 80)!r} is not a hostname")
    return found


# --- Slurm --------------------------------------------------------------------------------------


def _from_scontrol(text: str, origin: str) -> list[NodeState]:
    found = []
    for record in re.split(r"(?=\bNodeName=)", text)[1:]:
        host = _field(record, "NodeName")
        written = _field(record, "State")
        if not host or not written:
            raise SpecError(f"{origin}: a node ({shown(host or record, 60)!r}) has no State=")
        words = _state_words(written)
        broken = sorted(words & _BROKEN)
        state: State = "down" if broken else "busy" if words & _BUSY else "free"
        gres = _field(record, "Gres")
        kind = re.search(r"(?:^|,)gpu:([^,:()]*[^,:()0-9][^,:()]*)", gres)
        named = shown(kind[1], 64) if kind else ""
        found.append(NodeState(host, state, _gres_gpus(gres), why=written, kind=named))
    return found


def _field(record: str, name: str) -> str:
    """Return what stands behind `name=` up to the next blank; parentheses hold no blanks."""
    match = re.search(rf"(?:^|\s){name}=(\S*)", record)
    return match[1] if match else ""


def _state_words(written: str) -> set[str]:
    """Return `IDLE*+DRAIN` as IDLE, NOT_RESPONDING and DRAIN."""
    words = set()
    for part in written.upper().split("+"):
        bare = part.rstrip("".join(_MARKS) + "-")
        words |= {bare, *(_MARKS[mark] for mark in part[len(bare) :] if mark in _MARKS)}
    return words - {""}


def _gres_gpus(gres: str) -> int | None:
    """Return the GPUs of `gpu:h100:8(S:0-1),nvme:1`; 0 for a node without, None if not said."""
    if not gres:
        return None
    plain = re.sub(r"\([^)]*\)", "", gres)
    counts = re.findall(r"(?:^|,)gpu(?::[^,:]+)*?(?::([0-9]{1,5}))?(?=,|$)", plain)
    return sum(int(count or 1) for count in counts)


# --- Kubernetes ---------------------------------------------------------------------------------


def _from_kubernetes(data: Any, origin: str) -> list[NodeState]:
    items = data.get("items", [data]) if isinstance(data, Mapping) else None
    if not isinstance(items, list):
        raise SpecError(f"{origin}: field 'items' must be a list of nodes")
    return [_kubernetes_node(item, origin) for item in items]


def _kubernetes_node(item: Any, origin: str) -> NodeState:
    meta, spec, status = (_mapping(item, part) for part in ("metadata", "spec", "status"))
    host = meta.get("name")
    if not isinstance(host, str) or not host:
        raise SpecError(f"{origin}: an item has no metadata.name: not a list of nodes")
    labels = _mapping(meta, "labels")
    leaf, pod = next(
        ((shown(labels[a], 64), shown(labels.get(b, ""), 64)) for a, b in _LABELS if labels.get(a)),
        (None, ""),
    )
    why = _kubernetes_fault(spec, status)
    gpus = _allocatable_gpus(status, origin, host)
    kind = next((shown(labels[name], 64) for name in _PRODUCTS if labels.get(name)), "")
    return NodeState(host, "down" if why else "free", gpus, leaf, pod, why, kind)


def _kubernetes_fault(spec: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Return why pods cannot run there, or an empty text."""
    if spec.get("unschedulable") is True:
        return "unschedulable"
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else []:
        if isinstance(condition, Mapping) and condition.get("type") == "Ready":
            return "" if condition.get("status") == "True" else "not ready"
    return ""


def _allocatable_gpus(status: Mapping[str, Any], origin: str, host: str) -> int | None:
    """Return the GPUs that pods can get; None where the node does not list its resources."""
    allocatable = _mapping(status, "allocatable")
    if not allocatable:
        return None
    for name in _GPU_RESOURCES:
        if name in allocatable:
            count = str(allocatable[name])
            if not re.fullmatch("[0-9]{1,5}", count):
                raise SpecError(f"{origin}: node {shown(host, 60)}: {name} is {shown(count, 40)}")
            return int(count)
    return 0


def _mapping(item: Any, name: str) -> Mapping[str, Any]:
    part = item.get(name) if isinstance(item, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def gpu_nodes(nodes: Sequence[NodeState]) -> list[NodeState]:
    """Return the nodes that have GPUs, or do not say how many."""
    return [node for node in nodes if node.gpus != 0]

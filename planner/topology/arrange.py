"""Arrange: one cluster out of a spec, a list of hosts, a topology and the state of the nodes.

The spec says what a node and its links are; the other three say which nodes there are, what they
hang from and which of them can be used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from planner.errors import SpecError, did_you_mean
from planner.specs.cluster import ClusterSpec, Leaf
from planner.specs.links import Fabric, FabricKind
from planner.specs.mixing import joined
from planner.specs.read import validate
from planner.topology.nodes import NodeState, gpu_nodes
from planner.units import many

UNKNOWN_LEAF = "unknown-leaf"
NAMED = 3
_NOT_USED = "of the topology not among the nodes to use"
_GPU = re.compile(r"[a-z]+[0-9]+[a-z]?")


@dataclass(frozen=True)
class Arranged:
    """The cluster; what to avoid as `host` or `host:gpu`, of which some is only busy; remarks."""

    cluster: ClusterSpec
    avoid: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    """Of `avoid`, the hosts that `notes` says are down."""


def arrange(
    cluster: ClusterSpec,
    *,
    hosts: Sequence[str] | None = None,
    leafs: Sequence[Leaf] | None = None,
    states: Sequence[NodeState] | None = None,
    origin: str = "",
) -> Arranged:
    """Return `cluster` made of real hosts under their real leafs.

    The hosts are those of `hosts` (an allocation, say); else the GPU nodes of `states`; else all
    of `leafs`. A host that no leaf lists gets a place under one leaf for all such hosts. Nodes that
    are down are avoided, and busy ones unless `hosts` names them: then the job that keeps them busy
    is taken to be the one that asks. `origin` begins the message of a SpecError.
    """
    if cluster.mix:
        return _arranged_mix(cluster, hosts, leafs, states, origin)
    notes: list[str] = []
    others = _other_types(cluster, states or (), notes)
    known = [*leafs] if leafs else _labelled(states or ())
    inside = [h for h in _chosen(cluster, hosts, known, states) if h not in others]
    if not inside:
        raise SpecError(f"{origin}: no node to use is left")
    if known:
        arranged = _under_leafs(cluster, inside, known, notes, origin)
    else:
        arranged = _as_listed(cluster, inside, origin)
    down, busy, lost = _avoided(
        arranged, states or (), inside, allocated=hosts is not None, notes=notes
    )
    return Arranged(arranged, (*down, *busy, *lost), busy, tuple(notes), down)


def _arranged_mix(
    cluster: ClusterSpec,
    hosts: Sequence[str] | None,
    leafs: Sequence[Leaf] | None,
    states: Sequence[NodeState] | None,
    origin: str,
) -> Arranged:
    """Return a mix of the real hosts of every type: those the mix lists, or by their GPUs' name."""
    types = _types_of(cluster, states or ())
    wanted = list(hosts) if hosts is not None else list(types)
    if strange := [host for host in wanted if host not in types]:
        kinds = " or ".join(_family(part) for part in cluster.mix)
        raise SpecError(
            f"{origin}: nothing says which node type {_named(strange)} is",
            hint=f"--node-state, with GPUs named {kinds}; or list the hosts of every type in files "
            "that the mix names",
        )
    parts, said = [], []
    for at, part in enumerate(cluster.mix):
        own = [host for host in wanted if types[host] == at]
        if not own:
            said.append(f"no node of type {part.name} among the nodes to use")
            continue
        # of a mix the part has listed its own leafs; what schedulers say replaces them
        known = leafs or (None if states is not None or hosts is None else part.leafs)
        some = [node for node in states or () if types.get(node.host) == at]
        found = arrange(
            part.model_copy(update={"mix": ()}),
            hosts=own if hosts is not None or states is None else None,
            leafs=known,
            states=some if states is not None else None,
            origin=origin,
        )
        parts.append(found)
    if not parts:
        raise SpecError(f"{origin}: no node to use is left")
    clusters = [one.cluster for one in parts]
    whole = joined(clusters, cluster.name, origin) if len(parts) > 1 else clusters[0]
    return Arranged(
        whole,
        tuple(word for one in parts for word in one.avoid),
        tuple(host for one in parts for host in one.busy),
        (*said, *_absent(leafs or (), wanted), *_said_of_parts(parts)),
        tuple(host for one in parts for host in one.down),
    )


def _absent(leafs: Sequence[Leaf], wanted: Iterable[str]) -> list[str]:
    """Return how many hosts of the topology are not used."""
    absent = {host for leaf in leafs for host in leaf.hosts} - set(wanted)
    return [f"{many(len(absent), 'host')} {_NOT_USED}"] if absent else []


def _said_of_parts(parts: Sequence[Arranged]) -> list[str]:
    """Return what was said of each type; to one type, hosts of the others seem not to be used."""
    notes = dict.fromkeys(note for one in parts for note in one.notes)
    return [note for note in notes if not note.endswith(_NOT_USED)]


def _types_of(cluster: ClusterSpec, states: Sequence[NodeState]) -> dict[str, int]:
    """Return which type of a mix each host is, by the name of its GPUs or by its own name."""
    found: dict[str, int] = {}
    for at, part in enumerate(cluster.mix):
        family = _family(part)
        named = {part.host(node) for node in range(part.nodes)}
        own = [s.host for s in states if s.gpus != 0 and family in _GPU.findall(s.kind.lower())]
        found |= dict.fromkeys(own, at)
        found |= dict.fromkeys((s.host for s in states if s.host in named), at)
        if not states:
            found |= dict.fromkeys(named, at)
    return found


def _family(cluster: ClusterSpec) -> str:
    """Return the word that schedulers know the GPUs by: 'h100'."""
    found = _GPU.search(cluster.accelerator.name.lower())
    return found[0] if found else ""


def _other_types(
    cluster: ClusterSpec, states: Sequence[NodeState], notes: list[str]
) -> frozenset[str]:
    """Return the hosts whose GPUs are not the cluster's, where there are several types.

    The cluster's are those whose type names its accelerator; else those there are most of.
    """
    kinds = Counter(node.kind for node in states if node.kind and node.gpus != 0)
    if len(kinds) < 2:
        return frozenset()
    family = _family(cluster)
    own = [kind for kind in kinds if family and family in kind.lower()]
    kept = set(own or [kinds.most_common(1)[0][0]])
    others = [node for node in states if node.kind and node.kind not in kept and node.gpus != 0]
    if others:
        types, own_types = sorted({node.kind for node in others}), ", ".join(sorted(kept))
        named = _named([node.host for node in others])
        notes.append(
            f"{many(len(others), 'node')} with other GPUs ({', '.join(types)}: {named}) left out; "
            f"those with {own_types} are used"
        )
    return frozenset(node.host for node in others)


def _labelled(states: Iterable[NodeState]) -> list[Leaf]:
    """Return the leafs that nodes name themselves (Kubernetes labels), those of a pod together."""
    by_leaf: dict[tuple[str, str], list[str]] = {}
    for node in states:
        if node.leaf is not None and node.gpus != 0:
            by_leaf.setdefault((node.pod, node.leaf), []).append(node.host)
    names = [leaf for _, leaf in by_leaf]
    return [
        Leaf(name=leaf if names.count(leaf) == 1 else f"{pod}/{leaf}", pod=pod, hosts=tuple(hosts))
        for (pod, leaf), hosts in sorted(by_leaf.items())
    ]


def _chosen(
    cluster: ClusterSpec,
    hosts: Sequence[str] | None,
    leafs: Sequence[Leaf],
    states: Sequence[NodeState] | None,
) -> list[str]:
    if hosts is not None:
        return list(hosts)
    if states is not None:
        return [node.host for node in gpu_nodes(states)]
    if leafs:
        return [host for leaf in leafs for host in leaf.hosts]
    return [cluster.host(n) for n in range(cluster.nodes)]


def _as_listed(cluster: ClusterSpec, hosts: Sequence[str], origin: str) -> ClusterSpec:
    data = cluster.model_dump() | {"hosts": tuple(hosts), "nodes": len(hosts), "leafs": None}
    return validate(ClusterSpec, data, origin)


def _under_leafs(
    cluster: ClusterSpec,
    hosts: Sequence[str],
    leafs: Sequence[Leaf],
    notes: list[str],
    origin: str,
) -> ClusterSpec:
    """Return `cluster` with its hosts under `leafs`; the fabric takes their real sizes."""
    wanted = set(hosts)
    placed = [
        Leaf(name=leaf.name, pod=leaf.pod, hosts=kept)
        for leaf in leafs
        if (kept := tuple(host for host in leaf.hosts if host in wanted))
    ]
    listed = {host for leaf in leafs for host in leaf.hosts}
    if len(strays := tuple(host for host in hosts if host not in listed)) == len(hosts):
        near = did_you_mean(hosts[0], sorted(listed)[:10_000])
        raise SpecError(
            f"{origin}: none of the {len(hosts):,} hosts ({_named(hosts)}) is in the topology",
            hint=near or f"the topology lists {_named(sorted(listed))}",
        )
    if strays:
        alone = Leaf(name=UNKNOWN_LEAF, pod=UNKNOWN_LEAF, hosts=strays)
        placed.append(alone)
        notes.append(
            f"{many(len(strays), 'host')} ({_named(strays)}) not in the topology: taken as one "
            "leaf of their own"
        )
    notes += _absent(leafs, wanted)
    data = cluster.model_dump() | {
        "hosts": None,
        "leafs": tuple(leaf.model_dump() for leaf in placed),
        "nodes": len(hosts),
        "fabric": _fabric(cluster.fabric, leafs).model_dump(),
    }
    return validate(ClusterSpec, data, origin)


def _fabric(fabric: Fabric, leafs: Sequence[Leaf]) -> Fabric:
    """Return `fabric` with the sizes of the largest leaf and pod, used or not: uplinks are real."""
    pods = [len(list(group)) for _, group in groupby(leaf.pod for leaf in leafs)]
    return fabric.model_copy(
        update={
            "kind": FabricKind.TOR if fabric.kind is FabricKind.NONE else fabric.kind,
            "nodes_per_leaf": max(len(leaf.hosts) for leaf in leafs),
            "leafs_per_pod": max(pods) if len(pods) > 1 else None,
        }
    )


def _avoided(
    cluster: ClusterSpec,
    states: Sequence[NodeState],
    hosts: Sequence[str],
    *,
    allocated: bool,
    notes: list[str],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return what not to use: hosts that are down, those only busy, each `host:gpu` missing."""
    by_host = {node.host: node for node in states}
    used = [by_host[host] for host in hosts if host in by_host]
    down = [node.host for node in used if node.state == "down"]
    busy = [] if allocated else [node.host for node in used if node.state == "busy"]
    gone = {*down, *busy}
    fewer = {n.host: n.gpus for n in used if n.gpus is not None and n.host not in gone}
    gpus = cluster.node.gpus
    lost = [f"{h}:{gpu}" for h, have in fewer.items() for gpu in range(have, gpus)]
    _say_states(by_host, down, busy, lost, notes)
    if states and (unsaid := [host for host in hosts if host not in by_host]):
        notes.append(f"{many(len(unsaid), 'host')} ({_named(unsaid)}) without a state: taken as up")
    if more := [host for host, have in fewer.items() if have > gpus]:
        notes.append(
            f"{many(len(more), 'host')} ({_named(more)}) with more than {gpus} GPUs: only "
            f"{gpus} of each are used"
        )
    return tuple(down), tuple(busy), tuple(lost)


def _say_states(
    by_host: Mapping[str, NodeState],
    down: Sequence[str],
    busy: Sequence[str],
    lost: Sequence[str],
    notes: list[str],
) -> None:
    if down:
        whys = [f"{host}: {why}" if (why := by_host[host].why) else host for host in down]
        notes.append(f"{many(len(down), 'node')} down or drained ({_named(whys)}) avoided")
    if busy:
        notes.append(f"{many(len(busy), 'node')} busy with other jobs ({_named(busy)}) avoided")
    if lost:
        notes.append(f"{many(len(lost), 'GPU')} ({_named(lost)}) missing on nodes that are up")


def _named(words: Sequence[str]) -> str:
    more = f" and {len(words) - NAMED:,} more" if len(words) > NAMED else ""
    return ", ".join(word[:80] for word in words[:NAMED]) + more

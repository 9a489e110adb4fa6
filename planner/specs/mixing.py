"""Mixing: nodes of several types as one cluster, every figure that of the slowest.

A synchronous step waits for its slowest rank: groups of any kind finish with their slowest member,
pipelines run at the pace of their slowest stage, and replicas meet at the gradients. All ranks of
a layout have equal shares, so a job over several types takes what it would take if every GPU were
as slow, as small and as badly linked as the worst of them. An upper bound: what a faster type
gains on its own part hides behind the slower one. Shares that fit the types (more layers, or more
sequences, where GPUs are faster) are not searched.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from planner.errors import SpecError
from planner.specs.accelerator import Accelerator, AttentionFit, GemmFit
from planner.specs.cluster import ClusterSpec, Leaf, Node
from planner.specs.links import CollectiveFit, Fabric, FabricKind, ScaleUp
from planner.specs.read import validate
from planner.units import GB, TERA

MOST_TYPES = 8


def joined(parts: Sequence[ClusterSpec], name: str, origin: str) -> ClusterSpec:
    """Return one cluster of the nodes of all `parts`, its figures the worst of theirs.

    Their leafs stay apart, pods of one type each; hosts named by pattern get the type's name in
    front where they would collide. `origin` begins the message of the SpecError for parts that
    cannot run one job.
    """
    _refuse_strangers(parts, origin)
    own = _named(parts)
    leafs = [leaf for part in own for leaf in part.leafs or ()]
    hosts = Counter(host for leaf in leafs for host in leaf.hosts)
    if twice := next((host for host, count in hosts.items() if count > 1), None):
        raise SpecError(f"{origin}: host {twice!r} is in two of the types")
    gpus = min(part.node.gpus for part in own)
    data = {
        "name": name,
        "source": "; ".join(dict.fromkeys(part.source for part in own if part.source)),
        "accelerator": slowest_accelerator(own, gpus).model_dump(),
        "node": _node(own, gpus).model_dump(),
        "scale_up": _scale_up(own, gpus).model_dump(),
        "fabric": _fabric(own).model_dump(),
        "nodes": sum(part.nodes for part in own),
        "leafs": tuple(leaf.model_dump() for leaf in leafs),
        "stacks": own[0].stacks if all(part.stacks == own[0].stacks for part in own) else {},
        "mix": tuple(part.model_dump() for part in own),
    }
    return validate(ClusterSpec, data, origin)


def _refuse_strangers(parts: Sequence[ClusterSpec], origin: str) -> None:
    """Raise SpecError for parts of which no one job can be made."""
    if len(parts) > MOST_TYPES:
        raise SpecError(f"{origin}: {len(parts)} node types, at most {MOST_TYPES} can be mixed")
    if alone := next(
        (p for p in parts if not p.node.nics or p.fabric.kind is FabricKind.NONE), None
    ):
        raise SpecError(f"{origin}: {alone.name} has no network, so no other type can be reached")
    vendors = sorted({part.accelerator.vendor for part in parts})
    if len(vendors) > 1:
        raise SpecError(
            f"{origin}: GPUs of {' and '.join(vendors)} cannot run one job",
            hint="their collective libraries do not speak to each other: plan them one by one",
        )


def _named(parts: Sequence[ClusterSpec]) -> list[ClusterSpec]:
    """Return the parts with distinct names, and with their hosts listed under named leafs."""
    seen: Counter[str] = Counter()
    names = []
    for part in parts:
        seen[part.name] += 1
        names.append(part.name if seen[part.name] == 1 else f"{part.name}-{seen[part.name]}")
    made = Counter(p.host(n) for p in parts for n in range(p.nodes))
    clash = any(count > 1 for count in made.values())
    out = []
    for part, name in zip(parts, names, strict=True):
        front = _host_word(name) if clash and not part.names_hosts else ""
        listed = {"name": name, "hosts": None, "leafs": tuple(_leafs(part, name, front))}
        out.append(part.model_copy(update=listed))
        # what a copied record had worked out of its nodes is of the old ones
        for kept in ("positions", "_listed_hosts"):
            out[-1].__dict__.pop(kept, None)
    return out


def _host_word(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") + "-"


def _leafs(part: ClusterSpec, name: str, front: str) -> list[Leaf]:
    """Return the leafs of a part with all its hosts, those of its pods together."""
    hosts: dict[tuple[str, str], list[str]] = {}
    for node in range(part.nodes):
        pod, leaf = part.pod_of(node), part.leaf_name(part.leaf_of(node))
        pod_name = f"{name}/pod{pod}" if part.pod_nodes else name
        hosts.setdefault((pod_name, f"{name}/{leaf}"), []).append(f"{front}{part.host(node)}")
    return [
        Leaf.model_construct(name=leaf, pod=pod, hosts=tuple(names))
        for (pod, leaf), names in hosts.items()
    ]


def slowest_accelerator(parts: Sequence[ClusterSpec], node_gpus: int) -> Accelerator:
    """Return a GPU that is as small and as slow as the worst of the parts' in every respect."""
    gpus = [part.accelerator for part in parts]
    peaks = {
        name: min(gpu.peak_tflops[name] for gpu in gpus)
        for name in gpus[0].peak_tflops
        if all(name in gpu.peak_tflops for gpu in gpus)
    }
    bf16 = min(gpu.peak_flops_per_s("bf16") for gpu in gpus)
    peaks |= {"bf16": bf16 / TERA}  # one without it runs 16-bit work in fp16
    fp8 = [(gpu.gemm_fp8, gpu.peak_flops_per_s("fp8")) for gpu in gpus]
    all_fp8 = [(fit, peak) for fit, peak in fp8 if fit is not None]
    used = {part.name: part.nodes * node_gpus for part in parts}
    return Accelerator.model_validate(
        {
            "name": " + ".join(dict.fromkeys(gpu.name for gpu in gpus))[:200],
            "vendor": gpus[0].vendor,
            "memory_gib": min(gpu.memory_gib for gpu in gpus),
            "usable_memory_gib": min(gpu.usable_memory_gib for gpu in gpus),
            "hbm_gb_per_s": min(gpu.hbm_gb_per_s for gpu in gpus),
            "peak_tflops": peaks,
            "gemm": _gemm([(g.gemm, g.peak_flops_per_s("bf16")) for g in gpus]),
            "gemm_fp8": _gemm(all_fp8) if len(all_fp8) == len(gpus) else None,
            "fp8_any_layout": all(gpu.fp8_any_layout for gpu in gpus),
            "attention": AttentionFit(
                te=min(g.attention.te * g.peak_flops_per_s("bf16") for g in gpus) / bf16,
                fa2=min(g.attention.fa2 * g.peak_flops_per_s("bf16") for g in gpus) / bf16,
            ),
            "price_usd_per_hour": _paid(parts, used, lambda gpu: gpu.price_usd_per_hour),
            "tdp_w": _paid(parts, used, lambda gpu: gpu.tdp_w),
            "sources": {"mix": "the worst of " + ", ".join(part.name for part in parts)},
        }
    )


def _gemm(fits: Sequence[tuple[GemmFit, float]]) -> GemmFit:
    """Return a fit that no one of `fits`, each with its peak, is slower than at any shape."""
    if all(pair == fits[0] for pair in fits):
        return fits[0][0]
    peak = min(peak for _, peak in fits)
    rate, derate = min((f.emax * f.derate * own, f.derate) for f, own in fits)
    worst = {name: max(getattr(f, name) for f, _ in fits) for name in ("t0_us", "m0", "n0", "k0")}
    return GemmFit(emax=min(1.0, rate / (peak * derate)), derate=derate, **worst)


def _paid(
    parts: Sequence[ClusterSpec], used: dict[str, int], of: Callable[[Accelerator], float | None]
) -> float | None:
    """Return an amount of all GPUs, also those left idle, for each GPU that is used."""
    amounts = [of(part.accelerator) for part in parts]
    if any(amount is None for amount in amounts):
        return None
    total = sum((amount or 0.0) * p.gpus for amount, p in zip(amounts, parts, strict=True))
    return total / sum(used.values())


def _node(parts: Sequence[ClusterSpec], gpus: int) -> Node:
    """Return a node of as many GPUs as every type has, each with the least of the links."""
    nodes = [part.node for part in parts]
    nic = min(node.nic_bytes_per_s / node.gpus for node in nodes)  # of a GPU
    fewest = min(nodes, key=lambda node: node.nics / node.gpus)
    nics = max(1, fewest.nics * gpus // fewest.gpus)
    return Node(
        gpus=gpus,
        nics=nics,
        nic_gbit_per_s=nic * gpus * 8 / 1e9 / nics,
        host="grace" if all(node.host == "grace" for node in nodes) else "x86",
        memory_gib=_least([node.memory_gib for node in nodes]),
        memory_gb_per_s=min(part.host_memory_bytes_per_s for part in parts) / GB,
        host_link_gb_per_s=min(part.host_link_bytes_per_s for part in parts) / GB,
        nvme_gb_per_s=_least([node.nvme_gb_per_s for node in nodes]),
    )


def _least(amounts: Sequence[float | None]) -> float | None:
    """Return the least amount; None where one of them is not known."""
    known = [amount for amount in amounts if amount is not None]
    return min(known) if len(known) == len(amounts) else None


def _scale_up(parts: Sequence[ClusterSpec], gpus: int) -> ScaleUp:
    """Return links inside a node as slow as the slowest; collectives where all are measured."""
    slowest = min((part.scale_up for part in parts), key=lambda links: links.gb_per_s)
    domain = min(part.domain_nodes for part in parts)
    return ScaleUp(
        kind=" + ".join(dict.fromkeys(part.scale_up.kind for part in parts)),
        topology=slowest.topology,
        gb_per_s=slowest.gb_per_s,
        domain_gpus=domain * gpus if domain > 1 else None,
        latency_us=max(part.scale_up.latency_us for part in parts),
        collectives=_collectives(parts),
    )


def _collectives(parts: Sequence[ClusterSpec]) -> tuple[CollectiveFit, ...]:
    by_part = [{(f.op, f.gpus): f for f in part.scale_up.collectives} for part in parts]
    out = []
    for key, first in by_part[0].items():
        if all(key in fits for fits in by_part):
            same = [fits[key] for fits in by_part]
            worst = {
                "alpha_us": max(f.alpha_us for f in same),
                "gb_per_s": min(f.gb_per_s for f in same),
                "gamma_us_per_sqrt_kb": max(f.gamma_us_per_sqrt_kb for f in same),
            }
            out.append(first.model_copy(update=worst))
    return tuple(out)


def _fabric(parts: Sequence[ClusterSpec]) -> Fabric:
    """Return one network with the narrowest uplinks and the smallest switches of all."""
    fabrics = [part.fabric for part in parts]
    kinds = {fabric.kind for fabric in fabrics}
    leaf = min(part.leaf_nodes for part in parts)
    worst: dict[str, Any] = {
        **{name: max(getattr(f, name) for f in fabrics) for name in _HIGH},
        **{name: min(getattr(f, name) for f in fabrics) for name in _LOW},
    }
    return Fabric(
        kind=kinds.pop() if len(kinds) == 1 else FabricKind.TOR,
        name=" + ".join(dict.fromkeys(f.name for f in fabrics if f.name)),
        nodes_per_leaf=leaf,
        leafs_per_pod=max(1, min(part.pod_nodes or part.leaf_nodes for part in parts) // leaf),
        **worst,
    )


_HIGH = ("leaf_oversubscription", "pod_oversubscription", "latency_us", "step_latency_us")
_LOW = ("routing_efficiency", "efficiency", "all_to_all_efficiency")


def type_of_node(cluster: ClusterSpec) -> list[int]:
    """Return which of the types of a mix each node is, by node index."""
    return [at for at, part in enumerate(cluster.mix) for _ in range(part.nodes)]

"""Relax: why a job does not fit, in arithmetic, and the least that would have to give way.

Few things can give way (other jobs' nodes, broken nodes, replicas, tensor parallelism), so all of
them are tried alone, then in pairs: the smallest set is found by trying, without a solver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from planner.errors import InfeasibleError
from planner.place.cells import ranks_per_node
from planner.place.hosts import FreeNodes, free_nodes
from planner.plan import Layout
from planner.specs.cluster import ClusterSpec

Legal = Callable[[Layout], bool]


def anything(_: Layout) -> bool:
    """Return that a layout will do: nothing is known of the model, the batch or the stack."""
    return True


@dataclass(frozen=True)
class Wanted:
    """What is to be placed where, and what would be legal instead."""

    cluster: ClusterSpec
    layout: Layout
    free: FreeNodes
    legal: Legal


HELPED = {"unhealthy": "repaired", "slow": "used all the same", "busy": "freed"}
"""What makes up for missing nodes, by why they are left out."""


def too_few_nodes(job: Wanted, ranks: int, others: Mapping[str, str]) -> InfeasibleError:
    """Return the error for a job that needs more nodes with `ranks` healthy GPUs than there are."""
    cluster, layout, free = job.cluster, job.layout, job.free
    have, needed = len(free.with_gpus(ranks)), layout.gpus // ranks
    short = needed - have
    message = (
        f"needs {many(needed, 'node')} with {ranks} healthy GPUs; "
        f"{have:,} of {cluster.nodes:,} have them; short by {short:,}"
    )
    if ranks < min(cluster.node.gpus, layout.gpus):
        message += f" ({uneven(cluster, layout, ranks)})"
    ways = [*_lent_nodes(free, ranks, short, others), *_smaller(job, ranks)]
    ways.append(many(short, "more node", "more nodes"))
    return InfeasibleError(message, hint=_any_of(ways))


def kinds_of(
    cluster: ClusterSpec, unhealthy: Sequence[str], busy: Sequence[str], slow: Sequence[str]
) -> dict[str, str]:
    """Return which hosts are avoided though nothing is broken, and why.

    `unhealthy` is all that is avoided; what is named there once more than by the others is broken,
    whatever else it is.
    """
    whole = dict.fromkeys(busy, "busy")
    if not slow:
        return whole
    broken = Counter(unhealthy) - Counter(slow) - Counter(busy)
    named = dict.fromkeys(_touched(cluster, slow), "slow") | whole
    for host in _touched(cluster, list(broken)) if broken else ():
        named.pop(host, None)
    return named


def _touched(cluster: ClusterSpec, words: Sequence[str]) -> list[str]:
    """Return the hosts of which `words` names a GPU or all."""
    found = free_nodes(cluster, words)
    return [found.hosts[n] for n in np.flatnonzero(~found.healthy.all(axis=1)).tolist()]


def left_out(
    free: FreeNodes,
    ranks: int,
    others: Mapping[str, str],
    told: frozenset[str] = frozenset(),
) -> dict[str, int]:
    """Return how many nodes have no `ranks` GPUs to use, by why: unhealthy, slow, busy.

    Hosts `told` are not counted.
    """
    short = np.flatnonzero(free.healthy.sum(axis=1) < ranks).tolist()
    hosts = [host for node in short if (host := free.hosts[node]) not in told]
    counts = Counter(others.get(host, "unhealthy") for host in hosts)
    return {kind: counts[kind] for kind in HELPED if counts[kind]}


def _lent_nodes(free: FreeNodes, ranks: int, short: int, others: Mapping[str, str]) -> list[str]:
    """Return the smallest sets of left-out nodes that would make up for what is missing."""
    counts = left_out(free, ranks, others)
    for size in range(1, len(counts) + 1):
        sets = [s for s in combinations(sorted(counts), size) if sum(counts[k] for k in s) >= short]
        if sets:
            return [_lent(kinds, counts, short) for kinds in sets]
    return []


def _lent(kinds: Sequence[str], counts: Mapping[str, int], short: int) -> str:
    """Return '3 of the 5 unhealthy nodes repaired'; of two kinds the first in full."""
    words, left = [], short
    for kind in kinds:
        used = min(left, counts[kind])
        left -= used
        nodes = many(counts[kind], f"{kind} node")
        if used < counts[kind]:
            some = f"{used:,} of the {nodes}"
        else:
            some = {1: f"the {kind} node", 2: f"both {kind} nodes"}.get(used, f"all {nodes}")
        words.append(f"{some} {HELPED[kind]}")
    return " and ".join(words)


def _smaller(job: Wanted, ranks: int) -> list[str]:
    """Return the nearest smaller dp and tp that fit and are legal; pp where neither is."""
    layout, ways = job.layout, list[str]()
    replica = layout.tp * layout.cp * layout.pp
    most = min(len(job.free.with_gpus(ranks)) * ranks // replica, layout.dp - 1)
    if dp := next((dp for dp in range(most, 0, -1) if _nodes_of(job, dp=dp)), 0):
        few = f" ({most} would fit, but is not legal)" if dp < most else ""
        ways.append(f"lower dp to {dp}{few}")
    for name in ("tp", "pp"):
        now = getattr(layout, name)
        fewer = ((n, _nodes_of(job, **{name: n})) for n in range(now // 2, 0, -1) if now % n == 0)
        found = next(((n, nodes) for n, nodes in fewer if nodes), None)
        if found and not (name == "pp" and ways):
            ways.append(f"{name}={found[0]} ({many(found[1], 'node')})")
    return ways


def _nodes_of(job: Wanted, **degrees: int) -> int:
    """Return the nodes that the layout needs with other degrees; 0 where that will not do."""
    other = job.layout.model_copy(update=degrees)
    own: dict[str, object] = {"etp": min(other.etp, other.tp), "sp": other.sp and other.tp > 1}
    if other.pp == 1:
        own |= {"vpp": 1, "schedule": "none"}
    other = other.model_copy(update=own)
    if other.tp * other.cp * other.dp % (other.ep * other.etp) or not job.legal(other):
        return 0
    ranks = ranks_per_node(job.cluster, other)[0]
    needed = other.gpus // ranks
    return needed if needed <= len(job.free.with_gpus(ranks)) else 0


def too_few_domains(job: Wanted, needed: int, size: int, room: int) -> InfeasibleError:
    """Return the error for tensor groups of `size` nodes that do not fit into scale-up domains."""
    cluster, layout, ways = job.cluster, job.layout, list[str]()
    most = room * layout.dp // needed
    allowed = (dp for dp in range(most, 0, -1) if job.legal(layout.model_copy(update={"dp": dp})))
    if dp := next(allowed, 0):
        ways.append(f"lower dp to {dp}")
    if layout.tp > cluster.node.gpus:
        ways.append(f"tp={cluster.node.gpus}, whose groups stay inside a node")
    return InfeasibleError(
        f"needs {needed} groups of {size} nodes, each inside one scale-up domain of "
        f"{cluster.domain_nodes} nodes; there is room for {room}; short by {needed - room}",
        hint=_any_of(ways),
    )


def uneven(cluster: ClusterSpec, layout: Layout, ranks: int) -> str:
    """Return why nodes run fewer ranks than they have GPUs."""
    return (
        f"{layout.gpus:,} ranks in tensor-parallel groups of {layout.tp} do not fill nodes of "
        f"{cluster.node.gpus} GPUs evenly: {ranks} ranks a node, the other GPUs idle"
    )


def many(count: int, what: str, plural: str = "") -> str:
    """Return '1 node', '2 nodes'."""
    return f"{count:,} {what if count == 1 else plural or f'{what}s'}"


def _any_of(ways: Sequence[str]) -> str:
    return ways[0] if len(ways) == 1 else f"any one of these would do: {'; '.join(ways)}"

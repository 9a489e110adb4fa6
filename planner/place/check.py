"""Check: whether a map of ranks is what it says, without anything that made it.

It reads the records one field at a time and rebuilds groups from their coordinates, so a mistake
in the models, in their expansion or in the reshapes of `groups` shows here. `place` runs it on
every map that it returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.place.hosts import free_nodes
from planner.plan import Layout, Placement
from planner.specs.cluster import ClusterSpec

IntArray = NDArray[np.int64]
ROUNDING = 1e-8  # seconds are floats: a bound this close (relative) meets the objective
NAMED = 3  # so many examples are named for each kind of fault


class PlacementError(AssertionError):
    """A map that breaks a promise: a defect of the planner, or a file that was changed."""


def check_placement(
    cluster: ClusterSpec, layout: Layout, placement: Placement, *, unhealthy: Sequence[str] = ()
) -> None:
    """Raise PlacementError, listing what is wrong, unless `placement` is sound.

    Sound: each rank once, with the coordinates of the rank order; on a GPU of its own, healthy and
    under the leaf it says; nodes filled by the same number of consecutive ranks, on ascending GPUs;
    tensor-parallel groups inside a node or scale-up domain; splits and tiers as claimed; no proof
    claimed without a bound that meets the objective.
    """
    ranks = np.array([r.rank for r in placement.ranks], dtype=np.int64)
    if not np.array_equal(ranks, np.arange(layout.gpus)):
        raise PlacementError(f"ranks are not 0 to {layout.gpus - 1}, each once and in order")
    free = free_nodes(cluster, unhealthy)
    index = {host: node for node, host in enumerate(free.hosts)}
    if unknown := sorted({r.host for r in placement.ranks} - index.keys()):
        raise PlacementError(f"hosts the cluster does not have: {', '.join(unknown[:NAMED])}")
    node = np.array([index[r.host] for r in placement.ranks], dtype=np.int64)
    at = {k: np.array([getattr(r, k) for r in placement.ranks]) for k in ("tp", "cp", "dp", "pp")}
    at["ep"] = np.array([r.ep for r in placement.ranks])
    spans = _spans(cluster, node)
    faults = [
        *_gpu_faults(placement, node, free.healthy),
        *_leaf_faults(cluster, placement, spans["leaf"]),
        *_fill_faults(node),
        *_coordinate_faults(layout, at),
    ]
    if not faults:
        faults = [
            *_tensor_faults(cluster, layout, at, spans),
            *_claim_faults(cluster, layout, placement, at, spans),
        ]
    if faults:
        raise PlacementError("; ".join(faults))


def _spans(cluster: ClusterSpec, node: IntArray) -> dict[str, IntArray]:
    """Return the node, domain, leaf and pod of every rank, asked of the cluster node by node."""
    used, rank_to_used = np.unique(node, return_inverse=True)
    asked = {
        "domain": [cluster.domain_of(n) for n in used.tolist()],
        "leaf": [cluster.leaf_of(n) for n in used.tolist()],
        "pod": [cluster.pod_of(n) for n in used.tolist()],
    }
    return {"node": node} | {k: np.array(v, dtype=np.int64)[rank_to_used] for k, v in asked.items()}


def _gpu_faults(placement: Placement, node: IntArray, healthy: NDArray[np.bool_]) -> list[str]:
    gpu = np.array([r.gpu for r in placement.ranks], dtype=np.int64)
    gpus = healthy.shape[1]
    if (outside := np.flatnonzero((gpu < 0) | (gpu >= gpus))).size:
        return [f"GPU index outside 0 to {gpus - 1}: {_name(placement, outside)}"]
    faults = []
    if (broken := np.flatnonzero(~healthy[node, gpu])).size:
        faults.append(f"unhealthy GPU used: {_name(placement, broken)}")
    _, first = np.unique(node * gpus + gpu, return_index=True)
    if (twice := np.setdiff1d(np.arange(len(gpu)), first)).size:
        faults.append(f"GPU used twice: {_name(placement, twice)}")
    # launchers give a node's ranks its visible GPUs in ascending order
    if (falling := np.flatnonzero((np.diff(node) == 0) & (np.diff(gpu) < 0))).size:
        faults.append(f"GPUs of a node not in rank order: {_name(placement, falling + 1)}")
    return faults


def _leaf_faults(cluster: ClusterSpec, placement: Placement, leaf: IntArray) -> list[str]:
    names = {int(k): cluster.leaf_name(int(k)) for k in np.unique(leaf)}
    wrong = [
        n
        for n, (r, k) in enumerate(zip(placement.ranks, leaf.tolist(), strict=True))
        if r.leaf != names[k]
    ]
    return [f"under another leaf than claimed: {_name(placement, wrong)}"] if wrong else []


def _fill_faults(node: IntArray) -> list[str]:
    """Consecutive ranks fill a node, the same number on each."""
    borders = np.flatnonzero(np.diff(node)) + 1
    runs = np.diff(np.concatenate([[0], borders, [len(node)]]))
    if len(runs) != len(np.unique(node)):
        return ["the ranks of a node are not consecutive"]
    return [] if (runs == runs[0]).all() else ["nodes run different numbers of ranks"]


def _coordinate_faults(layout: Layout, at: dict[str, IntArray]) -> list[str]:
    rank = np.arange(layout.gpus)
    stage = layout.tp * layout.cp * layout.dp
    expected = {
        "tp": rank % layout.tp,
        "cp": rank // layout.tp % layout.cp,
        "dp": rank // (layout.tp * layout.cp) % layout.dp,
        "pp": rank // stage,
        "ep": rank % stage // layout.etp % layout.ep,
    }
    return [
        f"{kind} coordinate of rank {wrong[0]} is {at[kind][wrong[0]]}, not {want[wrong[0]]}"
        for kind, want in expected.items()
        if (wrong := np.flatnonzero(at[kind] != want)).size
    ]


def _tensor_faults(
    cluster: ClusterSpec, layout: Layout, at: dict[str, IntArray], spans: dict[str, IntArray]
) -> list[str]:
    where = "node" if layout.tp <= cluster.node.gpus else "domain"
    ids = _group_ids(layout, "tp", at)
    split = int((~_together(ids, spans[where])).sum())
    domain_split = int((~_together(ids, spans["domain"])).sum())
    if domain_split:
        return [f"{domain_split} tensor-parallel groups leave their scale-up domain"]
    return [f"{split} tensor-parallel groups leave their {where}"] if split else []


def _group_ids(layout: Layout, kind: str, at: dict[str, IntArray]) -> IntArray:
    """Return a number for the group of `kind` that each rank is in."""
    if kind == "ep":
        rank = np.arange(layout.gpus)
        expert_group = rank // (layout.ep * layout.etp)
        return expert_group * layout.etp + rank % layout.etp
    ids = np.zeros(layout.gpus, dtype=np.int64)
    for other in ("tp", "cp", "dp", "pp"):
        if other != kind:
            ids = ids * getattr(layout, other) + at[other]
    return ids


def _together(ids: IntArray, span: IntArray) -> NDArray[np.bool_]:
    """Return, for each group in order of its number, whether one `span` holds all its ranks."""
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=-1))
    lowest = np.minimum.reduceat(span[order], starts)
    highest = np.maximum.reduceat(span[order], starts)
    return np.asarray(lowest == highest)


def _claim_faults(
    cluster: ClusterSpec,
    layout: Layout,
    placement: Placement,
    at: dict[str, IntArray],
    spans: dict[str, IntArray],
) -> list[str]:
    faults = []
    counted = _count_splits(layout, at, spans["leaf"])
    asked_splits = placement.question == "fewest-splits"
    asked = {"fewest-splits": counted, "least-step-time": placement.step_time_s}
    objective = asked.get(placement.question, placement.moved_ranks)
    if counted != placement.splits or objective != placement.objective:
        faults.append(
            f"splits claimed {placement.splits} (objective {placement.objective:g}), are {counted}"
        )
    if placement.bound > placement.objective:
        what = "splits counted" if asked_splits else "objective"
        faults.append(f"bound {placement.bound:g} is above the {what}, {placement.objective:g}")
    if placement.status == "optimal" and placement.bound < placement.objective * (1 - ROUNDING):
        of = f"{counted} splits" if asked_splits else f"objective {placement.objective:g}"
        faults.append(f"called optimal with bound {placement.bound:g} under {of}")
    tiers = _count_tiers(cluster, layout, at, spans)
    return faults + [
        f"{kind} groups by tier claimed {placement.tiers.get(kind)}, are {counts}"
        for kind, counts in tiers.items()
        if placement.tiers.get(kind) != counts
    ]


def _count_splits(layout: Layout, at: dict[str, IntArray], leaf: IntArray) -> int:
    """Count (replica, stage) pairs of which some rank's successor is under another leaf."""
    by_coordinate = np.full((layout.pp, layout.dp, layout.tp, layout.cp), -1, dtype=np.int64)
    by_coordinate[at["pp"], at["dp"], at["tp"], at["cp"]] = leaf
    sender = np.flatnonzero(at["pp"] + 1 < layout.pp)
    peer = by_coordinate[at["pp"][sender] + 1, at["dp"][sender], at["tp"][sender], at["cp"][sender]]
    crossing = sender[leaf[sender] != peer]
    return len(np.unique(at["pp"][crossing] * layout.dp + at["dp"][crossing]))


def _count_tiers(
    cluster: ClusterSpec, layout: Layout, at: dict[str, IntArray], spans: dict[str, IntArray]
) -> dict[str, dict[str, int]]:
    names = [
        n for n in ("node", "domain", "leaf", "pod") if n != "domain" or cluster.domain_nodes > 1
    ]
    out = {}
    for kind in ("tp", "cp", "ep", "dp", "pp"):
        ids = _group_ids(layout, kind, at)
        held = [_together(ids, spans[name]) for name in names]
        widest = np.argmax(np.stack([*held, np.ones_like(held[0])]), axis=0)
        counts = np.bincount(widest, minlength=len(names) + 1).tolist()
        out[kind] = dict(zip([*names, "across"], counts, strict=True))
    return out


def _name(placement: Placement, which: Sequence[int] | IntArray) -> str:
    named = [placement.ranks[int(n)] for n in list(which)[:NAMED]]
    more = f" and {len(which) - NAMED} more" if len(which) > NAMED else ""
    return ", ".join(f"rank {r.rank} on {r.host}:{r.gpu}" for r in named) + more

"""Groups: who talks to whom, in the rank order tp-cp-ep-dp-pp (tp fastest).

rank = tp + TP*(cp + CP*(dp + DP*pp)), and on the same ranks, inside a stage,
etp + ETP*(ep + EP*edp): Megatron-LM's default (megatron/core/parallel_state.py, RankGenerator).
So one reshape of a per-rank array shows the groups of a kind along one axis.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from planner.plan import Layout

IntArray = NDArray[np.int64]
KINDS = ("tp", "cp", "ep", "dp", "pp")
_AXIS = {"tp": 3, "cp": 2, "ep": 2, "dp": 1, "pp": 0}


def _shape(layout: Layout, kind: str) -> tuple[int, int, int, int]:
    if kind == "ep":
        return layout.pp, layout.edp, layout.ep, layout.etp
    return layout.pp, layout.dp, layout.cp, layout.tp


def groups(layout: Layout, kind: str, per_rank: IntArray | None = None) -> IntArray:
    """Return `per_rank` (default: the ranks themselves) as [group, member] for one kind."""
    values = np.arange(layout.gpus) if per_rank is None else per_rank
    rows = np.moveaxis(values.reshape(_shape(layout, kind)), _AXIS[kind], -1)
    return rows.reshape(-1, rows.shape[-1])


def coordinates(layout: Layout) -> dict[str, IntArray]:
    """Return each rank's coordinate on every axis, one array of ranks per kind."""
    out = {}
    for kind in KINDS:
        shape, axis = _shape(layout, kind), _AXIS[kind]
        steps = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)])
        out[kind] = np.broadcast_to(steps, shape).reshape(-1)
    return out


def splits(layout: Layout, leaf_of_rank: IntArray) -> int:
    """Return the pipeline edges that leave a leaf, summed over pipelines.

    A pipeline is one data-parallel replica; its tp * cp ranks move together, so an edge between
    two stages counts once, however many of its ranks cross.
    """
    leafs = leaf_of_rank.reshape(layout.pp, layout.dp, layout.cp * layout.tp)
    return int((leafs[1:] != leafs[:-1]).any(axis=2).sum())


def tiers(layout: Layout, spans: Mapping[str, IntArray]) -> dict[str, dict[str, int]]:
    """Return, per kind, how many groups have each tier as the widest they span.

    `spans` maps tier names, narrow to wide, to the tier's index of every rank (node, domain, leaf,
    pod: each nested in the next). What even the last does not hold counts as 'across'.
    """
    out: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        held = [0]
        out[kind] = {}
        for name, index in spans.items():
            members = groups(layout, kind, index)
            held.append(int((members == members[:, :1]).all(axis=1).sum()))
            out[kind][name] = held[-1] - held[-2]
        out[kind]["across"] = len(members) - held[-1]
    return out

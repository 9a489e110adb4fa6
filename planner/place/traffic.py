"""Traffic: what a map of ranks makes the uplinks of the busiest leaf and the busiest pod carry.

Counted on the leaf of every cell (or rank), [stage, member], in rank order: a ring joins the
neighbours of a row and its ends, a pipeline edge joins a row to the next. A step waits for the
slowest link, so the busiest leaf counts, not the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.estimate.inputs import Flows
from planner.place.groups import IntArray
from planner.plan import Layout

TIERS = 2
"""Leaf and pod."""


@dataclass(frozen=True)
class Load:
    """One row of `planner.estimate.inputs.Flows`: each (busiest leaf, busiest pod)."""

    rings: tuple[float, ...] = (0.0,) * TIERS
    sends: tuple[float, ...] = (0.0,) * TIERS
    experts: tuple[float, ...] = (0.0,) * TIERS
    apart: int = 0

    def __le__(self, other: Load) -> bool:
        """Return whether no uplink carries more than with `other`."""
        mine, theirs = (one.rings + one.sends + one.experts for one in (self, other))
        less = all(a <= b for a, b in zip(mine, theirs, strict=True))
        return less and self.apart <= other.apart


def flows_of(loads: Sequence[Load]) -> Flows:
    """Return loads as the estimate takes them, one row each."""
    rings, sends, experts = (
        np.array([getattr(load, kind) for load in loads], dtype=np.float64)
        for kind in ("rings", "sends", "experts")
    )
    return Flows(rings, sends, experts, np.array([load.apart for load in loads], dtype=np.int64))


def apart(layout: Layout, domain_of_rank: IntArray, near: int) -> int:
    """Return how many of `near` ranks are outside their domain in the worst torn expert group."""
    groups = domain_of_rank.reshape(-1, layout.ep, layout.etp)[:, :, 0]
    width = int(groups.max()) + 1
    keys = np.arange(len(groups))[:, None] * width + groups
    inside = np.unique(keys, return_counts=True)[1]
    return max(0, near - int(inside.min()))


def load_of(
    layout: Layout,
    leaf: IntArray,
    pod_of_leaf: IntArray,
    *,
    send_gpus: int,
    member_ranks: int,
    near: int,
) -> Load:
    """Return the load of a map: `leaf` is [stage, member], each `member_ranks` consecutive ranks.

    A pipeline edge between two members carries `send_gpus` GPUs; `near` is how many ranks of an
    expert group share a scale-up domain, and so need no uplink.
    """
    tiers = (leaf, pod_of_leaf[leaf])
    return Load(
        rings=tuple(_rings(at) for at in tiers),
        sends=tuple(_sends(at, wrap=layout.vpp > 1) * send_gpus for at in tiers),
        experts=tuple(_experts(layout, at, member_ranks, near) for at in tiers),
    )


def _rings(at: IntArray) -> float:
    """Return the rings (rows) that leave the busiest switch, each exit counted."""
    following = np.roll(at, -1, axis=1)
    return _busiest(at[at != following])


def _sends(at: IntArray, *, wrap: bool) -> float:
    """Return the pipeline edges that leave the busiest switch; backward they run the other way."""
    here, there = (at, np.roll(at, -1, axis=0)) if wrap else (at[:-1], at[1:])
    crossing = here != there
    return max(_busiest(here[crossing]), _busiest(there[crossing]))


def _experts(layout: Layout, at: IntArray, member_ranks: int, near: int) -> float:
    """Return the GPUs' worth of all-to-all that leaves the busiest switch.

    A rank sends to ep - near ranks over its NIC; the share of them outside counts.
    """
    if layout.ep <= near or layout.ep * layout.etp <= member_ranks:
        return 0.0
    ranks = np.repeat(at.reshape(-1), member_ranks)
    groups = ranks.reshape(-1, layout.ep, layout.etp)[:, :, 0]
    groups = groups[(groups != groups[:, :1]).any(axis=1)]
    if not len(groups):
        return 0.0
    width = int(at.max()) + 1
    keys, inside = np.unique(np.arange(len(groups))[:, None] * width + groups, return_counts=True)
    sent = inside * (layout.ep - inside) / (layout.ep - near) * layout.etp
    return float(np.bincount(keys % width, weights=sent).max())


def _busiest(switches: IntArray) -> float:
    return float(np.bincount(switches).max()) if len(switches) else 0.0

"""Bound: what the uplinks of some leaf and some pod must carry at the least, whatever the map.

Take the leaf that holds most tensor-parallel groups, `c` of them, of `k` of the p stages.

- Some leaf holds at least as many as if all were filled to the same height: `c >= level`.
- Of a stage that it holds only in part the ring of replicas leaves it. Only `c // d` stages can be
  whole, with d groups a stage: at least `k - c // d` rings leave.
- If `k < p`, its stages form runs that a neighbour stage lies outside of, before or behind. Along a
  run with m of its groups in one stage, m pipeline edges leave where it ends (or enter where it
  begins), and the fullest stage of `k` holds at least `c / k`.
- If every switch holds at most one stage in part, whole switches add up to each stage. Where the
  sizes that there are waste more than is spare, some switch holds two: `k = 1` is left out.

So a map that keeps rings at home (small k) sends much between stages, and the other way round. The
step takes at least as long as under the best of these p trades: those of windows, were every leaf
filled to the same height. The same holds between pods.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.place.groups import IntArray
from planner.place.orders import level_of
from planner.place.traffic import TIERS, Load
from planner.plan import Layout


def least_loads(layout: Layout, ranks: int, switches: Sequence[IntArray]) -> list[list[Load]]:
    """Return, per tier, loads of which every map's own is at least one, part for part.

    `switches` holds, per tier (leaf, pod), the switch of every usable node, each for `ranks` ranks.
    """
    return [_trades(layout, ranks, switch, tier) for tier, switch in enumerate(switches)]


def _trades(layout: Layout, ranks: int, switch: IntArray, tier: int) -> list[Load]:
    groups = layout.dp * layout.cp
    rooms = np.unique(switch, return_counts=True)[1] * ranks // layout.tp
    level, whole = level_of(rooms, layout.pp * groups), int(rooms.max()) // groups

    def here(flow: float) -> tuple[float, ...]:
        return tuple(flow if n == tier else 0.0 for n in range(TIERS))

    found: dict[Load, None] = {}
    alone = whole == 0 and layout.pp > 1 and not _one_stage_each(rooms, groups, layout.pp)
    for stages in range(1 + alone, layout.pp + 1):
        sends = 0 if stages == layout.pp else -(-level // stages)
        rings = max(0, stages - whole)
        found[Load(rings=here(rings), sends=here(sends * layout.tp))] = None
    return list(found)


def _one_stage_each(rooms: IntArray, groups: int, stages: int) -> bool:
    """Return False where rooms, each for one stage only, surely do not hold `groups` of each."""
    most = int(rooms.max())
    sums = np.zeros(groups + most, dtype=np.bool_)
    sums[0] = True
    sizes = np.unique(rooms[rooms > 0]).tolist()
    for total in range(1, len(sums)):
        sums[total] = any(total >= size and sums[total - size] for size in sizes)
    least = groups + int(sums[groups:].argmax())
    return stages * least <= int(rooms.sum())

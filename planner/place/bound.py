"""Bound: what the uplinks of some leaf and some pod must carry at the least, whatever the map.

A leaf has room for C tensor-parallel groups; a stage is d of them, and there are p stages. Say that
no leaf may have more than x of its rings and y of its pipeline edges leave it (or enter it).

- A leaf that holds some of every stage has a ring leave for each that it holds in part.
- Any other leaf holds at most y of a stage: along a run of stages with m of its groups in one, m
  edges leave where the run ends, or enter where it begins. So with `y < d` it holds no stage whole,
  hence at most x of them, and at most `x y` groups; with `y >= d` it may hold `C // d` whole.
- All leafs together must hold all groups.
- A stage of which no leaf holds more than y is under `ceil(d / y)` leafs at least, one that is not
  whole under two; no leaf takes part in more than x so.
- A column of stages of which no leaf holds more than x is cut at `ceil(p / x) - 1` edges, and once
  more where the pipeline is a ring; no leaf has more than y of them.

So a map that keeps rings at home (small x) sends much between stages, and the other way round. The
step takes at least as long as under the best of the pairs (x, least y that passes). The same holds
between pods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.place.groups import IntArray
from planner.place.traffic import TIERS, Load
from planner.plan import Layout


def least_loads(layout: Layout, ranks: int, switches: Sequence[IntArray]) -> list[list[Load]]:
    """Return, per tier, loads of which every map's own is at least one, part for part.

    `switches` holds, per tier (leaf, pod), the switch of every usable node, each for `ranks` ranks.
    """
    return [_trades(layout, ranks, switch, tier) for tier, switch in enumerate(switches)]


def _trades(layout: Layout, ranks: int, switch: IntArray, tier: int) -> list[Load]:
    rooms = np.unique(switch, return_counts=True)[1] * ranks // layout.tp
    limits = Limits.of(rooms, layout.pp, layout.dp * layout.cp, ring=layout.vpp > 1)

    def here(flow: float) -> tuple[float, ...]:
        return tuple(flow if n == tier else 0.0 for n in range(TIERS))

    found, fewest = list[Load](), layout.dp * layout.cp + 1
    for rings in range(layout.pp + 1):
        sends = limits.least_sends(rings)
        if sends is not None and sends < fewest:  # otherwise fewer rings do with as few sends
            fewest = sends
            found.append(Load(rings=here(rings), sends=here(sends * layout.tp)))
    return found


@dataclass(frozen=True)
class Limits:
    """Leafs by their room (`count` of each size) and stages of `groups` that they hold."""

    rooms: IntArray
    count: IntArray
    stages: int
    groups: int
    ring: bool

    @classmethod
    def of(cls, rooms: IntArray, stages: int, groups: int, *, ring: bool) -> Limits:
        """Return the limits of leafs with these rooms; those without any do not count."""
        sizes, count = np.unique(rooms[rooms > 0], return_counts=True)
        return cls(sizes, count, stages, groups, ring)

    def least_sends(self, rings: int) -> int | None:
        """Return the fewest edges that some leaf has leave it if none has more rings leave.

        None where no map keeps to so few rings.
        """
        some = self._of_every_stage(rings)
        most = self.groups
        if not self._allowed(rings, most):
            return some
        low = 0
        while low < most:
            middle = (low + most) // 2
            low, most = (low, middle) if self._allowed(rings, middle) else (middle + 1, most)
        return most if some is None else min(most, some)

    def _of_every_stage(self, rings: int) -> int | None:
        """Return the edges that leave a leaf that holds some of every stage, `rings` not whole."""
        room, whole = int(self.rooms.max()), self.stages - rings
        if room < whole * self.groups + rings:
            return None
        if rings == 0 or whole == 0:
            return 0
        return self.groups - min((room - whole * self.groups) // rings, self.groups - 1)

    def _allowed(self, rings: int, sends: int) -> bool:
        """Return whether leafs that hold no group of some stage may keep to both."""
        if sends < self.groups:
            return self._parts_allowed(rings, sends)
        part = max(self.groups - 1, 1)
        whole = self.rooms // self.groups
        held = np.minimum(self.rooms, whole * self.groups + rings * part)
        if (held * self.count).sum() < self.stages * self.groups:
            return False
        leafs = -(-self.groups // min(part, int(self.rooms.max())))  # of a stage that is not whole
        shares = [
            np.where(w <= whole, leafs * w + np.minimum(rings, self.rooms - w * self.groups), 0)
            for w in range(int(whole.max()) + 1)
        ]
        return bool((np.max(shares, axis=0) * self.count).sum() >= leafs * self.stages)

    def _parts_allowed(self, rings: int, sends: int) -> bool:
        """Return the same where nobody may hold a whole stage."""
        if not rings or not sends:
            return False
        most = min(sends, int(self.rooms.max()))
        held = np.minimum(self.rooms, rings * sends)
        taken, cut = np.minimum(self.rooms, rings), np.minimum(self.rooms, sends)
        cuts = -(-self.stages // rings) - (not self.ring)
        if rings == 1 and not self._one_stage_each(sends):
            return False
        return bool(
            (held * self.count).sum() >= self.stages * self.groups
            and (taken * self.count).sum() >= self.stages * -(-self.groups // most)
            and (cut * self.count).sum() >= self.groups * cuts
        )

    def _one_stage_each(self, sends: int) -> bool:
        """Return False where rooms, each for one stage only, surely do not hold `groups` of each.

        What leafs waste on a stage is at least what their rooms add up to beyond it.
        """
        sizes = np.unique(np.minimum(self.rooms, sends)).tolist()
        sums = np.zeros(self.groups + max(sizes), dtype=np.bool_)
        sums[0] = True
        for total in range(1, len(sums)):
            sums[total] = any(total >= size and sums[total - size] for size in sizes)
        least = self.groups + int(sums[self.groups :].argmax())
        return self.stages * least <= int((np.minimum(self.rooms, sends) * self.count).sum())

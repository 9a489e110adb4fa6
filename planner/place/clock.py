"""Clock: the estimate's step time of one layout, under the loads of many maps at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planner.estimate.collectives import ranks_per_domain, uplinks
from planner.estimate.inputs import Inputs
from planner.estimate.running import judge, own_kinds
from planner.estimate.step import step_s
from planner.layouts.rules import Context
from planner.layouts.split import StageKinds
from planner.layouts.table import Layouts
from planner.place.traffic import TIERS, Load, flows_of
from planner.plan import Layout


@dataclass(frozen=True)
class Clock:
    """Step times of the layout with its own cut of the layers, uplinks loaded as a map does.

    What running its pipeline took beyond the closed form, it takes on every map.
    """

    context: Context
    layout: Layout

    @cached_property
    def _own(self) -> tuple[StageKinds, float]:
        one = judge(self.context, self._rows(1))[0]
        kinds = own_kinds(self.context, one)
        closed = step_s(Inputs(*self.context, self._rows(1), kinds=kinds))
        return kinds, one.step_s - float(closed[0])

    @property
    def contended(self) -> bool:
        """Return whether a map can matter: some uplink carries less than the NICs below it."""
        return any(ways > 1 for _, ways in uplinks(self.context.cluster)[:TIERS])

    @property
    def near(self) -> int:
        """Return how many ranks of an expert group share a scale-up domain."""
        x = Inputs(*self.context, self._rows(1))
        return int(ranks_per_domain(x, x.layouts.etp, x.layouts.ep)[0])

    def seconds(self, loads: Sequence[Load]) -> list[float]:
        """Return the step time under each load."""
        known = dict.fromkeys(loads)
        kinds, beyond = self._own
        flows = flows_of(list(known))
        x = Inputs(*self.context, self._rows(len(known)), flows=flows, kinds=kinds)
        times = dict(zip(known, (step_s(x) + beyond).tolist(), strict=True))
        return [times[load] for load in loads]

    def bound(self) -> float:
        """Return the step time without contention: a lower bound for every map."""
        return self.seconds([Load()])[0]

    def fabric(self) -> str:
        """Return the fabric in words: '4:1', '1:1 between leafs, 7:1 between pods'."""
        said = self.context.cluster.fabric
        leaf, pod = f"{said.leaf_oversubscription:g}:1", f"{said.pod_oversubscription:g}:1"
        between_pods = self.context.cluster.pod_nodes and pod != "1:1"
        words = f"{leaf} between leafs, {pod} between pods" if between_pods else leaf
        lossy = said.routing_efficiency < 1
        return f"{words}, {said.routing_efficiency:.0%} routed" if lossy else words

    def _rows(self, count: int) -> Layouts:
        return Layouts.of([self.layout.model_dump()]).take(np.zeros(count, dtype=np.int64))

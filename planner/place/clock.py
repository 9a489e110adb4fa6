"""Clock: the estimate's step time of one layout, under the loads of many maps at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from planner.estimate.collectives import ranks_per_domain, uplinks
from planner.estimate.inputs import Inputs
from planner.estimate.running import Judged, judge, loaded
from planner.layouts.rules import Context, broken_rules
from planner.layouts.table import Layouts
from planner.place.traffic import TIERS, Load, flows_of
from planner.plan import Layout
from planner.specs.cluster import ClusterSpec


def contended(cluster: ClusterSpec) -> bool:
    """Return whether a map can matter: some uplink carries less than the NICs below it."""
    return any(ways > 1 for _, ways in uplinks(cluster)[:TIERS])


@dataclass(frozen=True)
class Clock:
    """Step times of the layout with its own cut of the layers, uplinks loaded as a map does.

    Its pipeline is run with the sends of every map, as that of a ranked layout is.
    """

    context: Context
    layout: Layout

    @cached_property
    def _own(self) -> Judged:
        return judge(self.context, self._rows(1))[0]

    @property
    def contended(self) -> bool:
        """Return whether a map can matter on its cluster."""
        return contended(self.context.cluster) or self.tears

    @property
    def tears(self) -> bool:
        """Return whether a map can tear expert groups out of scale-up domains."""
        return self.layout.ep > 1 and self.context.cluster.domain_nodes > 1

    @property
    def near(self) -> int:
        """Return how many ranks of an expert group share a scale-up domain."""
        x = Inputs(*self.context, self._rows(1))
        return int(ranks_per_domain(x, x.layouts.etp, x.layouts.ep)[0])

    def seconds(self, loads: Sequence[Load]) -> list[float]:
        """Return the step time under each load."""
        if not loads:
            return []
        known = list(dict.fromkeys(loads))
        rows = self._rows(len(known))
        judged = loaded(self.context, rows, [self._own] * len(known), flows_of(known))
        times = {load: one.step_s for load, one in zip(known, judged, strict=True)}
        return [times[load] for load in loads]

    def bound(self, trades: Sequence[Sequence[Load]] = ()) -> float:
        """Return a lower bound for every map: of each tier the best of the `trades` it has.

        See `planner.place.bound`; without any, it is the step time without contention.
        """
        ways = [[Load()], *trades]
        times = iter(self.seconds([load for loads in ways for load in loads]))
        return max(min(islice(times, len(loads))) for loads in ways)

    def allows(self, layout: Layout) -> bool:
        """Return whether another layout of the same job keeps every rule."""
        batch = self.context.workload.global_batch
        micro_batches = max(1, batch // (layout.dp * layout.micro_batch))
        row = layout.model_copy(update={"num_microbatches": micro_batches}).model_dump()
        return not broken_rules(Layouts.of([row]), 0, self.context)

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

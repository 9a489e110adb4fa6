"""What is asked of a plan: specs, what is fixed, and how to choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from planner.estimate.scoring import Tell
from planner.layouts.ranges import Fix, parse_fix
from planner.layouts.rules import Context
from planner.objectives import Aim
from planner.place import Rule
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload

Progress = Callable[[str], None]
FEW_PARTS = 8
"""Parts of a search below which it is over before anyone reads how far it is."""


@dataclass(frozen=True)
class PlanRequest:
    """What is asked; `fix` holds raw text by layout field, `gpus` all of the cluster if None."""

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload
    fix: Mapping[str, str] = field(default_factory=dict)
    top: int = 10
    unhealthy: tuple[str, ...] = ()
    gpus: int | None = None
    busy: tuple[str, ...] = ()
    """Of `unhealthy`, the hosts that are only busy with other jobs; `notes` says so."""
    down: tuple[str, ...] = ()
    """Of `unhealthy`, the hosts that `notes` says are down."""
    slow: tuple[str, ...] = ()
    """Of `unhealthy`, what works but is slow."""
    pipelines: Rule = "under-leaf"
    notes: tuple[str, ...] = ()
    """What was found out about the cluster while it was read."""

    aim: Aim = field(default_factory=Aim)
    nodes: tuple[int, ...] = ()
    """Node counts to choose from; empty: what the cluster has."""
    batches: tuple[int, ...] = ()
    """Global batches to choose from; empty: the workload's."""
    mixed: bool = False
    """Of a cluster of several node types, one job over all of them rather than the best alone."""
    type_aims: tuple[Aim, ...] = ()
    """The aim at the rates of each of several node types."""
    sensitivity: bool = False
    """Plan again with every hardware figure halved and doubled."""
    search: tuple[str, ...] = ()
    """Axes that are searched beside the layout's own (`variants`)."""

    @property
    def choices(self) -> Fix:
        """Return what a search goes through."""
        return parse_fix(self.fix, self.search)

    @property
    def context(self) -> Context:
        """Return what rules and estimates look at."""
        return Context(self.model, self.cluster, self.workload)


def quiet(_: str) -> None:
    """Report no progress."""


def told_share(gpus: int, progress: Progress) -> Tell:
    """Return what tells how much of a search is done, where it has enough parts to be slow."""

    def tell(done: int, parts: int) -> None:
        if parts >= FEW_PARTS:
            progress(f"scoring layouts of {gpus:,} GPUs: {done / parts:.0%}")

    return tell

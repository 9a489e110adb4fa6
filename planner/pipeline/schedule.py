"""Schedule: an order's recipe, what it asks for, and what it holds at its peak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.errors import InfeasibleError
from planner.pipeline.actions import Order, Rows, Shape, Style
from planner.sources import Source

MANY = 1 << 20
"""No limit on the chunks of a rank."""


@dataclass(frozen=True)
class Schedule:
    """One schedule. `actions(shape, rank)` is the order of one rank.

    `refuses(shape)` is a sentence on why it cannot run at that size, or an empty string.
    `in_flight(shape, rank)` is the closed form of the chunks of activations that a rank holds at
    its peak, None where no closed form is exact.
    """

    name: str
    title: str
    source: Source
    actions: Callable[[Shape, int], Rows]
    refuses: Callable[[Shape], str]
    in_flight: Callable[[Shape, int], int | None]
    style: Style = "loop"
    usual_chunks: int = 1
    model_copies: int = 1
    splits_backward: bool = False
    """Whether weight gradients are actions of their own, which fill what would be idle."""
    runs_both_at_once: bool = False
    """Whether a forward and a backward run as one, the expert traffic of either hidden."""

    @property
    def vpp(self) -> tuple[int, int]:
        """Return the least and the most of a layout's virtual chunks that it runs.

        Two copies of the model are two chunks of a rank, but no virtual ones.
        """
        least = self.usual_chunks // self.model_copies
        return least, least if least == 1 or self.style != "loop" else MANY

    def takes(self, vpp: int) -> bool:
        """Return whether a layout of so many virtual chunks may run it."""
        return self.vpp[0] <= vpp <= self.vpp[1]

    def shape(self, pp: int, vpp: int, microbatches: int) -> Shape:
        """Return the size of a layout's pipeline."""
        return Shape(pp, vpp * self.model_copies, microbatches)

    def order(self, shape: Shape) -> Order:
        """Return what every rank does; raises InfeasibleError where the schedule cannot run."""
        if why := self.refuses(shape):
            hint = "another schedule, number of chunks or of micro-batches may do"
            raise InfeasibleError(f"{self.name}: {why}", hint=hint)
        actions = tuple(self.actions(shape, rank) for rank in range(shape.ranks))
        return Order(shape, self.style, actions)


def one_chunk(shape: Shape) -> str:
    """Return why a schedule of one chunk a rank cannot run, if it can't."""
    return f"runs one chunk a rank, not {shape.chunks}" if shape.chunks != 1 else ""


def two_chunks(shape: Shape) -> str:
    """Return why a schedule of two chunks a rank cannot run, if it can't."""
    return f"runs two chunks a rank, not {shape.chunks}" if shape.chunks != 2 else ""


def whole_rounds(shape: Shape) -> str:
    """Return why a schedule that goes round its chunks cannot run, if it can't."""
    turns = max(1, shape.microbatches // shape.ranks)
    if shape.microbatches % turns == 0:
        return ""
    return (
        f"needs micro-batches in equal rounds of at least {shape.ranks} ranks; "
        f"{shape.microbatches} do not make {turns} equal rounds"
    )

"""A stack's few numbers, fitted to measured steps.

Which numbers, and how far they may go: those that differ between the measured stacks, with the
widths that they differ by (docs/model.md, Calibration). Eight runs cannot know them all; each stays
at its profile's value until the runs say otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from planner.calibrate.again import Again, Kept
from planner.calibrate.solve import SCALE, FloatArray, Number, Solution, solve
from planner.estimate.running import judge
from planner.estimate.step import step_s
from planner.layouts.rules import Context
from planner.layouts.table import IntArray, Layouts
from planner.specs.figures import StackFigures
from planner.specs.profile import Stack

WIDTHS: dict[str, float] = {
    "gemm": 0.14,
    "attention": 0.18,
    "memory_traffic": 0.35,
    "moe_traffic": 0.40,
    "host_s": 0.45,
    "host_tp": 0.15,
    "host_moe_s": 0.45,
    "tp_exposed": 0.60,
    "dp_exposed": 0.70,
    "p2p_exposed": 0.35,
    "fsdp_contention": 0.45,
    "accumulate": 0.60,
    "microbatch_s": 0.50,
    "step_s": 1.40,
}
"""Number of a stack -> standard deviation of its logarithm among stacks."""


HOST, HOSTS = ("host_s", "host_moe_s"), (1.0, 2.5)
"""Host times that a fit starts from, over what ships: where they hide behind the device's, no slope
says that a slower host would fit."""


class Step(NamedTuple):
    """A measured step: what ran, how it was laid out, and how long it took."""

    context: Context
    layout: Mapping[str, object]
    measured_s: float


def numbers_of(stack: Stack) -> list[Number]:
    """Return the numbers of a stack that runs can move."""
    found = [(name, float(getattr(stack, name)), width) for name, width in WIDTHS.items()]
    return [Number(name, now, width) for name, now, width in found if now > 0]


class Steps:
    """Measured steps of one stack, ready to be predicted again and again with other numbers."""

    def __init__(self, profile: str, steps: Sequence[Step]) -> None:
        """Group the steps by what they share, so that each group is one evaluation."""
        self.profile = profile
        self.measured_s: FloatArray = np.array([step.measured_s for step in steps])
        groups: dict[str, list[int]] = defaultdict(list)
        for i, step in enumerate(steps):
            m, c, w = step.context
            groups[f"{m!r}{c.name}{c.nodes}{c.node!r}{w!r}"].append(i)
        self._groups = [
            (steps[at[0]].context, Layouts.of([steps[i].layout for i in at]), np.array(at))
            for at in groups.values()
        ]
        self._kept = [Kept(WIDTHS) for _ in self._groups]

    def contexts(self, numbers: Mapping[str, float]) -> Iterator[tuple[Context, Layouts, IntArray]]:
        """Yield each group's context with numbers of the stack set so, its layouts and its rows."""
        measured: dict[str, Any] = dict(numbers)
        figures = StackFigures.model_construct(**measured)
        for context, layouts, rows in self._groups:
            stacks = {**context.cluster.stacks, self.profile: figures}
            cluster = context.cluster.model_copy(update={"stacks": stacks})
            yield context._replace(cluster=cluster), layouts, rows

    def closed_form_s(self, numbers: Mapping[str, float]) -> FloatArray:
        """Return the predicted seconds of every step, by the closed form."""
        out = np.zeros(len(self.measured_s))
        for (context, layouts, rows), kept in zip(self.contexts(numbers), self._kept, strict=True):
            out[rows] = step_s(Again(*context, layouts, kept))
        return out

    def judged_s(self, numbers: Mapping[str, float]) -> FloatArray:
        """Return the seconds that a plan would state: its pipelines run action by action."""
        out = np.zeros(len(self.measured_s))
        for context, layouts, rows in self.contexts(numbers):
            out[rows] = [one.step_s for one in judge(context, layouts, recut=False)]
        return out


def fit_stack(steps: Steps, numbers: Sequence[Number]) -> Solution:
    """Return the numbers under which the measured steps are predicted best.

    A pipeline that is run action by action takes a share longer than the closed form says, which
    is taken once, with the numbers as they ship.
    """
    names = [n.name for n in numbers]
    shipped = {n.name: n.shipped for n in numbers}
    over = steps.judged_s(shipped) / steps.closed_form_s(shipped)

    def predict(values: FloatArray) -> FloatArray:
        return over * steps.closed_form_s(dict(zip(names, values.tolist(), strict=True)))

    starts = [[n.shipped * (slow if n.name in HOST else 1.0) for n in numbers] for slow in HOSTS]
    found = [solve(predict, steps.measured_s, numbers, start=start) for start in starts]
    return min(found, key=lambda one: float(np.log1p((one.error / SCALE) ** 2).sum()))

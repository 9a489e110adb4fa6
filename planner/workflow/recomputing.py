"""Which stages of a pipeline have the memory to recompute less, and what that would gain.

Layouts recompute alike on every stage. Yet the first stages of 1F1B hold the most micro-batches,
and memory decides there: later ones often have room to keep what they recompute.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.estimate.inputs import Inputs
from planner.estimate.memory import budget_bytes, stage_bytes
from planner.estimate.stages import Prices, prices
from planner.layouts.rules import Context, broken_rules
from planner.layouts.split import StageKinds
from planner.layouts.table import NAMES, RECOMPUTE, Layouts
from planner.pipeline.actions import Order
from planner.pipeline.simulate import simulate as run
from planner.pipeline.timing import FloatArray, Links, StageTimes
from planner.simulation import LessRecompute


def less_recompute(
    context: Context,
    one: Layouts,
    kinds: StageKinds,
    order: Order,
    *,
    times: StageTimes,
    links: Links,
    times_of: Callable[[Prices], StageTimes],
    makespan_s: float,
    once_s: float,
) -> LessRecompute | None:
    """Return the lesser recomputation that gains most on the stages that have room for it.

    None where nothing is recomputed, or no stage has room.
    """
    found = []
    for code in range(int(one.recompute[0])):
        less = Layouts.of([one.row(0) | {"recompute": RECOMPUTE[code]}])
        if broken_rules(less, 0, context):
            continue
        x = Inputs(*context, less, kinds=kinds)
        taken = stage_bytes(x)[0]
        room = taken <= budget_bytes(x)
        if not room.any():
            continue
        mixed = _mixed(times, times_of(prices(x)), room[order.rank_of])
        took = run(order, mixed, links).makespan_s
        found.append(
            LessRecompute(
                recompute=NAMES["recompute"][code],
                stages=np.flatnonzero(room).tolist(),
                peak_bytes=float(taken[room].max()),
                makespan_s=took,
                step_time_s=took + once_s,
                gained_s=makespan_s - took,
                gained=(makespan_s - took) / (makespan_s + once_s),
            )
        )
    return max(found, key=lambda one: one.gained_s, default=None)


def _mixed(now: StageTimes, less: StageTimes, where: np.ndarray) -> StageTimes:
    """Return `less` on the stages of the mask, `now` on the others."""

    def pick(a: FloatArray, b: FloatArray) -> FloatArray:
        return np.where(where, b, a)

    return StageTimes(
        pick(now.forward_s, less.forward_s),
        pick(now.backward_input_s, less.backward_input_s),
        pick(now.backward_weight_s, less.backward_weight_s),
        pick(now.hidden_s, less.hidden_s),
    )

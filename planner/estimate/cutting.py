"""The cut of a layout's layers whose slowest stage is fastest, in the room that memory leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.errors import InfeasibleError
from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.memory import budget_bytes, stage_bytes
from planner.estimate.stages import Prices
from planner.layouts.rules import Context
from planner.layouts.split import cut_stages, dealt
from planner.layouts.table import SCHEDULE, IntArray, Layouts
from planner.pipeline.actions import Shape
from planner.pipeline.behind import Ahead, deal_behind, layers_ahead
from planner.pipeline.in_turn import Room, Turns, cuts_in_turn, deal_in_turn
from planner.pipeline.partition import StageCosts, cut, deal
from planner.pipeline.registry import schedule_named

Tables = list[list[list[int]]]


def shape_of(layouts: Layouts, row: int) -> Shape:
    """Return the size of a layout's pipeline."""
    size = (int(a[row]) for a in (layouts.pp, layouts.vpp, layouts.num_microbatches))
    return schedule_named(SCHEDULE[int(layouts.schedule[row])]).shape(*size)


@dataclass(frozen=True)
class StageRoom:
    """What memory leaves for layers on each stage of one layout, shape (stages,) or (2, stages)."""

    free_bytes: FloatArray
    layer_bytes: FloatArray
    """[dense or with experts, stage]."""

    def layers(self, sort: int, *, beside: IntArray | int = 0) -> IntArray:
        """Return how many layers of a sort each stage can hold, `beside` so many of the other."""
        free = self.free_bytes - beside * self.layer_bytes[1 - sort]
        most: FloatArray = np.floor(free / self.layer_bytes[sort] + 1e-9)
        whole: IntArray = np.maximum(most, 0.0).astype(np.int64)
        return whole

    def costs(self, each: FloatArray, fixed: FloatArray, moe: np.ndarray) -> StageCosts:
        """Return what `cut` is to judge cuts by."""
        return StageCosts(
            each,
            fixed,
            layer_bytes=self.layer_bytes[moe.astype(np.int64)].T,
            fixed_bytes=-self.free_bytes,
            limit_bytes=0.0,
        )


def balanced(x: Inputs, row: int, priced: Prices, room: StageRoom | None) -> list[list[int]] | None:
    """Return the cut whose slowest stage is fastest, in the `room` that memory leaves.

    None where no cut fits, or where none is known to be exact (layers of two kinds in no turn, or
    in more chunks than are looked at; two copies of the model).
    """
    shape, folds = shape_of(x.layouts, row), int(x.layouts.folds[row])
    if folds == 2:
        return None
    each = priced.layer_seconds(row)
    fixed = priced.fixed_seconds(row, shape.stages, chunks=shape.chunks)
    try:
        if shape.chunks == 1:
            if room is None:
                return [[n] for n in cut(StageCosts(each, fixed))]
            return [[n] for n in cut(room.costs(each, fixed, priced.with_experts))]
        fixed = fixed[np.array(dealt(range(shape.stages), shape.ranks, folds))].sum(axis=1)
        table = dealt_out(each, fixed, shape, priced, room, back=folds == 1)
    except InfeasibleError:
        return None
    return table if _even_enough(x, table) else None


def dealt_out(
    each: FloatArray,
    fixed: FloatArray,
    shape: Shape,
    priced: Prices,
    room: StageRoom | None,
    *,
    back: bool,
) -> list[list[int]]:
    """Return the exact cut into several chunks a rank; InfeasibleError where there is none."""
    ahead, last = layers_ahead(priced.with_experts.tolist()), int(priced.with_experts[-1])
    rest: dict[str, Any] = {
        **{"layer_s": float(each[-1]), "fixed_s": fixed},
        **{"chunks": shape.chunks, "back": back},
    }
    if ahead is None:
        return _in_turn(each, fixed, shape, priced, room, back=back)
    if ahead == 0:
        return deal(len(each), **rest, most=None if room is None else room.layers(last))
    return deal_behind(
        Ahead(ahead, float(each[0])),
        len(each) - ahead,
        **rest,
        most=None if room is None else lambda held: room.layers(last, beside=held),
    )


def _in_turn(
    each: FloatArray,
    fixed: FloatArray,
    shape: Shape,
    priced: Prices,
    room: StageRoom | None,
    *,
    back: bool,
) -> list[list[int]]:
    """Return the exact cut of layers of two kinds in turn; InfeasibleError where none is known."""
    kinds = tuple(bool(kind) for kind in priced.with_experts.tolist())
    if not cuts_in_turn(kinds, shape.chunks):
        raise InfeasibleError(f"layers of different kinds into {shape.chunks} chunks a rank")
    turns = Turns(
        kinds,
        (float(each[kinds.index(False)]), float(each[kinds.index(True)])),
        fixed,
        shape.chunks,
        back=back,
        fewest=len(kinds) // (shape.ranks * shape.chunks),
        room=None if room is None else Room(room.free_bytes, room.layer_bytes),
    )
    return deal_in_turn(turns)


def _even_enough(x: Inputs, table: list[list[int]]) -> bool:
    """Return whether the stack takes the chunks, and those of the first lap are as `bounds` says.

    Every chunk of torchtitan holds a layer, even at the ends.
    """
    fewest = x.model.layers // (len(table) * len(table[0]))
    first = [row[0] for row in table[:-1]]
    whole = x.stack.rules != "torchtitan" or min(map(min, table)) > 0
    return whole and first[0] >= fewest - 1 and min(first[1:], default=1) >= max(fewest, 1)


def rooms(context: Context, layouts: Layouts, tables: Tables) -> list[StageRoom]:
    """Return each layout's room: what one more layer of either sort takes, and what is left."""
    kinds = cut_stages(context.model, tables, layouts.folds.tolist())
    x = Inputs(*context, layouts, kinds=kinds)
    now = stage_bytes(x)
    more = [
        stage_bytes(Inputs(*context, layouts, kinds=other)) - now
        for other in (
            kinds._replace(dense_layers=kinds.dense_layers + 1),
            kinds._replace(moe_layers=kinds.moe_layers + 1),
        )
    ]
    held = kinds.dense_layers * more[0] + kinds.moe_layers * more[1]
    free = budget_bytes(x) - now + held
    return [
        StageRoom(free[row, :pp], np.stack([m[row, :pp] for m in more]))
        for row, pp in enumerate(layouts.pp.tolist())
    ]

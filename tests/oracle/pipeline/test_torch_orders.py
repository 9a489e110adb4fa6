"""Our action orders are those of torch.distributed.pipelining, action by action."""

from __future__ import annotations

from itertools import product

import pytest

from planner.pipeline.actions import TOGETHER, Shape
from planner.pipeline.registry import SCHEDULES

pytestmark = pytest.mark.frameworks
schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
stage_module = pytest.importorskip("torch.distributed.pipelining.stage")

CLASSES = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "looped-bfs": "ScheduleLoopedBFS",
    "zb-h1": "ScheduleInterleavedZeroBubble",
    "interleaved-zb": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
    "dualpipev": "ScheduleDualPipeV",
}
SIZES = {
    name: [
        Shape(p, v, m)
        for p, v in product((2, 3, 4, 6, 8), (1, 2, 3, 4))
        for m in sorted({2, 3, 5, p, p + 1, 2 * p - 1, 2 * p, 2 * p + 2, 3 * p, 4 * p, 5 * p + 3})
        if not schedule.refuses(Shape(p, v, m)) and not (name == "1f1b" and m < p)
    ]
    for name, schedule in SCHEDULES.items()
}
"""torch's 1F1B names micro-batches that do not exist where there are fewer than ranks."""


def stage_of(shape: Shape, rank: int, index: int):
    """Return a stage that knows its place, without a process group or a module."""
    base = stage_module._PipelineStageBase
    whole = dict.fromkeys(base.__abstractmethods__, lambda self: None)
    stage = object.__new__(type("Stage", (base,), whole))
    stage.group_size, stage.group_rank = shape.ranks, rank
    stage.num_stages, stage.stage_index = shape.stages, index
    stage.submod = None
    return stage


def torch_orders(name: str, shape: Shape) -> list[list[tuple[str, bool]]]:
    """Return (action, overlapped) of every rank, as torch's schedule class lists them."""
    cls = getattr(schedules, CLASSES[name])
    if issubclass(cls, schedules.PipelineScheduleMulti):
        stages = [stage_of(shape, 0, k * shape.ranks) for k in range(shape.chunks)]
        order = cls(stages, shape.microbatches).pipeline_order
    else:
        single = object.__new__(cls)
        single._num_stages, single._n_microbatches = shape.ranks, shape.microbatches
        order = single._get_pipeline_order()
        if name == "1f1b":
            order[shape.ranks - 1] = [counted_from_zero(a) for a in order[shape.ranks - 1]]
    return [flat(order[rank]) for rank in range(shape.ranks)]


def counted_from_zero(action):
    """Mend torch 2.13's 1F1B table: its last rank's forwards run from 1 to m, not 0 to m - 1.

    What it executes (`_step_microbatches`) counts from 0; the table is for drawing.
    """
    if action is None or action.computation_type != schedules.FORWARD:
        return action
    return action._replace(microbatch_index=action.microbatch_index - 1)


def flat(actions) -> list[tuple[str, bool]]:
    out = []
    for action in actions:
        if action is not None and action.is_compute_op:
            parts = action.sub_actions or (action,)
            out += [(str(part), action.sub_actions is not None) for part in parts]
    return out


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_rank_acts_as_in_torch(name: str):
    assert len(SIZES[name]) > 15
    for shape in SIZES[name]:
        theirs = torch_orders(name, shape)
        order = SCHEDULES[name].order(shape)
        for rank in range(shape.ranks):
            together = (order.actions[rank][:, 0] >= TOGETHER).tolist()
            ours = list(zip(order.text(rank), together, strict=True))
            assert ours == theirs[rank], (shape, rank)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_stage_stands_on_the_rank_that_torch_gives_it(name: str):
    from torch.distributed.pipelining._utils import generate_stage_to_rank_mapping

    for shape in SIZES[name]:
        order = SCHEDULES[name].order(shape)
        theirs = generate_stage_to_rank_mapping(shape.ranks, shape.stages, style=order.style)
        assert order.rank_of.tolist() == [theirs[s] for s in range(shape.stages)]

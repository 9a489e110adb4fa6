"""Every term of the estimate against plain Python, on random layouts of unlike models."""

from __future__ import annotations

import numpy as np
import pytest
import scalar_memory as by_hand
import scalar_time as by_clock
from scalar_memory import Job, Stage
from scalar_time import Case

from planner.estimate import communication, compute, directions, step
from planner.estimate.inputs import Inputs
from planner.estimate.memory import MEMORY_TERMS, peak_bytes
from planner.estimate.optimizer import optimizer_s
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import parse_fix
from planner.layouts.rules import Context
from planner.layouts.split import both_sorts, chunk_layers
from planner.layouts.table import Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

ROWS = 150
CASES = {
    "dense": ("llama-3.1-8b", "dgx-h100:8", "megatron", {}),
    "biases, dropout": ("gpt-3-1.3b", "dgx-a100:4", "megatron-2021", {}),
    "experts": ("mixtral-8x7b", "dgx-h100:8", "megatron", {}),
    "latent": ("deepseek-v2-lite", "dgx-h100:4", "megatron", {}),
    "narrow uplinks": ("llama-3.1-8b", "meta-24k-roce:512", "megatron", {}),
    "wide domains": ("mixtral-8x7b", "gb200-nvl72:36", "megatron", {}),
    "repeated heads": ("llama-3.1-8b", "dgx-a100:4", "megatron-2021", {}),
    "units of 3": ("llama-3.1-8b", "dgx-h100:4", "megatron", {"recompute_layers": 3}),
    "blocks of 2": (
        "deepseek-v2-lite",
        "dgx-h100:4",
        "megatron",
        {"recompute_method": "block", "recompute_layers": 2},
    ),
}


def sampled(name: str) -> tuple[Context, Layouts]:
    """Random legal layouts of a case."""
    model, cluster, stack, more = CASES[name]
    work = Workload(seq_tokens=2048, global_batch=192, stack=stack, **more)
    context = Context(load_model(model), load_cluster(cluster), work)
    recompute = "full" if more else "none|selective|full"
    fix = parse_fix({"recompute": recompute, "micro_batch": "1|2|3"})
    draw = np.random.default_rng(sorted(CASES).index(name))
    parts = list(legal_layouts(context, context.cluster.gpus, fix, Tally()))
    each = -(-ROWS // len(parts))
    some = [
        part.take(draw.choice(len(part), min(each, len(part)), replace=False)) for part in parts
    ]
    return context, Layouts.concat(some)


def job_of(context: Context) -> Job:
    work = context.workload
    unfused = work.stack == "megatron-2021"
    return Job(
        context.model, work.seq_tokens, unfused, work.recompute_method, work.recompute_layers
    )


def stages_of(context: Context, row: by_hand.Row) -> list[Stage]:
    table = chunk_layers(context.model.layers, row["pp"], row["vpp"])
    last = row["pp"] - 1
    return [
        Stage(p, dense, moe, p == 0, p == last, tuple(table[p]))
        for p, (dense, moe) in enumerate(both_sorts(context.model, table))
    ]


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_part_of_every_stages_memory_is_what_plain_python_says(name):
    context, layouts = sampled(name)
    assert len(layouts) >= ROWS
    job, x = job_of(context), Inputs(*context, layouts)
    engine = {part: term(x) for part, term in MEMORY_TERMS.items()}
    peaks = peak_bytes(x)
    for at in range(len(layouts)):
        row = layouts.row(at)
        stages = stages_of(context, row)
        for kind in np.flatnonzero(x.stages.count[at]).tolist():
            stage = stages[x.stages.index[at, kind]]
            for part, formula in by_hand.PARTS.items():
                said = f"{part} of stage {stage.index}, {row}"
                assert engine[part][at, kind] == pytest.approx(formula(job, row, stage)), said
        each = (sum(part(job, row, stage) for part in by_hand.PARTS.values()) for stage in stages)
        assert peaks[at] == pytest.approx(max(each)), row


TIME_TERMS = {
    "attention flops": (compute.attention_core_flops, by_clock.attention_flops),
    "attention": (
        compute.attention_core_forward_s,
        lambda c, row: by_clock.attention(c, row, backward=False),
    ),
    "dense forward": (
        directions.dense_compute_forward_s,
        lambda c, row: by_clock.forward(c, row, moe=False),
    ),
    "dense backward": (
        directions.dense_compute_backward_s,
        lambda c, row: by_clock.backward(c, row, moe=False),
    ),
    "tp": (communication.tp_forward_s, lambda c, row: by_clock.tp_traffic(c, row, 2)),
    "cp": (communication.cp_forward_s, by_clock.cp_traffic),
    "ep": (communication.ep_forward_s, by_clock.ep_traffic),
    "pp": (communication.pp_microbatch_s, by_clock.sends),
    "zero 3 gathers": (
        communication.dense_gather_s,
        lambda c, row: by_clock.sharded_layer(c, row, moe=False)[0],
    ),
    "head": (compute.head_s, by_clock.head),
    "embedding": (step.first_s, by_clock.embedding),
    "dense layer": (step.dense_layer_total_s, lambda c, row: by_clock.layer(c, row, moe=False)),
    "tied": (communication.tied_embedding_s, by_clock.tied),
}
EXPERT_TERMS = {
    "expert forward": (
        directions.moe_compute_forward_s,
        lambda c, row: by_clock.forward(c, row, moe=True),
    ),
    "expert backward": (
        directions.moe_compute_backward_s,
        lambda c, row: by_clock.backward(c, row, moe=True),
    ),
    "expert gathers": (
        communication.moe_gather_s,
        lambda c, row: by_clock.sharded_layer(c, row, moe=True)[0],
    ),
    "expert layer": (step.moe_layer_total_s, lambda c, row: by_clock.layer(c, row, moe=True)),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_each_part_of_every_steps_time_is_what_plain_python_says(name):
    context, layouts = sampled(name)
    x = Inputs(*context, layouts)
    case = Case(job_of(context), context.cluster, x.stack)
    terms = TIME_TERMS | (EXPERT_TERMS if context.model.experts else {})
    engine = {part: of(x) for part, (of, _) in terms.items()}
    steps, once = step.step_s(x), optimizer_s(x)
    sync = communication.gradient_sync_s(x), communication.parameter_gather_s(x)
    bubbles, late = step.bubble_s(x), step.exposed_sync_s(x)
    for at in range(len(layouts)):
        row = layouts.row(at)
        stages = stages_of(context, row)
        for part, (_, formula) in terms.items():
            assert engine[part][at] == pytest.approx(formula(case, row)), f"{part}, {row}"
        times = by_clock.stage_times(case, row, stages)
        told = by_clock.synced(case, row, stages)
        assert [each[at] for each in sync] == pytest.approx(list(told)), row
        assert bubbles[at] == pytest.approx(by_clock.bubble(row, times)), row
        assert late[at] == pytest.approx(by_clock.exposed(case, row, stages, max(times))), row
        assert once[at] == pytest.approx(by_clock.optimizer(case, row, stages)), row
        assert steps[at] == pytest.approx(by_clock.step(case, row, stages)), row

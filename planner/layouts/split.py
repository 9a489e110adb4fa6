"""Which layers each pipeline stage and virtual chunk holds, and how many kinds of stage that makes.

Layers are dealt evenly where their number allows. Otherwise the embedding and the output head count
as one layer each (as BLOOM's 70 + 2 and Llama 3's 126 + 2 do), so that the first and the last stage
carry one layer less; what is left over goes to the chunks nearest the end, which hold the fewest
micro-batches, but never to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from planner.layouts.table import IntArray, Layouts
from planner.specs.model import ModelSpec

Table = Sequence[Sequence[int]]
"""Layers of each [stage][chunk]."""


class StageKinds(NamedTuple):
    """Kinds of stage of each layout, shape (layouts, kinds); rows are padded with count 0.

    `index` is the first stage of its kind: under 1F1B the one that holds the most micro-batches.
    """

    dense_layers: IntArray
    moe_layers: IntArray
    first: IntArray
    last: IntArray
    index: IntArray  # type: ignore[assignment]  # not tuple.index
    count: IntArray  # type: ignore[assignment]  # not tuple.count


def chunk_layers(layers: int, pp: int, vpp: int) -> list[list[int]]:
    """Return the layers of each [stage][chunk]; layer order runs over stages, then chunks.

    Raises ValueError when there are more chunks than layers and ends to fill them with.
    """
    chunks = pp * vpp
    if layers % chunks == 0:
        flat = [layers // chunks] * chunks
    else:
        # where an end would be left empty, a stage of one chunk keeps a layer all the same
        ends = 0 if vpp == 1 and layers + 2 < 2 * chunks else 1
        base, extra = divmod(layers + 2 * ends, chunks)
        flat = [base] * chunks
        flat[0] -= ends
        flat[-1] -= ends
        for chunk in _left_over_first(pp, vpp)[:extra]:
            flat[chunk] += 1
    if not fits(layers, pp, vpp):
        raise ValueError(f"{layers} layers do not fill {pp} stages of {vpp} chunks")
    return [[flat[v * pp + p] for v in range(vpp)] for p in range(pp)]


def _left_over_first(pp: int, vpp: int) -> list[int]:
    """Return the chunks in the order in which they take a layer that is left over.

    Whole laps from the last but one on, since a pipeline waits for the longest chunk of each lap;
    within a lap from the last stage on, which holds the fewest micro-batches; the two ends last.
    """
    laps = [*range(vpp - 2, 0, -1), vpp - 1, 0] if vpp > 1 else [0]
    order = [lap * pp + stage for lap in laps for stage in range(pp - 1, -1, -1)]
    ends = (0, pp * vpp - 1)
    return [*(chunk for chunk in order if chunk not in ends), *ends]


def fits(layers: int, pp: int, vpp: int) -> bool:
    """Return whether every stage gets a layer and only the two end chunks may stay without."""
    return pp * vpp <= (layers if vpp == 1 else layers + 2)


def layers_by_cost(model: ModelSpec, pp: int) -> list[int]:
    """Return the layers of each stage when stages are filled up to equal shares of the multiplies.

    The output head has a cost, the embedding has none; the layer that fills or crosses a share
    stays on the stage that it fills (nanotron's PipelineBlock placement; its 1B runs on four stages
    are as fast as 5, 5, 5 and 1 layers). A small model's last stage may hold the head alone.
    """
    attention = 4 * model.heads * model.head_dim * model.hidden
    widths = [model.ffn] * model.layers
    if model.experts:
        routed = model.experts.top_k * model.experts.ffn + model.experts.shared_ffn
        widths = [routed if moe else model.ffn for moe in model.moe_layers]
    costs = [attention + 3 * width * model.hidden for width in widths]
    total = sum(costs) + model.vocab * model.hidden
    held, stage, done = [0] * pp, 0, 0
    for cost in costs:
        held[stage] += 1
        done += cost
        if done * pp >= total * (stage + 1) and stage < pp - 1:
            stage += 1
    return held


def chunks_of(model: ModelSpec, pp: int, vpp: int, *, by_cost: bool = False) -> list[list[int]]:
    """Return the layers of each [stage][chunk]: dealt by cost, or as `chunk_layers` deals them."""
    if by_cost and pp > 1 and vpp == 1:
        return [[held] for held in layers_by_cost(model, pp)]
    return chunk_layers(model.layers, pp, vpp)


def in_order(table: Table) -> list[int]:
    """Return the layers of each chunk in the order in which the model passes them."""
    return [row[lap] for lap in range(len(table[0])) for row in table]


CUT_FREELY = (
    "any",
    "deepspeed",
    "megatron",
    "megatron-bridge",
    "megatron-ci",
    "megatron-plain",
    "megatron-swift",
    "torchtitan",
)
"""Stacks that can be told which stage holds which layers: `--pipeline-model-parallel-layout` in
Megatron-Core, `module_fqns_per_model_part` in torchtitan, a list of layers in DeepSpeed. The older
ones deal layers evenly, nanotron by its own count of costs."""


def cuts_freely(stack: str) -> bool:
    """Return whether a stack can hold any number of layers on any stage."""
    return stack.split("+", maxsplit=1)[0] in CUT_FREELY


def stage_layers(
    model: ModelSpec, pp: int, vpp: int, *, by_cost: bool = False
) -> list[tuple[int, int]]:
    """Return (dense layers, layers with experts) of each stage."""
    return both_sorts(model, chunks_of(model, pp, vpp, by_cost=by_cost))


def both_sorts(model: ModelSpec, table: Table) -> list[tuple[int, int]]:
    """Return (dense layers, layers with experts) of each stage of a [stage][chunk] table."""
    moe = model.moe_layers
    stages = [[0, 0] for _ in table]
    at = 0
    for v in range(len(table[0])):
        for p, row in enumerate(table):
            held = moe[at : at + row[v]]
            at += row[v]
            stages[p][0] += len(held) - sum(held)
            stages[p][1] += sum(held)
    return [(dense, experts) for dense, experts in stages]


@lru_cache(maxsize=4096)
def _kinds(model: ModelSpec, pp: int, vpp: int, *, by_cost: bool) -> tuple[tuple[int, ...], ...]:
    """Return (dense, moe, first, last, index, count) of each kind of stage."""
    found: dict[tuple[int, int, int, int], list[int]] = {}
    for p, (dense, moe) in enumerate(stage_layers(model, pp, vpp, by_cost=by_cost)):
        key = (dense, moe, int(p == 0), int(p == pp - 1))
        found.setdefault(key, [p, 0])[1] += 1
    return tuple((*key, index, count) for key, (index, count) in found.items())


def stage_kinds(model: ModelSpec, layouts: Layouts, *, by_cost: bool = False) -> StageKinds:
    """Return the kinds of stage of each layout; all must satisfy `fits`."""
    key = layouts.pp * (1 << 20) + layouts.vpp
    unique, inverse = np.unique(key, return_inverse=True)
    pairs = [(int(k) >> 20, int(k) & ((1 << 20) - 1)) for k in unique]
    per_pair = [_kinds(model, pp, vpp, by_cost=by_cost) for pp, vpp in pairs]
    width = max(len(kinds) for kinds in per_pair)
    table = np.zeros((len(per_pair), width, 6), dtype=np.int64)
    for i, kinds in enumerate(per_pair):
        table[i, : len(kinds)] = kinds
    return StageKinds(*(np.ascontiguousarray(table[:, :, c])[inverse] for c in range(6)))


def all_stages(model: ModelSpec, layouts: Layouts, *, by_cost: bool = False) -> StageKinds:
    """Return every stage of a single layout as a kind of its own, shape (1, pp)."""
    return cut_stages(
        model, [chunks_of(model, int(layouts.pp[0]), int(layouts.vpp[0]), by_cost=by_cost)]
    )


def cut_stages(model: ModelSpec, tables: Sequence[Table]) -> StageKinds:
    """Return every stage of each [stage][chunk] table as a kind of its own."""
    out = np.zeros((6, len(tables), max(map(len, tables))), dtype=np.int64)
    for row, table in enumerate(tables):
        pp = len(table)
        out[:2, row, :pp] = np.array(both_sorts(model, table)).T
        out[2, row, 0] = out[3, row, pp - 1] = 1
        out[4, row, :pp] = np.arange(pp)
        out[5, row, :pp] = 1
    return StageKinds(*out)

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


def chunk_layers(layers: int, pp: int, vpp: int, folds: int = 0) -> list[list[int]]:
    """Return the layers of each [stage][chunk]; layer order runs over stages, then chunks.

    With folds of 1 it runs there and back: the first stage holds both ends of the model.

    Raises ValueError when there are more chunks than layers and ends to fill them with.
    """
    chunks = pp * vpp
    if layers % chunks == 0:
        flat = [layers // chunks] * chunks
    else:
        # where an end would be left empty, a stage that has nothing else keeps a layer all the same
        ends = 0 if (vpp == 1 or folds == 1) and layers + 2 < 2 * chunks else 1
        base, extra = divmod(layers + 2 * ends, chunks)
        flat = [base] * chunks
        flat[0] -= ends
        flat[-1] -= ends
        for chunk in _left_over_first(pp, vpp, folds)[:extra]:
            flat[chunk] += 1
    if not fits(layers, pp, vpp, folds):
        raise ValueError(f"{layers} layers do not fill {pp} stages of {vpp} chunks")
    return dealt(flat, pp, folds)


def _left_over_first(pp: int, vpp: int, folds: int) -> list[int]:
    """Return the chunks in the order in which they take a layer that is left over.

    Whole laps from the last but one on, since a pipeline waits for the longest chunk of each lap;
    within a lap from the last stage on, which holds the fewest micro-batches; the two ends last.
    """
    laps = [*range(vpp - 2, 0, -1), vpp - 1, 0] if vpp > 1 else [0]
    back = [folds == 1 and lap % 2 == 1 for lap in range(vpp)]
    order = [
        lap * pp + (pp - 1 - stage if back[lap] else stage)
        for lap in laps
        for stage in range(pp - 1, -1, -1)
    ]
    ends = (0, pp * vpp - 1)
    return [*(chunk for chunk in order if chunk not in ends), *ends]


def fits(layers: int, pp: int, vpp: int, folds: int = 0) -> bool:
    """Return whether every stage gets a layer and only the two end chunks may stay without.

    Both ends are on one stage where the model lies there and back: there each has one.
    """
    return pp * vpp <= (layers if vpp == 1 or folds == 1 else layers + 2)


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


def chunks_of(
    model: ModelSpec, pp: int, vpp: int, *, folds: int = 0, by_cost: bool = False
) -> list[list[int]]:
    """Return the layers of each [stage][chunk]: dealt by cost, or as `chunk_layers` deals them."""
    if by_cost and pp > 1 and vpp == 1:
        return [[held] for held in layers_by_cost(model, pp)]
    return chunk_layers(model.layers, pp, vpp, folds)


def in_order(table: Table, folds: int = 0) -> list[int]:
    """Return the layers of each chunk in the order in which the model passes them.

    With folds of 1 (there and back) every other lap goes from the last stage to the first.
    """
    laps = [[row[lap] for row in table] for lap in range(len(table[0]))]
    return [n for i, lap in enumerate(laps) for n in (lap[::-1] if folds == 1 and i % 2 else lap)]


def dealt(flat: Sequence[int], pp: int, folds: int = 0) -> list[list[int]]:
    """Return the [stage][chunk] table of layers in the model's order; undoes `in_order`."""
    laps = [list(flat[at : at + pp]) for at in range(0, len(flat), pp)]
    laps = [lap[::-1] if folds == 1 and i % 2 else lap for i, lap in enumerate(laps)]
    return [[lap[stage] for lap in laps] for stage in range(pp)]


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
    model: ModelSpec, pp: int, vpp: int, *, folds: int = 0, by_cost: bool = False
) -> list[tuple[int, int]]:
    """Return (dense layers, layers with experts) of each stage."""
    return both_sorts(model, chunks_of(model, pp, vpp, folds=folds, by_cost=by_cost), folds)


def both_sorts(model: ModelSpec, table: Table, folds: int = 0) -> list[tuple[int, int]]:
    """Return (dense layers, layers with experts) of each stage of a [stage][chunk] table.

    With folds of 2 a stage holds its own part of one copy of the model, and of the other copy the
    part of the stage that is as far from the other end.
    """
    until = np.concatenate([[0], np.cumsum(model.moe_layers)])
    edges = np.concatenate([[0], np.cumsum(in_order(table, folds))])
    moe = until[edges[1:]] - until[edges[:-1]]
    each = dealt(moe.tolist(), len(table), folds)
    held = np.array([[sum(row), sum(part)] for row, part in zip(table, each, strict=True)])
    if folds == 2:
        held = held + held[::-1]
    return [(layers - experts, experts) for layers, experts in held.tolist()]


def ends_of(pp: int, folds: int = 0) -> tuple[IntArray, IntArray]:
    """Return which stages hold the embedding and which the head, 0 or 1 each, shape (pp,)."""
    first, last = np.zeros(pp, dtype=np.int64), np.zeros(pp, dtype=np.int64)
    first[0] = last[0 if folds == 1 else -1] = 1
    return (first, last) if folds != 2 else (first | last, first | last)


@lru_cache(maxsize=4096)
def _kinds(
    model: ModelSpec, pp: int, vpp: int, *, folds: int, by_cost: bool
) -> tuple[tuple[int, ...], ...]:
    """Return (dense, moe, first, last, index, count) of each kind of stage."""
    found: dict[tuple[int, int, int, int], list[int]] = {}
    ends = zip(*(end.tolist() for end in ends_of(pp, folds)), strict=True)
    layers = stage_layers(model, pp, vpp, folds=folds, by_cost=by_cost)
    for p, ((dense, moe), (first, last)) in enumerate(zip(layers, ends, strict=True)):
        found.setdefault((dense, moe, first, last), [p, 0])[1] += 1
    return tuple((*key, index, count) for key, (index, count) in found.items())


def stage_kinds(model: ModelSpec, layouts: Layouts, *, by_cost: bool = False) -> StageKinds:
    """Return the kinds of stage of each layout; all must satisfy `fits`."""
    key = (layouts.pp << 22) + (layouts.vpp << 2) + layouts.folds
    unique, inverse = np.unique(key, return_inverse=True)
    per_key = [
        _kinds(
            model, int(k) >> 22, (int(k) >> 2) & ((1 << 20) - 1), folds=int(k) & 3, by_cost=by_cost
        )
        for k in unique
    ]
    width = max(len(kinds) for kinds in per_key)
    table = np.zeros((len(per_key), width, 6), dtype=np.int64)
    for i, kinds in enumerate(per_key):
        table[i, : len(kinds)] = kinds
    by_column = np.ascontiguousarray(table.T)  # each kind's column contiguous, as formulas run
    return StageKinds(*(by_column[c].take(inverse, axis=1).T for c in range(6)))


def all_stages(model: ModelSpec, layouts: Layouts, *, by_cost: bool = False) -> StageKinds:
    """Return every stage of a single layout as a kind of its own, shape (1, pp)."""
    pp, vpp, folds = (int(a[0]) for a in (layouts.pp, layouts.vpp, layouts.folds))
    return cut_stages(model, [chunks_of(model, pp, vpp, folds=folds, by_cost=by_cost)], [folds])


def cut_stages(
    model: ModelSpec, tables: Sequence[Table], folds: Sequence[int] | None = None
) -> StageKinds:
    """Return every stage of each [stage][chunk] table as a kind of its own."""
    out = np.zeros((6, len(tables), max(map(len, tables))), dtype=np.int64)
    for row, table in enumerate(tables):
        pp, way = len(table), 0 if folds is None else folds[row]
        out[:2, row, :pp] = np.array(both_sorts(model, table, way)).T
        out[2:4, row, :pp] = ends_of(pp, way)
        out[4, row, :pp] = np.arange(pp)
        out[5, row, :pp] = 1
    return StageKinds(*out)

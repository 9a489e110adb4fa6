"""Layers to stages, stages to a pipeline: the slowest stage, and what it waits for the others."""

from __future__ import annotations

import numpy as np

from planner.estimate.communication import (
    embedding_sharding_s,
    pp_microbatch_s,
)
from planner.estimate.compute import embedding_s, head_s
from planner.estimate.inputs import FloatArray, Inputs, term, widest
from planner.estimate.layer import (
    BOTH_HIDE,
    HIDEABLE,
    LAYER,
    dense_layer_total_s,
    directions_s,
    moe_directions_s,
    moe_layer_total_s,
)
from planner.layouts.table import HIDES, SPLITS
from planner.sources import (
    DUALPIPE,
    MEGATRON_2021,
    ZERO_BUBBLE_2023,
)

ENDS = ("tp", "sp", "cp", "pp", "vpp", "dp", "dp_replicate", "zero", "micro_batch")


@term(
    unit="1",
    formula="1; weight gradients apart: max(F, I, F + I - W) / (F + I + W) of the commonest layer; "
    "fewer than pp-1 micro-batches have W m/(pp-1)",
    source=ZERO_BUBBLE_2023,
    on=(*LAYER, "pp", "schedule"),
)
def unfilled_share(x: Inputs) -> FloatArray:
    """Share of a pipeline's idle time that weight gradients do not fill.

    Exact for ZB-H1 of equal stages and as many micro-batches; F forward, I backward to the input,
    W weight gradients.
    """
    lay = x.layouts
    splits = SPLITS[lay.schedule]
    if not splits.any():
        return np.ones(len(lay))
    moe = bool(x.model.experts) and 2 * sum(x.model.moe_layers) > x.model.layers
    forward, given, weight = directions_s(x, moe=moe).T
    few = np.minimum(lay.num_microbatches / np.maximum(lay.pp - 1, 1), 1.0)
    left = np.maximum(np.maximum(forward, given), forward + given - few * weight)
    whole = forward + given + weight
    share = np.divide(left, whole, out=np.ones_like(whole), where=whole > 0)
    return np.where(splits, share, 1.0)


@term(
    unit="s",
    formula=f"min({BOTH_HIDE:.0%} of the all-to-all, layer - host) * (1 - 5/4 pp/m), schedules "
    "that run both ways at once",
    source=DUALPIPE,
    on=(*LAYER, "pp", "schedule"),
)
def hidden_s(x: Inputs) -> FloatArray:
    """Expert traffic of a layer that is hidden where a forward and a backward run as one.

    A rank of DualPipeV runs 2m - 3pp + rank + 1 of its 2m pairs so.
    """
    lay = x.layouts
    at_once = HIDES[lay.schedule]
    if not at_once.any():
        return np.zeros(len(lay))
    often = np.clip(1.0 - 1.25 * lay.pp / lay.num_microbatches, 0.0, 1.0)
    return np.where(at_once, often * hideable_s(x), 0.0)


def hideable_s(x: Inputs) -> FloatArray:
    """Return the expert traffic of one layer that a forward and a backward hide at once.

    Both together take no less than the host needs to launch them, or ZeRO's traffic.
    """
    hidden: FloatArray = moe_directions_s(x)[:, :, HIDEABLE].sum(axis=1)
    return hidden


@term(
    unit="s",
    formula="(layers * layer time + embedding (first) + head (last)) / copies of the model + sends "
    "+ 0.6 ms",
    source=MEGATRON_2021,
    on=(),
)
def stage_microbatch_s(x: Inputs) -> FloatArray:
    """One micro-batch, forward and backward, at every kind of stage, shape (layouts, kinds).

    Where a pipeline holds two copies of the model, each takes half of the micro-batches.
    """
    total = x.by(ENDS, stage_fixed_s)
    if x.model.experts is None or not all(x.model.moe_layers):
        total = total + x.by(("pp", "vpp"), _dense_layers) * dense_layer_total_s(x)[:, None]
    if x.model.experts is not None:
        total = total + x.by(("pp", "vpp"), _moe_layers) * _moe_seen_s(x)[:, None]
    return total


def _moe_seen_s(x: Inputs) -> FloatArray:
    """Return the time of a layer with experts, without what of it is hidden."""
    total = moe_layer_total_s(x)
    return total - hidden_s(x) if x.runs(HIDES) else total


def first_s(x: Inputs) -> FloatArray:
    """Return what the first stage has for a micro-batch beside its layers."""
    return embedding_s(x) + embedding_sharding_s(x)


def stage_fixed_s(x: Inputs) -> FloatArray:
    """Return what each kind of stage takes without its layers; nothing where there is none."""
    s = x.stages
    ends = s.first * first_s(x)[:, None] + s.last * head_s(x)[:, None]
    each = pp_microbatch_s(x)[:, None] + x.stack.microbatch_s
    return np.where(s.count > 0, ends / x.layouts.copies[:, None] + each, 0.0)


def _dense_layers(x: Inputs) -> FloatArray:
    return np.where(x.stages.count > 0, x.stages.dense_layers, 0) / x.layouts.copies[:, None]


def _moe_layers(x: Inputs) -> FloatArray:
    return np.where(x.stages.count > 0, x.stages.moe_layers, 0) / x.layouts.copies[:, None]


def _stage_counts(x: Inputs) -> FloatArray:
    return x.stages.count.astype(np.float64)


def slowest_stage_s(x: Inputs) -> FloatArray:
    """Return the time of one micro-batch at the slowest stage."""
    return x.by((), _slowest_stage_s)


def _slowest_stage_s(x: Inputs) -> FloatArray:
    return widest(stage_microbatch_s(x))


@term(
    unit="s",
    formula="(sum of all stages' time - the slowest's) / vpp (fewer than pp micro-batches in "
    "chunks: sum + (m-1) slowest/vpp - m slowest) * what weight gradients do not fill",
    source=MEGATRON_2021,
    on=(),
)
def bubble_s(x: Inputs) -> FloatArray:
    """Time that the slowest stage waits for the others: (pp-1)/vpp stages when all are equal.

    Fewer micro-batches than stages leave a rank idle in every lap of its chunks. Two copies of the
    model fill from both ends: pp/2 - 1 stages.
    """
    counts = x.by(("pp", "vpp"), _stage_counts)
    every: FloatArray = np.add.reduce(list((stage_microbatch_s(x) * counts).T))
    slowest, vpp, m = slowest_stage_s(x), x.layouts.vpp, x.layouts.num_microbatches
    laps = (vpp > 1) & (m < x.layouts.pp)
    few = every + (m - 1) * slowest / vpp - m * slowest
    bubble: FloatArray = np.where(laps, few, (every - slowest) / vpp)
    if not x.runs(SPLITS):
        return bubble
    half = np.maximum(x.layouts.pp / 2 - 1, 0.0) / np.maximum(x.layouts.pp - 1, 1)
    return bubble * np.where(x.layouts.copies == 2, half, 1.0) * unfilled_share(x)

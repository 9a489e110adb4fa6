"""Bytes of activations that a pipeline stage holds at its peak: micro-batches times layers."""

from __future__ import annotations

import numpy as np

from planner.estimate.compute import EXPERT_SHARD
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.modules import AGAIN
from planner.estimate.recompute import (
    kept_layer_bytes,
    kept_stage_bytes,
    live_layers,
    whole_layer_bytes,
)
from planner.layouts.table import SCHEDULE
from planner.sources import GPIPE_2019, MEGATRON_2021


@term(
    unit="micro-batches",
    formula="gpipe, looped-bfs m; 1f1b min(m, pp-stage); zb-h1, zbv min(m, pp); interleaved "
    "min(m*v, 2(pp-stage-1)+(v-1)pp+1)/v; interleaved-zb min(m*v, v*pp)/v; dualpipev pp+1/2",
    source=MEGATRON_2021,
    on=("pp", "vpp", "schedule", "num_microbatches"),
)
def microbatches_in_flight(x: Inputs) -> FloatArray:
    """Micro-batches whose activations a stage holds at its peak, in whole-stage equivalents.

    Held until their weight gradients are made. Where micro-batches are too few for a steady phase
    it is the most that there can be. With two copies of the model a whole stage is a part of each.
    """
    lay, stage = x.layouts, x.stages.index
    m, p, v = (a[:, None] for a in (lay.num_microbatches, lay.pp, lay.vpp))
    group = m // np.maximum(1, m // p)  # micro-batches that pass a chunk in a row
    lap = (v - 1) * group
    chunks = {
        "gpipe": m,
        "1f1b": np.minimum(m, p - stage),
        "interleaved": np.minimum(m * v, 2 * (p - stage - 1) + lap + 1),
        "looped-bfs": m * v,
        "zb-h1": np.minimum(m, p),
        "interleaved-zb": np.minimum(m * v, lap + p),
        "zbv": np.minimum(2 * m, 2 * p),
        "dualpipev": 2 * p + 1,
        "dualpipe": p + 1,
    }
    per_stage = v * lay.copies[:, None]
    schedule = lay.schedule[:, None]
    held = np.ones(np.broadcast_shapes(schedule.shape, stage.shape))
    for name, most in chunks.items():
        held = np.where(schedule == SCHEDULE.index(name), most / per_stage, held)
    return held


@term(
    unit="bytes",
    formula="micro-batches in flight * what the stage's layers keep of one",
    source=GPIPE_2019,
    on=(*EXPERT_SHARD, "pp", "vpp", "schedule", "num_microbatches", *AGAIN),
)
def kept_activations_bytes(x: Inputs) -> FloatArray:
    """What all layers of a stage keep of the micro-batches in flight."""
    return microbatches_in_flight(x) * kept_stage_bytes(x)


@term(
    unit="bytes",
    formula="in flight * sum of the stage's layers + what is recomputed at once + its gradients",
    source=GPIPE_2019,
    on=(*EXPERT_SHARD, "pp", "vpp", "schedule", "num_microbatches", *AGAIN),
)
def activations_bytes(x: Inputs) -> FloatArray:
    """Activations that a stage holds at its peak."""
    s = x.stages
    dense, moe = (whole[:, None] for whole in whole_layer_bytes(x))
    held = kept_activations_bytes(x)
    ahead = x.stack.layers_ahead * np.where(s.moe_layers > 0, moe, dense)
    pending = np.where(x.layouts.num_microbatches[:, None] > 1, ahead, 0.0)
    return held + _made_again_bytes(x) + pending + _backward_working_bytes(x)[:, None]


def _made_again_bytes(x: Inputs) -> FloatArray:
    """Return what recompute makes again, and is not counted as kept, while a layer runs backward.

    The heavier kind of layer that the stage has; of full recompute as many as make one unit.
    """
    moe = x.stages.moe_layers > 0
    whole, kept = (
        np.where(moe, experts[:, None], dense[:, None])
        for dense, experts in (whole_layer_bytes(x), kept_layer_bytes(x))
    )
    again: FloatArray = np.maximum(live_layers(x) * whole - kept, 0.0)
    return np.where(x.layouts.recompute[:, None] > 0, again, 0.0)


def _backward_working_bytes(x: Inputs) -> FloatArray:
    """Return the gradients of activations alive while one layer runs backward: 4 T f + 4 T h."""
    width = float(x.model.ffn)
    if x.model.experts:
        width = max(x.model.experts.shared_ffn, x.model.experts.ffn)
    tokens = x.rank_tokens
    return 4.0 * tokens * width / x.layouts.tp + 4.0 * tokens * x.model.hidden / x.sp_ways

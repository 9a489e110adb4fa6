"""What is left of a layer's activations under recompute: which modules, and of which layers.

`none` keeps all, `full` the input of each layer (or of every few, or of some layers only),
`selective` all but what its modules make again. Module names are Megatron-Core's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.estimate.activations import (
    autocasts,
    core_bytes,
    dense_layer_activation_bytes,
    expert_activation_bytes,
    experts_bytes,
    feed_forward_bytes,
    moe_layer_activation_bytes,
    norm_output_bytes,
    up_projection_bytes,
)
from planner.estimate.compute import EXPERT_SHARD
from planner.estimate.experts import received_tokens
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.modules import FULL, layers_each, recomputed_modules
from planner.estimate.offloading import layers_within, windows
from planner.layouts.table import IntArray
from planner.sources import TRANSFORMER_ENGINE

SELECTIVE = 1
"""Code of recompute=selective."""


def _shared(x: Inputs) -> FloatArray:
    return feed_forward_bytes(x, x.model.experts.shared_ffn if x.model.experts else 0)


EVERYWHERE: dict[str, Callable[[Inputs], FloatArray]] = {
    "core_attn": core_bytes,
    "layernorm": norm_output_bytes,
    "mla_up_proj": up_projection_bytes,
}
DENSE: dict[str, Callable[[Inputs], FloatArray]] = {
    **EVERYWHERE,
    "mlp": lambda x: feed_forward_bytes(x, x.model.ffn),
}
WITH_EXPERTS: dict[str, Callable[[Inputs], FloatArray]] = {
    **EVERYWHERE,
    "moe_act": expert_activation_bytes,
    "moe": experts_bytes,
    "shared_experts": _shared,
}
"""What a module saves that recomputing it drops, in a dense layer and in one with experts."""


def dropped_bytes(x: Inputs, *, moe: bool) -> FloatArray:
    """Return what selective recompute drops of one layer; `moe` covers what is inside it."""
    modules = recomputed_modules(x)
    saved = WITH_EXPERTS if moe else DENSE
    parts = [saved[name](x) for name in sorted(modules & saved.keys())]
    return np.sum(parts, axis=0) if parts else np.zeros(len(x.layouts))


def _op_policy_bytes(x: Inputs, width: int) -> FloatArray:
    """Return what torchtitan's 'op' policy keeps: every second multiply, attention, input."""
    m, tokens, tp = x.model, x.rank_tokens, x.layouts.tp
    heads = 2.0 * m.heads * x.qk_dim + m.kv_heads * x.v_dim
    kept = 2.0 * tokens * (heads + width) + 4.0 * tokens * m.heads
    return 4.0 * tokens * m.hidden / x.sp_ways + kept / tp


def _selective_bytes(x: Inputs, *, moe: bool) -> FloatArray:
    """Return what one layer keeps under selective recompute."""
    experts = x.model.experts
    if moe and experts is None:
        return np.zeros(len(x.layouts))
    if x.stack.activations != "dtensor":
        whole = moe_layer_activation_bytes(x) if moe else dense_layer_activation_bytes(x)
        return whole - dropped_bytes(x, moe=moe)
    if not moe or experts is None:
        return _op_policy_bytes(x, x.model.ffn)
    inside = 2.0 * received_tokens(x) * (x.model.hidden + experts.ffn / x.layouts.etp)
    return _op_policy_bytes(x, experts.shared_ffn) + inside


def checkpoint_bytes(x: Inputs) -> FloatArray:
    """Return the input of a layer, which full recompute keeps: 2 T h, split with sp.

    Under autocast the stream between layers is fp32.
    """
    return np.where(autocasts(x), 4.0, 2.0) * x.rank_tokens * x.model.hidden / x.sp_ways


def _with_recompute(x: Inputs, none: FloatArray, selective: FloatArray) -> FloatArray:
    kind = x.layouts.recompute
    return np.where(kind == FULL, checkpoint_bytes(x), np.where(kind == SELECTIVE, selective, none))


def whole_layer_bytes(x: Inputs) -> tuple[FloatArray, FloatArray]:
    """Return what a dense layer and one with experts save with nothing recomputed."""
    return dense_layer_activation_bytes(x), moe_layer_activation_bytes(x)


def kept_layer_bytes(x: Inputs) -> tuple[FloatArray, FloatArray]:
    """Return what a dense layer and one with experts keep under the layout's recompute."""
    dense, moe = whole_layer_bytes(x)
    return (
        _with_recompute(x, dense, _selective_bytes(x, moe=False)),
        _with_recompute(x, moe, _selective_bytes(x, moe=True)),
    )


def kept_stage_bytes(x: Inputs) -> FloatArray:
    """Return what the layers of a stage keep of one micro-batch, shape (layouts, kinds).

    Full recompute by units keeps the input of every n layers of a chunk; by blocks the first n
    layers of each chunk keep their input, and the others everything.
    """
    s = x.stages
    dense, moe = (kept[:, None] for kept in kept_layer_bytes(x))
    kept = s.dense_layers * dense + s.moe_layers * moe
    if x.stack.offload_layers:
        kept = kept - np.where(x.layouts.pp == 1, away_bytes(x), 0.0)[:, None]
    if not x.has_units:
        return kept
    points = x.by(UNITS, _points)
    full = x.layouts.recompute[:, None] == FULL
    kept = np.where(full, 0.0, kept)
    kept += np.where(full, points * checkpoint_bytes(x)[:, None], 0.0)
    if x.has_blocks:
        whole = (layer[:, None] for layer in whole_layer_bytes(x))
        left = zip(whole, (x.by(UNITS, _dense_left), x.by(UNITS, _moe_left)), strict=True)
        kept += np.where(full, sum(layer * layers for layer, layers in left), 0.0)
    return kept


@term(
    unit="bytes",
    formula="what all layers keep - the most that any L - N which follow each other do",
    source=TRANSFORMER_ENGINE,
    on=(*EXPERT_SHARD, "recompute", "zero"),
)
def away_bytes(x: Inputs) -> FloatArray:
    """Activations that are not on the GPU when it holds most: of N offloaded layers of L."""
    if not x.stack.offload_layers:
        return np.zeros(len(x.layouts))
    dense, moe = kept_layer_bytes(x)
    layers = x.model.layers
    all_of = layers_within(x.model, 0, layers)
    here = [d * dense + m * moe for d, m in sorted(windows(x.model, _offloaded(x)))]
    away: FloatArray = all_of[0] * dense + all_of[1] * moe - np.maximum.reduce(here)
    return away


@term(
    unit="bytes",
    formula="what the first N layers keep of one micro-batch",
    source=TRANSFORMER_ENGINE,
    on=(*EXPERT_SHARD, "recompute", "zero"),
)
def offloaded_bytes(x: Inputs) -> FloatArray:
    """Activations that a micro-batch sends to the host in forward, and gets back in backward."""
    dense, moe = kept_layer_bytes(x)
    sent = layers_within(x.model, 0, _offloaded(x))
    total: FloatArray = sent[0] * dense + sent[1] * moe
    return total


def _offloaded(x: Inputs) -> int:
    return min(x.stack.offload_layers, x.model.layers - 1)


UNITS = ("pp", "vpp", "schedule", "recompute_units")


def _points(x: Inputs) -> FloatArray:
    """Return the layers whose input a stage keeps; its layers are taken as evenly chunked."""
    s, chunks = x.stages, _chunks(x)
    each, block = (column[:, None] for column in layers_each(x))
    layers = s.dense_layers + s.moe_layers
    less, longer = np.divmod(layers, chunks)
    units = longer * -(-(less + 1) // each) + (chunks - longer) * -(-less // each)
    return np.where(block, _again(x), units).astype(np.float64)


def _chunks(x: Inputs) -> IntArray:
    """Return the chunks of a stage, those of both copies of the model."""
    chunks: IntArray = x.layouts.vpp * x.layouts.copies
    return chunks[:, None]


def _again(x: Inputs) -> IntArray:
    """Return the layers of a stage that are in blocks."""
    each, _ = layers_each(x)
    held = x.stages.dense_layers + x.stages.moe_layers
    again: IntArray = np.minimum(each[:, None] * _chunks(x), held)
    return again


def _dense_left(x: Inputs) -> FloatArray:
    """Return the dense layers that blocks leave whole; a model's dense layers are its first."""
    left = np.maximum(x.stages.dense_layers - _again(x), 0)
    return np.where(layers_each(x)[1][:, None], left, 0).astype(np.float64)


def _moe_left(x: Inputs) -> FloatArray:
    """Return the layers with experts that blocks leave whole."""
    dense, moe = x.stages.dense_layers, x.stages.moe_layers
    left = moe - np.maximum(_again(x) - dense, 0)
    return np.where(layers_each(x)[1][:, None], left, 0).astype(np.float64)


def live_layers(x: Inputs) -> FloatArray:
    """Return the layers that recompute makes whole again at once: those of one unit of a chunk."""
    if not x.has_units:
        return np.ones(x.stages.count.shape)
    full = x.layouts.recompute[:, None] == FULL
    return np.where(full, x.by(UNITS, _unit_layers), 1.0)


def _unit_layers(x: Inputs) -> FloatArray:
    each, block = (column[:, None] for column in layers_each(x))
    longest = -(-(x.stages.dense_layers + x.stages.moe_layers) // _chunks(x))
    unit = np.minimum(each, np.maximum(longest, 1))
    return np.where(block, 1, unit).astype(np.float64)

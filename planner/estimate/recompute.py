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
from planner.estimate.modules import FULL, recomputed_modules
from planner.estimate.offloading import layers_within, windows
from planner.estimate.units import counts
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
    full, by = x.layouts.recompute[:, None] == FULL, x.once(counts)
    points = by.points * checkpoint_bytes(x)[:, None]
    if x.has_blocks:
        whole_dense, whole_moe = (whole[:, None] for whole in whole_layer_bytes(x))
        points = points + by.dense_left * whole_dense + by.moe_left * whole_moe
    return np.where(full, points, kept)


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


def live_layers(x: Inputs) -> FloatArray:
    """Return the layers that recompute makes whole again at once: those of one unit of a chunk."""
    if not x.has_units:
        return np.ones_like(x.stages.count, dtype=np.float64)
    return np.where(x.layouts.recompute[:, None] == FULL, x.once(counts).live, 1.0)

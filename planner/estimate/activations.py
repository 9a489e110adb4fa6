"""Bytes that layers save for backward on one GPU, layer by layer and stage by stage."""

from __future__ import annotations

import numpy as np

from planner.estimate.compute import EXPERT_SHARD, SHARD
from planner.estimate.experts import received_tokens
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import uses_fp8
from planner.sources import (
    GPIPE_2019,
    KORTHIKANTI_2022,
    MEGATRON_2021,
    MEGATRON_CORE,
    SWITCH_2021,
)
from planner.specs.model import Norm, QkNorm
from planner.specs.parameters import padded_vocab

LOGIT_BYTES = {"megatron": 6.0, "dtensor": 12.0, "hf": 14.0, "eager": 12.0}
"""Bytes a logit at the loss: 16 bit, fp32 and its gradient; HF's logits stay referenced."""


def _stored_bytes(x: Inputs) -> float:
    """Return the bytes of an element that a multiply saves as its input: 1 where that is FP8.

    Only where nothing else needs the 16-bit tensor: norm outputs and the second projection's input
    (Transformer Engine saves the cast). FP8 weights and their transposes take the place of 16 bit.
    """
    return 1.0 if x.stack.activations == "megatron" and uses_fp8(x) else 2.0


def _heads_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of queries, keys, values and the attention output."""
    m, tp, tokens = x.model, x.layouts.tp, x.rank_tokens
    kv = np.maximum(m.kv_heads, tp) if m.mla is None else np.full(len(x.layouts), m.heads)
    if x.stack.activations == "hf" and x.stack.attention_kernel == "unfused":
        kv = np.full(len(x.layouts), m.heads)  # keys and values repeated to all heads
    query = m.heads * (x.qk_dim + x.v_dim)
    normed = m.qk_norm != QkNorm.NONE
    again = (m.heads + kv) * x.qk_dim if normed else 0
    if x.stack.activations == "eager":
        # The output again, copied from [batch, seq] to [seq, batch]; and the fused projection's
        # whole output, kept by the values that are a view of it beside rotated queries and keys.
        again = again + m.heads * x.v_dim + (m.heads + kv) * x.qk_dim
    elements = tokens * (query + kv * (x.qk_dim + x.v_dim) + again)
    cast = tokens * m.heads * x.v_dim if _stored_bytes(x) < 2.0 else 0.0  # FP8 beside the output
    total: FloatArray = (2.0 * elements + cast) / tp
    return total


def _core_bytes(x: Inputs) -> FloatArray:
    """Return what attention saves between q, k, v and its output.

    Fused kernels save a statistic of each row, others the scores: softmax (2), dropped out (2) and
    the mask (1); 6 bytes where softmax is fp32 and cast.
    """
    m, tokens = x.model, x.rank_tokens
    if x.stack.attention_kernel != "unfused":
        return 4.0 * tokens * m.heads / x.layouts.tp
    each = 2.0 if x.stack.activations == "megatron" else 6.0
    each += 3.0 if m.dropout else 0.0
    scores: FloatArray = each * m.heads * tokens * x.workload.seq_tokens / x.layouts.tp
    return scores


def _latent_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of MLA's compressed queries, keys and values (split with sp)."""
    if x.model.mla is None:
        return np.zeros(len(x.layouts))
    low = (x.model.mla.q_lora_rank or 0) + x.model.mla.kv_lora_rank
    return 4.0 * x.rank_tokens / x.sp_ways * low


def _norm_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of a layer's norms: input, output and statistics of each."""
    m, tokens = x.model, x.rank_tokens
    count = m.norms_per_layer
    stats = count * (8.0 if m.norm == Norm.LAYERNORM else 4.0) * tokens / x.sp_ways
    if x.stack.activations == "hf":  # an fp32 copy of the input beside the normalised one
        return 8.0 * count * tokens * m.hidden + stats
    if x.stack.activations == "dtensor":  # autograd saves the gathered output of each norm whole
        return 2.0 * count * tokens * m.hidden * (1 / x.sp_ways + 1) + stats
    inputs = 2.0 * count * tokens * m.hidden / x.sp_ways
    return inputs + _norm_outputs(x) + stats


def _dropout_bytes(x: Inputs) -> FloatArray:
    masks = 2.0 if x.model.dropout else 0.0
    return masks * x.rank_tokens * x.model.hidden / x.sp_ways


def _mlp_bytes(x: Inputs, width: int) -> FloatArray:
    """Return the saved bytes of a feed-forward: gated 6 T f fused, 8 T f not fused."""
    return _width_bytes(x) * x.rank_tokens * width / x.layouts.tp


def _width_bytes(x: Inputs) -> float:
    """Return the saved bytes per token and channel of a feed-forward."""
    if x.stack.activations != "megatron":
        return 8.0 if x.model.gated_mlp else 4.0
    return (4.0 if x.model.gated_mlp else 2.0) + _stored_bytes(x)


def _attention_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of a layer without its feed-forward."""
    outside = _norm_bytes(x) + _latent_bytes(x) + _dropout_bytes(x)
    return outside + _heads_bytes(x) + _core_bytes(x)


@term(
    unit="bytes",
    formula="[4 n T h + stats]/sp + [2T(q + k + v + out) + 4 T a + 6 T f]/tp; unfused + 5 T s a/tp",
    source=KORTHIKANTI_2022,
    on=SHARD,
)
def dense_layer_activation_bytes(x: Inputs) -> FloatArray:
    """Saved for backward by one dense layer and micro-batch, nothing recomputed.

    Terms as Megatron-Core saves them (n norms, gated); the other families keep more, FP8 less.
    """
    return _attention_bytes(x) + _mlp_bytes(x, x.model.ffn)


@term(
    unit="bytes",
    formula="attention part + 9 T E/sp + received*(2 h + 6 f_expert) + shared experts",
    source=SWITCH_2021,
    on=EXPERT_SHARD,
)
def moe_layer_activation_bytes(x: Inputs) -> FloatArray:
    """Saved for backward by one layer with experts on the busiest rank, nothing recomputed."""
    experts = x.model.experts
    if experts is None:
        return np.zeros(len(x.layouts))
    router = 9.0 * x.rank_tokens / x.sp_ways * experts.count
    inside = _width_bytes(x) * experts.ffn / x.layouts.etp + _stored_bytes(x) * x.model.hidden
    if x.stack.activations != "megatron":  # the weighted output of fc2 and the indices stay too
        inside = inside + 2.0 * x.model.hidden + 28.0
    outside = _attention_bytes(x) + router
    return outside + received_tokens(x) * inside + _mlp_bytes(x, experts.shared_ffn)


def _selective_dense(x: Inputs) -> FloatArray:
    """Return what one dense layer keeps under selective recompute."""
    if x.stack.activations == "dtensor":
        return _op_recompute_bytes(x, x.model.ffn)
    return dense_layer_activation_bytes(x) - _recomputed(x)


def _selective_moe(x: Inputs) -> FloatArray:
    """Return what one layer with experts keeps under selective recompute."""
    experts = x.model.experts
    if experts is None:
        return np.zeros(len(x.layouts))
    if x.stack.activations == "dtensor":
        inside = 2.0 * received_tokens(x) * (x.model.hidden + experts.ffn / x.layouts.etp)
        return _op_recompute_bytes(x, experts.shared_ffn) + inside
    if x.stack.attention_kernel == "unfused":
        return moe_layer_activation_bytes(x) - _recomputed(x)
    activation = _stored_bytes(x) * received_tokens(x) * experts.ffn / x.layouts.etp
    return moe_layer_activation_bytes(x) - _recomputed(x) - activation


def _recomputed(x: Inputs) -> FloatArray:
    """Return what selective recompute drops outside of experts: scores, where attention has any."""
    if x.stack.attention_kernel == "unfused":
        return _core_bytes(x)
    return _norm_outputs(x) + _up_projections(x)


def _norm_outputs(x: Inputs) -> FloatArray:
    return _stored_bytes(x) * x.model.norms_per_layer * x.rank_tokens * x.model.hidden / x.sp_ways


def _up_projections(x: Inputs) -> FloatArray:
    if x.model.mla is None:
        return np.zeros(len(x.layouts))
    return 2.0 * x.rank_tokens * x.model.heads * (2 * x.qk_dim + x.v_dim) / x.layouts.tp


def _op_recompute_bytes(x: Inputs, width: int) -> FloatArray:
    """Return what torchtitan's 'op' policy keeps: every second multiply, attention, input."""
    m, tokens, tp = x.model, x.rank_tokens, x.layouts.tp
    heads = 2.0 * m.heads * x.qk_dim + m.kv_heads * x.v_dim
    kept = 2.0 * tokens * (heads + width) + 4.0 * tokens * m.heads
    return 4.0 * tokens * m.hidden / x.sp_ways + kept / tp


def _with_recompute(x: Inputs, none: FloatArray, selective: FloatArray) -> FloatArray:
    """Return the bytes that a layer keeps; full recompute keeps the layer's input only."""
    checkpoint = 2.0 * x.rank_tokens * x.model.hidden / x.sp_ways
    kind = x.layouts.recompute
    return np.where(kind == 0, none, np.where(kind == 1, selective, checkpoint))


def whole_layer_bytes(x: Inputs) -> tuple[FloatArray, FloatArray]:
    """Return what a dense layer and one with experts save with nothing recomputed."""
    return dense_layer_activation_bytes(x), moe_layer_activation_bytes(x)


def kept_layer_bytes(x: Inputs) -> tuple[FloatArray, FloatArray]:
    """Return what a dense layer and one with experts keep under the layout's recompute."""
    dense, moe = whole_layer_bytes(x)
    return (
        _with_recompute(x, dense, _selective_dense(x)),
        _with_recompute(x, moe, _selective_moe(x)),
    )


@term(
    unit="micro-batches",
    formula="gpipe m; 1f1b min(m, pp-stage); interleaved min(m*v, 2(pp-stage-1)+(v-1)pp+1)/v",
    source=MEGATRON_2021,
    on=("pp", "vpp", "schedule", "num_microbatches"),
)
def microbatches_in_flight(x: Inputs) -> FloatArray:
    """Micro-batches whose activations a stage holds at its peak, in whole-stage equivalents."""
    lay, stage = x.layouts, x.stages.index
    m, p, v = (a[:, None] for a in (lay.num_microbatches, lay.pp, lay.vpp))
    flat = np.minimum(m, p - stage)
    interleaved = np.minimum(m * v, 2 * (p - stage - 1) + (v - 1) * p + 1) / v
    schedule = lay.schedule[:, None]
    held = np.where(schedule == 1, m, np.where(schedule == 3, interleaved, flat))
    return np.where(p == 1, 1.0, held).astype(np.float64)


@term(
    unit="bytes",
    formula="in flight * sum of the stage's layers + one layer being recomputed + its gradients",
    source=GPIPE_2019,
    on=(*EXPERT_SHARD, "pp", "vpp", "schedule", "num_microbatches", "recompute"),
)
def activations_bytes(x: Inputs) -> FloatArray:
    """Activations that a stage holds at its peak."""
    s = x.stages
    dense, moe = whole_layer_bytes(x)
    kept_dense, kept_moe = (kept[:, None] for kept in kept_layer_bytes(x))
    held = microbatches_in_flight(x) * (s.dense_layers * kept_dense + s.moe_layers * kept_moe)
    live = np.where(s.moe_layers > 0, moe[:, None], dense[:, None])
    again = np.where(
        x.layouts.recompute[:, None] > 0,
        live - np.where(s.moe_layers > 0, kept_moe, kept_dense),
        0.0,
    )
    pending = np.where(x.layouts.num_microbatches[:, None] > 1, x.stack.layers_ahead * live, 0.0)
    return held + np.maximum(again, 0.0) + pending + _backward_working_bytes(x)[:, None]


def _backward_working_bytes(x: Inputs) -> FloatArray:
    """Return the gradients of activations alive while one layer runs backward: 4 T f + 4 T h."""
    width = float(x.model.ffn)
    if x.model.experts:
        width = max(x.model.experts.shared_ffn, x.model.experts.ffn)
    tokens = x.rank_tokens
    return 4.0 * tokens * width / x.layouts.tp + 4.0 * tokens * x.model.hidden / x.sp_ways


@term(
    unit="bytes",
    formula="8 T V/tp (Megatron); 12 T V/tp (FSDP2, fp32 loss); 14 T V (HF loss)",
    source=MEGATRON_CORE,
    on=(*SHARD, "pp", "vpp"),
)
def logits_bytes(x: Inputs) -> FloatArray:
    """Logits, their fp32 copy and gradient while the last stage computes the loss."""
    width = padded_vocab(x.model.vocab, x.layouts.tp) / x.layouts.tp
    each = x.stack.logit_bytes or LOGIT_BYTES[x.stack.activations]
    if x.stack.activations == "hf":
        width = np.full(len(x.layouts), float(x.model.vocab))
    return x.stages.last * (each * x.rank_tokens * width)[:, None]

"""Bytes that one layer saves for backward on one GPU, nothing recomputed, and the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.estimate.compute import EXPERT_SHARD, SHARD
from planner.estimate.experts import received_tokens, routed_tokens
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import uses_fp8
from planner.sources import KORTHIKANTI_2022, MEGATRON_CORE, SWITCH_2021
from planner.specs.model import Norm, QkNorm
from planner.specs.parameters import padded_vocab

LOGIT_BYTES = {"megatron": 6.0, "dtensor": 12.0, "hf": 14.0, "eager": 12.0}
"""Bytes a logit at the loss: 16 bit, fp32 and its gradient; HF's logits stay referenced."""


AUTOCAST_GELU = 16.0
PYTHON_GELU = 10.0
"""Bytes per channel of GPT-2's GELU, which is five elementwise kernels in transformers
(activations.NewGELUActivation); under autocast its cube and its tanh are fp32."""


def autocasts(x: Inputs) -> NDArray[np.bool_]:
    """Return where fp32 weights are cast for each multiply: without FSDP2, whose copies are."""
    on: NDArray[np.bool_] = x.stack.autocast & (x.layouts.zero < 2)
    return on


def _stored_bytes(x: Inputs) -> float:
    """Return the bytes of an element that a multiply saves as its input: 1 where that is FP8.

    Only where nothing else needs the 16-bit tensor: norm outputs and the second projection's input
    (Transformer Engine saves the cast). FP8 weights and their transposes take the place of 16 bit.
    """
    return 1.0 if x.stack.activations == "megatron" and uses_fp8(x) else 2.0


def _heads_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of queries, keys, values and the attention output."""
    m, tp, tokens = x.model, x.layouts.tp, x.rank_tokens
    own: FloatArray = np.maximum(m.heads if m.mla else m.kv_heads, tp).astype(np.float64)
    # unfused attention multiplies keys and values repeated to all heads
    repeated = x.stack.attention_kernel == "unfused"
    kv: FloatArray = np.full(len(x.layouts), float(m.heads)) if repeated else own
    elements: FloatArray = (
        1.0 * m.heads * (x.qk_dim + x.v_dim) + kv * x.qk_dim + kv * _value_width(x)
    )
    if x.stack.activations == "eager":
        # The output again, copied from [batch, seq] to [seq, batch]; and the fused projection's
        # whole output, kept by the values that are a view of it beside rotated queries and keys.
        elements = elements + m.heads * x.v_dim + (m.heads + own) * x.qk_dim
    cast = m.heads * x.v_dim if _stored_bytes(x) < 2.0 else 0.0  # FP8 beside the output
    total: FloatArray = tokens * (2.0 * elements + cast + _qk_norm_bytes(x, own)) / tp
    return total


def _value_width(x: Inputs) -> FloatArray:
    """Return the width that a value head keeps: Hugging Face's is a view into what MLA projects.

    Its fused kernels keep a copy of the output besides, in another order; its multiplies copy the
    values of several sequences, and then keep no more than these.
    """
    mla = x.model.mla
    if x.stack.activations != "hf" or mla is None:
        return np.full(len(x.layouts), float(x.v_dim))
    view = float(mla.qk_nope_head_dim + mla.v_head_dim)
    if x.stack.attention_kernel != "unfused":
        return np.full(len(x.layouts), view + mla.v_head_dim)
    return np.where(x.layouts.micro_batch > 1, float(mla.v_head_dim), view)


def _qk_norm_bytes(x: Inputs, kv: FloatArray) -> FloatArray:
    """Return the saved bytes per token of norms of queries and keys: input and statistics.

    Hugging Face's norms keep an fp32 copy beside the normalised one.
    """
    if x.model.qk_norm == QkNorm.NONE:
        return np.zeros(len(x.layouts))
    each = 6.0 if x.stack.activations == "hf" else 2.0
    per_head = x.model.qk_norm == QkNorm.HEAD
    total: FloatArray = (x.model.heads + kv) * (each * x.qk_dim + (4.0 if per_head else 0.0))
    return total


def core_bytes(x: Inputs) -> FloatArray:
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
    if x.stack.activations == "hf":  # fp32 copies in the norms between, and their statistics
        return x.rank_tokens.astype(np.float64) * (8 * low + 8)
    return x.rank_tokens.astype(np.float64) / x.sp_ways * (4 * low + 8)


def _norm_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of a layer's norms: input, output and statistics of each."""
    m, tokens = x.model, x.rank_tokens
    count = m.norms_per_layer
    stats = count * (8.0 if m.norm == Norm.LAYERNORM else 4.0) * tokens / x.sp_ways
    if x.stack.activations == "hf" and m.norm == Norm.RMSNORM:  # an fp32 copy of the input, too
        return 8.0 * count * tokens * m.hidden + stats
    if x.stack.activations == "dtensor":  # autograd saves the gathered output of each norm whole
        return 2.0 * count * tokens * m.hidden * (1 / x.sp_ways + 1) + stats
    inputs = 2.0 * count * tokens * m.hidden / x.sp_ways
    return inputs + norm_output_bytes(x) + stats


def _cast_bytes(x: Inputs) -> FloatArray:
    """Return what autocast adds: every multiply casts its input for itself.

    Norms run on an fp32 stream, and take as much as with the copies that they make of 16 bit.
    """
    fused = x.model.norm == Norm.LAYERNORM  # GPT-2's, GPT-NeoX's and Falcon's projections
    readers = 2 if fused else 3 + (2 if x.model.gated_mlp else 1)
    return np.where(autocasts(x), 2.0 * readers * x.rank_tokens * x.model.hidden, 0.0)


def _dropout_bytes(x: Inputs) -> FloatArray:
    masks = 2.0 if x.model.dropout else 0.0
    return masks * x.rank_tokens * x.model.hidden / x.sp_ways


def feed_forward_bytes(x: Inputs, width: int) -> FloatArray:
    """Return the saved bytes of a feed-forward: gated 6 T f fused, 8 T f not fused."""
    return _width_bytes(x) * x.rank_tokens * width / x.layouts.tp


def _width_bytes(x: Inputs) -> FloatArray | float:
    """Return the saved bytes per token and channel of a feed-forward."""
    if x.stack.activations == "hf" and x.model.python_gelu:
        return np.where(autocasts(x), AUTOCAST_GELU, PYTHON_GELU)
    if x.stack.activations != "megatron":
        return 8.0 if x.model.gated_mlp else 4.0
    return (4.0 if x.model.gated_mlp else 2.0) + _stored_bytes(x)


def _attention_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of a layer without its feed-forward."""
    outside = _norm_bytes(x) + _cast_bytes(x) + _latent_bytes(x) + _dropout_bytes(x)
    return outside + _heads_bytes(x) + core_bytes(x)


@term(
    unit="bytes",
    formula="[4 n T h + stats]/sp + [2T(q + k + v + out) + 4 T a + 6 T f]/tp; unfused + 5 T s a/tp",
    source=KORTHIKANTI_2022,
    on=(*SHARD, "zero"),
)
def dense_layer_activation_bytes(x: Inputs) -> FloatArray:
    """Saved for backward by one dense layer and micro-batch, nothing recomputed.

    Terms as Megatron-Core saves them (n norms, gated); the other families keep more, FP8 less.
    """
    return _attention_bytes(x) + feed_forward_bytes(x, x.model.ffn)


@term(
    unit="bytes",
    formula="attention part + 9 T E/sp + received*(2 h + 6 f_expert) + shared experts",
    source=SWITCH_2021,
    on=(*EXPERT_SHARD, "zero"),
)
def moe_layer_activation_bytes(x: Inputs) -> FloatArray:
    """Saved for backward by one layer with experts on the busiest rank, nothing recomputed."""
    experts = x.model.experts
    if experts is None:
        return np.zeros(len(x.layouts))
    return _attention_bytes(x) + experts_bytes(x)


def experts_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of router, routed and shared experts of one layer."""
    experts = x.model.experts
    if experts is None:
        return np.zeros(len(x.layouts))
    router = 9.0 * x.rank_tokens / x.sp_ways * experts.count
    inside = _width_bytes(x) * experts.ffn / x.layouts.etp + _stored_bytes(x) * x.model.hidden
    weighted = 2.0 * x.model.hidden + 28.0  # the output of fc2 and the indices stay too
    if x.stack.activations != "megatron":
        buffers = x.stack.pads_experts & (x.layouts.ep > 1)  # hold no output, and fp32 for routing
        outputs = np.where(buffers, routed_tokens(x), received_tokens(x))
        router = router + weighted * outputs + buffers * 4.0 * x.rank_tokens * x.model.hidden
    return router + received_tokens(x) * inside + feed_forward_bytes(x, experts.shared_ffn)


def expert_activation_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of what the experts' activation function puts out."""
    if x.model.experts is None:
        return np.zeros(len(x.layouts))
    return _stored_bytes(x) * received_tokens(x) * x.model.experts.ffn / x.layouts.etp


def norm_output_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of what a layer's norms put out."""
    return _stored_bytes(x) * x.model.norms_per_layer * x.rank_tokens * x.model.hidden / x.sp_ways


def up_projection_bytes(x: Inputs) -> FloatArray:
    """Return the saved bytes of queries, keys and values as MLA projects them up."""
    if x.model.mla is None:
        return np.zeros(len(x.layouts))
    return 2.0 * x.rank_tokens * x.model.heads * (2 * x.qk_dim + x.v_dim) / x.layouts.tp


@term(
    unit="bytes",
    formula="6 T V/tp (Megatron); 12 T V/tp (FSDP2, fp32 loss), / pieces + 4 T h where the loss is "
    "made in pieces; 14 T V (HF loss)",
    source=MEGATRON_CORE,
    on=(*SHARD, "pp", "vpp"),
)
def logits_bytes(x: Inputs) -> FloatArray:
    """Logits, their fp32 copy and gradient while the last stage computes the loss."""
    width = padded_vocab(x.model.vocab, x.layouts.tp) / x.layouts.tp
    each = x.stack.logit_bytes or LOGIT_BYTES[x.stack.activations]
    if x.stack.activations == "hf":
        width = np.full(len(x.layouts), float(x.model.vocab))
    pieces = x.stack.loss_chunks
    held = each * x.rank_tokens * width / pieces
    if pieces > 1:  # the gradient of what goes into the output layer adds up in fp32
        held = held + 4.0 * x.rank_tokens * x.model.hidden
    return x.stages.last * held[:, None]

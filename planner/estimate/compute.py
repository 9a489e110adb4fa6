"""Device time of the parts of a layer and of both ends, per micro-batch, forward and backward."""

from __future__ import annotations

import numpy as np

from planner.estimate.experts import received_tokens, routed_tokens
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import (
    ATTENTION_BACKWARD_RATE,
    ATTENTION_HALF_TOKENS,
    Array,
    attended_share,
    attended_tokens,
    attention_rate,
    gemm_backward_s,
    gemm_rate,
    gemm_s,
    hbm_s,
    unfused_attention_s,
    uses_fp8,
)
from planner.sources import CALIBRATION, FLASH_ATTENTION_2, MEGATRON_2019, SWITCH_2021
from planner.specs.parameters import padded_vocab

SHARD = ("tp", "sp", "cp", "micro_batch")
EXPERT_SHARD = (*SHARD, "ep", "etp")
Multiply = tuple[Array, Array, Array]

GROUPED_RATE = 0.718
GROUPED_HALF_TOKENS = 110.0
ROUTER_RATE = 0.164
EXPERT_ACTIVATION_BYTES = 39.9
BIASED_EXPERTS = 6.22
"""Traffic of experts with biases and a clamped activation, unfused, over SwiGLU (fit; gpt-oss)."""
FP8_CAST = 2.86
"""Bytes moved per element to cast a multiply's inputs to FP8: 4 x 1.06 (fit)."""


def _attention_multiplies(x: Inputs) -> list[Multiply]:
    """Return (m, n, k) of the projections around attention."""
    m, tp, tokens = x.model, x.layouts.tp, x.rank_tokens
    if m.mla is None:
        kv_heads = np.maximum(m.kv_heads, tp) / tp
        qkv = (m.heads / tp + 2 * kv_heads) * m.head_dim
        return [(tokens, qkv, m.hidden), (tokens, m.hidden, m.heads * m.head_dim / tp)]
    mla, split = m.mla, tokens / x.sp_ways
    query = m.heads * x.qk_dim / tp
    down = mla.kv_lora_rank + mla.qk_rope_head_dim
    up = m.heads * (mla.qk_nope_head_dim + mla.v_head_dim) / tp
    multiplies: list[Multiply] = [
        (split, np.full(len(x.layouts), down), m.hidden),
        (tokens, up, mla.kv_lora_rank),
        (tokens, m.hidden, m.heads * mla.v_head_dim / tp),
    ]
    if mla.q_lora_rank is None:
        return [*multiplies, (tokens, query, m.hidden)]
    low = np.full(len(x.layouts), mla.q_lora_rank)
    return [*multiplies, (split, low, m.hidden), (tokens, query, mla.q_lora_rank)]


def _mlp_multiplies(x: Inputs, width: int) -> list[Multiply]:
    """Return (m, n, k) of a feed-forward of `width`."""
    tp, tokens, hidden = x.layouts.tp, x.rank_tokens, x.model.hidden
    inputs = 2 if x.model.gated_mlp else 1
    return [(tokens, inputs * width / tp, hidden), (tokens, hidden, width / tp)]


def _forward(x: Inputs, multiplies: list[Multiply]) -> FloatArray:
    none = np.zeros(len(x.layouts))
    return sum((gemm_s(x, *shape) for shape in multiplies), none)


def _backward(x: Inputs, multiplies: list[Multiply]) -> FloatArray:
    none = np.zeros(len(x.layouts))
    return sum((gemm_backward_s(x, *shape) for shape in multiplies), none)


@term(unit="s", formula="sum over qkv, out of GEMM(m, n, k)", source=MEGATRON_2019, on=SHARD)
def attention_gemm_forward_s(x: Inputs) -> FloatArray:
    """Projections around attention, forward."""
    return _forward(x, _attention_multiplies(x))


@term(unit="s", formula="data + weight gradient of qkv, out", source=MEGATRON_2019, on=SHARD)
def attention_gemm_backward_s(x: Inputs) -> FloatArray:
    """Projections around attention, backward."""
    return _backward(x, _attention_multiplies(x))


@term(
    unit="FLOPs",
    formula="micro_batch * heads/tp * seq^2/cp * (qk_dim + v_dim), causal half",
    source=FLASH_ATTENTION_2,
    on=SHARD,
)
def attention_core_flops(x: Inputs) -> FloatArray:
    """Scores and weighted values of one layer on one rank, forward, attended pairs only."""
    s = float(x.workload.seq_tokens)
    pairs = x.layouts.micro_batch * (x.model.heads / x.layouts.tp) * s * s / x.layouts.cp
    return pairs * (x.qk_dim + x.v_dim) * attended_share(x)


@term(
    unit="s",
    formula=f"15us + FLOPs/rate * (1 + {ATTENTION_HALF_TOKENS:g}*cp/seq)",
    source=FLASH_ATTENTION_2,
    on=SHARD,
)
def attention_core_forward_s(x: Inputs) -> FloatArray:
    """Attention between the projections, forward; unfused: two batched GEMMs and a softmax."""
    if x.stack.attention_kernel == "unfused":
        return 15e-6 + unfused_attention_s(x, backward=False)
    short = 1 + ATTENTION_HALF_TOKENS * x.layouts.cp / attended_tokens(x)
    return 15e-6 + attention_core_flops(x) / attention_rate(x) * short


@term(
    unit="s",
    formula=f"25us + 2.5*FLOPs/({ATTENTION_BACKWARD_RATE:g}*rate)"
    f" * (1 + {ATTENTION_HALF_TOKENS:g}*cp/seq)",
    source=FLASH_ATTENTION_2,
    on=SHARD,
)
def attention_core_backward_s(x: Inputs) -> FloatArray:
    """The same, backward; fused: five multiplies to the forward's two, at a lower rate."""
    if x.stack.attention_kernel == "unfused":
        return 25e-6 + unfused_attention_s(x, backward=True)
    forward = attention_core_forward_s(x) - 15e-6
    return 25e-6 + 2.5 * forward / ATTENTION_BACKWARD_RATE


def _elementwise_bytes(x: Inputs, width: int, *, backward: bool) -> FloatArray:
    """Return the bytes of norms, residuals, rotary and the activation of one layer."""
    m, tp, tokens = x.model, x.layouts.tp, x.rank_tokens
    queries = m.heads * x.qk_dim / tp + 2 * np.maximum(m.kv_heads, tp) / tp * x.qk_dim
    act = 6.0 if m.gated_mlp else 4.0
    hidden, act = (22.0, 1.7 * act) if backward else (16.0, act)
    moved = hidden * tokens * m.hidden / x.sp_ways + act * tokens * width / tp
    return x.stack.memory_traffic * x.stack.fusion * (moved + 4.0 * tokens * queries)


def dense_elementwise_bytes(x: Inputs, *, backward: bool) -> FloatArray:
    """Return the bytes of norms, residuals, rotary and the activation of a dense layer."""
    return _elementwise_bytes(x, x.model.ffn, backward=backward)


def _cast_bytes(x: Inputs, width: int, *, backward: bool) -> FloatArray:
    """Return the bytes moved to cast the multiplies' inputs to FP8 (0 in 16 bit)."""
    if not uses_fp8(x):
        return np.zeros(len(x.layouts))
    m, tp = x.model, x.layouts.tp
    values = m.heads * x.v_dim / tp
    inputs = (2 if m.gated_mlp else 1) * width / tp
    queries = (m.heads + 2 * m.kv_heads) * x.qk_dim / tp
    wide = 2 * m.hidden + (inputs + queries if backward else width / tp + values)
    return FP8_CAST * x.stack.fp8_cast * x.rank_tokens * wide


@term(
    unit="s",
    formula="starts + mm*(16*T*h/sp + act*T*f/tp + 4*T*qkv)/HBM, act 6 gated, 4 not",
    source=CALIBRATION,
    on=SHARD,
)
def dense_elementwise_forward_s(x: Inputs) -> FloatArray:
    """Norms, residuals, rotary, activation and FP8 casts of a dense layer, forward."""
    width = x.model.ffn
    moved = _elementwise_bytes(x, width, backward=False) + _cast_bytes(x, width, backward=False)
    return x.stack.kernel_s + hbm_s(x, moved)


@term(
    unit="s",
    formula="2 starts + mm*(22*T*h/sp + 1.7*act*T*f/tp + 4*T*qkv)/HBM",
    source=CALIBRATION,
    on=SHARD,
)
def dense_elementwise_backward_s(x: Inputs) -> FloatArray:
    """The same, backward."""
    width = x.model.ffn
    moved = _elementwise_bytes(x, width, backward=True) + _cast_bytes(x, width, backward=True)
    return 2 * x.stack.kernel_s + hbm_s(x, moved)


@term(unit="s", formula="GEMM(fc1) + GEMM(fc2)", source=MEGATRON_2019, on=SHARD)
def mlp_forward_s(x: Inputs) -> FloatArray:
    """Multiplies of a dense feed-forward, forward."""
    return _forward(x, _mlp_multiplies(x, x.model.ffn))


@term(unit="s", formula="data + weight gradient of fc1, fc2", source=MEGATRON_2019, on=SHARD)
def mlp_backward_s(x: Inputs) -> FloatArray:
    """Multiplies of a dense feed-forward, backward."""
    return _backward(x, _mlp_multiplies(x, x.model.ffn))


def _shared_multiplies(x: Inputs) -> list[Multiply]:
    """Return (m, n, k) of the shared experts, which every token passes; none without them."""
    width = x.model.experts.shared_ffn if x.model.experts else 0
    return _mlp_multiplies(x, width) if width else []


def _grouped_s(x: Inputs) -> FloatArray:
    """Return the seconds of one pass through the local experts' two multiplies."""
    experts = x.model.experts
    if experts is None:
        return np.zeros(len(x.layouts))
    lay = x.layouts
    local = experts.count / lay.ep
    each = np.maximum(received_tokens(x) / local, 1.0)
    fit, rate, width = gemm_rate(x)
    inputs = 2 if x.model.gated_mlp else 1
    total = np.zeros(len(lay))
    for n, k in (
        (inputs * experts.ffn / lay.etp, np.full(len(lay), float(x.model.hidden))),
        (np.full(len(lay), float(x.model.hidden)), experts.ffn / lay.etp),
    ):
        shape = (1 + GROUPED_HALF_TOKENS / each) * (1 + fit.n0 / n) * (1 + fit.k0 / k)
        flops_s = 2 * received_tokens(x) * n * k / (rate * GROUPED_RATE) * shape
        total = total + np.maximum(flops_s, hbm_s(x, width * local * n * k))
    return total


def _expert_fixed_s(x: Inputs) -> FloatArray:
    """Return the seconds that the local experts' groups cost beyond their arithmetic."""
    each = x.stack.expert_cast_s if uses_fp8(x) else x.stack.expert_s
    return each * (x.model.experts.count if x.model.experts else 0) / x.layouts.ep


def shared_experts_forward_s(x: Inputs) -> FloatArray:
    """Return the seconds of the shared experts' multiplies, forward."""
    return _forward(x, _shared_multiplies(x))


@term(
    unit="s",
    formula="grouped GEMM(received tokens, 2*ffn/etp, h) + (.., h, ffn/etp) + fixed per expert",
    source=SWITCH_2021,
    on=EXPERT_SHARD,
)
def experts_forward_s(x: Inputs) -> FloatArray:
    """Routed and shared experts of one layer, forward, on the busiest rank."""
    fixed = _expert_fixed_s(x) / 3
    return _grouped_s(x) + fixed + shared_experts_forward_s(x)


@term(
    unit="s",
    formula="2 x the forward's grouped GEMMs (weight gradient at 0.96) + fixed per expert",
    source=CALIBRATION,
    on=EXPERT_SHARD,
)
def experts_backward_s(x: Inputs) -> FloatArray:
    """Routed and shared experts of one layer, backward, on the busiest rank."""
    fixed = _expert_fixed_s(x) * 2 / 3
    shared = _backward(x, _shared_multiplies(x))
    return _grouped_s(x) * (1 + 1 / 0.96) + fixed + shared


@term(
    unit="s",
    formula=f"router 2*T*h*E/({ROUTER_RATE:g}*rate) + permute + expert activation + norms",
    source=CALIBRATION,
    on=EXPERT_SHARD,
)
def moe_elementwise_forward_s(x: Inputs) -> FloatArray:
    """Router, permutation, expert activation, norms and residuals of a layer with experts."""
    return _moe_elementwise(x, backward=False)


@term(
    unit="s",
    formula="the same with 4*T*h*E and 2/3 of the traffic",
    source=CALIBRATION,
    on=EXPERT_SHARD,
)
def moe_elementwise_backward_s(x: Inputs) -> FloatArray:
    """The same, backward."""
    return _moe_elementwise(x, backward=True)


def _moe_elementwise(x: Inputs, *, backward: bool) -> FloatArray:
    experts = x.model.experts
    if experts is None:
        return np.zeros(len(x.layouts))
    part = 2 / 3 if backward else 1 / 3
    h = x.model.hidden
    _, rate, _ = gemm_rate(x, low_precision=False)
    router = (4 if backward else 2) * x.rank_tokens / x.sp_ways * h * experts.count
    moved = x.stack.permute_bytes * routed_tokens(x) * h
    biased = BIASED_EXPERTS if experts.expert_bias else 1.0
    activated = biased * EXPERT_ACTIVATION_BYTES * received_tokens(x) * experts.ffn / x.layouts.etp
    rest = _elementwise_bytes(x, experts.shared_ffn, backward=backward)
    cast = _cast_bytes(x, experts.shared_ffn, backward=backward)
    if uses_fp8(x):
        each = FP8_CAST * x.stack.fp8_cast
        cast = cast + each * received_tokens(x) * (h + experts.ffn / x.layouts.etp)
    traffic = x.stack.moe_traffic * (part * (moved + activated) + rest + cast)
    starts = (2 if backward else 1) * x.stack.kernel_s
    return starts + router / (ROUTER_RATE * rate) + hbm_s(x, traffic)


def _head_width(x: Inputs) -> FloatArray:
    """Return one rank's share of the vocabulary, as its multiplies see it."""
    width = padded_vocab(x.model.vocab, x.vocab_ways) / x.vocab_ways
    return width if x.stack.pads_vocab else np.where(x.vocab_ways == 1, x.model.vocab, width)


@term(
    unit="s",
    formula="3 GEMM(T, V/tp, h) + mm*14*T*V/tp/HBM + 200us, x 1.06",
    source=CALIBRATION,
    on=SHARD,
)
def head_s(x: Inputs) -> FloatArray:
    """Output projection, cross-entropy and their backward, on the last stage; always 16 bit."""
    width = _head_width(x)
    tokens, h = x.rank_tokens, x.model.hidden
    multiply = gemm_s(x, tokens, width, h, low_precision=False)
    multiply = multiply + gemm_backward_s(x, tokens, width, h, low_precision=False)
    loss = hbm_s(x, x.stack.memory_traffic * 14.0 * tokens * width)
    return 1.06 * (multiply + loss + 200e-6) * (1 + x.model.mtp_layers)


@term(unit="s", formula="14*T*h/HBM + 40us", source=CALIBRATION, on=SHARD)
def embedding_s(x: Inputs) -> FloatArray:
    """Token lookup and its gradient, on the first stage."""
    return hbm_s(x, 14.0 * x.rank_tokens * x.model.hidden / x.sp_ways) + 40e-6

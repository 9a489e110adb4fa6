"""Seconds that backward spends on what selective recompute runs again, by kind of layer.

A module is paid in the layers that have it: `mlp` by dense layers, `moe`, `moe_act` and
`shared_experts` by layers with experts, as their bytes are dropped there (`recompute`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from planner.estimate.compute import (
    BIASED_EXPERTS,
    EXPERT_SHARD,
    SHARD,
    attention_core_forward_s,
    attention_gemm_forward_s,
    experts_forward_s,
    mlp_forward_s,
    shared_experts_forward_s,
)
from planner.estimate.experts import received_tokens
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import gemm_s, hbm_s
from planner.estimate.modules import recomputed_modules
from planner.sources import DEEPSEEK_V2, KORTHIKANTI_2022

OP_POLICY = 0.5
"""Share of the multiplies that torchtitan's 'op' policy runs again: every second one."""


@term(
    unit="s",
    formula="what is recomputed, once more: scores, norms, MLA up-projections, mlp"
    " (torchtitan: every second multiply)",
    source=KORTHIKANTI_2022,
    on=(*SHARD, "recompute"),
)
def dense_recompute_s(x: Inputs) -> FloatArray:
    """Extra backward time of a dense layer under selective recompute (0 for the other kinds)."""
    return _recompute_s(x, mlp_forward_s, DENSE)


@term(
    unit="s",
    formula="the same without mlp, and expert activation, shared and routed experts",
    source=DEEPSEEK_V2,
    on=(*EXPERT_SHARD, "recompute"),
)
def moe_recompute_s(x: Inputs) -> FloatArray:
    """Extra backward time of a layer with experts under selective recompute."""
    return _recompute_s(x, experts_forward_s, WITH_EXPERTS)


Seconds = Callable[[Inputs], FloatArray]


def _recompute_s(x: Inputs, feed_forward: Seconds, again: Mapping[str, Seconds]) -> FloatArray:
    none = np.zeros(len(x.layouts))
    if x.stack.activations == "dtensor":
        some = OP_POLICY * (attention_gemm_forward_s(x) + feed_forward(x))
    else:
        modules = sorted(recomputed_modules(x) & again.keys())
        some = sum((again[name](x) for name in modules), none)
    return np.where(x.layouts.recompute == 1, some, none)


def _norms_s(x: Inputs) -> FloatArray:
    return hbm_s(x, 8.0 * x.rank_tokens * x.model.hidden / x.sp_ways)


def _up_projections_s(x: Inputs) -> FloatArray:
    m, tp = x.model, x.layouts.tp
    if m.mla is None:
        return np.zeros(len(x.layouts))
    up = m.heads * (m.mla.qk_nope_head_dim + m.mla.v_head_dim) / tp
    again = gemm_s(x, x.rank_tokens, up, m.mla.kv_lora_rank)
    if m.mla.q_lora_rank:
        again = again + gemm_s(x, x.rank_tokens, m.heads * x.qk_dim / tp, m.mla.q_lora_rank)
    return again


def _expert_activation_s(x: Inputs) -> FloatArray:
    if (experts := x.model.experts) is None:
        return np.zeros(len(x.layouts))
    biased = BIASED_EXPERTS if experts.expert_bias else 1.0
    return hbm_s(x, 6.0 * biased * received_tokens(x) * experts.ffn / x.layouts.etp)


def _experts_s(x: Inputs) -> FloatArray:
    return experts_forward_s(x) + _expert_activation_s(x)


EVERYWHERE: dict[str, Seconds] = {
    "core_attn": attention_core_forward_s,
    "layernorm": _norms_s,
    "mla_up_proj": _up_projections_s,
}
DENSE: dict[str, Seconds] = {**EVERYWHERE, "mlp": mlp_forward_s}
WITH_EXPERTS: dict[str, Seconds] = {
    **EVERYWHERE,
    "moe_act": _expert_activation_s,
    "moe": _experts_s,
    "shared_experts": shared_experts_forward_s,
}
"""Seconds of a module's forward, in a dense layer and in one with experts."""

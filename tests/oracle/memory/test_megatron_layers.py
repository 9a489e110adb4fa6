"""What Megatron-Core's own layer saves for backward on each rank, byte by byte."""

from __future__ import annotations

import pytest
from estimate_cases import inputs, spec
from megatron_models import layer_saved

from planner.estimate import activations
from planner.specs.model import Experts, LatentAttention, Norm

pytestmark = pytest.mark.frameworks

SEQ = 64
GPT = spec(
    gated_mlp=False,
    norm=Norm.LAYERNORM,
    qkv_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    ffn=1024,
)
DROPPED = GPT.model_copy(update={"dropout": True})
RANKS = [(1, 0), (2, 0), (2, 1), (4, 1)]
"""(tp, sp)"""


def told(model, tp, sp, batch, *, fused):
    stack = "megatron" if fused else "megatron+unfused"
    row = {"tp": tp, "sp": sp, "micro_batch": batch}
    x = inputs(model, row, seq_tokens=SEQ, stack=stack, expert_imbalance=1.0)
    if model.experts:
        return activations.moe_layer_activation_bytes(x)[0]
    return activations.dense_layer_activation_bytes(x)[0]


def saved(model, tp, sp, batch, *, fused):
    return layer_saved(model, tp=tp, sp=bool(sp), batch=batch, seq=SEQ, fused=fused)


@pytest.mark.parametrize(("tp", "sp", "batch"), [(1, 0, 1), *((tp, sp, 2) for tp, sp in RANKS)])
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("model", [GPT, DROPPED, spec()], ids=["gpt", "dropout", "llama"])
def test_a_layer_saves_what_megatrons_layer_saves(model, fused, batch, tp, sp):
    """Korthikanti's 34 s b h + 5 a s^2 b and its descendants, split over tp as the code does."""
    total, tensors = saved(model, tp, sp, batch, fused=fused)
    assert told(model, tp, sp, batch, fused=fused) == total, tensors


@pytest.mark.parametrize(("tp", "sp", "batch"), [(1, 0, 1), (2, 0, 1), (2, 1, 2), (8, 1, 2)])
def test_fused_attention_saves_grouped_keys_and_values(batch, tp, sp):
    """And one head on each rank where tp is more than there are."""
    model = spec(kv_heads=4, head_dim=16)
    total, tensors = saved(model, tp, sp, batch, fused=True)
    assert told(model, tp, sp, batch, fused=True) == total, tensors


@pytest.mark.parametrize(("tp", "sp"), RANKS)
def test_norms_of_heads_keep_their_inputs(tp, sp):
    """All but the statistics, 4 bytes a head: 1 / (d/2) of what the norm keeps otherwise."""
    model = spec(kv_heads=4, qk_norm="head")
    total, tensors = saved(model, tp, sp, 2, fused=True)
    statistics = 4 * 2 * SEQ * (8 + 4) / tp
    assert total - told(model, tp, sp, 2, fused=True) in (0, statistics), tensors


@pytest.mark.parametrize("batch", [1, 2])
def test_latent_attention_keeps_both_sides_of_its_low_ranks(batch):
    """All but two norms' statistics, and the unfused rotation's tables: cos and sin of q and k."""
    latent = LatentAttention(
        q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=24
    )
    model = spec(mla=latent, head_dim=24)
    total, tensors = saved(model, 1, 0, batch, fused=True)
    tables, statistics = 4 * 2 * SEQ * 8, 2 * 4 * batch * SEQ
    rest = total - tables - told(model, 1, 0, batch, fused=True)
    assert rest in (0, statistics), tensors


@pytest.mark.parametrize(("tp", "sp"), [(1, 0), (2, 1), (4, 1)])
@pytest.mark.parametrize(("top_k", "shared"), [(1, 0), (2, 128), (4, 0)])
def test_experts_save_each_routed_token_twice_h_and_six_f(tp, sp, top_k, shared):
    """The router's own tensors (indices, probabilities) are estimated: within a percent."""
    model = spec(experts=Experts(count=8, top_k=top_k, ffn=512, shared_ffn=shared))
    more = {"moe_router_pre_softmax": True} if top_k == 1 else {}
    total, tensors = layer_saved(model, tp=tp, sp=bool(sp), batch=2, seq=SEQ, fused=True, **more)
    assert told(model, tp, sp, 2, fused=True) == pytest.approx(total, rel=1e-2), tensors


@pytest.mark.parametrize(("tp", "sp"), RANKS)
def test_unfused_attention_repeats_grouped_keys_and_values(tp, sp):
    model = spec(kv_heads=2)
    total, tensors = saved(model, tp, sp, 2, fused=False)
    assert told(model, tp, sp, 2, fused=False) == total, tensors

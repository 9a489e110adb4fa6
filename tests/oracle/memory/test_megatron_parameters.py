"""Parameters of every rank against the GPTModel that Megatron-Core builds for that rank."""

from __future__ import annotations

import pytest
from estimate_cases import inputs, spec
from megatron_models import rank_parameters

from planner.estimate import params
from planner.specs.model import Experts, LatentAttention, Norm

pytestmark = pytest.mark.frameworks

GPT = spec(
    gated_mlp=False,
    norm=Norm.LAYERNORM,
    qkv_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
    learned_positions=128,
    tied_embeddings=True,
    dropout=True,
    vocab=50257,
)
EIGHT = Experts(count=8, top_k=2, ffn=512, shared_ffn=128, first_dense_layers=1)
GATED = Experts(count=8, top_k=2, ffn=512, shared_ffn=128, shared_gate=True)
LATENT = LatentAttention(
    q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=24
)
MODELS = {
    "llama": spec(kv_heads=4, vocab=32003),
    "gpt-2": GPT,
    "untied gpt": GPT.model_copy(update={"tied_embeddings": False, "vocab": 50304}),
    "qwen-like": spec(kv_heads=2, qkv_bias=True, qk_norm="head", tied_embeddings=True),
    "wide heads": spec(head_dim=64, kv_heads=2),
    "experts": spec(experts=Experts(count=8, top_k=2, ffn=512)),
    "shared experts after a dense layer": spec(experts=EIGHT),
    "every other layer": spec(experts=Experts(count=4, top_k=2, ffn=64, layer_period=2)),
    "gated shared experts": spec(experts=GATED),
    "latent": spec(mla=LATENT, head_dim=24, experts=EIGHT),
    "multi-token prediction": spec(mtp_layers=1, experts=EIGHT),
}
DENSE = [(tp, pp, 1, 1) for tp in (1, 2, 4) for pp in (1, 2, 4)] + [(8, 1, 1, 1)]
SPREAD = [
    *((1, 1, 1, 1), (1, 2, 1, 1), (1, 1, 4, 1), (1, 4, 2, 1)),
    *((2, 1, 1, 1), (2, 2, 2, 1), (4, 1, 2, 1), (2, 1, 2, 2), (4, 2, 1, 4), (2, 1, 4, 2)),
]
WHOLE = [(1, pp, ep, 1) for pp in (1, 2) for ep in (1, 2)]
"""Local layers split latent attention's down-projections, Transformer Engine's are whole: tp 1."""


def layouts_of(name: str) -> list[tuple[int, int, int, int]]:
    model = MODELS[name]
    if model.mla:
        return [one for one in WHOLE if model.experts or one[2] == 1]
    return SPREAD if model.experts else DENSE


@pytest.mark.parametrize(
    ("name", "degrees"), [(name, degrees) for name in MODELS for degrees in layouts_of(name)]
)
def test_every_stage_holds_what_megatron_builds_there(name, degrees):
    """First and last rank of each stage: padded vocabulary, tied ends, kv_heads < tp, experts."""
    tp, pp, ep, etp = degrees
    model, dp = MODELS[name], max(1, ep * etp // tp)
    row = {"tp": tp, "pp": pp, "ep": ep, "etp": etp, "dp": dp, "sp": int(tp > 1)}
    x = inputs(
        model,
        row | {"schedule": "1f1b" if pp > 1 else "none"},
        every_stage=True,
        cluster="dgx-h100:8",
    )
    dense, experts = params.stage_dense_parameters(x)[0], params.stage_expert_parameters(x)[0]
    each = tp * dp
    for stage in range(pp):
        for rank in {stage * each, (stage + 1) * each - 1}:
            built = rank_parameters(model, rank, tp=tp, pp=pp, ep=ep, etp=etp, world=each * pp)
            assert (dense[stage], experts[stage]) == built, f"rank {rank}"


@pytest.mark.parametrize("name", ["llama", "experts", "shared experts after a dense layer"])
def test_what_the_ranks_of_megatron_hold_sums_to_the_model_and_its_copies(name):
    """Over tp, pp and ep: the whole, norms and router of each tp rank again, and the padding."""
    from planner.specs.parameters import count_parameters, padded_vocab

    model, tp, pp = MODELS[name], 2, 2
    ep = 2 if model.experts else 1
    world = pp * max(tp, ep)
    held = [
        rank_parameters(model, rank, tp=tp, pp=pp, ep=ep, etp=1, world=world)
        for rank in range(world)
    ]
    whole = count_parameters(model)
    padding = 2 * (padded_vocab(model.vocab, tp) - model.vocab) * model.hidden
    again = (tp - 1) * (whole.norms + whole.router)
    assert sum(map(sum, held)) == whole.total + again + padding

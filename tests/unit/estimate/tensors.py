"""The parameters of small models as the tensors that frameworks make of them."""

from __future__ import annotations

from estimate_cases import spec

from planner.specs.model import Experts, LatentAttention, ModelSpec, Norm, QkNorm

Shape = tuple[int, ...]
MODELS: dict[str, ModelSpec] = {
    "llama": spec(),
    "gpt": spec(
        gated_mlp=False, norm=Norm.LAYERNORM, ffn=1024, qkv_bias=True, mlp_bias=True,
        attention_output_bias=True, learned_positions=2048, max_seq_tokens=2048,
        tied_embeddings=True,
    ),
    "grouped": spec(kv_heads=2, qk_norm=QkNorm.HEAD, qkv_bias=True),
    "experts": spec(
        experts=Experts(
            count=16, top_k=2, ffn=512, shared_ffn=256, first_dense_layers=1, router_bias=True,
            expert_bias=True,
        )
    ),
    "latent": spec(
        head_dim=48,
        mla=LatentAttention(
            q_lora_rank=128, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16,
            v_head_dim=32,
        ),
    ),
}  # fmt: skip


def tensors(m: ModelSpec) -> list[tuple[str, Shape]]:
    """Every tensor by name and shape: experts apart, q, k and v apart."""
    out: list[tuple[str, Shape]] = [("embed_tokens", (m.vocab, m.hidden))]
    if m.learned_positions:
        out.append(("embed_positions", (m.learned_positions, m.hidden)))
    for layer, moe in enumerate(m.moe_layers):
        out += [(f"layers.{layer}.{name}", shape) for name, shape in _layer(m, moe=moe)]
    if m.final_norm:
        out += [("norm", (m.hidden,))] * (2 if m.norm is Norm.LAYERNORM else 1)
    if not m.tied_embeddings:
        out.append(("lm_head", (m.vocab, m.hidden)))
    return out


def _layer(m: ModelSpec, *, moe: bool) -> list[tuple[str, Shape]]:
    norms: list[tuple[str, Shape]] = [("norm", (m.hidden,))] * m.norms_per_layer
    norms = norms * 2 if m.norm is Norm.LAYERNORM else norms
    if not moe:
        return [*norms, *_attention(m), *_feed_forward(m, m.ffn, bias=m.mlp_bias)]
    assert m.experts
    out = [*norms, *_attention(m), ("router", (m.experts.count, m.hidden))]
    if m.experts.router_bias:
        out.append(("router", (m.experts.count,)))
    out += _feed_forward(m, m.experts.shared_ffn, bias=m.mlp_bias)
    return out + m.experts.count * _feed_forward(m, m.experts.ffn, bias=m.experts.expert_bias)


def _attention(m: ModelSpec) -> list[tuple[str, Shape]]:
    if (mla := m.mla) is not None:
        rank = mla.q_lora_rank or m.hidden
        query = m.heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
        wide = m.heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        return [
            ("q_down", (rank, m.hidden)), ("q_norm", (rank,)), ("q_up", (query, rank)),
            ("kv_down", (mla.kv_lora_rank + mla.qk_rope_head_dim, m.hidden)),
            ("kv_norm", (mla.kv_lora_rank,)), ("kv_up", (wide, mla.kv_lora_rank)),
            ("out", (m.hidden, m.heads * mla.v_head_dim)),
        ]  # fmt: skip
    query, keys = m.heads * m.head_dim, m.kv_heads * m.head_dim
    out: list[tuple[str, Shape]] = [
        ("q", (query, m.hidden)), ("k", (keys, m.hidden)), ("v", (keys, m.hidden)),
        ("out", (m.hidden, query)),
    ]  # fmt: skip
    if m.qkv_bias:
        out += [("q", (query,)), ("k", (keys,)), ("v", (keys,))]
    if m.attention_output_bias:
        out.append(("out", (m.hidden,)))
    return out + [("qk_norm", (m.head_dim,))] * (2 if m.qk_norm is QkNorm.HEAD else 0)


def _feed_forward(m: ModelSpec, width: int, *, bias: bool) -> list[tuple[str, Shape]]:
    ups = 2 if m.gated_mlp else 1
    out: list[tuple[str, Shape]] = [("up", (width, m.hidden))] * ups
    out.append(("down", (m.hidden, width)))
    return out + ([("up", (width,))] * ups + [("down", (m.hidden,))] if bias else [])

"""The shapes of a model from Megatron's arguments: `emit.megatron_flags` the other way round."""

from __future__ import annotations

import re
from typing import Any

from planner.importing.facts import Facts
from planner.specs.model import ModelSpec
from planner.specs.parse import shown
from planner.specs.read import validate

VOCABULARIES = {
    "gpt2": 50257,
    "llama3": 128256,
    "llama2": 32000,
    "qwen": 151936,
    "deepseek": 129280,
}
"""Rows of an embedding by what a tokenizer's name holds (the models' published configs)."""
ANY_VOCABULARY = 128_000
MOST_LAYERS = 100_000


def layers_of(facts: Facts) -> int | None:
    """Return the layers of the model, where they are given."""
    return facts.integer("num_layers")


def expert_count(facts: Facts) -> int | None:
    """Return the routed experts of a layer; None for a dense model."""
    return facts.integer("num_experts", "num_moe_experts", least=0) or None


def model_of(facts: Facts, told: list[str]) -> ModelSpec | None:
    """Return the model, where its layers, width and heads are given; what is assumed is told."""
    layers, hidden = layers_of(facts), facts.integer("hidden_size")
    heads = facts.integer("num_attention_heads")
    spec = _attention(facts, hidden or 1, heads or 1) | _feed_forward(facts, hidden or 1)
    spec |= _dress(facts) | {"experts": _experts(facts, layers or 1, spec["ffn"])}
    if not (layers and hidden and heads):
        return None
    spec |= {"layers": layers, "hidden": hidden, "vocab": _vocabulary(facts, told)}
    name = f"{layers}x{hidden}"
    return validate(ModelSpec, {"name": name, "source": facts.origin, **spec}, facts.origin)


def _attention(facts: Facts, hidden: int, heads: int) -> dict[str, Any]:
    groups = facts.integer("num_query_groups")
    grouped = facts.flag("group_query_attention", default=groups is not None)
    width = facts.integer("kv_channels") or max(1, hidden // heads)
    mla = _latent(facts) if facts.flag("multi_latent_attention") else None
    left = facts.words("window_size")
    window = int(left[0]) + 1 if left and left[0].isdigit() and len(left[0]) < 9 else None
    every = facts.text("window_attn_skip_freq")
    sinks = facts.text("softmax_type") == "learnable"
    norm = facts.flag("qk_layernorm")
    return {
        "heads": heads,
        "kv_heads": heads if mla or not grouped else groups or 1,
        "head_dim": mla["qk_nope_head_dim"] + mla["qk_rope_head_dim"] if mla else width,
        "mla": mla,
        "qk_norm": "head" if norm and not mla else "none",
        "sliding_window_tokens": window,
        "full_attention_period": int(every) if window and every.isdigit() else 0,
        "attention_sinks": sinks,
    }


def _latent(facts: Facts) -> dict[str, Any]:
    """Return multi-head latent attention; defaults are MLATransformerConfig's."""
    out = {
        "kv_lora_rank": facts.integer("kv_lora_rank") or 32,
        "qk_nope_head_dim": facts.integer("qk_head_dim") or 128,
        "qk_rope_head_dim": facts.integer("qk_pos_emb_head_dim") or 64,
        "v_head_dim": facts.integer("v_head_dim") or 128,
    }
    rank = facts.integer("q_lora_rank")
    return out | ({"q_lora_rank": rank} if rank else {})


def _feed_forward(facts: Facts, hidden: int) -> dict[str, Any]:
    gated = facts.flag("swiglu") or facts.flag("gated_linear_unit")
    usual = max(64, hidden * 8 // 3 // 64 * 64) if gated else 4 * hidden
    return {"ffn": facts.integer("ffn_hidden_size") or usual, "gated_mlp": gated}


def _dress(facts: Facts) -> dict[str, Any]:
    """Return norms, biases, positions, ties: what dresses the matrices."""
    norm = facts.text("normalization", default="LayerNorm").lower()
    kind = facts.text("position_embedding_type", default="learned_absolute").lower()
    table = facts.integer("max_position_embeddings")
    seq = facts.integer("seq_length", "encoder_seq_length") or 1
    rotary = facts.flag("use_rotary_position_embeddings")
    learned = kind == "learned_absolute" and not rotary
    bias = not facts.flag("disable_bias_linear") and facts.flag("add_bias_linear", default=True)
    dropouts = [facts.number(name) for name in ("attention_dropout", "hidden_dropout")]
    tied = not facts.flag("untie_embeddings_and_output_weights")
    return {
        "norm": "rmsnorm" if "rms" in norm else "layernorm",
        "max_seq_tokens": max(table or seq, seq),
        "learned_positions": (table or seq) if learned else 0,
        "qkv_bias": bias or facts.flag("add_qkv_bias"),
        "attention_output_bias": bias,
        "mlp_bias": bias,
        "dropout": any((0.1 if rate is None else rate) > 0 for rate in dropouts),
        "tied_embeddings": facts.flag("share_embeddings_and_output_weights", default=tied),
        "mtp_layers": facts.integer("mtp_num_layers", least=0) or 0,
    }


def _experts(facts: Facts, layers: int, ffn: int) -> dict[str, Any] | None:
    count = expert_count(facts)
    names = ("moe_router_topk", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size")
    top_k, width, shared = (facts.integer(name, least=0) for name in names)
    gate = facts.flag("moe_shared_expert_gate")
    pattern = facts.raw("moe_layer_freq")
    bias = not facts.flag("disable_bias_linear") and facts.flag("add_bias_linear", default=True)
    if count is None:
        return None
    first, period = _pattern(facts, str(pattern or 1), layers)
    return {
        "count": count,
        "top_k": top_k or 2,
        "ffn": width or ffn,
        "shared_ffn": shared or 0,
        "shared_gate": gate,
        "first_dense_layers": first,
        "layer_period": period,
        "router_bias": bias,
        "expert_bias": bias,
    }


def _pattern(facts: Facts, text: str, layers: int) -> tuple[int, int]:
    """Return leading dense layers and the period, from a number or ([0]*3+[1]*58)."""
    if text.isdigit() and len(text) < 6:
        return 0, max(1, int(text))
    layers = min(layers, MOST_LAYERS)
    packed = re.sub(r"\s", "", text)
    whole = re.fullmatch(r"\((.+)\)\*(\d{1,6})", packed)
    inner, times = (whole[1], int(whole[2])) if whole else (packed, 1)
    held: list[int] = []
    for items, count in re.findall(r"\[([01,]*)\](?:\*(\d{1,6}))?", inner):
        ones = [int(c) for c in items.split(",") if c][:layers]
        held += (ones * _times(int(count or 1), ones, layers))[: layers + 1 - len(held)]
        if len(held) > layers:
            break
    held = (held * _times(times, held, layers))[: layers + 1]
    first = held.index(1) if 1 in held else 0
    for dense, period in ((start, n) for start in (0, first) for n in range(1, 9)):
        if held == [int(i >= dense and (i + 1) % period == 0) for i in range(layers)]:
            return dense, period
    allowed = "dense layers first, or experts in every n-th layer"
    raise facts.wrong(("moe_layer_freq",), shown(text, 60), allowed)


def _times(wanted: int, items: list[int], layers: int) -> int:
    """Return how often items are repeated: not more than it takes to be more than the layers."""
    return min(wanted, layers // max(1, len(items)) + 1)


def _vocabulary(facts: Facts, told: list[str]) -> int:
    if rows := facts.integer("padded_vocab_size", "vocab_size"):
        return rows
    said = "".join(
        c
        for c in f"{facts.raw('tokenizer_type')} {facts.raw('tokenizer_model')}".lower()
        if c.isalnum()
    )
    rows = next((n for name, n in VOCABULARIES.items() if name in said), ANY_VOCABULARY)
    told.append(f"a vocabulary of {rows:,}: no option says it (--vocab-size would)")
    return rows

"""What each Hugging Face model_type takes for granted, where it differs from Llama.

The values are the defaults of the configuration classes and the biases and norms of the modules in
transformers 5.3 (src/transformers/models/*).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.specs.config_fields import ConfigFields, Fields
from planner.specs.model import Norm, QkNorm


@dataclass(frozen=True)
class Family:
    """How one model_type differs from Llama."""

    absent: Mapping[str, Any] = field(default_factory=dict)
    """Hugging Face fields: what the class takes where the config is silent (`ffn_per_hidden`: an
    absent intermediate_size is so many times the hidden size)."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """ModelSpec fields that the architecture settles."""
    more: Callable[[ConfigFields, Fields], Fields] = lambda _, __: {}
    """ModelSpec fields that follow from the config and from the fields read so far."""


def _gpt2(c: ConfigFields, _: Fields) -> Fields:
    return {"learned_positions": c.integer("max_position_embeddings")}


def _opt(c: ConfigFields, fields: Fields) -> Fields:
    hidden = fields["hidden"]
    if (width := c.integer("word_embed_proj_dim", hidden)) != hidden:
        raise c.wrong("word_embed_proj_dim", width, f"hidden_size ({hidden})")
    return {
        "learned_positions": c.integer("max_position_embeddings") + 2,
        "final_norm": c.flag("do_layer_norm_before", True),
        **_biases(c.flag("enable_bias", True)),
    }


def _falcon(c: ConfigFields, fields: Fields) -> Fields:
    new, parallel = c.flag("new_decoder_architecture"), c.flag("parallel_attn", True)
    norms = c.integer("num_ln_in_parallel_attn", 2 if new else 1)
    old_kv = 1 if c.flag("multi_query", True) else fields["heads"]
    return {
        "kv_heads": fields["kv_heads"] if new else old_kv,
        "norms_per_layer": norms if parallel else 2,
        **_biases(c.flag("bias")),
    }


def _glm4(c: ConfigFields, _: Fields) -> Fields:
    return {"qk_norm": QkNorm.HEAD if c.flag("use_qk_norm") else QkNorm.NONE}


def _llama4(c: ConfigFields, fields: Fields) -> Fields:
    width, experts = fields["ffn"], fields["experts"]
    return {
        "ffn": c.integer("intermediate_size_mlp", 16384),
        "experts": {**experts, "shared_ffn": width} if experts else None,
    }


def _qwen2_moe(c: ConfigFields, fields: Fields) -> Fields:
    experts = fields["experts"]
    shared = c.integer("shared_expert_intermediate_size", least=0) if experts else 0
    return {
        "qkv_bias": c.flag("qkv_bias", True),
        "experts": {**experts, "shared_gate": shared > 0} if experts else None,
    }


def _gpt_oss(_: ConfigFields, fields: Fields) -> Fields:
    return {"experts": {**(fields["experts"] or {}), "router_bias": True, "expert_bias": True}}


def _biases(present: bool) -> Fields:
    return {"qkv_bias": present, "attention_output_bias": present, "mlp_bias": present}


_TIED = {"tie_word_embeddings": True}
_NO_BIAS = _biases(False)
_QKV_BIAS = {**_NO_BIAS, "qkv_bias": True}
_PLAIN_MLP = {"gated_mlp": False, "norm": Norm.LAYERNORM}
_ATTENTION_OUTPUT_PLAIN = {"attention_output_bias": False, "mlp_bias": False}
_QWEN2 = {"use_sliding_window": False, "max_position_embeddings": 32768}
_GEMMA = {**_TIED, "head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192}
_GEMMA_2 = {**_GEMMA, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096}
_DEEPSEEK = {"n_shared_experts": 2, "max_position_embeddings": 2048}
_DEEPSEEK_3 = {
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "max_position_embeddings": 4096,
}
_GRANITE_MOE = {"num_local_experts": 8, "num_experts_per_tok": 2}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(
        {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
        _NO_BIAS,
    ),
    "mixtral": Family(
        {
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 131072,
        },
        _NO_BIAS,
    ),
    "qwen2": Family(_QWEN2, _QKV_BIAS),
    "qwen2_moe": Family(
        {
            **_QWEN2,
            "num_local_experts": 60,
            "num_experts_per_tok": 4,
            "shared_expert_intermediate_size": 5632,
        },
        _NO_BIAS,
        _qwen2_moe,
    ),
    "qwen3": Family({**_QWEN2, "head_dim": 128}, {"qk_norm": QkNorm.HEAD, "mlp_bias": False}),
    "qwen3_moe": Family(
        {
            **_QWEN2,
            "num_key_value_heads": 4,
            "num_local_experts": 128,
            "num_experts_per_tok": 8,
        },
        {"qk_norm": QkNorm.HEAD, "mlp_bias": False},
    ),
    "gemma": Family(_GEMMA, {"mlp_bias": False}),
    "gemma2": Family(
        {**_GEMMA_2, "sliding_window_pattern": 2}, {"norms_per_layer": 4, "mlp_bias": False}
    ),
    "gemma3_text": Family(
        {
            **_GEMMA_2,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "sliding_window_pattern": 6,
        },
        {"norms_per_layer": 4, "qk_norm": QkNorm.HEAD, "mlp_bias": False},
    ),
    "phi3": Family({"max_position_embeddings": 4096}, _NO_BIAS),
    "gpt2": Family(
        {
            **_TIED,
            "ffn_per_hidden": 4,
            "max_position_embeddings": 1024,
            "hidden_act": "gelu_new",
            "attn_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "resid_pdrop": 0.1,
        },
        {**_PLAIN_MLP, **_biases(True)},
        _gpt2,
    ),
    "opt": Family({**_TIED, "max_position_embeddings": 2048, "dropout": 0.1}, _PLAIN_MLP, _opt),
    "bloom": Family(
        {**_TIED, "ffn_per_hidden": 4, "max_position_embeddings": 2048},
        {**_PLAIN_MLP, **_biases(True), "embedding_norm": True},
    ),
    "falcon": Family(
        {**_TIED, "ffn_per_hidden": 4, "max_position_embeddings": 2048}, _PLAIN_MLP, _falcon
    ),
    "gpt_neox": Family(
        {"attention_bias": True, "max_position_embeddings": 2048}, {**_PLAIN_MLP, "mlp_bias": True}
    ),
    "olmo2": Family({"max_position_embeddings": 2048}, {"qk_norm": QkNorm.FULL, "mlp_bias": False}),
    "deepseek_v2": Family(_DEEPSEEK),
    "deepseek_v3": Family(_DEEPSEEK_3, {"mlp_bias": False}),
    "kimi_k2": Family(_DEEPSEEK_3, {"mlp_bias": False}),
    "glm4_moe": Family(
        {
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "max_position_embeddings": 131072,
        },
        _ATTENTION_OUTPUT_PLAIN,
        _glm4,
    ),
    "gpt_oss": Family(
        {
            "attention_bias": True,
            "head_dim": 64,
            "num_key_value_heads": 8,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "sliding_window_pattern": 2,
            "max_position_embeddings": 131072,
        },
        {"attention_sinks": True, "mlp_bias": False},
        _gpt_oss,
    ),
    "llama4_text": Family(
        {
            "head_dim": 128,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 8192,
            "sliding_window_pattern": 4,
            "max_position_embeddings": 131072,
        },
        _NO_BIAS,
        _llama4,
    ),
    "granite": Family(),
    "granitemoe": Family(_GRANITE_MOE, {"mlp_bias": False}),
    "granitemoeshared": Family(_GRANITE_MOE, {"mlp_bias": False}),
}

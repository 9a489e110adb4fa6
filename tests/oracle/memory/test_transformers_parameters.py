"""Parameter counts against the modules that transformers builds, here and now, of every family."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hf_models import CONFIGS, build, parts, saved_config

from planner.specs.catalog import load_model
from planner.specs.families import FAMILIES
from planner.specs.huggingface import model_from_config
from planner.specs.model import ModelSpec
from planner.specs.parameters import count_parameters

pytestmark = pytest.mark.frameworks


def counted(model: ModelSpec) -> dict[str, int]:
    return dataclasses.asdict(count_parameters(model))


def built(module: Any, model: ModelSpec) -> dict[str, int]:
    """The same parts of the module, and what one token passes through."""
    found = parts(module)
    total = sum(parameter.numel() for parameter in module.parameters())
    experts = model.experts
    idle = found["experts"] * (experts.count - experts.top_k) // experts.count if experts else 0
    return {"total": total, "active": total - idle, **found}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_part_of_a_published_model_is_the_modules(path):
    model = load_model(path.stem)
    _, module = build(json.loads(path.read_text(encoding="utf-8")))
    assert counted(model) == built(module, model)


# --- every family, its switches thrown


BASE = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 999,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
BLOOM = {"hidden_size": 64, "n_layer": 5, "n_head": 8, "vocab_size": 999}
GPT2 = {"n_embd": 64, "n_layer": 5, "n_head": 8, "n_positions": 64, "vocab_size": 999}
FALCON = {k: v for k, v in BASE.items() if "intermediate" not in k and "key_value" not in k}
OPT = {**FALCON, "ffn_dim": 176, "word_embed_proj_dim": 64}
BIASED = {"attention_bias": True}
MANY = {**BASE, "moe_intermediate_size": 48, "num_experts": 16}
ROUTED = {**BASE, "moe_intermediate_size": 48, "n_routed_experts": 16, "num_experts_per_tok": 4}
LATENT = {
    **ROUTED,
    "num_key_value_heads": 8,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        BASE,
        {**BASE, **BIASED, "mlp_bias": True},
        {**BASE, "head_dim": 32, "tie_word_embeddings": True},
    ],
    "mistral": [BASE, {**BASE, "head_dim": 24}],
    "mixtral": [BASE, {**BASE, "num_local_experts": 4}],
    "qwen2": [BASE, {**BASE, "tie_word_embeddings": True}],
    "qwen2_moe": [
        {**MANY, "shared_expert_intermediate_size": 80},
        {**MANY, "decoder_sparse_step": 2},
        {**MANY, "mlp_only_layers": [0, 1], "qkv_bias": False},
    ],
    "qwen3": [{**BASE, "head_dim": 24}, {**BASE, **BIASED}],
    "qwen3_moe": [MANY, {**MANY, "decoder_sparse_step": 2}, {**MANY, "mlp_only_layers": [0, 1]}],
    "gemma": [BASE, {**BASE, **BIASED}],
    "gemma2": [BASE, {**BASE, **BIASED}],
    "gemma3_text": [BASE, {**BASE, **BIASED}],
    "phi3": [BASE],
    "gpt2": [GPT2, {**GPT2, "n_inner": 100, "tie_word_embeddings": False}],
    "opt": [OPT, {**OPT, "enable_bias": False, "do_layer_norm_before": False}],
    "bloom": [BLOOM],
    "falcon": [
        FALCON,
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 4},
        {**FALCON, "bias": True, "parallel_attn": False, "alibi": True, "multi_query": False},
    ],
    "gpt_neox": [
        {**FALCON, "intermediate_size": 176},
        {**FALCON, "intermediate_size": 176, "attention_bias": False, "tie_word_embeddings": True},
    ],
    "olmo2": [BASE, {**BASE, **BIASED}],
    "deepseek_v2": [
        LATENT,
        {**LATENT, "q_lora_rank": None},
        {**LATENT, **BIASED, "first_k_dense_replace": 2},
    ],
    "deepseek_v3": [
        LATENT,
        {**LATENT, "q_lora_rank": None},
        {**LATENT, **BIASED, "first_k_dense_replace": 0},
    ],
    "kimi_k2": [LATENT],
    "glm4_moe": [ROUTED, {**ROUTED, **BIASED, "use_qk_norm": True, "n_shared_experts": 2}],
    "gpt_oss": [
        {**BASE, "num_local_experts": 4},
        {**BASE, "num_local_experts": 4, "attention_bias": False},
    ],
    "llama4_text": [
        {**BASE, "intermediate_size_mlp": 200},
        {**BASE, "interleave_moe_layer_step": 2, "num_local_experts": 4},
    ],
    "granite": [BASE, {**BASE, **BIASED, "mlp_bias": True}],
    "granitemoe": [BASE, {**BASE, **BIASED}],
    "granitemoeshared": [BASE, {**BASE, "shared_intermediate_size": 40}],
}


def test_no_family_is_left_out():
    assert sorted(VARIANTS) == sorted(FAMILIES)


@pytest.mark.parametrize("written", ["by hand", "by save_pretrained"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(kind, config, id=f"{kind}-{i}")
        for kind, configs in VARIANTS.items()
        for i, config in enumerate(configs)
    ],
)
def test_a_config_is_read_as_the_class_reads_it(kind, config, written):
    """Fields that a config leaves out take the class's defaults, biases and norms included."""
    made, module = build({"model_type": kind, **config})
    asked = saved_config(made, kind) if written != "by hand" else {"model_type": kind, **config}
    model = model_from_config(asked, "m", "config.json")
    assert counted(model) == built(module, model)


# --- shipped models whose published shapes were never a config.json


def as_config(model: ModelSpec, kind: str, **more: Any) -> dict[str, Any]:
    """The shapes of a spec in transformers' words; what is a module's own stays its own."""
    shape = {
        "model_type": kind,
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.ffn,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_seq_tokens,
        "tie_word_embeddings": model.tied_embeddings,
    }
    if model.mla and model.experts:
        shape |= {**model.mla.model_dump(), "n_routed_experts": model.experts.count}
        shape |= {
            "num_experts_per_tok": model.experts.top_k,
            "moe_intermediate_size": model.experts.ffn,
            "n_shared_experts": model.experts.shared_ffn // model.experts.ffn,
            "first_k_dense_replace": model.experts.first_dense_layers,
        }
    if kind == "gpt2":
        return {"model_type": kind, "tie_word_embeddings": True} | {
            "n_embd": model.hidden,
            "n_layer": model.layers,
            "n_head": model.heads,
            "n_inner": model.ffn,
            "n_positions": model.learned_positions,
            "vocab_size": model.vocab,
        }
    return shape | more


WITHOUT_CONFIG = {
    "llama": ("llama-3-8b", "llama-3-70b"),
    "qwen2": ("qwen2.5-14b",),
    "deepseek_v2": ("deepseek-v2-lite",),
    "deepseek_v3": ("moonlight-16b-a3b",),
    "nemotron": ("nemotron-4-15b", "nemotron-4-340b"),
    "gpt2": (
        "gpt-1.7b",
        "gpt-3.6b",
        "gpt-7.5b",
        "gpt-18b",
        "gpt-39b",
        "gpt-76b",
        "gpt-145b",
        "gpt-310b",
        "gpt-530b",
        "gpt-1t",
        "gpt-22b",
        "gpt-3-1.3b",
        "gpt-3-2.7b",
        "gpt-3-6.7b",
        "gpt-3-13b",
        "gpt-3-175b",
        "mt-nlg-530b",
    ),
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in WITHOUT_CONFIG.items() for name in names]
)
def test_a_shipped_model_without_a_config_is_what_its_familys_class_builds(kind, name):
    model = load_model(name)
    _, module = build(as_config(model, kind))
    assert counted(model) == built(module, model)


def test_every_shipped_model_was_built():
    from planner.specs.catalog import data_folder

    shipped = {path.stem for path in data_folder("model_specs").glob("*.yaml")}
    others = {name for names in WITHOUT_CONFIG.values() for name in names}
    assert shipped == others | {path.stem for path in CONFIGS}

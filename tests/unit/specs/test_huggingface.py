"""Hugging Face configs: real ones give the shipped models, wrong ones one clear sentence."""

import json
from pathlib import Path

import pytest

from planner.errors import SpecError
from planner.specs.catalog import load_model
from planner.specs.families import FAMILIES
from planner.specs.huggingface import is_config, model_from_config
from planner.specs.model import Norm, QkNorm
from planner.specs.parameters import count_parameters

CONFIGS = sorted((Path(__file__).parents[2] / "measured" / "hf").glob("*.json"))
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
MOE = {**LLAMA, "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def read(config, **changes):
    changed = {**config, **changes}
    return model_from_config(
        {k: v for k, v in changed.items() if v != "absent"}, "m", "config.json"
    )


def refusal(config, **changes):
    with pytest.raises(SpecError) as caught:
        read(config, **changes)
    assert str(caught.value).startswith("config.json: ")
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_real_config_gives_the_shipped_model(path):
    shipped = load_model(path.stem)
    model = load_model(str(path))
    assert model.name == path.stem
    assert model == shipped.model_copy(update={"source": model.source})


def test_there_are_configs_to_compare():
    assert len(CONFIGS) == 57


def test_fields_that_do_not_bear_on_shapes_are_ignored():
    assert read(LLAMA, rope_theta=1e6, torch_dtype="bfloat16", quantization_config={}) == read(
        LLAMA
    )


def test_null_is_the_same_as_absent():
    names = ("head_dim", "num_key_value_heads", "sliding_window", "attention_bias", "text_config")
    assert read(LLAMA, **dict.fromkeys(names)) == read(LLAMA)


def test_defaults_of_a_llama():
    model = read(LLAMA)
    assert (model.kv_heads, model.head_dim, model.tied_embeddings) == (8, 8, False)
    assert (model.norm, model.gated_mlp, model.qkv_bias) == (Norm.RMSNORM, True, False)


def test_head_dim_is_read_where_it_is_given():
    assert read(LLAMA, head_dim=32).head_dim == 32


@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        ("llama", False),
        ("qwen2", False),
        ("mistral", False),
        ("gpt_neox", False),
        ("gpt2", True),
        ("bloom", True),
        ("opt", True),
        ("falcon", True),
        ("gemma2", True),
    ],
)
def test_absent_tie_follows_the_family(kind, tied):
    assert read(LLAMA, model_type=kind, num_key_value_heads=8).tied_embeddings is tied
    assert read(LLAMA, model_type=kind, tie_word_embeddings=not tied).tied_embeddings is not tied


def test_gpt2_spelling():
    model = read(
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100},
        n_positions=32,
    )
    assert (model.hidden, model.layers, model.heads, model.ffn) == (64, 2, 4, 256)
    assert (model.learned_positions, model.dropout, model.norm) == (32, True, Norm.LAYERNORM)
    undropped = {"attn_pdrop": 0.0, "embd_pdrop": 0, "resid_pdrop": 0.0}
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 9}
    assert not read(config, **undropped).dropout


def test_opt_has_two_positions_more_and_may_lack_biases():
    model = read(LLAMA, model_type="opt", intermediate_size="absent", ffn_dim=99, enable_bias=False)
    assert (model.learned_positions, model.ffn, model.mlp_bias) == (514, 99, False)
    assert "word_embed_proj_dim" in refusal(LLAMA, model_type="opt", word_embed_proj_dim=32)


@pytest.mark.parametrize(
    ("changes", "kv_heads", "norms"),
    [
        ({}, 1, 1),
        ({"multi_query": False}, 8, 1),
        ({"parallel_attn": False}, 1, 2),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2, 2),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, 8, 1),
    ],
)
def test_falcons_differ_in_heads_and_norms(changes, kv_heads, norms):
    model = read(LLAMA, model_type="falcon", **changes)
    assert (model.kv_heads, model.norms_per_layer) == (kv_heads, norms)


@pytest.mark.parametrize(
    ("kind", "norm"), [("qwen2", QkNorm.NONE), ("qwen3", QkNorm.HEAD), ("olmo2", QkNorm.FULL)]
)
def test_norms_of_queries_and_keys_follow_the_family(kind, norm):
    assert read(LLAMA, model_type=kind).qk_norm is norm


def test_glm_says_itself_whether_it_norms_queries():
    moe = {**MOE, "model_type": "glm4_moe", "first_k_dense_replace": 1}
    assert read(moe, use_qk_norm=True).qk_norm is QkNorm.HEAD
    assert read(moe).qk_norm is QkNorm.NONE
    assert not read(moe, attention_bias=True).attention_output_bias


# --- sliding windows ----------------------------------------------------------------------------

SLIDES, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("changes", "window", "period"),
    [
        ({}, None, 0),
        ({"sliding_window": 64}, 64, 0),
        ({"sliding_window": 512}, None, 0),  # as long as the longest sequence
        ({"sliding_window": 64, "use_sliding_window": False}, None, 0),
        ({"sliding_window": 64, "sliding_window_pattern": 2}, 64, 2),
        ({"sliding_window": 64, "layer_types": [SLIDES, FULL, SLIDES, FULL]}, 64, 2),
        ({"sliding_window": 64, "layer_types": [SLIDES, SLIDES, SLIDES, FULL]}, 64, 4),
        ({"sliding_window": 64, "layer_types": [SLIDES] * 4}, 64, 0),
        ({"sliding_window": 64, "layer_types": [FULL] * 4}, None, 0),
        ({"model_type": "mistral", "max_position_embeddings": 8192}, 4096, 0),
        ({"model_type": "gemma2", "max_position_embeddings": 8192}, 4096, 2),
        ({"model_type": "gemma3_text", "sliding_window": 64}, 64, 6),
        ({"model_type": "qwen2", "sliding_window": 64}, None, 0),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, 64, 0),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 64,
                "use_sliding_window": True,
                "max_window_layers": 4,
            },
            None,
            0,
        ),
    ],
)
def test_sliding_windows(changes, window, period):
    model = read(LLAMA, num_key_value_heads=8, **changes)
    assert (model.sliding_window_tokens, model.full_attention_period) == (window, period)


def test_gpt_oss_alternates_even_where_it_does_not_say_so():
    config = {**MOE, "model_type": "gpt_oss", "num_key_value_heads": 8}
    model = read(config)
    assert (model.sliding_window_tokens, model.full_attention_period) == (128, 2)
    assert model.attention_sinks
    assert model.experts.router_bias
    assert model.experts.expert_bias


def test_patterns_that_a_model_spec_cannot_hold_are_refused():
    types = [FULL, SLIDES, SLIDES, FULL]
    assert "'layer_types'" in refusal(LLAMA, sliding_window=64, layer_types=types)
    assert "'layer_types'" in refusal(LLAMA, sliding_window=64, layer_types=[FULL])
    assert "'layer_types'" in refusal(
        LLAMA, sliding_window=64, layer_types=["linear_attention"] * 4
    )
    assert "'layer_types'" in refusal(LLAMA, sliding_window=64, layer_types=[1, 2, 3, 4])
    qwen = {**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64}
    assert "'max_window_layers'" in refusal(qwen, max_window_layers=2)


# --- experts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, (True, True, True, True)),
        ({"first_k_dense_replace": 3}, (False, False, False, True)),
        ({"decoder_sparse_step": 2}, (False, True, False, True)),
        ({"interleave_moe_layer_step": 4}, (False, False, False, True)),
        ({"mlp_only_layers": [0, 1]}, (False, False, True, True)),
        ({"mlp_only_layers": []}, (True, True, True, True)),
        ({"moe_layers": [1, 2, 3]}, (False, True, True, True)),
    ],
)
def test_which_layers_hold_experts(changes, layers):
    assert read(MOE, **changes).moe_layers == layers


def test_layers_with_experts_in_no_pattern_are_refused():
    assert "'mlp_only_layers'" in refusal(MOE, mlp_only_layers=[2])
    assert "'moe_layers'" in refusal(MOE, moe_layers=[0, 3])
    assert "'moe_layer_freq'" in refusal(MOE, moe_layer_freq=2)
    assert "'mlp_only_layers'" in refusal(MOE, mlp_only_layers=[9])


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({}, 0),
        ({"n_shared_experts": 2}, 32),
        ({"shared_expert_intermediate_size": 48}, 48),
        ({"shared_intermediate_size": 8}, 8),
        ({"model_type": "llama4_text", "attention_chunk_size": 512}, 128),
    ],
)
def test_width_of_the_shared_experts(changes, shared):
    assert read(MOE, **changes).experts.shared_ffn == shared


def test_no_experts_is_a_dense_model():
    assert read(MOE, num_local_experts=0).experts is None


# --- wrappers and strangers ---------------------------------------------------------------------


def test_a_multimodal_wrapper_is_read_through_its_text_config():
    inner = {k: v for k, v in LLAMA.items() if k not in ("architectures", "model_type")}
    wrapper = {"model_type": "gemma3", "text_config": {**inner, "num_attention_heads": 8}}
    assert read(wrapper) == read(LLAMA, model_type="gemma3_text")
    llava = {"model_type": "llava", "text_config": LLAMA, "vision_config": {"hidden_size": 1}}
    assert read(llava) == read(LLAMA)
    assert read(llava, tie_word_embeddings=True).tied_embeddings
    assert "'text_config'" in refusal({"text_config": 3})


def test_another_family_is_read_as_a_llama():
    model = read(LLAMA, model_type="yi", architectures=["YiForCausalLM"])
    assert count_parameters(model) == count_parameters(read(LLAMA))
    assert "yi" in model.source


def test_another_family_with_layernorm_or_bias_keeps_them():
    model = read(LLAMA, model_type="stablelm", layer_norm_eps=1e-5, use_qkv_bias=True)
    assert (model.norm, model.qkv_bias) == (Norm.LAYERNORM, True)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_size": "absent", "vocab_size": "absent"}, "missing: hidden_size, vocab_size"),
        ({"architectures": ["BertForMaskedLM"]}, "not a decoder-only"),
        ({"is_encoder_decoder": True}, "not a decoder-only"),
        ({"mamba_d_state": 16}, "other than attention"),
        ({"hidden_act": "relu2"}, "'relu2' leaves open"),
    ],
)
def test_architectures_that_are_no_llama_are_refused(changes, why):
    message = refusal(LLAMA, **{"model_type": "new", "architectures": "absent", **changes})
    assert why in message
    assert "'new'" in message
    assert "deepseek_v3" in message  # the hint names what is known


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 64.5}, "hidden_size"),
        ({"hidden_size": 10**64}, "hidden_size"),
        ({"hidden_size": 10**5000}, "hidden_size"),
        ({"hidden_size": float("nan")}, "hidden_size"),
        ({"hidden_size": [64]}, "hidden_size"),
        ({"hidden_size": 65}, "hidden_size"),
        ({"num_hidden_layers": "absent"}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**9, "num_experts": 2}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"attention_dropout": 2}, "attention_dropout"),
        ({"attention_dropout": "0.1"}, "attention_dropout"),
        ({"sliding_window": -1}, "sliding_window"),
        ({"kv_lora_rank": 4}, "qk_nope_head_dim"),
        ({"num_experts": 4}, "num_experts_per_tok"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok"),
        ({"num_experts": {}}, "num_experts"),
        ({"model_type": 7}, "model_type"),
        ({"n_routed_experts": -5}, "n_routed_experts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_values_are_refused_by_their_own_name(changes, field):
    assert f"'{field}'" in refusal(LLAMA, **changes)


def test_a_width_beyond_all_bounds_is_refused_once_and_shortly():
    message = refusal(LLAMA, vocab_size=10**9)
    assert "field 'vocab': 1000000000 is not allowed" in message
    assert len(message) < 200


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_every_family_reads_a_complete_config(kind):
    config = {**MOE, "num_key_value_heads": 4, "head_dim": 16, "tie_word_embeddings": True}
    model = read(config, model_type=kind)
    assert model.layers == 4
    assert count_parameters(model).output == 0


def test_what_is_a_config():
    assert is_config({"model_type": "llama"})
    assert is_config({"text_config": {}})
    assert not is_config(json.loads('{"layers": 2, "hidden": 4}'))

"""What transformers' own decoder layers save for backward, byte by byte."""

from __future__ import annotations

from typing import Any

import pytest
from estimate_cases import inputs
from hf_layers import layer_saved

from planner.estimate import activations, params, recompute
from planner.specs.huggingface import model_from_config

pytestmark = pytest.mark.frameworks

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 704,
    "num_hidden_layers": 1,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
MIXTRAL = {**LLAMA, **EXPERTS, "model_type": "mixtral", "intermediate_size": 192}
SHAPES = [(128, 1), (256, 2)]
"""(tokens of a sequence, sequences)"""


def told(config, kernel, seq, batch):
    model = model_from_config(config, "m", "config.json")
    stack = "deepspeed" if kernel == "sdpa" else "deepspeed+unfused"
    x = inputs(model, {"micro_batch": batch}, seq_tokens=seq, stack=stack, expert_imbalance=1.0)
    assert x.stack.activations == "hf"
    if model.experts:
        return activations.moe_layer_activation_bytes(x)[0]
    return activations.dense_layer_activation_bytes(x)[0]


@pytest.mark.parametrize(("seq", "batch"), SHAPES)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [2, 4, 8])
def test_a_llama_layer_saves_what_is_told(kernel, seq, batch, kv_heads):
    config = {**LLAMA, "num_key_value_heads": kv_heads}
    total, tensors = layer_saved(config, kernel=kernel, seq=seq, batch=batch)
    assert told(config, kernel, seq, batch) == total, tensors


@pytest.mark.parametrize(("seq", "batch"), SHAPES)
def test_a_checkpointed_layer_saves_its_input_alone(seq, batch):
    total, tensors = layer_saved(LLAMA, kernel="sdpa", seq=seq, batch=batch, checkpoint=True)
    model = model_from_config(LLAMA, "m", "config.json")
    row = {"micro_batch": batch, "recompute": "full"}
    x = inputs(model, row, seq_tokens=seq, stack="deepspeed")
    assert recompute.kept_layer_bytes(x)[0][0] == total, tensors


@pytest.mark.parametrize(("seq", "batch"), SHAPES)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("top_k", [1, 4])
def test_a_mixtral_layer_saves_its_routed_tokens(kernel, seq, batch, top_k):
    """The router's own tensors are estimated: within half a percent."""
    config = {**MIXTRAL, "num_experts_per_tok": top_k}
    total, tensors = layer_saved(config, kernel=kernel, seq=seq, batch=batch)
    assert told(config, kernel, seq, batch) == pytest.approx(total, rel=5e-3), tensors


QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 32}
LATENT = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 8,
    "moe_intermediate_size": 192,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}


@pytest.mark.parametrize(("seq", "batch"), SHAPES)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_norms_of_heads_keep_an_fp32_copy(kernel, seq, batch):
    """6 T (a+g) d + 4 T (a+g) a layer: before keys are repeated, in eager attention too."""
    total, tensors = layer_saved(QWEN3, kernel=kernel, seq=seq, batch=batch)
    assert told(QWEN3, kernel, seq, batch) == total, tensors


@pytest.mark.parametrize(("seq", "batch"), SHAPES)
def test_latent_attention_keeps_fp32_copies_and_values_with_their_keys(seq, batch):
    """8 T (qr + kr) + 8 T for the inner norms; values are a view of T a (n + v)."""
    total, tensors = layer_saved(
        {**LATENT, "first_k_dense_replace": 2}, kernel="eager", seq=seq, batch=batch
    )
    model = model_from_config(LATENT, "m", "config.json").model_copy(update={"experts": None})
    x = inputs(model, {"micro_batch": batch}, seq_tokens=seq, stack="deepspeed+unfused")
    assert activations.dense_layer_activation_bytes(x)[0] == total, tensors


GPT2 = {
    "model_type": "gpt2",
    "n_embd": 256,
    "n_head": 8,
    "n_layer": 1,
    "n_positions": 1024,
    "vocab_size": 512,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}


@pytest.mark.parametrize(("seq", "batch"), SHAPES)
@pytest.mark.parametrize(("activation", "each"), [("gelu_new", 10), ("gelu", 4)])
def test_a_gelu_of_elementwise_kernels_keeps_what_each_of_them_needs(seq, batch, activation, each):
    config = {**GPT2, "activation_function": activation}
    total, tensors = layer_saved(config, kernel="sdpa", seq=seq, batch=batch)
    mine = told(config, "sdpa", seq, batch)
    assert mine == pytest.approx(total, rel=5e-3), tensors
    model = model_from_config(config, "m", "config.json")
    x = inputs(model, {"micro_batch": batch}, seq_tokens=seq, stack="deepspeed")
    width = activations.feed_forward_bytes(x, model.ffn)[0]
    assert width == each * seq * batch * model.ffn


@pytest.mark.parametrize(("seq", "batch"), SHAPES)
@pytest.mark.parametrize("config", [LLAMA, {**LLAMA, "num_key_value_heads": 8}], ids=["gqa", "mha"])
def test_autocast_keeps_a_cast_of_every_input_and_every_weight(config, seq, batch):
    total, tensors = layer_saved(config, kernel="sdpa", seq=seq, batch=batch, autocast=True)
    model = model_from_config(config, "m", "config.json")
    x = inputs(model, {"micro_batch": batch}, seq_tokens=seq, stack="transformers")
    weights = 2 * (params.dense_layer_parameters(x)[0] - 2 * model.hidden)
    assert activations.dense_layer_activation_bytes(x)[0] + weights == total, tensors

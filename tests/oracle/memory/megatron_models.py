"""Megatron-Core's own modules on the CPU: one rank of any layout, under a fake process group.

Weights stand on the meta device; collectives of the fake group return at once and leave their
output as it was allocated, so shapes and what autograd saves are right, and values are not. The
local layers (no Transformer Engine) are built; CUDA is asked for a device and a stream, given here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import megatron_harness
import pytest

from planner.specs.model import ModelSpec, Norm, QkNorm
from planner.specs.parameters import padded_vocab


class NoCore:
    """Stands where attention's core would be: it has no parameters."""

    def __init__(self, **_: Any) -> None:
        pass


@contextlib.contextmanager
def rank_of(
    rank: int, *, tp: int, pp: int, ep: int, etp: int, world: int, core: Any = None
) -> Iterator[None]:
    """Be one rank of a job, with Megatron's own groups; `core` replaces the attention core."""
    megatron_harness.load()
    torch = pytest.importorskip("torch")
    from megatron.core import parallel_state
    from megatron.core.models.backends import LocalSpecProvider
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        enter(contextlib.redirect_stdout(io.StringIO()))
        enter(contextlib.redirect_stderr(io.StringIO()))
        enter(mock.patch.object(torch.cuda, "Stream", mock.MagicMock()))
        enter(mock.patch.object(torch.cuda, "current_device", return_value="cpu"))
        enter(mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor))
        if core is not None:
            enter(mock.patch.object(LocalSpecProvider, "core_attention", return_value=core))
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, logging.NOTSET)
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        stack.callback(torch.distributed.destroy_process_group)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            expert_model_parallel_size=ep,
            expert_tensor_parallel_size=etp,
            create_gloo_process_groups=False,
        )
        stack.callback(parallel_state.destroy_model_parallel)
        yield


def config_of(model: ModelSpec, **more: Any) -> Any:
    """Return Megatron's configuration of a model."""
    import torch
    from megatron.core.transformer.transformer_config import (
        MLATransformerConfig,
        TransformerConfig,
    )

    fields: dict[str, Any] = {
        "num_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "num_query_groups": model.kv_heads,
        "kv_channels": model.head_dim,
        "ffn_hidden_size": model.ffn,
        "normalization": "RMSNorm" if model.norm is Norm.RMSNORM else "LayerNorm",
        "gated_linear_unit": model.gated_mlp,
        "activation_func": torch.nn.functional.silu
        if model.gated_mlp
        else torch.nn.functional.gelu,
        "add_bias_linear": model.mlp_bias,
        "add_qkv_bias": model.qkv_bias,
        "qk_layernorm": model.qk_norm is QkNorm.HEAD or model.mla is not None,
        "hidden_dropout": 0.1 if model.dropout else 0.0,
        "attention_dropout": 0.1 if model.dropout else 0.0,
        "use_cpu_initialization": True,
        "perform_initialization": False,
        "bf16": True,
        "params_dtype": torch.bfloat16,
        "pipeline_dtype": torch.bfloat16,
    }
    if experts := model.experts:
        fields |= {
            "num_moe_experts": experts.count,
            "moe_router_topk": experts.top_k,
            "moe_ffn_hidden_size": experts.ffn,
            "moe_shared_expert_intermediate_size": experts.shared_ffn or None,
            "moe_shared_expert_gate": experts.shared_gate,
            "moe_token_dispatcher_type": "alltoall",
            "moe_layer_freq": [int(moe) for moe in model.moe_layers],
        }
    if mla := model.mla:
        fields |= {
            "multi_latent_attention": True,
            "q_lora_rank": mla.q_lora_rank,
            "kv_lora_rank": mla.kv_lora_rank,
            "qk_head_dim": mla.qk_nope_head_dim,
            "qk_pos_emb_head_dim": mla.qk_rope_head_dim,
            "v_head_dim": mla.v_head_dim,
            "rope_type": "rope",
        }
        del fields["num_query_groups"]
    return (MLATransformerConfig if mla else TransformerConfig)(**fields, **more)


def rank_parameters(model: ModelSpec, rank: int, **degrees: int) -> tuple[int, int]:
    """Return the parameters of a rank's GPTModel: outside of routed experts, and in them."""
    job = {"tp": 1, "pp": 1, "ep": 1, "etp": 1, **degrees}
    with rank_of(rank, core=NoCore if model.mla else None, **job):
        import torch
        from megatron.core import parallel_state
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt.gpt_layer_specs import (
            get_gpt_decoder_block_spec,
            get_gpt_mtp_block_spec,
        )

        config = config_of(
            model,
            tensor_model_parallel_size=job["tp"],
            pipeline_model_parallel_size=job["pp"],
            expert_model_parallel_size=job["ep"],
            expert_tensor_parallel_size=job["etp"],
            mtp_num_layers=model.mtp_layers or None,
        )
        layers = get_gpt_decoder_block_spec(
            config, use_transformer_engine=False, normalization=config.normalization
        )
        with torch.device("meta"):
            module = GPTModel(
                config,
                layers,
                vocab_size=padded_vocab(model.vocab, job["tp"]),
                max_sequence_length=model.learned_positions or model.max_seq_tokens,
                pre_process=parallel_state.is_pipeline_first_stage(),
                post_process=parallel_state.is_pipeline_last_stage(),
                share_embeddings_and_output_weights=model.tied_embeddings,
                position_embedding_type="learned_absolute" if model.learned_positions else "rope",
                mtp_block_spec=get_gpt_mtp_block_spec(config, layers, use_transformer_engine=False)
                if model.mtp_layers
                else None,
            )
    named = list(module.named_parameters())
    experts = sum(p.numel() for name, p in named if ".experts." in name and "shared" not in name)
    return sum(p.numel() for _, p in named) - experts, experts

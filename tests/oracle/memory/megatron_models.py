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
    from torch import _dynamo
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        enter(contextlib.redirect_stdout(io.StringIO()))
        enter(contextlib.redirect_stderr(io.StringIO()))
        enter(_dynamo.config.patch(disable=True))  # nothing to compile for
        enter(mock.patch.object(torch.cuda, "Stream", mock.MagicMock()))
        enter(mock.patch.object(torch.cuda, "current_stream", mock.MagicMock()))
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


def fused_core() -> type:
    """Return an attention core that saves what a fused kernel does: q, k, v, output, statistics."""
    import torch

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
            groups = q.shape[2] // k.shape[2]
            wide = [q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)]
            out = torch.nn.functional.scaled_dot_product_attention(
                *(t.permute(1, 2, 0, 3).float() for t in wide), is_causal=True
            )
            out = out.permute(2, 0, 1, 3).to(q.dtype).contiguous()
            rows = torch.zeros(q.shape[1], q.shape[2], q.shape[0])  # log-sum-exp, fp32
            ctx.save_for_backward(q, k, v, out, rows)
            return out.flatten(2)

    class Core(torch.nn.Module):
        def __init__(self, **_: Any) -> None:
            super().__init__()

        def forward(self, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
            return Kernel.apply(query.contiguous(), key.contiguous(), value.contiguous())

    return Core


def kernel_norm(layer_norm: bool) -> type:
    """Return a norm that saves what a fused kernel does: its input and statistics in fp32."""
    import torch

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any) -> Any:
            x = x.contiguous()
            wide = x.float()
            rows = [wide.pow(2).mean(-1)] if not layer_norm else [wide.mean(-1), wide.var(-1)]
            ctx.save_for_backward(x, weight, *rows)
            return x * weight

    class Norm(torch.nn.Module):
        def __init__(self, *_: Any, hidden_size: int, **__: Any) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(hidden_size))

        def forward(self, x: Any) -> Any:
            return Kernel.apply(x, self.weight)

    return Norm


def layer_saved(
    model: ModelSpec, *, tp: int, sp: bool, batch: int, seq: int, fused: bool, **config: Any
) -> tuple[int, list[Any]]:
    """Return what Megatron's own layer saves for backward on one rank, and each tensor of it.

    Norms and, where `fused`, the attention core save what their CUDA kernels do; softmax is kept in
    16 bit, as Megatron's fused kernel keeps it. All else is Megatron-Core's code.
    """
    megatron_harness.load()
    import torch
    from saved import dropout_as_cuda, saved_bytes

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        job = {"tp": tp, "pp": 1, "ep": 1, "etp": 1, "world": tp}
        enter(rank_of(0, **job, core=fused_core() if fused else None))
        enter(dropout_as_cuda())
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.tensor_parallel import random
        from megatron.core.transformer import dot_product_attention
        from megatron.core.transformer.spec_utils import build_module

        tracker = mock.MagicMock()
        tracker().fork = lambda *_: contextlib.nullcontext()
        for module in (random, dot_product_attention.tensor_parallel):
            enter(mock.patch.object(module, "get_cuda_rng_tracker", tracker))
        made = config_of(
            model,
            tensor_model_parallel_size=tp,
            sequence_parallel=sp,
            attention_softmax_in_fp32=False,
            bias_activation_fusion=True,
            **config,
        )
        spec = get_gpt_layer_local_spec(
            model.experts.count if model.experts else None,
            qk_layernorm=made.qk_layernorm,
            multi_latent_attention=model.mla is not None,
            normalization=made.normalization,
        )
        norm = kernel_norm(model.norm is Norm.LAYERNORM)
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = norm
        inner = spec.submodules.self_attention.submodules
        for name in ("q_layernorm", "k_layernorm", "kv_layernorm"):
            if made.qk_layernorm and hasattr(inner, name):
                setattr(inner, name, norm)
        layer = build_module(spec, config=made, layer_number=1).bfloat16()
        rows = seq // tp if sp else seq
        x = torch.randn(rows, batch, model.hidden, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.ones(1, 1, seq, seq, dtype=torch.bool).triu(1)
        return saved_bytes(
            lambda: layer(x, attention_mask=mask),
            parameters=list(layer.parameters()),
            given=[mask],
        )

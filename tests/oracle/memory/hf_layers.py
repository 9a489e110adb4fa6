"""One decoder layer of transformers on the CPU in bf16, and what it saves for backward."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from saved import dropout_as_cuda, saved_bytes


def layer_saved(
    config: dict[str, Any],
    *,
    kernel: str,
    seq: int,
    batch: int,
    number: int = 0,
    checkpoint: bool = False,
    autocast: bool = False,
) -> tuple[int, list[Any]]:
    """Return the bytes that a layer saves, and each tensor; `kernel` is 'sdpa' or 'eager'.

    The layer's input is counted where the layer saves it and it is checkpointed; the one before it
    made it otherwise. Under autocast weights and input are fp32.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings(), dropout_as_cuda():
        warnings.simplefilter("ignore")
        fields = {k: v for k, v in config.items() if k != "model_type"}
        made = transformers.AutoConfig.for_model(config["model_type"], **fields)
        made._attn_implementation = kernel
        if hasattr(made, "num_experts_per_tok"):
            made._experts_implementation = "grouped_mm"
        model = transformers.AutoModelForCausalLM.from_config(made)
        width = torch.float32 if autocast else torch.bfloat16
        model = model.to(width).train()
        body = getattr(model, "model", None) or model.transformer
        layer = (body.layers if hasattr(body, "layers") else body.h)[number]
        x = torch.randn(batch, seq, made.hidden_size, dtype=width, requires_grad=True)
        rotary = body.rotary_emb(x, torch.arange(seq)[None]) if hasattr(body, "rotary_emb") else ()
        keywords = {"position_embeddings": rotary} if len(rotary) else {}

        def run() -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return forward()

        def forward() -> Any:
            if not checkpoint:
                return layer(x, attention_mask=None, **keywords)
            return torch.utils.checkpoint.checkpoint(
                lambda given: layer(given, attention_mask=None, **keywords), x, use_reentrant=True
            )

        saves_input = checkpoint or autocast or made.model_type == "gpt2"
        given = [*rotary] if saves_input else [x, *rotary]
        return saved_bytes(run, parameters=list(layer.parameters()), given=given)

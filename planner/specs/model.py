"""ModelSpec: the shapes of a decoder-only transformer, and nothing about how it is run."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from planner.specs.record import Record


class Norm(StrEnum):
    """Normalisation of a block; LayerNorm carries a bias, RMSNorm does not."""

    RMSNORM = "rmsnorm"
    LAYERNORM = "layernorm"


class QkNorm(StrEnum):
    """Normalisation of queries and keys before attention."""

    NONE = "none"
    HEAD = "head"  # one weight of head_dim for q and one for k (Qwen3, Gemma 3, GLM-4.5)
    FULL = "full"  # one weight per q channel and per k channel (OLMo 2)


class LatentAttention(Record):
    """Multi-head latent attention (DeepSeek-V2): low-rank projections of q and of k, v."""

    q_lora_rank: PositiveInt | None = Field(
        None, le=1_000_000, description="None: q is projected at full rank."
    )
    kv_lora_rank: PositiveInt = Field(le=1_000_000)
    qk_nope_head_dim: PositiveInt = Field(le=1_000_000)
    qk_rope_head_dim: PositiveInt = Field(le=1_000_000)
    v_head_dim: PositiveInt = Field(le=1_000_000)


class Experts(Record):
    """The mixture-of-experts part of a model."""

    count: PositiveInt = Field(le=1_000_000, description="Routed experts in a layer.")
    top_k: PositiveInt = Field(description="Routed experts that each token visits.")
    ffn: PositiveInt = Field(le=100_000_000, description="Width of one routed expert.")
    shared_ffn: NonNegativeInt = Field(
        0, le=100_000_000, description="Width of all shared experts together."
    )
    shared_gate: bool = Field(False, description="A gate weighs the shared experts' output.")
    router_bias: bool = Field(False, description="The router's projection has a bias.")
    expert_bias: bool = Field(False, description="The experts' projections have biases.")
    first_dense_layers: NonNegativeInt = Field(0, description="Leading layers without experts.")
    layer_period: PositiveInt = Field(
        1, le=100_000, description="Every n-th layer has experts (1: all)."
    )

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.count:
            raise ValueError(f"top_k ({self.top_k}) is more than count ({self.count})")
        return self


class ModelSpec(Record):
    """A decoder-only transformer. Widths are in elements, one layer is attention + feed-forward."""

    name: str = Field(min_length=1, max_length=200)
    source: str = Field("", description="Where the figures come from.")
    layers: PositiveInt = Field(le=100_000)
    hidden: PositiveInt = Field(le=10_000_000)
    heads: PositiveInt = Field(le=1_000_000)
    kv_heads: PositiveInt = Field(le=1_000_000)
    head_dim: PositiveInt = Field(le=1_000_000)
    ffn: PositiveInt = Field(le=100_000_000, description="Width of a dense feed-forward layer.")
    vocab: PositiveInt = Field(le=100_000_000)
    max_seq_tokens: PositiveInt = Field(le=1_000_000_000)
    gated_mlp: bool = Field(True, description="SwiGLU or GeGLU: two input projections, not one.")
    norm: Norm = Norm.RMSNORM
    norms_per_layer: PositiveInt = Field(2, le=1000)
    qk_norm: QkNorm = QkNorm.NONE
    tied_embeddings: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    python_gelu: bool = Field(
        False, description="GELU as a chain of elementwise kernels in Transformers (GPT-2)."
    )
    attention_sinks: bool = Field(False, description="One learned logit a head (gpt-oss).")
    learned_positions: NonNegativeInt = Field(
        0, le=1_000_000_000, description="Rows of a learned position table."
    )
    embedding_norm: bool = Field(False, description="A LayerNorm after the embedding (BLOOM).")
    final_norm: bool = True
    dropout: bool = Field(False, description="Trained with dropout in its published recipe.")
    sliding_window_tokens: PositiveInt | None = Field(None, le=1_000_000_000)
    full_attention_period: NonNegativeInt = Field(
        0,
        le=100_000,
        description="With a sliding window: every n-th layer attends to all tokens (0: none).",
    )
    mla: LatentAttention | None = None
    experts: Experts | None = None
    mtp_layers: NonNegativeInt = Field(
        0, le=100_000, description="Multi-token-prediction layers in training."
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads ({self.heads}) is not a multiple of kv_heads ({self.kv_heads})"
            )
        return self

    @model_validator(mode="after")
    def _layer_kinds_agree(self) -> Self:
        if self.experts and self.experts.first_dense_layers >= self.layers:
            raise ValueError(
                f"experts.first_dense_layers ({self.experts.first_dense_layers}) leaves none of "
                f"the {self.layers} layers for experts"
            )
        if self.full_attention_period and self.sliding_window_tokens is None:
            raise ValueError("full_attention_period needs sliding_window_tokens")
        return self

    @property
    def moe_layers(self) -> tuple[bool, ...]:
        """Return, layer by layer, whether it holds experts."""
        if self.experts is None:
            return (False,) * self.layers
        first, period = self.experts.first_dense_layers, self.experts.layer_period
        return tuple(i >= first and (i + 1) % period == 0 for i in range(self.layers))

"""Parameter counts of a model, exact to the last bias.

Closed forms rather than an instantiated network: a 400B model is counted in microseconds, and each
part is kept by how tensor parallelism divides it. The forms were checked against the parameters
that the published implementations create (tests/measured/params_oracle.csv).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from planner.specs.model import Experts, LatentAttention, ModelSpec, Norm, QkNorm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of one whole (unsharded) layer, by how tensor parallelism divides them."""

    attention_heads: int
    """Query and output projections (q bias and sinks too), MLA's up-projections: / tp."""
    attention_kv: int
    """Key and value projections with their biases: / tp. MLA has none."""
    attention_replicated: int
    """Output bias and MLA's down-projections: whole on every tensor parallel rank."""
    mlp: int
    """Dense feed-forward, or the shared experts of a mixture-of-experts layer: / tp."""
    mlp_replicated: int
    """Bias of the second projection: whole on every tensor parallel rank."""
    router: int
    """The shared experts' gate too: whole on every rank."""
    experts: int
    """All routed experts of the layer together: / (ep * etp)."""
    norms: int
    """Block norms, norms of queries and keys, MLA's inner norms: whole on every rank."""

    @property
    def attention(self) -> int:
        """Return the attention parameters without any norm."""
        return self.attention_heads + self.attention_kv + self.attention_replicated

    @property
    def total(self) -> int:
        """Return every parameter of the layer."""
        feed_forward = self.mlp + self.mlp_replicated + self.router + self.experts
        return self.attention + feed_forward + self.norms


@dataclass(frozen=True)
class Parameters:
    """Parameters of a whole model, without multi-token-prediction layers.

    `active` is what one token passes through: `total` less the routed experts it does not visit.
    """

    total: int
    active: int
    embedding: int
    """Token table and learned positions; where tied, the output projection is this table."""
    attention: int
    mlp: int
    """Dense feed-forward and shared experts."""
    router: int
    experts: int
    """Routed experts."""
    norms: int
    """Every norm: of blocks, of queries and keys, after the embedding, before the output."""
    output: int
    """Output projection; 0 where it is tied to the embedding."""


def count_parameters(model: ModelSpec) -> Parameters:
    """Return the parameters of `model` by part."""
    kinds = model.moe_layers
    moe_layers = sum(kinds)
    counts = {True: moe_layers, False: len(kinds) - moe_layers}
    layers = [(n, layer_parameters(model, moe=moe)) for moe, n in counts.items() if n]
    embedding = (model.vocab + model.learned_positions) * model.hidden
    attention = sum(n * layer.attention for n, layer in layers)
    mlp = sum(n * (layer.mlp + layer.mlp_replicated) for n, layer in layers)
    router = sum(n * layer.router for n, layer in layers)
    experts = sum(n * layer.experts for n, layer in layers)
    norms = sum(n * layer.norms for n, layer in layers) + global_norms(model)
    output = 0 if model.tied_embeddings else model.vocab * model.hidden
    total = embedding + attention + mlp + router + experts + norms + output
    idle = 0
    if model.experts:
        unvisited = model.experts.count - model.experts.top_k
        idle = moe_layers * unvisited * expert_parameters(model)
    return Parameters(
        total, total - idle, embedding, attention, mlp, router, experts, norms, output
    )


def layer_parameters(model: ModelSpec, *, moe: bool) -> LayerParameters:
    """Return the parameters of one layer of `model`: one with experts, or a dense one."""
    heads, kv, replicated = _attention(model)
    experts = model.experts if moe else None
    width = experts.shared_ffn if experts else model.ffn
    mlp, mlp_replicated = _feed_forward(model, width, bias=model.mlp_bias and width > 0)
    return LayerParameters(
        attention_heads=heads,
        attention_kv=kv,
        attention_replicated=replicated,
        mlp=mlp,
        mlp_replicated=mlp_replicated,
        router=_router(model.hidden, experts) if experts else 0,
        experts=experts.count * expert_parameters(model) if experts else 0,
        norms=model.norms_per_layer * norm_parameters(model) + _inner_norms(model),
    )


def layer_vectors(model: ModelSpec, *, moe: bool) -> LayerParameters:
    """Return those parameters of `layer_parameters` that are vectors: norms, biases and sinks."""
    experts = model.experts if moe else None
    width = experts.shared_ffn if experts else model.ffn
    inputs = 2 if model.gated_mlp else 1
    bias = model.mlp_bias and width > 0
    queries, keys, downs = _bias_widths(model)
    each = experts.expert_bias * (inputs * experts.ffn + model.hidden) if experts else 0
    return LayerParameters(
        attention_heads=queries + model.attention_sinks * model.heads,
        attention_kv=keys,
        attention_replicated=downs + model.attention_output_bias * model.hidden,
        mlp=bias * inputs * width,
        mlp_replicated=bias * model.hidden,
        router=experts.router_bias * experts.count if experts else 0,
        experts=experts.count * each if experts else 0,
        norms=model.norms_per_layer * norm_parameters(model) + _inner_norms(model),
    )


def _bias_widths(model: ModelSpec) -> tuple[int, int, int]:
    """Return the biases of queries, of keys and values, and of MLA's down-projections."""
    if not model.qkv_bias:
        return 0, 0, 0
    if model.mla:
        mla = model.mla
        return 0, 0, (mla.q_lora_rank or 0) + mla.kv_lora_rank + mla.qk_rope_head_dim
    return model.heads * model.head_dim, 2 * model.kv_heads * model.head_dim, 0


def expert_parameters(model: ModelSpec) -> int:
    """Return the parameters of one routed expert; 0 for a model without experts."""
    if model.experts is None:
        return 0
    return sum(_feed_forward(model, model.experts.ffn, bias=model.experts.expert_bias))


def norm_parameters(model: ModelSpec) -> int:
    """Return the parameters of one norm over the hidden width."""
    return model.hidden * (2 if model.norm is Norm.LAYERNORM else 1)


def global_norms(model: ModelSpec) -> int:
    """Return the parameters of the norms outside the layers: after embedding, before output."""
    return model.embedding_norm * 2 * model.hidden + model.final_norm * norm_parameters(model)


@overload
def padded_vocab(vocab: int, tp: int, multiple: int = 128) -> int: ...
@overload
def padded_vocab(vocab: int, tp: NDArray[np.int64], multiple: int = 128) -> NDArray[np.int64]: ...
def padded_vocab(
    vocab: int, tp: int | NDArray[np.int64], multiple: int = 128
) -> int | NDArray[np.int64]:
    """Return the vocabulary rounded up to a multiple of `multiple * tp`, as Megatron pads it."""
    step = multiple * tp
    return -(-vocab // step) * step


def _attention(model: ModelSpec) -> tuple[int, int, int]:
    """Return attention parameters: divided by heads, by kv heads, and replicated."""
    if model.mla:
        return _latent_attention(model, model.mla)
    query = model.heads * model.head_dim
    key_value = 2 * model.kv_heads * model.head_dim
    heads = 2 * model.hidden * query + model.attention_sinks * model.heads
    kv = model.hidden * key_value
    if model.qkv_bias:
        heads, kv = heads + query, kv + key_value
    return heads, kv, model.attention_output_bias * model.hidden


def _latent_attention(model: ModelSpec, mla: LatentAttention) -> tuple[int, int, int]:
    """Return the same three counts for multi-head latent attention (arXiv:2405.04434 sec. 2.1)."""
    hidden, heads = model.hidden, model.heads
    query_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    query_in = mla.q_lora_rank or hidden
    query_up = query_in * heads * query_dim
    key_value_up = mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    output = heads * mla.v_head_dim * hidden
    down_width = (mla.q_lora_rank or 0) + mla.kv_lora_rank + mla.qk_rope_head_dim
    down = hidden * down_width + model.qkv_bias * down_width
    return query_up + key_value_up + output, 0, down + model.attention_output_bias * hidden


def _feed_forward(model: ModelSpec, width: int, *, bias: bool) -> tuple[int, int]:
    """Return the parameters of a feed-forward block: divided by width, and replicated."""
    inputs = 2 if model.gated_mlp else 1
    divided = (inputs + 1) * model.hidden * width + bias * inputs * width
    return divided, bias * model.hidden


def _router(hidden: int, experts: Experts) -> int:
    """Return the router's parameters, with the gate of the shared experts (Qwen2-MoE)."""
    return (hidden + experts.router_bias) * experts.count + experts.shared_gate * hidden


def _inner_norms(model: ModelSpec) -> int:
    """Return the parameters of the norms inside attention."""
    if model.mla:
        return (model.mla.q_lora_rank or 0) + model.mla.kv_lora_rank
    return {
        QkNorm.NONE: 0,
        QkNorm.HEAD: 2 * model.head_dim,
        QkNorm.FULL: (model.heads + model.kv_heads) * model.head_dim,
    }[model.qk_norm]

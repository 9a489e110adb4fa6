"""Parameters held by one rank, before any data-parallel sharding, in elements."""

from __future__ import annotations

import numpy as np

from planner.estimate.inputs import FloatArray, Inputs, term
from planner.sources import MEGATRON_2019, MEGATRON_CORE, SWITCH_2021
from planner.specs.parameters import (
    LayerParameters,
    layer_parameters,
    layer_vectors,
    norm_parameters,
    padded_vocab,
)


def _outside_experts(x: Inputs, layer: LayerParameters) -> FloatArray:
    tp = x.layouts.tp
    whole = layer.attention_replicated + layer.mlp_replicated + layer.router + layer.norms
    return (layer.attention_heads + layer.attention_kv + layer.mlp) / tp + whole


@term(
    unit="parameters",
    formula="(heads + kv + mlp)/tp + norms, biases and down-projections whole",
    source=MEGATRON_2019,
    on=("tp",),
)
def dense_layer_parameters(x: Inputs) -> FloatArray:
    """One dense layer on one tensor-parallel rank.

    Megatron-Core splits the weights of keys and values evenly even where tp exceeds their heads,
    and gathers what they put out.
    """
    return _outside_experts(x, layer_parameters(x.model, moe=False))


@term(
    unit="parameters",
    formula="attention as in a dense layer + shared experts/tp + router whole",
    source=MEGATRON_CORE,
    on=("tp",),
)
def moe_layer_parameters(x: Inputs) -> FloatArray:
    """One layer with experts on one tensor-parallel rank, without its routed experts."""
    if x.model.experts is None:
        return np.zeros(len(x.layouts))
    return _outside_experts(x, layer_parameters(x.model, moe=True))


@term(unit="parameters", formula="experts/(ep*etp)", source=SWITCH_2021, on=("ep", "etp"))
def expert_parameters(x: Inputs) -> FloatArray:
    """Routed experts of one layer on one rank."""
    if x.model.experts is None:
        return np.zeros(len(x.layouts))
    return layer_parameters(x.model, moe=True).experts / (x.layouts.ep * x.layouts.etp)


@term(
    unit="parameters",
    formula="padded_vocab*hidden/tp + learned positions, vocabulary padded to 128*tp "
    "(tp is 1 here for DeepSpeed's AutoTP)",
    source=MEGATRON_CORE,
    on=("tp",),
)
def embedding_parameters(x: Inputs) -> FloatArray:
    """Token table (split over tp), learned positions, the embedding's norm; first stage."""
    m = x.model
    table = padded_vocab(m.vocab, x.vocab_ways) * m.hidden / x.vocab_ways
    return table + m.learned_positions * m.hidden + (2 * m.hidden if m.embedding_norm else 0)


@term(
    unit="parameters",
    formula="padded_vocab*hidden/tp (0: tied, pp 1; AutoTP: tp 1) + final norm; MTP: 2 h^2/tp "
    "+ 3 norms + table",
    source=MEGATRON_CORE,
    on=("tp", "pp"),
)
def head_parameters(x: Inputs) -> FloatArray:
    """Output projection and final norm on the last stage; tied weights are a copy when pp > 1.

    Multi-token prediction looks its tokens up where it is: the last stage holds the table too. A
    pipeline there and back holds both ends on one stage.
    """
    m = x.model
    together = (x.layouts.pp == 1) | (x.layouts.folds == 1)
    table = padded_vocab(m.vocab, x.vocab_ways) * m.hidden / x.vocab_ways
    held = np.where(together & m.tied_embeddings, 0.0, table)
    if m.mtp_layers:
        again = np.where(~together & (not m.tied_embeddings), table, 0.0)
        held = held + again + m.mtp_layers * 2 * m.hidden**2 / x.layouts.tp
    return held + _last_norms(x)


def _last_norms(x: Inputs) -> int:
    """Return the parameters of the last stage's norms beside layers': final, and three of MTP."""
    m = x.model
    return norm_parameters(m) * ((1 if m.final_norm else 0) + 3 * m.mtp_layers)


@term(
    unit="parameters",
    formula="dense layers + layers with experts + embedding (first) + head (last)",
    source=MEGATRON_CORE,
    on=("tp", "pp", "vpp"),
)
def stage_dense_parameters(x: Inputs) -> FloatArray:
    """Parameters outside of routed experts on one rank of each kind of stage."""
    s = x.stages
    ends = s.first * embedding_parameters(x)[:, None] + s.last * head_parameters(x)[:, None]
    dense = s.dense_layers * dense_layer_parameters(x)[:, None]
    return dense + s.moe_layers * moe_layer_parameters(x)[:, None] + ends


@term(
    unit="parameters",
    formula="layers with experts * experts/(ep*etp)",
    source=MEGATRON_CORE,
    on=("pp", "vpp", "ep", "etp"),
)
def stage_expert_parameters(x: Inputs) -> FloatArray:
    """Routed experts' parameters on one rank of each kind of stage."""
    return x.stages.moe_layers * expert_parameters(x)[:, None]


@term(
    unit="parameters",
    formula="per layer norms + biases (split as their matrices are) + final and embedding norm",
    source=MEGATRON_CORE,
    on=("tp", "pp", "vpp"),
)
def stage_dense_vectors(x: Inputs) -> FloatArray:
    """Of a stage's dense parameters those that are no matrix: norms, biases, sinks."""
    s, m = x.stages, x.model
    dense = _outside_experts(x, layer_vectors(m, moe=False))
    moe = _outside_experts(x, layer_vectors(m, moe=True)) if m.experts else np.zeros(len(x.layouts))
    ends = s.first * (2 * m.hidden * m.embedding_norm) + s.last * _last_norms(x)
    return s.dense_layers * dense[:, None] + s.moe_layers * moe[:, None] + ends


@term(
    unit="parameters",
    formula="layers with experts * biases of experts/(ep*etp)",
    source=MEGATRON_CORE,
    on=("pp", "vpp", "ep", "etp"),
)
def stage_expert_vectors(x: Inputs) -> FloatArray:
    """Of a stage's routed experts the biases."""
    held = layer_vectors(x.model, moe=True).experts / (x.layouts.ep * x.layouts.etp)
    return x.stages.moe_layers * held[:, None]


@term(
    unit="parameters",
    formula="embedding and positions (first) + output projection (last, unless tied on one stage)",
    source=MEGATRON_CORE,
    on=("tp", "pp", "vpp"),
)
def stage_tables(x: Inputs) -> FloatArray:
    """Of a stage's dense parameters the tables at the ends, whose rows are tokens or positions."""
    s, m = x.stages, x.model
    first = embedding_parameters(x) - 2 * m.hidden * m.embedding_norm
    projections = m.mtp_layers * 2 * m.hidden**2 / x.layouts.tp
    last = head_parameters(x) - _last_norms(x) - projections
    return s.first * first[:, None] + s.last * last[:, None]

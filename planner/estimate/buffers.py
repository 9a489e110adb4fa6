"""Bytes of the buffers that collectives need beside the tensors of the model."""

from __future__ import annotations

import numpy as np

from planner.estimate.experts import routed_tokens
from planner.estimate.fp8_weights import copy_bytes, primary
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.params import (
    dense_layer_parameters,
    expert_parameters,
    head_parameters,
    moe_layer_parameters,
    stage_dense_parameters,
    stage_expert_parameters,
)
from planner.sources import FSDP_2023, MEGATRON_CORE

DEEPSPEED_BUCKET = 5e8
"""Elements of DeepSpeed's reduce bucket (reduce_bucket_size, deepspeed/runtime/zero/config.py)."""


@term(
    unit="bytes",
    formula="sp: 2 T h; pp: 8 T h/tp; ep: 4*routed*h; parameter server: 4 T V*dp",
    source=MEGATRON_CORE,
    on=("tp", "sp", "pp", "cp", "dp", "ep", "micro_batch", "dp_sync"),
)
def exchange_buffers_bytes(x: Inputs) -> FloatArray:
    """Activations on their way between ranks: gathered inputs, stage borders, routed tokens."""
    lay, tokens, h = x.layouts, x.rank_tokens, x.model.hidden
    total = np.where(lay.pp > 1, 8.0 * tokens * h / lay.tp, 0.0)
    total = total + np.where(lay.sp == 1, _gathered_bytes(x) * tokens * h, 0.0)
    total = total + np.where(lay.ep > 1, 4.0 * routed_tokens(x) * h, 0.0)
    # torch.nn.DataParallel gathers every replica's outputs on the server
    outputs = 4.0 * tokens * x.model.vocab * lay.dp
    return total + np.where(lay.dp_sync == 1, outputs, 0.0)


def _gathered_bytes(x: Inputs) -> FloatArray:
    """Return bytes per token and channel of whole activations that sp's collectives work on."""
    if x.stack.activations in ("dtensor", "hf"):  # saved for backward, and counted there
        return np.zeros(len(x.layouts))
    ahead = np.where(x.layouts.pp == 1, x.stack.gathered_ahead_bytes, 0.0)
    return x.stack.gathered_bytes + ahead


@term(
    unit="parameters",
    formula="max(dense layer, layer with experts) of those that the stage has",
    source=FSDP_2023,
    on=("tp", "pp", "vpp", "ep", "etp"),
)
def largest_layer_parameters(x: Inputs) -> FloatArray:
    """Parameters of the largest layer of a stage on one rank: what ZeRO-3 gathers at once."""
    s = x.stages
    moe = (moe_layer_parameters(x) + expert_parameters(x))[:, None]
    dense = dense_layer_parameters(x)[:, None]
    return np.maximum(
        np.where(s.moe_layers > 0, moe, 0.0), np.where(s.dense_layers > 0, dense, 0.0)
    )


@term(
    unit="bytes",
    formula="zero 3: gathered + prefetched + reducing layer; zero 2: reducing; sp, pp, ep, ps",
    source=FSDP_2023,
    on=(
        "tp",
        "sp",
        "pp",
        "vpp",
        "cp",
        "dp",
        "ep",
        "etp",
        "dp_replicate",
        "zero",
        "micro_batch",
        "dp_sync",
    ),
)
def communication_buffers_bytes(x: Inputs) -> FloatArray:
    """Buffers of collectives that are alive together with the activations."""
    return x.by(SHARDED, sharding_buffers_bytes) + exchange_buffers_bytes(x)[:, None]


SHARDED = ("tp", "pp", "vpp", "ep", "etp", "zero")


def sharding_buffers_bytes(x: Inputs) -> FloatArray:
    """Return the buffers of ZeRO's collectives: layers gathered, and gradients being reduced."""
    lay, s, width = x.layouts, x.stages, x.stack.gradient_reduce_bytes
    largest = largest_layer_parameters(x)
    zero = lay.zero[:, None]
    gathered = copy_bytes(x) if primary(x) else 2.0
    ends = 2.0 * (s.last * head_parameters(x)[:, None])
    total = np.where(zero == 3, (2 * gathered + width) * largest + ends, 0.0)
    # ZeRO-2 reduces layer by layer, or a whole chunk once pp micro-batches have passed it
    per_chunk = -(-(s.dense_layers + s.moe_layers) // lay.vpp[:, None])
    reducing = np.where(lay.vpp[:, None] > 1, per_chunk, 1)
    total = np.where(zero == 2, width * largest * reducing, total)
    if x.stack.states == "deepspeed":
        held = stage_dense_parameters(x) + stage_expert_parameters(x)
        bucket = 2.0 * np.minimum(DEEPSPEED_BUCKET, held)
        total = total + np.where(zero == 3, 2 * bucket, np.where(zero > 0, bucket, 0.0))
    return total

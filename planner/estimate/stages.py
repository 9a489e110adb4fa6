"""Time of each part of a pipelined model, forward and backward apart, for the simulator.

The sum over both directions is exactly what `stage_microbatch_s` charges a stage, without its
sends: those are the simulator's own. The split into directions follows the kernels: what no kernel
accounts for (host time, ZeRO traffic) is shared out like them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from planner.estimate.collectives import point_to_point_s
from planner.estimate.communication import cp_forward_s, ep_forward_s, tp_forward_s
from planner.estimate.compute import (
    attention_core_backward_s,
    attention_gemm_backward_s,
    dense_elementwise_backward_s,
    embedding_s,
    experts_backward_s,
    head_s,
    mlp_backward_s,
    moe_elementwise_backward_s,
    selective_recompute_s,
)
from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.step import (
    LAYER_PARTS,
    dense_compute_backward_s,
    dense_compute_forward_s,
    dense_layer_s,
    moe_compute_backward_s,
    moe_compute_forward_s,
    moe_layer_s,
)

HEAD_FORWARD = HEAD_WEIGHT = 1 / 3
"""Shares of the head's time: one of its three multiplies forward, one for the weight gradient."""
EMBEDDING_FORWARD = 0.5
"""Share of the embedding's time; the rest is its weight gradient (a lookup has no input's)."""
DEVICE_PARTS = ("compute", "tp", "cp", "ep")


class PartTimes(NamedTuple):
    """Seconds of one micro-batch in each part of the model, shape (parts,).

    `experts_s` is the part's expert traffic, forward and backward, inside the other three.
    """

    forward_s: FloatArray
    backward_input_s: FloatArray
    backward_weight_s: FloatArray
    experts_s: FloatArray


class Hop(NamedTuple):
    """One message between stages: seconds, of which `latency_s` free the link; exposed share."""

    latency_s: float
    transfer_s: float
    exposed: float


class LayerTimes(NamedTuple):
    """Seconds of one layer and micro-batch, by direction; `experts_s` is inside the others."""

    forward_s: float
    backward_input_s: float
    backward_weight_s: float
    experts_s: float


def layer_times(x: Inputs, *, moe: bool) -> LayerTimes:
    """Return the directions of one layer of the first layout."""
    parts = (moe_layer_s if moe else dense_layer_s)(x)[0]
    total = float(parts.sum())
    device = float(sum(parts[LAYER_PARTS.index(name)] for name in DEVICE_PARTS))
    if device <= 0.0:
        return LayerTimes(total, 0.0, 0.0, 0.0)
    kernels = moe_compute_forward_s if moe else dense_compute_forward_s
    forward = float((kernels(x) + tp_forward_s(x) + cp_forward_s(x))[0])
    forward += float(ep_forward_s(x)[0]) if moe else 0.0
    stretch = total / device  # host time and ZeRO traffic, shared out
    weight = stretch * float(_weight_s(x, moe=moe)[0])
    experts = float(parts[LAYER_PARTS.index("ep")])
    return LayerTimes(stretch * forward, total - stretch * forward - weight, weight, experts)


def _weight_s(x: Inputs, *, moe: bool) -> FloatArray:
    """Return the seconds of weight gradients: half of the multiplies, and adding them up."""
    multiplies = attention_gemm_backward_s(x)
    if moe:
        multiplies = multiplies + experts_backward_s(x)
        rest, whole, again = (
            moe_elementwise_backward_s,
            moe_compute_backward_s,
            moe_compute_forward_s,
        )
    else:
        multiplies = multiplies + mlp_backward_s(x)
        rest, whole, again = (
            dense_elementwise_backward_s,
            dense_compute_backward_s,
            dense_compute_forward_s,
        )
    once = multiplies + attention_core_backward_s(x) + rest(x) + selective_recompute_s(x)
    once = once + np.where(x.layouts.recompute == 2, again(x), 0.0)
    added = np.maximum(whole(x) - once, 0.0)
    out: FloatArray = 0.5 * multiplies + added
    return out


def part_times(x: Inputs, layers: Sequence[int], *, chunks: int) -> PartTimes:
    """Return the times of a model cut along its depth into parts of so many `layers`.

    For the first layout of `x`; a rank holds `chunks` parts, over which the framework's time per
    micro-batch is spread. Multi-token prediction goes with the head, as in the estimate.
    """
    moe = x.model.moe_layers
    edges = np.concatenate([[0], np.cumsum(layers)])
    with_experts = np.array([sum(moe[a:b]) for a, b in pairwise(edges)])
    held = np.stack([np.asarray(layers) - with_experts, with_experts]).astype(np.float64)
    held[1 if x.model.experts else 0, -1] += x.model.mtp_layers
    each = np.array([layer_times(x, moe=False), layer_times(x, moe=True)])
    forward, weight_input, weight, experts = each.T @ held
    head, embedding = float(head_s(x)[0]), float(embedding_s(x)[0])
    forward[0] += EMBEDDING_FORWARD * embedding
    weight[0] += (1 - EMBEDDING_FORWARD) * embedding
    forward[-1] += HEAD_FORWARD * head
    weight[-1] += HEAD_WEIGHT * head
    weight_input[-1] += (1 - HEAD_FORWARD - HEAD_WEIGHT) * head
    framework = x.stack.microbatch_s / chunks
    return PartTimes(forward + framework / 2, weight_input + framework / 2, weight, experts)


def layer_seconds(x: Inputs) -> FloatArray:
    """Return the seconds of every layer of the model, forward and backward, shape (layers,)."""
    dense, moe = (sum(layer_times(x, moe=moe)[:3]) for moe in (False, True))
    return np.where(np.array(x.model.moe_layers), moe, dense).astype(np.float64)


def fixed_seconds(x: Inputs, parts: int, *, chunks: int) -> FloatArray:
    """Return the seconds of each part without its layers: embedding, head, framework."""
    empty = part_times(x, [0] * parts, chunks=chunks)
    return empty.forward_s + empty.backward_input_s + empty.backward_weight_s


def hop(x: Inputs) -> Hop:
    """Return one activation's (or gradient's) message to the neighbouring stage."""
    sent = 2.0 * x.rank_tokens * x.model.hidden / x.layouts.tp
    latency = float(point_to_point_s(x, np.zeros_like(sent))[0])
    whole = float(point_to_point_s(x, sent)[0])
    return Hop(latency, whole - latency, x.stack.p2p_exposed)

"""Kernels of one layer by direction: forward, backward, and weight gradients within backward."""

from __future__ import annotations

import numpy as np

from planner.estimate.again import dense_recompute_s, moe_recompute_s
from planner.estimate.compute import (
    EXPERT_SHARD,
    SHARD,
    attention_core_backward_s,
    attention_core_forward_s,
    attention_gemm_backward_s,
    attention_gemm_forward_s,
    dense_elementwise_backward_s,
    dense_elementwise_forward_s,
    experts_backward_s,
    experts_forward_s,
    mlp_backward_s,
    mlp_forward_s,
    moe_elementwise_backward_s,
    moe_elementwise_forward_s,
)
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import hbm_s
from planner.estimate.modules import AGAIN, fully_recomputed_share
from planner.estimate.params import dense_layer_parameters, expert_parameters, moe_layer_parameters
from planner.sources import CALIBRATION


@term(
    unit="s",
    formula="projections + attention + feed-forward + elementwise",
    source=CALIBRATION,
    on=SHARD,
)
def dense_compute_forward_s(x: Inputs) -> FloatArray:
    """Kernels of one dense layer, forward."""
    attention = attention_gemm_forward_s(x) + attention_core_forward_s(x)
    return attention + mlp_forward_s(x) + dense_elementwise_forward_s(x)


@term(
    unit="s",
    formula="backward kernels + recomputed forward (full: all of it)",
    source=CALIBRATION,
    on=(*EXPERT_SHARD, *AGAIN, "zero", "num_microbatches"),
)
def dense_compute_backward_s(x: Inputs) -> FloatArray:
    """Kernels of one dense layer, backward, with recomputation and gradient accumulation."""
    once = attention_gemm_backward_s(x) + attention_core_backward_s(x)
    once = once + mlp_backward_s(x) + dense_elementwise_backward_s(x) + dense_recompute_s(x)
    full = fully_recomputed_share(x) * dense_compute_forward_s(x)
    return once + full + _accumulate_s(x, dense_layer_parameters(x))


@term(
    unit="s",
    formula="projections + attention + experts + router, permute, elementwise",
    source=CALIBRATION,
    on=EXPERT_SHARD,
)
def moe_compute_forward_s(x: Inputs) -> FloatArray:
    """Kernels of one layer with experts, forward, on the busiest rank."""
    if x.model.experts is None:
        return np.zeros(len(x.layouts))
    attention = attention_gemm_forward_s(x) + attention_core_forward_s(x)
    return attention + experts_forward_s(x) + moe_elementwise_forward_s(x)


@term(
    unit="s",
    formula="backward kernels + recomputed forward (full: all of it)",
    source=CALIBRATION,
    on=(*EXPERT_SHARD, *AGAIN, "zero", "num_microbatches"),
)
def moe_compute_backward_s(x: Inputs) -> FloatArray:
    """Kernels of one layer with experts, backward, with recomputation and accumulation."""
    if x.model.experts is None:
        return np.zeros(len(x.layouts))
    once = attention_gemm_backward_s(x) + attention_core_backward_s(x)
    once = once + experts_backward_s(x) + moe_elementwise_backward_s(x) + moe_recompute_s(x)
    full = fully_recomputed_share(x) * moe_compute_forward_s(x)
    return once + full + _accumulate_s(x, moe_layer_parameters(x) + expert_parameters(x))


def _accumulate_s(x: Inputs, held: FloatArray) -> FloatArray:
    """Return the seconds of adding one micro-batch's gradients (0 in zero 3, half if m = 1)."""
    often = np.where(x.layouts.num_microbatches == 1, 0.5, 1.0)
    return np.where(x.layouts.zero == 3, 0.0, often * x.stack.accumulate * hbm_s(x, 8.0 * held))


def weight_s(x: Inputs, *, moe: bool) -> FloatArray:
    """Return the seconds of weight gradients: half of the multiplies, and adding them up."""
    multiplies = attention_gemm_backward_s(x)
    if moe:
        multiplies = multiplies + experts_backward_s(x)
        rest = moe_elementwise_backward_s(x) + moe_recompute_s(x)
        whole, again = moe_compute_backward_s(x), moe_compute_forward_s(x)
    else:
        multiplies = multiplies + mlp_backward_s(x)
        rest = dense_elementwise_backward_s(x) + dense_recompute_s(x)
        whole, again = dense_compute_backward_s(x), dense_compute_forward_s(x)
    once = multiplies + attention_core_backward_s(x) + rest
    once = once + fully_recomputed_share(x) * again
    added = np.maximum(whole - once, 0.0)
    out: FloatArray = 0.5 * multiplies + added
    return out

"""What torch.autocast costs a layer: its casts of weights, and a residual stream in fp32."""

from __future__ import annotations

import numpy as np

from planner.estimate.activations import autocasts
from planner.estimate.compute import dense_elementwise_bytes
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import hbm_s
from planner.estimate.params import dense_layer_parameters, expert_parameters, moe_layer_parameters
from planner.sources import CALIBRATION

CAST_BYTES = 6.0
"""A weight read in fp32 and written in 16 bit; its gradient the other way round in backward."""
STREAM_TRAFFIC = 0.54
"""Traffic of norms, residuals and rotary in fp32 over that in 16 bit, beyond it (fit; 9 runs)."""
GELU_TRAFFIC = 31.0
"""The same of GPT-2's GELU, bytes per token and channel forward: five elementwise kernels, whose
cube and tanh autocast takes in fp32 (fit; 3 runs)."""
BACKWARD = 1.7
"""Elementwise traffic of backward over forward, as without autocast."""
FORWARD_AND_BACKWARD = (1.0, BACKWARD)
ON = ("tp", "sp", "cp", "pp", "micro_batch", "ep", "etp", "dp", "zero")


@term(
    unit="s",
    formula="(6 B a parameter + streams in fp32 + GPT-2's GELU) / HBM, where autocast casts",
    source=CALIBRATION,
    on=ON,
)
def autocast_s(x: Inputs) -> FloatArray:
    """What autocast adds to one layer and micro-batch: (forward, backward), shape (layouts, 2)."""
    if not x.stack.autocast:
        return np.zeros((len(x.layouts), 2))
    m = x.model
    if m.experts is not None:
        held = moe_layer_parameters(x) + expert_parameters(x)
    else:
        held = dense_layer_parameters(x)
    stream = STREAM_TRAFFIC * dense_elementwise_bytes(x, backward=False)
    if m.python_gelu:
        stream = stream + GELU_TRAFFIC * x.rank_tokens * m.ffn / x.layouts.tp
    each = [CAST_BYTES * held + way * stream for way in FORWARD_AND_BACKWARD]
    return np.where(autocasts(x)[:, None], hbm_s(x, np.stack(each, axis=1)), 0.0)

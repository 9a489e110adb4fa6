"""Weights in FP8 under Transformer Engine: copies beside 16-bit weights, or in their place.

A module casts its weight once a step and keeps the copy over the micro-batches, by rows for the
forward pass and by columns for the backward pass (pytorch/module/base.py, quantize_weight; Megatron
says which micro-batch is the first). GPUs that multiply FP8 in any order of the operands need no
second copy where the scale is one per tensor (nvte_is_non_tn_fp8_gemm_supported). With
`--fp8-param-gather` the parameter itself is in FP8, and no 16-bit weight is kept. Tables at the
ends, norms and biases stay in 16 bit.

Megatron-LM's CI shows both, between steps (tests/measured/fp8_weights.csv): 0.64 GiB more in FP8
than in bf16 for 0.32 Gi parameters of matrices on H100, and 9 MiB more on H100 than on GB200 for
9.4 M parameters kept in FP8.
"""

from __future__ import annotations

from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import uses_fp8
from planner.estimate.params import (
    stage_dense_parameters,
    stage_dense_vectors,
    stage_expert_parameters,
    stage_expert_vectors,
    stage_tables,
)
from planner.sources import TRANSFORMER_ENGINE

BY_ROWS = 1.0
BOTH_WAYS = 2.0


def casts_weights(x: Inputs) -> bool:
    """Return whether Transformer Engine multiplies in FP8: it keeps copies of weights."""
    megatron = x.stack.states == "megatron" and x.stack.activations == "megatron"
    return megatron and uses_fp8(x)


def copy_bytes(x: Inputs) -> float:
    """Return the bytes of a weight's FP8 copies, one or two with their scales."""
    if x.stack.fp8_copy_bytes is not None:
        return x.stack.fp8_copy_bytes
    return BY_ROWS if x.cluster.accelerator.fp8_any_layout else BOTH_WAYS


def primary(x: Inputs) -> bool:
    """Return whether parameters themselves are kept in FP8."""
    return casts_weights(x) and x.stack.fp8_params


@term(
    unit="bytes",
    formula="FP8 (Transformer Engine): 2 B (1 on Blackwell, scale per tensor; MXFP8 2.06) of each "
    "parameter of a matrix, not sharded; none where parameters are in FP8 themselves",
    source=TRANSFORMER_ENGINE,
    on=("tp", "pp", "vpp", "ep", "etp"),
)
def fp8_copies_bytes(x: Inputs) -> FloatArray:
    """FP8 copies of a stage's weights, kept from a step's first micro-batch to its last."""
    outside = stage_dense_parameters(x) - stage_tables(x) - stage_dense_vectors(x)
    matrices = outside + stage_expert_parameters(x) - stage_expert_vectors(x)
    each = copy_bytes(x) if casts_weights(x) and not primary(x) else 0.0
    copies: FloatArray = each * matrices
    return copies

"""Muon's own work: the matrices of a stage, and the FLOPs of orthogonalising their updates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.estimate.communication import EXPERT_DATA, expert_shard_ways, shard_ways
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import gemm_rate
from planner.sources import MUON
from planner.specs.workload import Optimizer

STEPS = 5
"""Newton-Schulz iterations (torch.optim.Muon ns_steps, Megatron-LM --muon-num-ns-steps)."""

Sizes = FloatArray | float
Matrices = Iterator[tuple[Sizes, Sizes, Sizes]]


def newton_schulz_flops(rows: Sizes, columns: Sizes) -> FloatArray:
    """Return the FLOPs of one update: G = X X^T, b G + c G G, then a X + (...) X, five times.

    With m the shorter side and n the longer: 5 * (2 m^2 n + 2 m^3 + 2 m^2 n).
    """
    m, n = np.minimum(rows, columns), np.maximum(rows, columns)
    return np.asarray(STEPS * (4.0 * m * m * n + 2.0 * m**3), dtype=np.float64)


def _attention(x: Inputs) -> Matrices:
    """Yield (rows, columns, how many) of one layer's attention on a rank; q, k, v apart."""
    m, tp, h = x.model, x.layouts.tp, float(x.model.hidden)
    if (mla := m.mla) is None:
        heads = m.heads * m.head_dim / tp
        yield h, heads, 2.0
        yield h, m.kv_heads * m.head_dim / np.minimum(tp, m.kv_heads), 2.0
        return
    if mla.q_lora_rank:
        yield h, float(mla.q_lora_rank), 1.0
    yield float(mla.q_lora_rank or h), m.heads * x.qk_dim / tp, 1.0
    yield h, float(mla.kv_lora_rank + mla.qk_rope_head_dim), 1.0
    yield float(mla.kv_lora_rank), m.heads * (mla.qk_nope_head_dim + x.v_dim) / tp, 1.0
    yield m.heads * x.v_dim / tp, h, 1.0


def _feed_forward(x: Inputs, width: FloatArray, each: Sizes) -> Matrices:
    yield float(x.model.hidden), width, each * (3.0 if x.model.gated_mlp else 2.0)


def _outside(x: Inputs, *, moe: bool) -> Matrices:
    """Yield the matrices of one layer on a rank, without routed experts."""
    yield from _attention(x)
    if not moe:
        yield from _feed_forward(x, x.model.ffn / x.layouts.tp, 1.0)
    elif (experts := x.model.experts) is not None:
        yield float(x.model.hidden), float(experts.count), 1.0
        if experts.shared_ffn:
            yield from _feed_forward(x, experts.shared_ffn / x.layouts.tp, 1.0)


def _experts(x: Inputs) -> Matrices:
    if (experts := x.model.experts) is not None:
        yield from _feed_forward(x, experts.ffn / x.layouts.etp, experts.count / x.layouts.ep)


def _flops(x: Inputs, matrices: Matrices) -> FloatArray:
    total = np.zeros(len(x.layouts))
    for rows, columns, count in matrices:
        total = total + newton_schulz_flops(rows, columns) * count
    return total


def _largest_flops(x: Inputs) -> FloatArray:
    """Return the FLOPs of the matrix that takes the most."""
    most = np.zeros(len(x.layouts))
    for moe in {*x.model.moe_layers}:
        for rows, columns, _ in (*_outside(x, moe=moe), *(_experts(x) if moe else ())):
            most = np.maximum(most, newton_schulz_flops(rows, columns))
    return most


@term(
    unit="FLOPs",
    formula="5 (4 m^2 n + 2 m^3) a matrix m x n on a tensor-parallel rank, m <= n; / shards",
    source=MUON,
    on=(*EXPERT_DATA, "vpp", "zero"),
)
def orthogonalising_flops(x: Inputs) -> FloatArray:
    """Muon: Newton-Schulz iterations of the heaviest stage's matrices; 0 for other optimizers.

    From ZeRO-1 on whole matrices are dealt out over the shards, at least one to the busiest rank.
    """
    if x.workload.optimizer is not Optimizer.MUON:
        return np.zeros(len(x.layouts))
    sharded = x.layouts.zero >= 1
    ways = np.where(sharded, shard_ways(x), 1)
    expert_ways = np.where(sharded, expert_shard_ways(x), 1)
    s = x.stages
    dense = _flops(x, _outside(x, moe=False))[:, None] * s.dense_layers
    outside = _flops(x, _outside(x, moe=True))[:, None] * s.moe_layers
    inside = _flops(x, _experts(x))[:, None] * s.moe_layers
    shared = (dense + outside) / ways[:, None] + inside / expert_ways[:, None]
    busiest: FloatArray = np.maximum(shared.max(axis=1), _largest_flops(x))
    return busiest


def orthogonalising_s(x: Inputs) -> FloatArray:
    """Return the seconds of these at the rate of huge 16-bit multiplies."""
    _, rate, _ = gemm_rate(x, low_precision=False)
    return orthogonalising_flops(x) / rate

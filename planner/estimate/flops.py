"""Model FLOPs: what the mathematics needs, whatever the layout recomputes. For MFU."""

from __future__ import annotations

from planner.specs.model import ModelSpec
from planner.specs.parameters import count_parameters
from planner.specs.workload import Workload


def matmul_parameters(model: ModelSpec) -> int:
    """Return the weights that one token is multiplied with: active, without tables and norms.

    The output projection counts, also where it is tied to the embedding table.
    """
    p = count_parameters(model)
    output = model.vocab * model.hidden
    unused_experts = p.total - p.active
    return p.attention + p.mlp + p.router + p.experts - unused_experts + output


def step_flops(model: ModelSpec, workload: Workload, *, causal: bool) -> float:
    """Return forward + backward matmul FLOPs of a step: 6 N T + attention (PaLM appendix B).

    `causal` halves attention's scores and weighted values; most published tables do not. Biases in
    the counted projections are below 0.1 % and counted as weights.
    """
    s = workload.seq_tokens
    mla = model.mla
    qk = mla.qk_nope_head_dim + mla.qk_rope_head_dim if mla else model.head_dim
    v = mla.v_head_dim if mla else model.head_dim
    core = 2.0 * s * s * model.heads * (qk + v) * model.layers * workload.global_batch
    dense = 2.0 * matmul_parameters(model) * workload.tokens
    return 3.0 * (dense + core * (0.5 if causal else 1.0))

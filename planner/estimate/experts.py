"""Tokens per expert: imbalance, capacity and dropped tokens. The busiest rank sets the pace."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from planner.errors import SpecError
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.sources import GSHARD_2020, SWITCH_2021
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload


@lru_cache(maxsize=64)
def expert_shares(model: ModelSpec, workload: Workload) -> FloatArray:
    """Return each expert's share of the routed tokens, summing to 1, busiest first unless measured.

    A measured `expert_load` is taken as it is. Otherwise shares follow a Zipf law whose busiest
    expert carries `expert_imbalance` times the mean. Raises SpecError when the measured load does
    not have one share per expert.
    """
    if model.experts is None:
        return np.ones(1)
    count = model.experts.count
    if workload.expert_load is not None:
        if len(workload.expert_load) != count:
            raise SpecError(
                f"expert_load has {len(workload.expert_load)} shares, "
                f"{model.name} has {count} experts"
            )
        load = np.array(workload.expert_load, dtype=np.float64)
        shares: FloatArray = load / load.sum()
        return shares
    low, high = 0.0, 64.0
    target = min(workload.expert_imbalance, count)
    ranks = np.arange(1, count + 1, dtype=np.float64)
    for _ in range(60):
        exponent = (low + high) / 2
        weights = ranks**-exponent
        low, high = (exponent, high) if count / weights.sum() < target else (low, exponent)
    weights = ranks**-low
    zipf: FloatArray = weights / weights.sum()
    return zipf


@term(
    unit="1",
    formula="busiest rank's tokens / mean, after the capacity of each expert; DeepSpeed, ep > 1: "
    "capacity_factor, or the busiest expert's / mean",
    source=GSHARD_2020,
    on=("ep",),
)
def busiest_rank(x: Inputs) -> FloatArray:
    """Routed tokens on the busiest expert-parallel rank over the mean rank.

    DeepSpeed's experts have buffers of one size, on every rank: their capacity where tokens are
    dropped, else what the busiest expert of all gets (deepspeed/moe/sharded_moe.py).
    """
    model, workload = x.model, x.workload
    if model.experts is None:
        return np.ones(len(x.layouts))
    cap = workload.capacity_factor or np.inf
    if x.stack.pads_experts:
        fullest = workload.capacity_factor or (
            workload.expert_imbalance
            if workload.expert_load is None
            else float(expert_shares(model, workload).max()) * model.experts.count
        )
        return np.where(x.layouts.ep > 1, fullest, min(1.0, cap))
    if workload.expert_load is None:
        skew = min(workload.expert_imbalance, model.experts.count, cap)
        return np.where(x.layouts.ep > 1, skew, min(1.0, cap))
    share = np.minimum(expert_shares(model, workload) * model.experts.count, cap)
    by_degree = {
        int(e): float(share.reshape(int(e), -1).mean(axis=1).max()) for e in np.unique(x.layouts.ep)
    }
    return np.array([by_degree[int(e)] for e in x.layouts.ep])


def dropped_share(model: ModelSpec, workload: Workload) -> float:
    """Return the expected share of routed tokens that the capacity factor drops.

    An expert takes at most capacity_factor * tokens * top_k / experts tokens (Switch Transformer
    sec. 2.2); what its share brings beyond that passes through the residual only.
    """
    if model.experts is None or workload.capacity_factor is None:
        return 0.0
    share = expert_shares(model, workload)
    return float(1.0 - np.minimum(share, workload.capacity_factor / len(share)).sum())


@term(
    unit="tokens",
    formula="micro_batch*seq/(cp*sp) * top_k",
    source=SWITCH_2021,
    on=("tp", "sp", "cp", "micro_batch"),
)
def routed_tokens(x: Inputs) -> FloatArray:
    """(token, expert) pairs that one rank routes in one micro-batch, before any exchange."""
    top_k = x.model.experts.top_k if x.model.experts else 0
    return x.rank_tokens / x.sp_ways * top_k


@term(
    unit="tokens",
    formula="routed tokens * etp (1 without sp) * busiest rank",
    source=GSHARD_2020,
    on=("tp", "sp", "cp", "micro_batch", "ep", "etp"),
)
def received_tokens(x: Inputs) -> FloatArray:
    """(token, expert) pairs that the busiest rank computes; etp ranks share gathered tokens."""
    gathered = np.where(x.layouts.sp == 1, x.layouts.etp, 1)  # without sp they are the same tokens
    return routed_tokens(x) * gathered * busiest_rank(x)

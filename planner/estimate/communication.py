"""Time of the traffic of each parallel dimension, charged to the links that its group crosses."""

from __future__ import annotations

import numpy as np

from planner.estimate.collectives import (
    all_to_all_s,
    expert_ranks_per_domain,
    group_s,
    inside_s,
    leaf_slowdown,
    point_to_point_s,
)
from planner.estimate.compute import EXPERT_SHARD, SHARD
from planner.estimate.experts import busiest_rank, routed_tokens
from planner.estimate.fp8_weights import casts_weights
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import uses_fp8
from planner.estimate.params import (
    dense_layer_parameters,
    embedding_parameters,
    expert_parameters,
    moe_layer_parameters,
    stage_dense_parameters,
    stage_expert_parameters,
    stage_tables,
)
from planner.layouts.table import IntArray
from planner.sources import (
    FSDP_2023,
    GSHARD_2020,
    KORTHIKANTI_2022,
    MEGATRON_2019,
    MEGATRON_2021,
    PARAMETER_SERVER_2014,
    PATARASUK_2009,
    RING_ATTENTION_2023,
    ZERO_2020,
)
from planner.specs.links import Collective

TP_BACKWARD = 0.947
DATA = ("tp", "cp", "pp", "dp", "dp_replicate")
EXPERT_DATA = (*DATA, "ep", "etp")


def _tp_s(x: Inputs, gathers: float, scatters: float, reduces: float) -> FloatArray:
    """Return the seconds of the given collectives of T*h*2 bytes in a TP group."""
    lay = x.layouts
    buffer = 2.0 * x.rank_tokens * x.model.hidden
    one = np.ones(len(lay), dtype=np.int64)
    reduce = group_s(x, "all_reduce", buffer, one, lay.tp)
    gather = group_s(x, "all_gather", buffer, one, lay.tp)
    scatter = group_s(x, "reduce_scatter", buffer, one, lay.tp)
    split = gathers * gather + scatters * scatter
    moved = np.where(lay.sp == 1, split, reduces * reduce) * x.stack.tp_exposed
    calls = np.where(lay.sp == 1, gathers + scatters, reduces)
    return moved + calls * x.stack.tp_wait_s * np.log2(lay.tp)


@term(
    unit="s",
    formula="2 all-reduce(2*T*h), or 2 all-gather + 2 reduce-scatter with sp, x exposed share",
    source=KORTHIKANTI_2022,
    on=SHARD,
)
def tp_forward_s(x: Inputs) -> FloatArray:
    """Exposed tensor-parallel traffic of one layer, forward."""
    return _tp_s(x, 2, 2, 2)


@term(
    unit="s",
    formula="2 all-reduce(2*T*h), or 3 all-gather + 2 reduce-scatter with sp, x exposed"
    f" x {TP_BACKWARD:g}",
    source=KORTHIKANTI_2022,
    on=SHARD,
)
def tp_backward_s(x: Inputs) -> FloatArray:
    """Exposed tensor-parallel traffic of one layer, backward."""
    return _tp_s(x, 3, 2, 2) * TP_BACKWARD


@term(
    unit="s",
    formula="ring of keys and values, all-gather(cp * 4*T*kv*d/tp) x exposed share",
    source=RING_ATTENTION_2023,
    on=SHARD,
)
def cp_forward_s(x: Inputs) -> FloatArray:
    """Exposed context-parallel traffic of one layer, forward; backward moves twice as much."""
    lay, m = x.layouts, x.model
    if m.mla:  # keys and values travel after the up-projection
        width = m.heads * (x.qk_dim + x.v_dim) / lay.tp
    else:
        width = np.maximum(m.kv_heads, lay.tp) / lay.tp * (x.qk_dim + x.v_dim)
    buffer = lay.cp * 2.0 * x.rank_tokens * width
    ring = group_s(x, "all_gather", buffer, lay.tp, lay.cp)
    return np.where(lay.cp > 1, ring, 0.0) * x.stack.cp_exposed


def _copies(x: Inputs) -> tuple[FloatArray, FloatArray]:
    """Return the copies of a token that a dispatcher sends over those of one per expert.

    DeepEP and HybridEP send one copy to each rank (inside a domain) and to each domain that hold
    any of its top_k experts, in expectation n(1 - (1 - 1/n)^top_k) of n, instead of top_k.
    """
    lay, experts = x.layouts, x.model.experts
    one = np.ones(len(lay))
    if experts is None or x.stack.dispatcher == "alltoall":
        return one, one
    domains = np.maximum(lay.ep // expert_ranks_per_domain(x), 1)
    ranks, k = lay.ep.astype(np.float64), experts.top_k
    inside = ranks * (1 - (1 - 1 / ranks) ** k) / k
    outside = domains * (1 - (1 - 1 / domains) ** k) / k
    return inside, outside


@term(
    unit="s",
    formula="2 all-to-all (dispatch, combine) of routed tokens*2h*(ep-1)/ep*busiest + etp gather",
    source=GSHARD_2020,
    on=EXPERT_SHARD,
)
def ep_forward_s(x: Inputs) -> FloatArray:
    """Exposed expert-parallel traffic of one layer, forward; backward moves the same."""
    lay = x.layouts
    if x.model.experts is None:
        return np.zeros(len(lay))
    sent = routed_tokens(x) * 2.0 * x.model.hidden * busiest_rank(x)
    inside, outside = _copies(x)
    exchange = 2 * all_to_all_s(
        x,
        sent * (lay.ep - 1) / lay.ep,
        lay.etp,
        lay.ep,
        inside_share=inside,
        outside_share=outside,
        local=expert_ranks_per_domain(x),
    )
    gathered = inside_s(x, "all_gather", sent * lay.etp, lay.etp)
    scattered = inside_s(x, "reduce_scatter", sent * lay.etp, lay.etp)
    return (exchange + np.where(lay.etp > 1, gathered + scattered, 0.0)) * x.stack.ep_exposed


@term(
    unit="s",
    formula="2*vpp*(latency + 2*T*h/tp / link) x exposed share, per micro-batch and stage",
    source=MEGATRON_2021,
    on=("tp", "cp", "pp", "vpp", "dp", "micro_batch"),
)
def pp_microbatch_s(x: Inputs) -> FloatArray:
    """Exposed sends and receives of one micro-batch at one stage, forward and backward."""
    lay = x.layouts
    sent = 2.0 * x.rank_tokens * x.model.hidden / lay.tp
    each = point_to_point_s(x, sent)
    return np.where(lay.pp > 1, 2 * lay.vpp * each * x.stack.p2p_exposed, 0.0)


def _data_s(
    x: Inputs, op: Collective, buffer_bytes: FloatArray, stride: IntArray, n: IntArray
) -> FloatArray:
    """Return the seconds of a data-parallel collective, slowed where its rings leave the leaf.

    Where there is nothing to send (experts of a dense model) nothing starts either.
    """
    took = group_s(x, op, buffer_bytes, stride, n, slowdown=leaf_slowdown(x, stride, n))
    return np.where(buffer_bytes > 0, took, 0.0)


def _bucketed_s(
    x: Inputs, op: Collective, buffer_bytes: FloatArray, stride: IntArray, n: IntArray
) -> FloatArray:
    """Return the same for a whole stage's buffer, which goes in buckets: each pays its latency."""
    bucket = np.maximum(x.stack.bucket_bytes, x.stack.bucket_rank_bytes * n)
    calls: FloatArray = np.maximum(buffer_bytes / bucket, 1.0)
    once = _data_s(x, op, buffer_bytes / calls, stride, n)
    return once * calls


def shard_ways(x: Inputs) -> IntArray:
    """Return the ranks over which ZeRO shards what is not an expert: dp*cp/dp_replicate."""
    ways: IntArray = np.maximum(x.layouts.dp * x.layouts.cp // x.layouts.dp_replicate, 1)
    return ways


def expert_shard_ways(x: Inputs) -> IntArray:
    """Return the ranks over which ZeRO shards the experts: edp/dp_replicate."""
    ways: IntArray = np.maximum(x.layouts.edp // x.layouts.dp_replicate, 1)
    return ways


TABLE_BYTES = 2.0


def parameter_bytes(x: Inputs) -> float:
    """Return the bytes per parameter of a matrix that an all-gather of parameters moves.

    Tables at the ends travel in 16 bit.
    """
    if casts_weights(x) and not x.stack.fp8_params:
        return TABLE_BYTES
    return x.stack.fp8_gather_bytes if uses_fp8(x) else TABLE_BYTES


def _layer_gather_s(x: Inputs, outside: FloatArray) -> FloatArray:
    return _data_s(x, "all_gather", parameter_bytes(x) * outside, x.layouts.tp, shard_ways(x))


def _expert_gather_s(x: Inputs) -> FloatArray:
    buffer = parameter_bytes(x) * expert_parameters(x)
    return _data_s(x, "all_gather", buffer, x.layouts.ep * x.layouts.etp, expert_shard_ways(x))


@term(
    unit="s",
    formula="all-gather of one layer's parameters over the shards (zero 3)",
    source=FSDP_2023,
    on=(*EXPERT_DATA, "zero"),
)
def dense_gather_s(x: Inputs) -> FloatArray:
    """Gathering one dense layer under ZeRO-3, before any overlap."""
    return np.where(x.layouts.zero == 3, _layer_gather_s(x, dense_layer_parameters(x)), 0.0)


@term(
    unit="s",
    formula="all-gather of one layer's parameters, experts over their own shards (zero 3)",
    source=FSDP_2023,
    on=(*EXPERT_DATA, "zero"),
)
def moe_gather_s(x: Inputs) -> FloatArray:
    """Gathering one layer with experts under ZeRO-3, before any overlap."""
    both = _layer_gather_s(x, moe_layer_parameters(x)) + _expert_gather_s(x)
    return np.where(x.layouts.zero == 3, both, 0.0)


def _scatter_s(x: Inputs, outside: FloatArray, experts: FloatArray) -> FloatArray:
    """Return the seconds per micro-batch of reducing one layer's gradients (zero 2 and 3).

    Under an interleaved schedule pp micro-batches pass through a chunk in a row; ZeRO-2 reduces the
    chunk's gradients once after them (Llama 3 sec. 3.3.2), so each carries 1/pp of the traffic.
    """
    lay, width = x.layouts, x.stack.gradient_reduce_bytes
    total = _data_s(x, "reduce_scatter", width * outside, lay.tp, shard_ways(x))
    wide = lay.ep * lay.etp
    total = total + _data_s(x, "reduce_scatter", width * experts, wide, expert_shard_ways(x))
    rounds = np.where((lay.zero == 2) & (lay.vpp > 1) & (lay.folds == 0), lay.pp, 1)
    return np.where(lay.zero >= 2, total / rounds, 0.0)


@term(
    unit="s",
    formula="reduce-scatter of one layer's gradients, every micro-batch (zero 2, 3)",
    source=ZERO_2020,
    on=(*EXPERT_DATA, "vpp", "zero"),
)
def dense_scatter_s(x: Inputs) -> FloatArray:
    """Reducing one dense layer's gradients into shards, before any overlap."""
    return _scatter_s(x, dense_layer_parameters(x), np.zeros(len(x.layouts)))


@term(
    unit="s",
    formula="reduce-scatter of one layer's gradients, experts over their own shards (zero 2, 3)",
    source=ZERO_2020,
    on=(*EXPERT_DATA, "vpp", "zero"),
)
def moe_scatter_s(x: Inputs) -> FloatArray:
    """Reducing a layer with experts into shards, before any overlap."""
    return _scatter_s(x, moe_layer_parameters(x), expert_parameters(x))


@term(
    unit="s",
    formula="all-gather + reduce-scatter of V*h/tp over the shards, every micro-batch (zero 3)",
    source=FSDP_2023,
    on=("tp", "cp", "pp", "dp", "dp_replicate", "zero"),
)
def embedding_sharding_s(x: Inputs) -> FloatArray:
    """Gathering the token table and reducing its gradient under ZeRO-3, on the first stage.

    It is gathered before anything else runs and reduced after everything else: nothing hides it.
    The head's own table travels while the layers next to it compute.
    """
    held, ways = embedding_parameters(x), shard_ways(x)
    gather = _data_s(x, "all_gather", TABLE_BYTES * held, x.layouts.tp, ways)
    width = float(x.stack.gradient_reduce_bytes)
    scatter = _data_s(x, "reduce_scatter", width * held, x.layouts.tp, ways)
    return np.where(x.layouts.zero == 3, gather + scatter, 0.0)


@term(
    unit="s",
    formula="all-reduce of gradients (zero 0); reduce-scatter (1); all-reduce of shards (HSDP);"
    " bucket by bucket",
    source=PATARASUK_2009,
    on=(*EXPERT_DATA, "vpp", "zero"),
)
def gradient_sync_s(x: Inputs) -> FloatArray:
    """Once a step: gradients of the heaviest stage over its data-parallel groups, no overlap."""
    lay, width = x.layouts, float(x.stack.gradient_reduce_bytes)
    dense = width * stage_dense_parameters(x).max(axis=1)
    experts = width * stage_expert_parameters(x).max(axis=1)
    ways, expert_ways = shard_ways(x), expert_shard_ways(x)
    wide = lay.ep * lay.etp
    reduce = _bucketed_s(x, "all_reduce", dense, lay.tp, ways)
    reduce = reduce + _bucketed_s(x, "all_reduce", experts, wide, expert_ways)
    scatter = _bucketed_s(x, "reduce_scatter", dense, lay.tp, ways)
    scatter = scatter + _bucketed_s(x, "reduce_scatter", experts, wide, expert_ways)
    copies = _bucketed_s(x, "all_reduce", dense / ways, lay.tp * ways, lay.dp_replicate)
    copies = copies + _bucketed_s(
        x, "all_reduce", experts / expert_ways, wide * expert_ways, lay.dp_replicate
    )
    summed = reduce if x.stack.zero1 == "all-reduce" else scatter
    sharded = np.where(lay.zero == 1, summed, 0.0) + np.where(lay.dp_replicate > 1, copies, 0.0)
    return np.where(lay.zero == 0, reduce, sharded)


@term(
    unit="s",
    formula="all-gather of updated parameters (zero 1, 2), bucket by bucket",
    source=ZERO_2020,
    on=(*EXPERT_DATA, "vpp", "zero"),
)
def parameter_gather_s(x: Inputs) -> FloatArray:
    """Once a step: updated parameters of the heaviest stage, no overlap."""
    lay, width = x.layouts, parameter_bytes(x)
    tables = (TABLE_BYTES - width) * stage_tables(x)
    dense = (width * stage_dense_parameters(x) + tables).max(axis=1)
    experts = width * stage_expert_parameters(x).max(axis=1)
    gather = _bucketed_s(x, "all_gather", dense, lay.tp, shard_ways(x))
    gather = gather + _bucketed_s(x, "all_gather", experts, lay.ep * lay.etp, expert_shard_ways(x))
    return np.where((lay.zero == 1) | (lay.zero == 2), gather, 0.0)


@term(
    unit="s",
    formula="(dp-1)*(gradient + parameter bytes)/server link",
    source=PARAMETER_SERVER_2014,
    on=("tp", "pp", "vpp", "dp", "ep", "etp", "dp_sync"),
)
def parameter_server_s(x: Inputs) -> FloatArray:
    """One GPU gathers every replica's gradients, averages, and sends the parameters back."""
    held = stage_dense_parameters(x).max(axis=1) + stage_expert_parameters(x).max(axis=1)
    link = x.cluster.scale_up
    # The server talks to its peers one after the other on a mesh or PCIe, at once on a switch;
    # either way its own link carries every copy.
    rate = 0.8 * link.bytes_per_s
    total: FloatArray = (x.layouts.dp - 1) * (4.0 + 4.0) * held / rate
    return total


@term(
    unit="s",
    formula="all-reduce of V*h/tp gradients between the first and the last stage",
    source=MEGATRON_2019,
    on=("tp", "pp", "cp", "dp", "micro_batch"),
)
def tied_embedding_s(x: Inputs) -> FloatArray:
    """Once a step: both ends' copies of tied embeddings are added."""
    if not x.model.tied_embeddings:
        return np.zeros(len(x.layouts))
    sent = x.stack.gradient_reduce_bytes * embedding_parameters(x)
    apart = (x.layouts.pp > 1) & (x.layouts.folds != 1)
    return np.where(apart, point_to_point_s(x, sent), 0.0)

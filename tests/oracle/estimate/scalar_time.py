"""Time of one layout's step in plain Python: kernels, traffic, pipeline and the step's end.

Megatron-LM in 16 bit, as docs/model.md says it. Rates of the GPU and figures that were fitted to a
stack are data, and taken from there; how they are put together is written again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, sqrt

import scalar_memory as memory
import scalar_network as network
from scalar_memory import Job, Row, Stage, expert_shards, received, shards, split, tokens

from planner.specs.cluster import ClusterSpec
from planner.specs.stack import Stack


@dataclass(frozen=True)
class Case:
    """A job on a machine, with a stack's fitted figures."""

    job: Job
    cluster: ClusterSpec
    stack: Stack


# kernels


def hbm(c: Case, moved: float) -> float:
    return moved / (0.8 * c.cluster.accelerator.hbm_bytes_per_s)


def sustained(c: Case) -> float:
    gpu = c.cluster.accelerator
    return gpu.peak_tflops["bf16"] * 1e12 * gpu.gemm.emax * gpu.gemm.derate * c.stack.gemm


def aligned(width: float) -> float:
    whole = round(width)
    return 1.0 if whole % 64 == 0 else 1.57 if whole % 8 == 0 else 12.0


def gemm(c: Case, m: float, n: float, k: float) -> float:
    fit, rate = c.cluster.accelerator.gemm, sustained(c)
    m, n, k = max(m, 1.0), max(n, 1.0), max(k, 1.0)
    small = (1 + fit.m0 / m) * (1 + fit.n0 / n) * (1 + fit.k0 / k)
    best = 0.87 * c.cluster.accelerator.peak_tflops["bf16"] * 1e12
    computing = 2 * m * n * k / rate * max(small, rate / best)
    moving = hbm(c, 2 * (m * k + k * n + m * n))
    return fit.t0_us * 1e-6 + max(computing, moving) * sqrt(aligned(n) * aligned(k))


def gemm_both(c: Case, m: float, n: float, k: float) -> float:
    """Backward: the input's gradient, and the weight's."""
    return gemm(c, m, k, n) + gemm(c, k, n, m) / 0.99


def head_dims(c: Case) -> tuple[int, int]:
    m = c.job.model
    if m.mla is None:
        return m.head_dim, m.head_dim
    return m.mla.qk_nope_head_dim + m.mla.qk_rope_head_dim, m.mla.v_head_dim


def projections(c: Case, row: Row) -> list[tuple[float, float, float]]:
    m, t, tp = c.job.model, tokens(c.job, row), row["tp"]
    if m.mla is None:
        kv = max(m.kv_heads, tp)
        wide = (m.heads + 2 * kv) * m.head_dim / tp
        return [(t, wide, m.hidden), (t, m.hidden, m.heads * m.head_dim / tp)]
    qk, v = head_dims(c)
    low = m.mla.kv_lora_rank
    return [
        (t / split(row), low + m.mla.qk_rope_head_dim, m.hidden),
        (t, m.heads * (m.mla.qk_nope_head_dim + v) / tp, low),
        (t, m.hidden, m.heads * v / tp),
        (t, m.heads * qk / tp, m.hidden),
    ]


def feed_forward(c: Case, row: Row, width: float) -> list[tuple[float, float, float]]:
    m, t, tp = c.job.model, tokens(c.job, row), row["tp"]
    if not width:
        return []
    inputs = 2 if m.gated_mlp else 1
    return [(t, inputs * width / tp, m.hidden), (t, m.hidden, width / tp)]


def attention_flops(c: Case, row: Row) -> float:
    qk, v = head_dims(c)
    pairs = row["micro_batch"] * c.job.model.heads / row["tp"] * c.job.seq**2 / row["cp"] / 2
    return 2 * pairs * (qk + v)


def falls_back(c: Case, row: Row) -> bool:
    return row["micro_batch"] * c.job.model.heads // row["tp"] % 4 != 0


def unfused(c: Case, row: Row, *, backward: bool) -> float:
    d = c.job.model.head_dim
    scores = row["micro_batch"] * c.job.model.heads / row["tp"] * c.job.seq**2 / row["cp"]
    multiply = 4 * scores * d / sustained(c) * (1 + 64 / d) * aligned(d)
    passes = 0.712 * (15 if backward else 11) * scores
    if falls_back(c, row):
        passes *= 1.6 if backward else 2.0
    return (2 if backward else 1) * multiply + hbm(c, passes)


def attention(c: Case, row: Row, *, backward: bool) -> float:
    start = 25e-6 if backward else 15e-6
    if c.job.unfused:
        return start + unfused(c, row, backward=backward)
    qk, v = head_dims(c)
    gpu = c.cluster.accelerator
    rate = gpu.peak_tflops["bf16"] * 1e12 * gpu.attention.te * c.stack.attention
    rate *= min(1.0, (qk + v) / 256) ** 0.658
    work = attention_flops(c, row) / rate * (1 + 979 * row["cp"] / c.job.seq)
    return start + (2.5 * work / 0.716 if backward else work)


def small_kernels(c: Case, row: Row, width: float, *, backward: bool) -> float:
    """Bytes of norms, residuals, rotary and the activation of a layer."""
    m, t, tp = c.job.model, tokens(c.job, row), row["tp"]
    qk, _ = head_dims(c)
    queries = (m.heads + 2 * max(m.kv_heads, tp)) * qk / tp
    act = (6 if m.gated_mlp else 4) * (1.7 if backward else 1)
    stream = 22 if backward else 16
    moved = stream * t * m.hidden / split(row) + act * t * width / tp + 4 * t * queries
    return c.stack.memory_traffic * c.stack.fusion * moved


def expert_groups(c: Case, row: Row) -> float:
    """One pass through the local experts' two multiplies."""
    m = c.job.model
    assert m.experts is not None
    fit, h, f = c.cluster.accelerator.gemm, m.hidden, m.experts.ffn / row["etp"]
    local, pairs = m.experts.count / row["ep"], received(c.job, row)
    total = 0.0
    for n, k in (((2 if m.gated_mlp else 1) * f, h), (h, f)):
        small = (1 + 110 / max(pairs / local, 1)) * (1 + fit.n0 / n) * (1 + fit.k0 / k)
        computing = 2 * pairs * n * k / (0.718 * sustained(c)) * small
        total += max(computing, hbm(c, 2 * local * n * k))
    return total


def routing(c: Case, row: Row, *, backward: bool) -> float:
    """Router, permutation, the experts' activation, norms and residuals."""
    m = c.job.model
    assert m.experts is not None
    mine, part = tokens(c.job, row) / split(row), 2 / 3 if backward else 1 / 3
    router = (4 if backward else 2) * mine * m.hidden * m.experts.count / (0.164 * sustained(c))
    permuted = c.stack.permute_bytes * mine * m.experts.top_k * m.hidden
    activated = 39.9 * received(c.job, row) * m.experts.ffn / row["etp"]
    rest = small_kernels(c, row, m.experts.shared_ffn, backward=backward)
    starts = (2 if backward else 1) * c.stack.kernel_s
    return starts + router + hbm(c, c.stack.moe_traffic * (part * (permuted + activated) + rest))


def forward(c: Case, row: Row, *, moe: bool) -> float:
    """Kernels of one layer."""
    m = c.job.model
    total = sum(gemm(c, *shape) for shape in projections(c, row))
    total += attention(c, row, backward=False)
    if not moe or m.experts is None:
        total += sum(gemm(c, *shape) for shape in feed_forward(c, row, m.ffn))
        moved = small_kernels(c, row, m.ffn, backward=False)
        return total + c.stack.kernel_s + hbm(c, moved)
    shared = feed_forward(c, row, m.experts.shared_ffn)
    total += expert_groups(c, row) + sum(gemm(c, *shape) for shape in shared)
    total += c.stack.expert_s * m.experts.count / row["ep"] / 3
    return total + routing(c, row, backward=False)


def again_share(c: Case, row: Row) -> float:
    """Share of the layers that run forward again, whole."""
    if row["recompute"] != "full":
        return 0.0
    if c.job.method == "uniform":
        return 1.0
    return min(c.job.each * row["pp"] * row["vpp"] / c.job.model.layers, 1.0)


def made_again(c: Case, row: Row, *, moe: bool) -> float:
    """What selective recompute runs again."""
    m = c.job.model
    if row["recompute"] != "selective":
        return 0.0
    if c.job.unfused:
        return attention(c, row, backward=False)
    total = hbm(c, 8 * tokens(c.job, row) * m.hidden / split(row))
    if m.mla is not None:
        up = m.heads * (m.mla.qk_nope_head_dim + m.mla.v_head_dim) / row["tp"]
        total += gemm(c, tokens(c.job, row), up, m.mla.kv_lora_rank)
    if moe and m.experts:
        total += hbm(c, 6 * received(c.job, row) * m.experts.ffn / row["etp"])
    return total


def backward(c: Case, row: Row, *, moe: bool) -> float:
    m = c.job.model
    total = sum(gemm_both(c, *shape) for shape in projections(c, row))
    total += attention(c, row, backward=True)
    if moe and m.experts is not None:
        shared = feed_forward(c, row, m.experts.shared_ffn)
        total += expert_groups(c, row) * (1 + 1 / 0.96)
        total += sum(gemm_both(c, *shape) for shape in shared)
        total += c.stack.expert_s * m.experts.count / row["ep"] * 2 / 3
        total += routing(c, row, backward=True)
        held = memory.moe_layer(m, row["tp"]) + memory.routed(m, row)
    else:
        total += sum(gemm_both(c, *shape) for shape in feed_forward(c, row, m.ffn))
        moved = small_kernels(c, row, m.ffn, backward=True)
        total += 2 * c.stack.kernel_s + hbm(c, moved)
        held = memory.dense_layer(m, row["tp"])
    total += made_again(c, row, moe=moe) + again_share(c, row) * forward(c, row, moe=moe)
    if row["zero"] != 3:  # gradients of micro-batches are added up
        often = 0.5 if row["num_microbatches"] == 1 else 1.0
        total += often * c.stack.accumulate * hbm(c, 8 * held)
    return total


# traffic of one layer


def tp_traffic(c: Case, row: Row, gathers: int) -> float:
    tp, buffer = row["tp"], 2 * tokens(c.job, row) * c.job.model.hidden
    if row["sp"]:
        once = gathers * network.ring(c.cluster, "all_gather", buffer, (1, tp))
        once += 2 * network.ring(c.cluster, "reduce_scatter", buffer, (1, tp))
        calls = gathers + 2
    else:
        once, calls = 2 * network.ring(c.cluster, "all_reduce", buffer, (1, tp)), 2
    return once * c.stack.tp_exposed + calls * c.stack.tp_wait_s * log2(tp)


def cp_traffic(c: Case, row: Row) -> float:
    m, (qk, v) = c.job.model, head_dims(c)
    heads = m.heads if m.mla else max(m.kv_heads, row["tp"])
    buffer = row["cp"] * 2 * tokens(c.job, row) * heads / row["tp"] * (qk + v)
    return (
        network.ring(c.cluster, "all_gather", buffer, (row["tp"], row["cp"])) * c.stack.cp_exposed
    )


def ep_traffic(c: Case, row: Row) -> float:
    experts, ep, etp = c.job.model.experts, row["ep"], row["etp"]
    if experts is None:
        return 0.0
    busiest = c.job.imbalance if ep > 1 else 1.0
    sent = tokens(c.job, row) / split(row) * experts.top_k * 2 * c.job.model.hidden * busiest
    total = 2 * network.exchange(c.cluster, sent * (ep - 1) / ep, etp, ep)
    for op in ("all_gather", "reduce_scatter"):
        total += network.inside(c.cluster, op, sent * etp, etp)
    return total * c.stack.ep_exposed


def data_ring(c: Case, row: Row, op: str, buffer: float, ranks: tuple[int, int]) -> float:
    """A collective of n ranks that stand `stride` GPUs apart; none where nothing is to be sent."""
    if not buffer:
        return 0.0
    stride, n = ranks
    slow = network.leaving(c.cluster, row["tp"], row["pp"], stride, n)
    return network.ring(c.cluster, op, buffer, ranks, slow)


def sharded_layer(c: Case, row: Row, *, moe: bool) -> tuple[float, float]:
    """Gathering one layer (ZeRO-3), and reducing its gradients each micro-batch (2 and 3)."""
    m, zero = c.job.model, row["zero"]
    outside = memory.moe_layer(m, row["tp"]) if moe else memory.dense_layer(m, row["tp"])
    experts = memory.routed(m, row) if moe else 0.0
    wide, few = row["ep"] * row["etp"], int(expert_shards(row))
    gather = scatter = 0.0
    for held, stride, n in ((outside, row["tp"], int(shards(row))), (experts, wide, few)):
        gather += data_ring(c, row, "all_gather", 2 * held, (stride, n))
        scatter += data_ring(c, row, "reduce_scatter", 4 * held, (stride, n))
    if zero == 2 and row["vpp"] > 1:
        scatter /= row["pp"]
    return (gather if zero == 3 else 0.0), (scatter if zero >= 2 else 0.0)


def host(c: Case, row: Row, *, moe: bool) -> float:
    """Launching the kernels of one layer, forward and backward."""
    s, experts = c.stack, c.job.model.experts
    if moe and experts:
        partly = 0.724 if s.graphs == "partial" else 1.0
        base = s.host_moe_s * partly + s.host_expert_s * experts.count / row["ep"]
    else:
        base = s.host_s * (s.host_tp if row["tp"] > 1 else 1.0) * row["tp"] ** s.host_wait
    base *= 1.37 if c.cluster.node.host == "grace" else 1.0
    return base * (s.host_fallback if falls_back(c, row) else 1.0)


def layer(c: Case, row: Row, *, moe: bool) -> float:
    """One layer and micro-batch, both ways: kernels and traffic, or the host where it is slower."""
    again, launched = again_share(c, row), host(c, row, moe=moe)
    tp, cp, ep = tp_traffic(c, row, 2), cp_traffic(c, row), ep_traffic(c, row) if moe else 0.0
    gather, scatter = sharded_layer(c, row, moe=moe)
    ahead = forward(c, row, moe=moe) + tp + cp + ep
    back = backward(c, row, moe=moe) + 0.947 * tp_traffic(c, row, 3) + again * tp
    back += (2 + again) * cp + (1 + again) * ep
    ways = (
        (ahead, 0.333 * launched, gather),
        (back, (0.667 + 0.333 * again) * launched, gather + scatter),
    )
    total = 0.0
    for device, launch, sharding in ways:
        busy = max(device, launch)
        total += busy + max(sharding - busy, 0.0)
        total += c.stack.fsdp_contention * min(sharding, device)
    return total


# the pipeline


def embedding(c: Case, row: Row) -> float:
    lookup = hbm(c, 14 * tokens(c.job, row) * c.job.model.hidden / split(row)) + 40e-6
    if row["zero"] != 3:
        return lookup
    held, n = memory.first_end(c.job.model, row["tp"]), int(shards(row))
    gather = data_ring(c, row, "all_gather", 2 * held, (row["tp"], n))
    return lookup + gather + data_ring(c, row, "reduce_scatter", 4 * held, (row["tp"], n))


def head(c: Case, row: Row) -> float:
    m, t = c.job.model, tokens(c.job, row)
    width = memory.padded(m, row["tp"]) / row["tp"]
    multiply = gemm(c, t, width, m.hidden) + gemm_both(c, t, width, m.hidden)
    return 1.06 * (multiply + hbm(c, c.stack.memory_traffic * 14 * t * width) + 200e-6)


def sends(c: Case, row: Row) -> float:
    if row["pp"] == 1:
        return 0.0
    sent = 2 * tokens(c.job, row) * c.job.model.hidden / row["tp"]
    return 2 * row["vpp"] * network.send(c.cluster, sent, row) * c.stack.p2p_exposed


def stage_times(c: Case, row: Row, stages: list[Stage]) -> list[float]:
    dense, moe = layer(c, row, moe=False), layer(c, row, moe=True)
    each = sends(c, row) + c.stack.microbatch_s
    first, last = embedding(c, row), head(c, row)
    return [s.dense * dense + s.moe * moe + s.first * first + s.last * last + each for s in stages]


def bubble(row: Row, times: list[float]) -> float:
    m, vpp, slowest = row["num_microbatches"], row["vpp"], max(times)
    if vpp > 1 and m < row["pp"]:
        return sum(times) + (m - 1) * slowest / vpp - m * slowest
    return (sum(times) - slowest) / vpp


# the end of a step


def bucketed(c: Case, row: Row, op: str, buffer: float, ranks: tuple[int, int]) -> float:
    bucket = max(c.stack.bucket_bytes, c.stack.bucket_rank_bytes * ranks[1])
    calls = max(buffer / bucket, 1.0)
    return calls * data_ring(c, row, op, buffer / calls, ranks)


def synced(c: Case, row: Row, stages: list[Stage]) -> tuple[float, float]:
    """Gradients and updated parameters of the heaviest stage, nothing hidden."""
    dense = max(memory.dense_parameters(c.job, row, s) for s in stages)
    experts = max(memory.expert_parameters(c.job, row, s) for s in stages)
    wide, zero, copies = row["ep"] * row["etp"], row["zero"], row["dp_replicate"]
    gradients = parameters = 0.0
    for held, stride, n in (
        (dense, row["tp"], int(shards(row))),
        (experts, wide, int(expert_shards(row))),
    ):
        if zero == 0:
            gradients += bucketed(c, row, "all_reduce", 4 * held, (stride, n))
        if zero == 1:
            gradients += bucketed(c, row, "reduce_scatter", 4 * held, (stride, n))
        if copies > 1 and zero > 0:
            gradients += bucketed(c, row, "all_reduce", 4 * held / n, (stride * n, copies))
        if zero in (1, 2):
            parameters += bucketed(c, row, "all_gather", 2 * held, (stride, n))
    return gradients, parameters


def exposed(c: Case, row: Row, stages: list[Stage], slowest: float) -> float:
    if memory.server(row):
        held = max(memory.dense_parameters(c.job, row, s) for s in stages)
        held += max(memory.expert_parameters(c.job, row, s) for s in stages)
        return (row["dp"] - 1) * 8 * held / (0.8 * c.cluster.scale_up.bytes_per_s)
    window = slowest * min(c.stack.overlap, row["num_microbatches"])
    total = 0.0
    for traffic, share in zip(synced(c, row, stages), (2 / 3, 1 / 3), strict=True):
        left = traffic * c.stack.dp_exposed
        total += max(left - share * window, 0.226 * left)
    return total


def tied(c: Case, row: Row) -> float:
    if not c.job.model.tied_embeddings or row["pp"] == 1:
        return 0.0
    return network.send(c.cluster, 4 * memory.first_end(c.job.model, row["tp"]), row)


def optimizer(c: Case, row: Row, stages: list[Stage]) -> float:
    moved = max(memory.state(c.job, row, stage, 30, 1) for stage in stages)
    return c.stack.optimizer * hbm(c, moved)


def step(c: Case, row: Row, stages: list[Stage]) -> float:
    times = stage_times(c, row, stages)
    pipeline = row["num_microbatches"] * max(times) + bubble(row, times)
    once = exposed(c, row, stages, max(times)) + tied(c, row) + optimizer(c, row, stages)
    return pipeline + once + c.stack.step_s

"""Memory of one layout and one stage in plain Python: no arrays, nothing shared with the engine.

Megatron-LM's states and activations, as docs/model.md says them and its sources derive them
(Korthikanti et al. 2022, ZeRO 2020, GPipe 2019). A layout is a dictionary of numbers and names.
Only which layers a stage holds is taken as given; `tests/unit/layouts/test_split.py` proves that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from planner.specs.model import ModelSpec, Norm

GIB = 2**30
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What every layout of a case has in common."""

    model: ModelSpec
    seq: int
    unfused: bool
    method: str = "uniform"
    each: int = 1
    imbalance: float = 1.1


@dataclass(frozen=True)
class Stage:
    """One stage: its layers chunk by chunk, its place, and which ends it holds."""

    index: int
    dense: int
    moe: int
    first: bool
    last: bool
    chunks: tuple[int, ...]


def tokens(job: Job, row: Row) -> float:
    return row["micro_batch"] * job.seq / row["cp"]


def split(row: Row) -> int:
    return row["tp"] if row["sp"] else 1


# parameters of one rank


def attention_parameters(m: ModelSpec, tp: int) -> float:
    h, a, d = m.hidden, m.heads, m.head_dim
    if m.mla is not None:
        low, rope = m.mla.kv_lora_rank, m.mla.qk_rope_head_dim
        nope, v = m.mla.qk_nope_head_dim, m.mla.v_head_dim
        assert m.mla.q_lora_rank is None
        whole = h * (low + rope) + low  # down-projection and its norm, on every rank
        return whole + (h * a * (nope + rope) + low * a * (nope + v) + a * v * h) / tp
    weights = (2 * a * d * h + 2 * m.kv_heads * d * h) / tp
    biases = (a + 2 * m.kv_heads) * d / tp if m.qkv_bias else 0
    return weights + biases + (h if m.attention_output_bias else 0)


def feed_forward_parameters(m: ModelSpec, width: int, tp: int) -> float:
    matrices = 3 if m.gated_mlp else 2
    weights = matrices * m.hidden * width / tp
    return weights + (((matrices - 1) * width / tp + m.hidden) if m.mlp_bias else 0)


def norm_parameters(m: ModelSpec) -> int:
    return m.hidden * (2 if m.norm == Norm.LAYERNORM else 1)


def dense_layer(m: ModelSpec, tp: int) -> float:
    norms = m.norms_per_layer * norm_parameters(m)
    return attention_parameters(m, tp) + feed_forward_parameters(m, m.ffn, tp) + norms


def moe_layer(m: ModelSpec, tp: int) -> float:
    """A layer with experts, without its routed experts."""
    if m.experts is None:
        return 0.0
    shared = 3 * m.hidden * m.experts.shared_ffn / tp
    router, norms = m.experts.count * m.hidden, m.norms_per_layer * norm_parameters(m)
    return attention_parameters(m, tp) + shared + router + norms


def routed(m: ModelSpec, row: Row) -> float:
    if m.experts is None:
        return 0.0
    return m.experts.count * 3 * m.hidden * m.experts.ffn / (row["ep"] * row["etp"])


def padded(m: ModelSpec, tp: int) -> int:
    return ceil(m.vocab / (128 * tp)) * 128 * tp


def table(m: ModelSpec, tp: int) -> float:
    return padded(m, tp) * m.hidden / tp


def first_end(m: ModelSpec, tp: int) -> float:
    return table(m, tp) + m.learned_positions * m.hidden


def last_end(m: ModelSpec, row: Row) -> float:
    mine = m.tied_embeddings and row["pp"] == 1
    return (0.0 if mine else table(m, row["tp"])) + norm_parameters(m)


def dense_parameters(job: Job, row: Row, stage: Stage) -> float:
    m, tp = job.model, row["tp"]
    ends = (first_end(m, tp) if stage.first else 0) + (last_end(m, row) if stage.last else 0)
    return stage.dense * dense_layer(m, tp) + stage.moe * moe_layer(m, tp) + ends


def expert_parameters(job: Job, row: Row, stage: Stage) -> float:
    return stage.moe * routed(job.model, row)


# states


def shards(row: Row) -> float:
    return row["dp"] * row["cp"] // row["dp_replicate"]


def expert_shards(row: Row) -> float:
    ranks = row["tp"] * row["cp"] * row["dp"] // (row["ep"] * row["etp"])
    return max(ranks // row["dp_replicate"], 1)


def state(job: Job, row: Row, stage: Stage, each: float, sharded_from: int) -> float:
    outside, experts = dense_parameters(job, row, stage), expert_parameters(job, row, stage)
    if row["zero"] >= sharded_from:
        outside, experts = outside / shards(row), experts / expert_shards(row)
    return each * (outside + experts)


def weights(job: Job, row: Row, stage: Stage) -> float:
    return state(job, row, stage, 2, 3)


def gradients(job: Job, row: Row, stage: Stage) -> float:
    return state(job, row, stage, 4, 2)


def optimizer(job: Job, row: Row, stage: Stage) -> float:
    return state(job, row, stage, 12, 1)


# activations


def received(job: Job, row: Row) -> float:
    """(token, expert) pairs that the busiest rank computes."""
    assert job.model.experts is not None
    mine = tokens(job, row) / split(row) * job.model.experts.top_k
    busiest = job.imbalance if row["ep"] > 1 else 1.0
    return mine * (row["etp"] if row["sp"] else 1) * busiest


def norms_saved(job: Job, row: Row) -> float:
    """Input, output and statistics of each norm."""
    m, t = job.model, tokens(job, row)
    statistics = 8 if m.norm == Norm.LAYERNORM else 4
    return m.norms_per_layer * t * (4 * m.hidden + statistics) / split(row)


def scores_saved(job: Job, row: Row) -> float:
    m, t = job.model, tokens(job, row)
    if not job.unfused:
        return 4 * t * m.heads / row["tp"]
    each = 5 if m.dropout else 2
    return each * m.heads * t * job.seq / row["tp"]


def heads_saved(job: Job, row: Row) -> float:
    """Queries, keys, values and the output of attention."""
    m, t, tp = job.model, tokens(job, row), row["tp"]
    if m.mla is not None:
        qk, v = m.mla.qk_nope_head_dim + m.mla.qk_rope_head_dim, m.mla.v_head_dim
        low = t / split(row) * (4 * m.mla.kv_lora_rank + 8)
        return low + t * 2 * m.heads * (2 * qk + 2 * v) / tp
    kv = m.heads if job.unfused else max(m.kv_heads, tp)
    return t * 2 * (2 * m.heads + 2 * kv) * m.head_dim / tp


def attention_saved(job: Job, row: Row) -> float:
    masks = 2 * tokens(job, row) * job.model.hidden / split(row) if job.model.dropout else 0
    return norms_saved(job, row) + masks + heads_saved(job, row) + scores_saved(job, row)


def feed_forward_saved(job: Job, row: Row, width: int) -> float:
    return (6 if job.model.gated_mlp else 4) * tokens(job, row) * width / row["tp"]


def dense_saved(job: Job, row: Row) -> float:
    return attention_saved(job, row) + feed_forward_saved(job, row, job.model.ffn)


def moe_saved(job: Job, row: Row) -> float:
    experts = job.model.experts
    if experts is None:
        return 0.0
    router = 9 * tokens(job, row) / split(row) * experts.count
    each = 6 * experts.ffn / row["etp"] + 2 * job.model.hidden
    shared = feed_forward_saved(job, row, experts.shared_ffn)
    return attention_saved(job, row) + router + received(job, row) * each + shared


def dropped(job: Job, row: Row, *, moe: bool) -> float:
    """What a stack's own selective recompute makes again."""
    m, t = job.model, tokens(job, row)
    if job.unfused:
        return scores_saved(job, row)
    outputs = 2 * m.norms_per_layer * t * m.hidden / split(row)
    up = 0.0
    if m.mla is not None:
        qk, v = m.mla.qk_nope_head_dim + m.mla.qk_rope_head_dim, m.mla.v_head_dim
        up = 2 * t * m.heads * (2 * qk + v) / row["tp"]
    act = 2 * received(job, row) * m.experts.ffn / row["etp"] if moe and m.experts else 0.0
    return outputs + up + act


def point(job: Job, row: Row) -> float:
    return 2 * tokens(job, row) * job.model.hidden / split(row)


def layer_kept(job: Job, row: Row, *, moe: bool) -> float:
    whole = (moe_saved if moe else dense_saved)(job, row)
    if row["recompute"] == "selective":
        return whole - dropped(job, row, moe=moe)
    return point(job, row) if row["recompute"] == "full" else whole


def stage_kept(job: Job, row: Row, stage: Stage) -> float:
    """What the layers of a stage keep of one micro-batch."""
    if row["recompute"] != "full":
        dense = stage.dense * layer_kept(job, row, moe=False)
        return dense + stage.moe * layer_kept(job, row, moe=True)
    if job.method == "uniform":
        return sum(ceil(chunk / job.each) for chunk in stage.chunks) * point(job, row)
    again = sum(min(job.each, chunk) for chunk in stage.chunks)
    whole_dense = max(stage.dense - again, 0)  # dense layers are a model's first
    whole_moe = stage.moe - max(again - stage.dense, 0)
    left = whole_dense * dense_saved(job, row) + whole_moe * moe_saved(job, row)
    return again * point(job, row) + left


def in_flight(row: Row, stage: Stage) -> float:
    m, p, v = row["num_microbatches"], row["pp"], row["vpp"]
    match row["schedule"]:
        case "none":
            return 1
        case "gpipe" | "looped-bfs":
            return m
        case "1f1b":
            return min(m, p - stage.index)
        case "interleaved":
            group = m // max(1, m // p)
            return min(m * v, 2 * (p - stage.index - 1) + (v - 1) * group + 1) / v
    raise AssertionError(row["schedule"])


def made_again(job: Job, row: Row, stage: Stage) -> float:
    if row["recompute"] == "none":
        return 0.0
    moe = stage.moe > 0
    live = 1
    if row["recompute"] == "full" and job.method == "uniform":
        live = min(job.each, max(*stage.chunks, 1))
    whole = (moe_saved if moe else dense_saved)(job, row)
    return max(live * whole - layer_kept(job, row, moe=moe), 0.0)


def backward_works(job: Job, row: Row) -> float:
    m, t = job.model, tokens(job, row)
    width = max(m.experts.shared_ffn, m.experts.ffn) if m.experts else m.ffn
    return 4 * t * width / row["tp"] + 4 * t * m.hidden / split(row)


def activations(job: Job, row: Row, stage: Stage) -> float:
    held = in_flight(row, stage) * stage_kept(job, row, stage)
    return held + made_again(job, row, stage) + backward_works(job, row)


def logits(job: Job, row: Row, stage: Stage) -> float:
    width = padded(job.model, row["tp"]) / row["tp"]
    return 6 * tokens(job, row) * width if stage.last else 0.0


# buffers and the rest


def buffers(job: Job, row: Row, stage: Stage) -> float:
    return sharding_buffers(job, row, stage) + exchange_buffers(job, row)


def sharding_buffers(job: Job, row: Row, stage: Stage) -> float:
    """ZeRO-3 gathers a layer, the next, and reduces one; ZeRO-2 reduces a layer, or a chunk."""
    m, tp = job.model, row["tp"]
    dense = dense_layer(m, tp) if stage.dense else 0.0
    moe = moe_layer(m, tp) + routed(m, row) if stage.moe else 0.0
    largest = max(dense, moe)
    if row["zero"] == 3:
        return 8 * largest + (2 * last_end(m, row) if stage.last else 0.0)
    if row["zero"] == 2:
        layers = ceil((stage.dense + stage.moe) / row["vpp"]) if row["vpp"] > 1 else 1
        return 4 * largest * layers
    return 0.0


def exchange_buffers(job: Job, row: Row) -> float:
    t, h = tokens(job, row), job.model.hidden
    total = 8 * t * h / row["tp"] if row["pp"] > 1 else 0.0
    total += 2 * t * h if row["sp"] else 0.0
    if row["ep"] > 1 and job.model.experts:
        total += 4 * t / split(row) * job.model.experts.top_k * h
    return total + (4 * t * job.model.vocab * row["dp"] if server(row) else 0.0)


def server(row: Row) -> bool:
    return row["dp_sync"] == "parameter-server"


def overhead(job: Job, row: Row, stage: Stage) -> float:
    """CUDA context, communicators, workspace, and 5 % of what moves."""
    ranks = row["tp"] * row["cp"] * row["dp"] // (row["ep"] * row["etp"])
    groups = sum(row[name] > 1 for name in ("tp", "cp", "pp", "dp", "ep"))
    groups += row["ep"] > 1 and ranks > 1
    fixed = 1.5 + 0.1 + 0.4 * groups + (3.0 if row["ep"] > 1 else 0.0)
    moving = activations(job, row, stage) + logits(job, row, stage) + buffers(job, row, stage)
    return fixed * GIB + 0.05 * moving


PARTS = {
    "weights": weights,
    "gradients": gradients,
    "optimizer": optimizer,
    "activations": activations,
    "logits": logits,
    "buffers": buffers,
    "overhead": overhead,
}

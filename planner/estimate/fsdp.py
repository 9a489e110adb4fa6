"""Where the memory of a GPU under FSDP2 peaks, and what it holds there.

The parts take turns, so their sum would be far too much: the logits are gone when a block's weights
are gathered for its backward pass, and no activation is left at the optimizer step. Six points of a
step can be the peak; each is a closed form, and the largest is the peak. They reproduce the peaks
of torch's own tracker (tests/measured/fsdp_memory.csv).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.estimate.activations import autocasts, logits_bytes
from planner.estimate.buffers import exchange_buffers_bytes, largest_layer_parameters
from planner.estimate.communication import expert_shard_ways, shard_ways
from planner.estimate.experts import received_tokens
from planner.estimate.in_flight import microbatches_in_flight
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.modules import FULL
from planner.estimate.params import (
    embedding_parameters,
    head_parameters,
    stage_dense_parameters,
    stage_expert_parameters,
)
from planner.estimate.recompute import kept_layer_bytes, whole_layer_bytes
from planner.estimate.schemes import scheme
from planner.estimate.states import gradients_bytes, held, on_gpu, weights_away, weights_bytes
from planner.sources import TORCH

POINTS = (
    "loss",
    "gradient of the output head being reduced",
    "backward of the last block but one",
    "backward of the second block",
    "gradient of the embedding being reduced",
    "optimizer step",
)
"""Points of a step at which memory can peak, in the order in which they are passed."""
GATHERED_BYTES = 2.0
"""A gathered parameter is 16 bit."""


class _Groups(NamedTuple):
    """Parameters on a rank before sharding, by FSDP group, shape (layouts, stage kinds)."""

    head: FloatArray
    """Gathered and reduced apart, at the head."""
    tail: FloatArray
    """Reduced last: the embedding, with the head where they are tied or in the root's group."""
    table: FloatArray
    """The embedding alone."""
    block: FloatArray
    layers: FloatArray


class _Shares(NamedTuple):
    """The same divided by the shards, in bytes of gradients as they are kept (fp32 if mixed)."""

    head: FloatArray
    tail: FloatArray
    block: FloatArray
    all_blocks: FloatArray


def _groups(x: Inputs) -> _Groups:
    s = x.stages
    head = s.last * head_parameters(x)[:, None]
    table = s.first * embedding_parameters(x)[:, None]
    apart = np.zeros_like(head) if x.stack.fsdp_root else head
    tied = x.model.tied_embeddings & (x.layouts.pp == 1)[:, None]
    apart = np.where(tied, 0.0, apart)
    layers = np.maximum(s.dense_layers + s.moe_layers, 1).astype(np.float64)
    return _Groups(apart, table + head - apart, table, largest_layer_parameters(x), layers)


def _shares(x: Inputs) -> _Shares:
    """Return gradient bytes of each group's shard; experts are sharded over their own ranks."""
    g = x.once(_groups)
    ways = np.where(x.layouts.zero >= 2, shard_ways(x), 1)[:, None]
    expert_ways = np.where(x.layouts.zero >= 2, expert_shard_ways(x), 1)[:, None]
    each = scheme(x).gradient
    head, tail = each * g.head / ways, each * g.tail / ways
    blocks = held(x, each, sharded_from=2) - head - tail
    block = each * g.block / np.minimum(ways, expert_ways)
    return _Shares(head, tail, np.minimum(block, blocks), blocks)


def _unsynced(x: Inputs) -> FloatArray:
    """Return 1 where gradients add up whole: with pp, torch reduces after the last micro-batch."""
    lay = x.layouts
    whole = (lay.pp > 1) & (lay.num_microbatches > 1) & (lay.zero >= 2)
    return whole.astype(np.float64)[:, None]


def _backward_blocks(g: _Groups) -> tuple[FloatArray, FloatArray]:
    """Return the blocks, counted from 0, whose backward can be the peak: early and late."""
    return np.maximum(g.layers - 2, 0.0), np.minimum(1.0, g.layers - 1)


def _weights(x: Inputs) -> tuple[FloatArray, ...]:
    resident = weights_bytes(x)
    return (resident,) * 5 + (held(x, scheme(x).weight, sharded_from=2) * on_gpu(weights_away(x)),)


def _gradients(x: Inputs) -> tuple[FloatArray, ...]:
    """Return the gradients held at each point: from the second micro-step on, all of them."""
    g = x.once(_groups)
    share, everything, here = x.once(_shares), gradients_bytes(x), on_gpu(weights_away(x))
    reduced = [
        here * (share.head + (1 - (i + 1) / g.layers) * share.all_blocks)
        for i in _backward_blocks(g)
    ]
    last_but_tail = everything - here * share.tail
    first = (np.zeros_like(share.head), here * share.head, *reduced, last_but_tail)
    again = x.layouts.num_microbatches[:, None] > 1
    whole = scheme(x).gradient * (stage_dense_parameters(x) + stage_expert_parameters(x))
    unsynced = _unsynced(x) > 0
    held_then = [np.where(unsynced, whole, np.where(again, everything, part)) for part in first[:4]]
    last = np.where(again & ~unsynced, everything, first[4])
    return (*held_then, last, everything)


def _kept(x: Inputs) -> FloatArray:
    """Return what all layers of a stage keep of one micro-batch."""
    dense, moe = (kept[:, None] for kept in kept_layer_bytes(x))
    kept: FloatArray = x.stages.dense_layers * dense + x.stages.moe_layers * moe
    return kept


def _activations(x: Inputs) -> tuple[FloatArray, ...]:
    """Return the activations held at each point: those kept, and the working set of the point."""
    s, tokens, kept = x.stages, x.rank_tokens, x.once(_kept)
    others = (microbatches_in_flight(x) - 1) * kept
    normed = s.last * (4.0 * tokens * x.model.hidden / x.sp_ways)[:, None]
    loss = others + kept + normed + s.last * 8.0 * tokens[:, None]
    blocks = [others + held for held, _ in x.once(_backward_moments)]
    nothing = np.zeros_like(kept)
    return (loss, others + kept + normed, *blocks, nothing, nothing)


def _backward_moments(x: Inputs) -> list[tuple[FloatArray, FloatArray]]:
    """Return (activations, temporaries) of each block's backward, at its start or at its end.

    At the start its activations are there, and the gradient of one weight; at the end they are
    gone, and the 16-bit gradients of all its weights wait for their reduction. The larger counts.
    """
    g, kept = x.once(_groups), x.once(_kept)
    work, one = _backward_work(x), _weight_gradient(x)
    edge = (2.0 * x.rank_tokens * x.model.hidden / x.sp_ways)[:, None]
    full = x.layouts.recompute[:, None] == FULL
    local = np.where(x.layouts.zero[:, None] >= 2, GATHERED_BYTES, 0.0) * g.block
    out = []
    for i in _backward_blocks(g):
        start = kept * (i + 1) / g.layers + work
        end = np.where(full, kept * (i + 1) / g.layers, kept * i / g.layers + 2 * edge)
        last = local + np.where(full, 5 * edge, 4 * edge)
        later = end + last > start + one
        out.append((np.where(later, end, start), np.where(later, last, one)))
    return out


def _backward_work(x: Inputs) -> FloatArray:
    """Return what one block's backward works on: what is made again, and gradients 4 T f."""
    s, hidden = x.stages, x.model.hidden
    edge = (2.0 * x.rank_tokens * hidden / x.sp_ways)[:, None]
    whole = [layer[:, None] for layer in whole_layer_bytes(x)]
    kept = [layer[:, None] for layer in kept_layer_bytes(x)]
    kind = x.layouts.recompute[:, None]
    parts = []
    for layers, all_of_it, rest, width in zip(
        (s.dense_layers, s.moe_layers), whole, kept, _widths(x), strict=True
    ):
        again = np.where(kind == 2, all_of_it, np.maximum(all_of_it - rest, 0.0) + edge)
        parts.append(np.where(layers > 0, again + 4.0 * width[:, None], 0.0))
    return np.maximum(parts[0], parts[1])


def _widths(x: Inputs) -> tuple[FloatArray, FloatArray]:
    """Return tokens times feed-forward width on a rank, of a dense layer and one with experts."""
    dense = x.rank_tokens * x.model.ffn / x.layouts.tp
    if (experts := x.model.experts) is None:
        return dense, np.zeros(len(x.layouts))
    routed = received_tokens(x) * experts.ffn / x.layouts.etp
    return dense, np.maximum(routed, x.rank_tokens * experts.shared_ffn / x.layouts.tp)


def _weight_gradient(x: Inputs) -> FloatArray:
    """Return the 16-bit gradient of the largest weight of a block: 2 h f."""
    m, lay, s = x.model, x.layouts, x.stages
    dense = np.where(s.dense_layers > 0, (m.hidden * m.ffn / lay.tp)[:, None], 0.0)
    if m.experts is None:
        return 2.0 * dense
    routed = m.hidden * m.experts.ffn * m.experts.count / (lay.ep * lay.etp)
    return 2.0 * np.maximum(dense, np.where(s.moe_layers > 0, routed[:, None], 0.0))


def _logits(x: Inputs) -> tuple[FloatArray, ...]:
    nothing = np.zeros_like(x.stages.last, dtype=np.float64)
    return (logits_bytes(x), *(nothing,) * 5)


def _buffers(x: Inputs) -> tuple[FloatArray, ...]:
    """Return gathered parameters, gradients being reduced and temporaries at each point."""
    g, zero = x.once(_groups), x.layouts.zero[:, None]
    share = x.once(_shares)
    again = (x.layouts.num_microbatches[:, None] > 1).astype(np.float64)
    width = np.where(zero >= 2, float(x.stack.gradient_reduce_bytes), 0.0)
    local = np.where(zero >= 2, GATHERED_BYTES, 0.0)
    at_head, at_blocks, at_tail = _gathered(x, g)
    common = _inputs(x) + exchange_buffers_bytes(x)[:, None]
    head = at_head + (local + width) * g.head + again * share.head
    moments = x.once(_backward_moments)
    blocks = [
        gathered
        + np.where(i < g.layers - 1, width * g.block, width * g.head)
        + again * share.block
        + temporary
        for i, gathered, (_, temporary) in zip(_backward_blocks(g), at_blocks, moments, strict=True)
    ]
    tail = np.maximum((local + width) * g.tail, width * g.tail + share.tail + local * g.table)
    # temporaries of torch's foreach AdamW, and of SGD with weight decay: one value a parameter of
    # the shard; 8-bit AdamW and Muon go tensor by tensor and need less
    temporary = 0.0 if x.stack.fused_step else scheme(x).weight
    step = held(x, temporary, sharded_from=2) * on_gpu(weights_away(x)) + _inputs(x)
    before = (at_head, head, *blocks, at_tail + tail)
    casts, buckets = _casts(x, g), _ddp_buckets(x)
    return (
        *(part + common + cast + buckets for part, cast in zip(before, casts, strict=True)),
        step + buckets,
    )


def _ddp_buckets(x: Inputs) -> FloatArray:
    """Return the buckets of DistributedDataParallel, which hold all gradients once more.

    Accelerate and torch.nn.parallel make no views of them by default (gradient_as_bucket_view);
    seen on one H100 as 4 bytes a parameter from the first step on.
    """
    lay = x.layouts
    copied = (lay.zero == 0) & (lay.dp * lay.cp > 1) & (lay.dp_sync == 0)
    whole = stage_dense_parameters(x) + stage_expert_parameters(x)
    held_twice: FloatArray = copied.astype(np.float64)[:, None] * scheme(x).gradient * whole
    return held_twice


def _casts(x: Inputs, g: _Groups) -> tuple[FloatArray, ...]:
    """Return autocast's 16-bit copies of weights at each point but the step.

    Backward needs those of the layers still to come. Under full recompute autograd keeps none, but
    autocast does until the forward pass ends, at the loss: before the gradient of the logits, in 16
    bit, is there.
    """
    on = autocasts(x)[:, None]
    weights = g.block * g.layers + np.where(x.model.tied_embeddings, g.tail, g.head)
    copies = np.where(on, GATHERED_BYTES * weights, 0.0)
    full = x.layouts.recompute[:, None] == FULL
    gradient = x.stages.last * (2.0 * x.rank_tokens * x.model.vocab)[:, None]
    at_loss = np.where(full, np.maximum(copies - gradient, 0.0), copies)
    left = [np.where(full, 0.0, copies * (i + 1) / g.layers) for i in _backward_blocks(g)]
    return (at_loss, np.where(full, 0.0, copies), *left, np.zeros_like(copies))


def _gathered(x: Inputs, g: _Groups) -> tuple[FloatArray, list[FloatArray], FloatArray]:
    """Return gathered parameters at the head, at the backward of blocks, and at the embedding.

    With pp a gathered layer stays until the last micro-batch, as it does without reshard, where the
    gathered copy is counted with the weights already.
    """
    resharded = x.layouts.zero[:, None] == 3
    unsynced = _unsynced(x) > 0
    whole = GATHERED_BYTES * (stage_dense_parameters(x) + stage_expert_parameters(x))
    stays = np.where(resharded & unsynced, whole, 0.0)
    passing = np.where(resharded & ~unsynced, GATHERED_BYTES, 0.0)
    tied = x.model.tied_embeddings & (x.layouts.pp == 1)[:, None]
    head = g.head + np.where(tied, g.tail, 0.0)
    blocks: list[FloatArray] = [
        stays + passing * g.block * np.where(i > 0, 2.0, 1.0) for i in _backward_blocks(g)
    ]
    at_head: FloatArray = stays + passing * head
    return at_head, blocks, stays


def _inputs(x: Inputs) -> FloatArray:
    """Return token ids and labels of this and the next micro-batch, and the rotary table."""
    rotary = x.qk_dim if x.model.mla is None else x.model.mla.qk_rope_head_dim
    tokens: FloatArray = x.rank_tokens.astype(np.float64)[:, None]
    return 16.0 * tokens + 4.0 * x.workload.seq_tokens * rotary


PARTS = {
    "weights": _weights,
    "gradients": _gradients,
    "activations": _activations,
    "logits": _logits,
    "buffers": _buffers,
}
"""What each part holds at each of POINTS; the optimizer's state is there all the time."""


@term(
    unit="index",
    formula="largest of loss, head reduced, early and late block, embedding reduced, step",
    source=TORCH,
)
def fsdp_peak_point(x: Inputs) -> FloatArray:
    """Which point of a step (0 to 5) holds the most under FSDP2; 0 for other stacks."""
    if x.stack.states != "fsdp2":
        return np.zeros_like(x.stages.count, dtype=np.float64)
    return x.once(_at_peak)["point"].astype(np.float64)


def at_peak(x: Inputs, part: str) -> FloatArray:
    """Return what one of PARTS holds at the peak of each stage, shape (layouts, stage kinds)."""
    return x.once(_at_peak)[part]


def _at_peak(x: Inputs) -> dict[str, FloatArray]:
    """Return the first point that holds the most, and what each part holds there."""
    parts = {name: part(x) for name, part in PARTS.items()}
    highest: dict[str, FloatArray] = {}
    for i, by_part in enumerate(zip(*parts.values(), strict=True)):
        held_at: FloatArray = np.sum(np.broadcast_arrays(*by_part), axis=0)
        now = {**dict(zip(parts, by_part, strict=True)), "point": i, "total": held_at}
        if not highest:
            highest = {name: np.broadcast_to(value, held_at.shape) for name, value in now.items()}
            continue
        more = held_at > highest["total"]
        highest = {name: np.where(more, now[name], low) for name, low in highest.items()}
    return highest


def peak_point(x: Inputs, stage: int) -> str:
    """Return the name of the point at which a stage of the first layout peaks."""
    return POINTS[int(fsdp_peak_point(x)[0, stage])]

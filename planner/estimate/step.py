"""The step: layers to stages, stages to a pipeline, and what is left exposed at the end.

Every part is in exposed seconds and they sum to the step time, so that a report can say where the
time goes without a remainder.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.estimate.communication import (
    EXPERT_DATA,
    cp_forward_s,
    dense_gather_s,
    dense_scatter_s,
    ep_forward_s,
    gradient_sync_s,
    moe_gather_s,
    moe_scatter_s,
    parameter_gather_s,
    parameter_server_s,
    pp_microbatch_s,
    tied_embedding_s,
    tp_backward_s,
    tp_forward_s,
)
from planner.estimate.compute import EXPERT_SHARD, embedding_s, head_s
from planner.estimate.directions import (
    dense_compute_backward_s,
    dense_compute_forward_s,
    moe_compute_backward_s,
    moe_compute_forward_s,
    weight_s,
)
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import softmax_falls_back, uses_fp8
from planner.estimate.memory import limit_bytes, peak_bytes
from planner.estimate.modules import fully_recomputed_share
from planner.estimate.optimizer import host_traffic_s, optimizer_s
from planner.layouts.table import HIDES, SPLITS, IntArray
from planner.sources import CALIBRATION, DUALPIPE, FSDP_2023, MEGATRON_2021, ZERO_BUBBLE_2023

LAYER = tuple(
    dict.fromkeys((*EXPERT_SHARD, *EXPERT_DATA, "vpp", "recompute", "zero", "num_microbatches"))
)
HOST_FORWARD = 0.373
"""Share of a layer's host time that belongs to forward (fit)."""
GRACE_HOST = 1.37
"""Host time on Grace over x86 (fit, GB200 and GB300 runs)."""
GRAPHED_HOST_S = 5e-4
"""Host time per layer when one CUDA graph holds the whole iteration (fit)."""
PARTLY_GRAPHED = 0.756
"""Host time of a layer with experts, graphs over attention and router, over none (fit)."""
CAST_HOST = 1.10
"""Host time with low-precision casts to launch over without (fit)."""
PIPELINE_TP_POWER = 0.73
BOTH_HIDE = 1 - 0.118
"""Share of the all-to-all that a backward hides behind a forward (as the flag `ep-overlap`)."""
DP_FLOOR = 0.09
"""Share of the gradient traffic that no overlap hides (fit)."""
PRESSED_FROM, PRESSED_AT = 0.82, 0.92
"""Shares of the memory from which, and at which in full, an allocator's retries slow a step."""


def _host(x: Inputs, *, moe: bool) -> FloatArray:
    """Return the host's seconds per layer and micro-batch, forward + backward."""
    s, lay = x.stack, x.layouts
    if s.graphs == "full":
        return np.full(len(lay), GRAPHED_HOST_S)
    base = np.where(lay.tp > 1, s.host_s * s.host_tp, s.host_s)
    if moe and x.model.experts:
        router = s.host_moe_s * (PARTLY_GRAPHED if s.graphs == "partial" else 1.0)
        base = router + s.host_expert_s * x.model.experts.count / lay.ep
        base = base * (CAST_HOST if uses_fp8(x) else 1.0)
    base = base * np.where(softmax_falls_back(x), s.host_fallback, 1.0)
    if s.host_pipeline_tp_s:
        several = (lay.tp > 1) & (lay.pp > 1) & (lay.dp > 1) & (lay.gpus > x.cluster.node.gpus)
        least = s.host_pipeline_tp_s * lay.tp.astype(np.float64) ** PIPELINE_TP_POWER
        base = np.where(several, np.maximum(base, least), base)
    return base * (GRACE_HOST if x.cluster.node.host == "grace" else 1.0)


def _layer_parts(x: Inputs, *, moe: bool) -> FloatArray:
    """Return (compute, tp, cp, ep, dp, host) seconds of one layer and micro-batch, either way.

    Shape (layouts, forward or backward, 7); the last is what may hide of ep, inside the others.

    Within each direction the device's time and the host's launch time do not add: the longer one
    counts. ZeRO-3 traffic hides behind whichever that is, at the price of contention.
    """
    forward = moe_compute_forward_s(x) if moe else dense_compute_forward_s(x)
    backward = moe_compute_backward_s(x) if moe else dense_compute_backward_s(x)
    again = fully_recomputed_share(x)
    tp_f, tp_b = tp_forward_s(x), tp_backward_s(x) + again * tp_forward_s(x)
    cp_f, cp_b = cp_forward_s(x), (2 + again) * cp_forward_s(x)
    ep_f = ep_forward_s(x) if moe else np.zeros(len(x.layouts))
    ep_b = (1 + again) * ep_f
    gather = moe_gather_s(x) if moe else dense_gather_s(x)
    scatter = moe_scatter_s(x) if moe else dense_scatter_s(x)
    host = _host(x, moe=moe)
    ways = []
    for kernels, tp, cp, ep, traffic, launch in (
        (forward, tp_f, cp_f, ep_f, gather, HOST_FORWARD * host),
        (
            backward,
            tp_b,
            cp_b,
            ep_b,
            gather + scatter,
            (1 - HOST_FORWARD + HOST_FORWARD * again) * host,
        ),
    ):
        device = kernels + tp + cp + ep
        busy = np.maximum(device, launch)
        exposed = np.maximum(traffic - busy, 0.0)
        contention = x.stack.fsdp_contention * np.minimum(traffic, device)
        least = np.maximum(np.maximum(device - BOTH_HIDE * ep, launch), traffic)
        hideable = np.maximum(traffic, busy) - least
        parts = [kernels, tp, cp, ep, exposed + contention, busy - device, hideable]
        ways.append(np.stack(parts, axis=1))
    return np.stack(ways, axis=1)


LAYER_PARTS = ("compute", "tp", "cp", "ep", "dp", "host")
HIDEABLE = len(LAYER_PARTS)
"""What follows them: how much of `ep` a forward and a backward hide when they run as one."""
DEVICE_PARTS = 4
"""The first of them run on the device."""
_LAYER_DOC = "forward + backward, each max(device, host) + exposed ZeRO traffic"


@term(unit="s", formula=_LAYER_DOC, source=FSDP_2023, on=LAYER)
def dense_directions_s(x: Inputs) -> FloatArray:
    """One dense layer and micro-batch, forward and backward: shape (layouts, 2, 6 + 1)."""
    return _layer_parts(x, moe=False)


@term(unit="s", formula=_LAYER_DOC, source=FSDP_2023, on=LAYER)
def moe_directions_s(x: Inputs) -> FloatArray:
    """One layer with experts and micro-batch, forward and backward: shape (layouts, 2, 6 + 1)."""
    if x.model.experts is None:
        return np.zeros((len(x.layouts), 2, HIDEABLE + 1))
    return _layer_parts(x, moe=True)


@term(unit="s", formula="both directions of it", source=FSDP_2023, on=LAYER)
def dense_layer_s(x: Inputs) -> FloatArray:
    """One dense layer and micro-batch: (compute, tp, cp, ep, dp, host), shape (layouts, 6)."""
    both: FloatArray = dense_directions_s(x)[:, :, :HIDEABLE].sum(axis=1)
    return both


@term(unit="s", formula="both directions of it", source=FSDP_2023, on=LAYER)
def moe_layer_s(x: Inputs) -> FloatArray:
    """One layer with experts and micro-batch by part, shape (layouts, 6)."""
    both: FloatArray = moe_directions_s(x)[:, :, :HIDEABLE].sum(axis=1)
    return both


def directions_s(x: Inputs, *, moe: bool) -> FloatArray:
    """Return (forward, backward to the input, weight gradients) of one layer, shape (layouts, 3).

    What no kernel accounts for (host time, ZeRO traffic) is shared out over a backward's kernels.
    """
    parts = (moe_directions_s if moe else dense_directions_s)(x)
    forward, backward = parts[:, :, :HIDEABLE].sum(axis=2).T
    device = parts[:, 1, :DEVICE_PARTS].sum(axis=1)
    works = device > 0
    stretch = np.divide(backward, device, out=np.zeros_like(device), where=works)
    weight = np.minimum(stretch * weight_s(x, moe=moe), backward)
    return np.stack([forward, backward - weight, weight], axis=1)


@term(
    unit="1",
    formula="1; weight gradients apart: max(F, I, F + I - W) / (F + I + W) of the commonest layer; "
    "fewer than pp-1 micro-batches have W m/(pp-1)",
    source=ZERO_BUBBLE_2023,
    on=(*LAYER, "pp", "schedule"),
)
def unfilled_share(x: Inputs) -> FloatArray:
    """Share of a pipeline's idle time that weight gradients do not fill.

    Exact for ZB-H1 of equal stages and as many micro-batches; F forward, I backward to the input,
    W weight gradients.
    """
    lay = x.layouts
    splits = SPLITS[lay.schedule]
    if not splits.any():
        return np.ones(len(lay))
    moe = bool(x.model.experts) and 2 * sum(x.model.moe_layers) > x.model.layers
    forward, given, weight = directions_s(x, moe=moe).T
    few = np.minimum(lay.num_microbatches / np.maximum(lay.pp - 1, 1), 1.0)
    left = np.maximum(np.maximum(forward, given), forward + given - few * weight)
    whole = forward + given + weight
    share = np.divide(left, whole, out=np.ones_like(whole), where=whole > 0)
    return np.where(splits, share, 1.0)


@term(
    unit="s",
    formula=f"min({BOTH_HIDE:.0%} of the all-to-all, layer - host) * (1 - 5/4 pp/m), schedules "
    "that run both ways at once",
    source=DUALPIPE,
    on=(*LAYER, "pp", "schedule"),
)
def hidden_s(x: Inputs) -> FloatArray:
    """Expert traffic of a layer that is hidden where a forward and a backward run as one.

    A rank of DualPipeV runs 2m - 3pp + rank + 1 of its 2m pairs so.
    """
    lay = x.layouts
    at_once = HIDES[lay.schedule]
    if not at_once.any():
        return np.zeros(len(lay))
    often = np.clip(1.0 - 1.25 * lay.pp / lay.num_microbatches, 0.0, 1.0)
    return np.where(at_once, often * hideable_s(x), 0.0)


def hideable_s(x: Inputs) -> FloatArray:
    """Return the expert traffic of one layer that a forward and a backward hide at once.

    Both together take no less than the host needs to launch them, or ZeRO's traffic.
    """
    hidden: FloatArray = moe_directions_s(x)[:, :, HIDEABLE].sum(axis=1)
    return hidden


@term(
    unit="s",
    formula="(layers * layer time + embedding (first) + head (last)) / copies of the model + sends "
    "+ 0.6 ms",
    source=MEGATRON_2021,
    on=(),
)
def stage_microbatch_s(x: Inputs) -> FloatArray:
    """One micro-batch, forward and backward, at every kind of stage, shape (layouts, kinds).

    Where a pipeline holds two copies of the model, each takes half of the micro-batches.
    """
    s = x.stages
    dense, moe = dense_layer_s(x).sum(axis=1), moe_layer_s(x).sum(axis=1)
    moe = moe - hidden_s(x)
    layers = s.dense_layers * dense[:, None] + s.moe_layers * moe[:, None]
    ends = s.first * embedding_s(x)[:, None] + s.last * head_s(x)[:, None]
    each = pp_microbatch_s(x)[:, None] + x.stack.microbatch_s
    held = (layers + ends) / x.layouts.copies[:, None]
    return np.where(s.count > 0, held + each, 0.0)


@term(
    unit="s",
    formula="(sum of all stages' time - the slowest's) / vpp * what weight gradients do not fill",
    source=MEGATRON_2021,
    on=(),
)
def bubble_s(x: Inputs) -> FloatArray:
    """Time that the slowest stage waits for the others: (pp-1)/vpp stages when all are equal.

    Two copies of the model fill from both ends: pp/2 - 1 stages.
    """
    lay, each = x.layouts, stage_microbatch_s(x)
    others = (each * x.stages.count).sum(axis=1) - each.max(axis=1)
    half = np.maximum(lay.pp / 2 - 1, 0.0) / np.maximum(lay.pp - 1, 1)
    waits = np.where(lay.copies == 2, half, 1.0 / lay.vpp)
    bubble: FloatArray = others * waits * unfilled_share(x)
    return bubble


@term(
    unit="s",
    formula=f"max({DP_FLOOR:.0%}, traffic*exposed share - phi*one micro-batch's backward/forward)",
    source=CALIBRATION,
    on=(),
)
def exposed_sync_s(x: Inputs) -> FloatArray:
    """Gradient and parameter traffic at the end of a step that no computation hides."""
    return exposed_s(x, np.ones(len(x.layouts)))


def exposed_s(x: Inputs, share_held: FloatArray) -> FloatArray:
    """Return the same if the heaviest stage held only a share of what it does.

    The traffic shrinks at most so much, and what hides it grows no longer.
    """
    # phi is fitted above one where several micro-batches hide it; never more than there are
    window = stage_microbatch_s(x).max(axis=1) * np.minimum(
        x.stack.overlap, x.layouts.num_microbatches
    )
    out = np.zeros(len(x.layouts))
    for traffic, share in ((gradient_sync_s(x), 2 / 3), (parameter_gather_s(x), 1 / 3)):
        left = share_held * traffic * x.stack.dp_exposed
        out = out + np.maximum(left - share * window, DP_FLOOR * left)
    return np.where(x.layouts.dp_sync == 1, parameter_server_s(x), out)


def offloaded_s(x: Inputs) -> FloatArray:
    """Return the traffic with the host that the micro-batches do not hide, in a step."""
    traffic = host_traffic_s(x)
    if not traffic.any():
        return traffic
    hidden = stage_microbatch_s(x).max(axis=1)
    exposed: FloatArray = x.layouts.num_microbatches * np.maximum(traffic - hidden, 0.0)
    return exposed


def pressure_slowdown(x: Inputs) -> FloatArray:
    """Return how much longer a step takes for want of memory: 1 + pressure, near the limit."""
    if not x.stack.pressure:
        return np.ones(len(x.layouts))
    full = (peak_bytes(x) / limit_bytes(x) - PRESSED_FROM) / (PRESSED_AT - PRESSED_FROM)
    return 1.0 + x.stack.pressure * np.clip(full, 0.0, 1.0)


class Ran(NamedTuple):
    """What a simulated pipeline says of each layout, shape (layouts,); NaN where none was run."""

    makespan_s: FloatArray
    busiest: IntArray
    """The stage that computes and sends longest."""
    sending_s: FloatArray
    """Seconds that it is held up by sends; the rest of its makespan it computes or waits."""
    idle_s: FloatArray
    hidden_s: FloatArray
    """Expert traffic that it does not wait for, since a forward and a backward ran as one."""


def time_parts(x: Inputs, ran: Ran | None = None) -> dict[str, FloatArray]:
    """Return exposed seconds by name; they sum to the step time.

    They are those of the slowest stage. With `ran` (and every stage apart) the pipeline's are those
    of the simulator: what its busiest stage sends and waits.
    """
    s, m = x.stages, x.layouts.num_microbatches
    rows = np.arange(len(x.layouts))
    at = stage_microbatch_s(x).argmax(axis=1) if ran is None else ran.busiest
    dense, moe = s.dense_layers[rows, at], s.moe_layers[rows, at]
    layers = dense[:, None] * dense_layer_s(x) + moe[:, None] * moe_layer_s(x)
    each = m / x.layouts.copies
    parts = {name: each * layers[:, i] for i, name in enumerate(LAYER_PARTS)}
    ends = s.first[rows, at] * embedding_s(x) + s.last[rows, at] * head_s(x)
    parts["compute"] = parts["compute"] + each * ends
    parts["ep"] = parts["ep"] - (each * moe * hidden_s(x) if ran is None else ran.hidden_s)
    parts["dp"] = parts["dp"] + exposed_sync_s(x)
    sends = m * pp_microbatch_s(x) if ran is None else ran.sending_s
    parts["pp"] = sends + tied_embedding_s(x)
    parts["bubble"] = bubble_s(x) if ran is None else ran.idle_s
    parts["optimizer"] = optimizer_s(x) + offloaded_s(x)
    parts["overhead"] = m * x.stack.microbatch_s + x.stack.step_s
    whole = np.sum(list(parts.values()), axis=0)
    parts["overhead"] = parts["overhead"] + (pressure_slowdown(x) - 1.0) * whole
    return parts


def once_s(x: Inputs) -> FloatArray:
    """Return what a step has once, after its last micro-batch."""
    once = exposed_sync_s(x) + tied_embedding_s(x) + optimizer_s(x) + x.stack.step_s
    return once + offloaded_s(x)


def pipeline_s(x: Inputs) -> FloatArray:
    """Return the closed form of a pipeline's time: m * slowest stage + bubble."""
    slowest: FloatArray = stage_microbatch_s(x).max(axis=1)
    return x.layouts.num_microbatches * slowest + bubble_s(x)


def step_s(x: Inputs) -> FloatArray:
    """Return the time of one training step: m * slowest stage + bubble + what is exposed once."""
    return (pipeline_s(x) + once_s(x)) * pressure_slowdown(x)

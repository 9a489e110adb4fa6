"""The step: layers to stages, stages to a pipeline, and what is left exposed at the end.

Every part is in exposed seconds and they sum to the step time, so that a report can say where the
time goes without a remainder.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.estimate.autocast import autocast_s
from planner.estimate.communication import (
    EXPERT_DATA,
    cp_forward_s,
    dense_gather_s,
    dense_scatter_s,
    embedding_sharding_s,
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
from planner.estimate.inputs import FloatArray, Inputs, term, widest
from planner.estimate.kernels import softmax_falls_back, uses_fp8
from planner.estimate.memory import limit_bytes, peak_bytes
from planner.estimate.modules import AGAIN, fully_recomputed_share
from planner.estimate.offloading import copies_bytes_per_s, layers_within, wait_s
from planner.estimate.optimizer import host_traffic_s, optimizer_s
from planner.estimate.recompute import offloaded_bytes
from planner.layouts.table import HIDES, SPLITS, IntArray
from planner.sources import (
    CALIBRATION,
    DUALPIPE,
    FSDP_2023,
    MEGATRON_2021,
    TRANSFORMER_ENGINE,
    ZERO_BUBBLE_2023,
)

LAYER = tuple(
    dict.fromkeys((*EXPERT_SHARD, *EXPERT_DATA, "vpp", *AGAIN, "zero", "num_microbatches"))
)
BUSY = (*EXPERT_SHARD, "pp", "dp", *AGAIN, "zero", "num_microbatches")
"""What a layer's passes depend on without ZeRO's traffic."""
TRAFFIC = (*EXPERT_DATA, "vpp", "zero")
ENDS = ("tp", "sp", "cp", "pp", "vpp", "dp", "dp_replicate", "zero", "micro_batch")
HOST_FORWARD = 0.333
"""Share of a layer's host time that belongs to forward (fit)."""
GRACE_HOST = 1.37
"""Host time on Grace over x86 (fit, GB200 and GB300 runs)."""
GRAPHED_HOST_S = 5e-4
"""Host time per layer when one CUDA graph holds the whole iteration (fit)."""
PARTLY_GRAPHED = 0.724
"""Host time of a layer with experts, graphs over attention and router, over none (fit)."""
CAST_HOST = 1.10
"""Host time with low-precision casts to launch over without (fit)."""
PIPELINE_TP_POWER = 0.73
BOTH_HIDE = 1 - 0.118
"""Share of the all-to-all that a backward hides behind a forward (as the flag `ep-overlap`)."""
DP_FLOOR = 0.226
"""Share of the gradient traffic that no overlap hides (fit)."""
PRESSED_FROM, PRESSED_AT = 0.92, 1.0
"""Shares of the memory from which, and at which in full, an allocator's retries slow a step.

nanotron's sweep: of 20 runs predicted to take 96 % and more of what a GPU has, 18 are slowed down,
to 3 times the step in the median; of those below, no more than where memory is ample."""


def _host(x: Inputs, *, moe: bool) -> FloatArray:
    """Return the host's seconds per layer and micro-batch, forward + backward."""
    s, lay = x.stack, x.layouts
    if s.graphs == "full":
        return np.full(len(lay), GRAPHED_HOST_S)
    base = np.where(lay.tp > 1, s.host_s * s.host_tp, s.host_s)
    base = base * lay.tp.astype(np.float64) ** s.host_wait
    if moe and x.model.experts:
        router = s.host_moe_s * (PARTLY_GRAPHED if s.graphs == "partial" else 1.0)
        base = router + s.host_expert_s * x.model.experts.count / lay.ep
        base = base * (CAST_HOST if uses_fp8(x) else 1.0)
    if s.host_sharded_s:
        base = base + np.where(lay.zero == 3, s.host_sharded_s, 0.0)
    base = base * np.where(softmax_falls_back(x), s.host_fallback, 1.0)
    if s.host_pipeline_tp_s:
        several = (lay.tp > 1) & (lay.pp > 1) & (lay.dp > 1) & (lay.gpus > x.cluster.node.gpus)
        least = s.host_pipeline_tp_s * lay.tp.astype(np.float64) ** PIPELINE_TP_POWER
        base = np.where(several, np.maximum(base, least), base)
    return base * (GRACE_HOST if x.cluster.node.host == "grace" else 1.0)


class _Pass(NamedTuple):
    """Seconds of one layer and micro-batch in one direction, before any ZeRO traffic."""

    kernels: FloatArray
    tp: FloatArray
    cp: FloatArray
    ep: FloatArray
    launch: FloatArray

    @property
    def device(self) -> FloatArray:
        """Return the device's time, which the host's launches do not add to."""
        return self.kernels + self.tp + self.cp + self.ep

    @property
    def busy(self) -> FloatArray:
        """Return the longer of the two."""
        return np.maximum(self.device, self.launch)


def _passes(x: Inputs, *, moe: bool) -> tuple[_Pass, _Pass]:
    """Return the forward and the backward pass of one layer."""
    again = fully_recomputed_share(x)
    tp, cp = tp_forward_s(x), cp_forward_s(x)
    ep = ep_forward_s(x) if moe else np.zeros(len(x.layouts))
    host, cast = _host(x, moe=moe), autocast_s(x)
    return (
        _Pass(
            (moe_compute_forward_s if moe else dense_compute_forward_s)(x) + cast[:, 0],
            tp,
            cp,
            ep,
            HOST_FORWARD * host,
        ),
        _Pass(
            (moe_compute_backward_s if moe else dense_compute_backward_s)(x)
            + cast[:, 1]
            + again * cast[:, 0],
            tp_backward_s(x) + again * tp,
            (2 + again) * cp,
            (1 + again) * ep,
            (1 - HOST_FORWARD + HOST_FORWARD * again) * host,
        ),
    )


def _sharding(x: Inputs, *, moe: bool) -> tuple[FloatArray, FloatArray]:
    """Return ZeRO's traffic of one layer in the forward and in the backward pass."""
    gather = moe_gather_s(x) if moe else dense_gather_s(x)
    return gather, gather + (moe_scatter_s(x) if moe else dense_scatter_s(x))


def _unhidden_s(x: Inputs, traffic: FloatArray, busy: FloatArray, device: FloatArray) -> FloatArray:
    """Return what ZeRO's traffic costs: what nothing hides, and contention with what hides it."""
    contention = x.stack.fsdp_contention * np.minimum(traffic, device)
    exposed: FloatArray = np.maximum(traffic - busy, 0.0) + contention
    return exposed


def _layer_parts(x: Inputs, *, moe: bool) -> FloatArray:
    """Return (compute, tp, cp, ep, dp, host) seconds of one layer and micro-batch, either way.

    Within each direction the device's time and the host's launch time do not add: the longer one
    counts. ZeRO-3 traffic hides behind whichever that is, at the price of contention. Shape
    (layouts, forward or backward, 7); the last is what may hide of ep, inside the others.
    """
    ways = []
    for way, traffic in zip(_passes(x, moe=moe), _sharding(x, moe=moe), strict=True):
        unhidden = _unhidden_s(x, traffic, way.busy, way.device)
        least = np.maximum(np.maximum(way.device - BOTH_HIDE * way.ep, way.launch), traffic)
        hideable = np.maximum(traffic, way.busy) - least
        ways.append(np.stack([*way[:4], unhidden, way.busy - way.device, hideable], axis=1))
    return np.stack(ways, axis=1)


def _busy(x: Inputs, *, moe: bool) -> FloatArray:
    """Return each direction's (device, busy), shape (layouts, 4)."""
    return np.stack([time for way in _passes(x, moe=moe) for time in (way.device, way.busy)], 1)


def _dense_busy(x: Inputs) -> FloatArray:
    return _busy(x, moe=False)


def _moe_busy(x: Inputs) -> FloatArray:
    return _busy(x, moe=True)


def _dense_sharding(x: Inputs) -> FloatArray:
    return np.stack(_sharding(x, moe=False), 1)


def _moe_sharding(x: Inputs) -> FloatArray:
    return np.stack(_sharding(x, moe=True), 1)


def _layer_s(x: Inputs, busy: FloatArray, traffic: FloatArray) -> FloatArray:
    """Return the sum of a layer's parts."""
    forward = busy[:, 1] + _unhidden_s(x, traffic[:, 0], busy[:, 1], busy[:, 0])
    return forward + (busy[:, 3] + _unhidden_s(x, traffic[:, 1], busy[:, 3], busy[:, 2]))


def dense_layer_total_s(x: Inputs) -> FloatArray:
    """Return the sum of `dense_layer_s`, each of its sides computed on its own arguments."""
    return x.by((), _dense_layer_total_s)


def moe_layer_total_s(x: Inputs) -> FloatArray:
    """Return the sum of `moe_layer_s`."""
    return x.by((), _moe_layer_total_s)


def _dense_layer_total_s(x: Inputs) -> FloatArray:
    return _layer_s(x, x.by(BUSY, _dense_busy), x.by(TRAFFIC, _dense_sharding))


def _moe_layer_total_s(x: Inputs) -> FloatArray:
    if x.model.experts is None:
        return np.zeros(len(x.layouts))
    return _layer_s(x, x.by(BUSY, _moe_busy), x.by(TRAFFIC, _moe_sharding))


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


BOTH_DIRECTIONS = (dense_directions_s, moe_directions_s)


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
    total = x.by(ENDS, stage_fixed_s)
    if x.model.experts is None or not all(x.model.moe_layers):
        total = total + x.by(("pp", "vpp"), _dense_layers) * dense_layer_total_s(x)[:, None]
    if x.model.experts is not None:
        total = total + x.by(("pp", "vpp"), _moe_layers) * _moe_seen_s(x)[:, None]
    return total


def _moe_seen_s(x: Inputs) -> FloatArray:
    """Return the time of a layer with experts, without what of it is hidden."""
    total = moe_layer_total_s(x)
    return total - hidden_s(x) if x.runs(HIDES) else total


def first_s(x: Inputs) -> FloatArray:
    """Return what the first stage has for a micro-batch beside its layers."""
    return embedding_s(x) + embedding_sharding_s(x)


def stage_fixed_s(x: Inputs) -> FloatArray:
    """Return what each kind of stage takes without its layers; nothing where there is none."""
    s = x.stages
    ends = s.first * first_s(x)[:, None] + s.last * head_s(x)[:, None]
    each = pp_microbatch_s(x)[:, None] + x.stack.microbatch_s
    return np.where(s.count > 0, ends / x.layouts.copies[:, None] + each, 0.0)


def _dense_layers(x: Inputs) -> FloatArray:
    return np.where(x.stages.count > 0, x.stages.dense_layers, 0) / x.layouts.copies[:, None]


def _moe_layers(x: Inputs) -> FloatArray:
    return np.where(x.stages.count > 0, x.stages.moe_layers, 0) / x.layouts.copies[:, None]


def _stage_counts(x: Inputs) -> FloatArray:
    return x.stages.count.astype(np.float64)


def slowest_stage_s(x: Inputs) -> FloatArray:
    """Return the time of one micro-batch at the slowest stage."""
    return x.by((), _slowest_stage_s)


def _slowest_stage_s(x: Inputs) -> FloatArray:
    return widest(stage_microbatch_s(x))


@term(
    unit="s",
    formula="(sum of all stages' time - the slowest's) / vpp (fewer than pp micro-batches in "
    "chunks: sum + (m-1) slowest/vpp - m slowest) * what weight gradients do not fill",
    source=MEGATRON_2021,
    on=(),
)
def bubble_s(x: Inputs) -> FloatArray:
    """Time that the slowest stage waits for the others: (pp-1)/vpp stages when all are equal.

    Fewer micro-batches than stages leave a rank idle in every lap of its chunks. Two copies of the
    model fill from both ends: pp/2 - 1 stages.
    """
    counts = x.by(("pp", "vpp"), _stage_counts)
    every: FloatArray = np.add.reduce(list((stage_microbatch_s(x) * counts).T))
    slowest, vpp, m = slowest_stage_s(x), x.layouts.vpp, x.layouts.num_microbatches
    laps = (vpp > 1) & (m < x.layouts.pp)
    few = every + (m - 1) * slowest / vpp - m * slowest
    bubble: FloatArray = np.where(laps, few, (every - slowest) / vpp)
    if not x.runs(SPLITS):
        return bubble
    half = np.maximum(x.layouts.pp / 2 - 1, 0.0) / np.maximum(x.layouts.pp - 1, 1)
    return bubble * np.where(x.layouts.copies == 2, half, 1.0) * unfilled_share(x)


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
    window = slowest_stage_s(x) * np.minimum(x.stack.overlap, x.layouts.num_microbatches)
    if x.stack.zero1 == "all-reduce":
        window = np.where((x.layouts.zero == 1) | (x.layouts.zero == 2), 0.0, window)
    out = np.zeros(len(x.layouts))
    gathers = x.stack.gather_overlap / 3
    for traffic, share in ((gradient_sync_s(x), 2 / 3), (parameter_gather_s(x), gathers)):
        left = share_held * traffic * x.stack.dp_exposed
        out = out + np.maximum(left - share * window, DP_FLOOR * left)
    return np.where(x.layouts.dp_sync == 1, parameter_server_s(x), out)


@term(
    unit="s",
    formula="both ways: max(0, N layers' activations / link to the host - time of all layers but "
    "two); all of the copies where N = layers - 1",
    source=TRANSFORMER_ENGINE,
    on=(*LAYER, "pp"),
)
def activation_wait_s(x: Inputs) -> FloatArray:
    """How long a micro-batch waits for activations on their way to the host's memory and back."""
    lay, model = x.layouts, x.model
    if not x.stack.offload_layers:
        return np.zeros(len(lay))
    copies = offloaded_bytes(x) / copies_bytes_per_s(x)
    dense, moe = (part(x)[:, :, :HIDEABLE].sum(axis=2) for part in BOTH_DIRECTIONS)
    count = layers_within(model, 0, model.layers)
    kinds = [moe if experts else dense for experts in (model.moe_layers[0], model.moe_layers[-1])]
    whole = x.stack.offload_layers >= model.layers - 1
    waits = np.zeros(len(lay))
    for way in range(2):
        every = count[0] * dense[:, way] + count[1] * moe[:, way]
        ends = kinds[0][:, way] + kinds[1][:, way]
        waits = waits + wait_s(copies, every - ends, whole=whole)
    return np.where(lay.pp == 1, waits, 0.0)


def offloaded_s(x: Inputs) -> FloatArray:
    """Return the traffic with the host that the micro-batches do not hide, in a step."""
    traffic = host_traffic_s(x)
    if not traffic.any():
        return traffic
    hidden = slowest_stage_s(x)
    exposed: FloatArray = np.maximum(traffic - hidden, 0.0) * x.layouts.num_microbatches
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
    tables = s.first[rows, at] * embedding_sharding_s(x)
    parts["dp"] = parts["dp"] + exposed_sync_s(x) + each * tables
    sends = m * pp_microbatch_s(x) if ran is None else ran.sending_s
    parts["pp"] = sends + tied_embedding_s(x)
    parts["bubble"] = bubble_s(x) if ran is None else ran.idle_s
    parts["optimizer"] = optimizer_s(x) + offloaded_s(x)
    if x.stack.offload_layers:
        parts["offload"] = m * activation_wait_s(x)
    parts["overhead"] = m * x.stack.microbatch_s + x.stack.step_s
    whole = np.sum(list(parts.values()), axis=0)
    parts["overhead"] = parts["overhead"] + (pressure_slowdown(x) - 1.0) * whole
    return parts


def once_s(x: Inputs) -> FloatArray:
    """Return what a step has once, after its last micro-batch."""
    once = exposed_sync_s(x) + tied_embedding_s(x) + optimizer_s(x) + x.stack.step_s
    once = once + offloaded_s(x)
    if x.stack.offload_layers:
        once = once + x.layouts.num_microbatches * activation_wait_s(x)
    return once


def pipeline_s(x: Inputs) -> FloatArray:
    """Return the closed form of a pipeline's time: m * slowest stage + bubble."""
    return x.layouts.num_microbatches * slowest_stage_s(x) + bubble_s(x)


def step_s(x: Inputs) -> FloatArray:
    """Return the time of one training step: m * slowest stage + bubble + what is exposed once."""
    return (pipeline_s(x) + once_s(x)) * pressure_slowdown(x)

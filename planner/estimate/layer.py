"""One layer and micro-batch: what its passes take, forward and backward, on device and host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.estimate.autocast import autocast_s
from planner.estimate.communication import (
    EXPERT_DATA,
    cp_forward_s,
    dense_gather_s,
    dense_scatter_s,
    ep_forward_s,
    moe_gather_s,
    moe_scatter_s,
    tp_backward_s,
    tp_forward_s,
)
from planner.estimate.compute import EXPERT_SHARD
from planner.estimate.directions import (
    dense_compute_backward_s,
    dense_compute_forward_s,
    moe_compute_backward_s,
    moe_compute_forward_s,
    weight_s,
)
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.kernels import softmax_falls_back, uses_fp8
from planner.estimate.modules import AGAIN, fully_recomputed_share
from planner.sources import (
    FSDP_2023,
)

LAYER = tuple(
    dict.fromkeys((*EXPERT_SHARD, *EXPERT_DATA, "vpp", *AGAIN, "zero", "num_microbatches"))
)
BUSY = (*EXPERT_SHARD, "pp", "dp", *AGAIN, "zero", "num_microbatches")
"""What a layer's passes depend on without ZeRO's traffic."""
TRAFFIC = (*EXPERT_DATA, "vpp", "zero")
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

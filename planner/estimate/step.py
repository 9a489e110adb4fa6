"""The step: its pipeline, and what is left exposed at the end.

Every part is in exposed seconds and they sum to the step time, so that a report can say where the
time goes without a remainder.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.estimate.communication import (
    embedding_sharding_s,
    gradient_sync_s,
    parameter_gather_s,
    parameter_server_s,
    pp_microbatch_s,
    tied_embedding_s,
)
from planner.estimate.compute import embedding_s, head_s
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.layer import (
    BOTH_DIRECTIONS,
    HIDEABLE,
    LAYER,
    LAYER_PARTS,
    dense_layer_s,
    moe_layer_s,
)
from planner.estimate.memory import limit_bytes, peak_bytes
from planner.estimate.offloading import copies_bytes_per_s, layers_within, wait_s
from planner.estimate.optimizer import host_traffic_s, optimizer_s
from planner.estimate.pipelined import (
    bubble_s,
    hidden_s,
    slowest_stage_s,
    stage_microbatch_s,
)
from planner.estimate.recompute import offloaded_bytes
from planner.layouts.table import IntArray
from planner.sources import (
    CALIBRATION,
    TRANSFORMER_ENGINE,
)

DP_FLOOR = 0.226
"""Share of the gradient traffic that no overlap hides (fit)."""
PRESSED_FROM, PRESSED_AT = 0.92, 1.0
"""Shares of the memory from which, and at which in full, an allocator's retries slow a step.

nanotron's sweep: of 20 runs predicted to take 96 % and more of what a GPU has, 18 are slowed down,
to 3 times the step in the median; of those below, no more than where memory is ample."""


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

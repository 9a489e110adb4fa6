"""Time of each part of a pipelined model, forward and backward apart, for the simulator.

The sum over both directions is exactly what `stage_microbatch_s` charges a stage, without its
sends: those are the simulator's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.estimate.collectives import point_to_point_s
from planner.estimate.compute import head_s
from planner.estimate.inputs import FloatArray, Inputs
from planner.estimate.layer import directions_s
from planner.estimate.pipelined import first_s, hideable_s
from planner.pipeline.timing import Links

HEAD_FORWARD = HEAD_WEIGHT = 1 / 3
"""Shares of the head's time: one of its three multiplies forward, one for the weight gradient."""
EMBEDDING_FORWARD = 0.5
"""Share of the embedding's time; the rest is its weight gradient (a lookup has no input's)."""


class PartTimes(NamedTuple):
    """Seconds of one micro-batch in each part of the model, shape (parts,).

    `experts_s` is what the part saves of its expert traffic (inside the other three) when a
    forward and a backward run as one.
    """

    forward_s: FloatArray
    backward_input_s: FloatArray
    backward_weight_s: FloatArray
    experts_s: FloatArray


class Prices(NamedTuple):
    """Seconds of one micro-batch in what a stage is made of, one row a layout.

    `layers` is (layouts, dense or with experts, [forward, backward input, backward weight, expert
    traffic that a forward and a backward hide when they run as one]). A message between stages
    takes `latency_s`, which frees the link, and `transfer_s`; its sender is held up by the share
    `exposed` of both.
    """

    layers: FloatArray
    embedding_s: FloatArray
    head_s: FloatArray
    framework_s: float
    latency_s: FloatArray
    transfer_s: FloatArray
    exposed: float
    with_experts: NDArray[np.bool_]
    mtp_layers: int

    def key(self, row: int) -> tuple[float, ...]:
        """Return all that the pipeline of a layout is run with, beside its cut."""
        ends = (self.embedding_s, self.head_s, self.latency_s, self.transfer_s)
        return (*self.layers[row].reshape(-1).tolist(), *(float(part[row]) for part in ends))

    def take(self, rows: Sequence[int]) -> Prices:
        """Return the prices of some rows."""
        columns = (self.layers, self.embedding_s, self.head_s, self.latency_s, self.transfer_s)
        layers, embedding, head, latency, transfer = (column[list(rows)] for column in columns)
        return self._replace(
            layers=layers,
            embedding_s=embedding,
            head_s=head,
            latency_s=latency,
            transfer_s=transfer,
        )

    def layer_seconds(self, row: int) -> FloatArray:
        """Return the seconds of every layer of the model, forward and backward."""
        dense, moe = self.layers[row, :, :3].sum(axis=1)
        each: FloatArray = np.where(self.with_experts, moe, dense)
        return each

    def blocking_s(self, row: int) -> float:
        """Return how long one message holds up its sender."""
        return float(self.exposed * (self.latency_s[row] + self.transfer_s[row]))

    def links(self, row: int, stages: int) -> Links:
        """Return links on which a sender is held up as long as the estimate says."""
        every = (self.latency_s[row], self.transfer_s[row], self.blocking_s(row))
        return Links(*(np.full(stages, part) for part in every))

    def parts(self, row: int, layers: Sequence[int], *, chunks: int) -> PartTimes:
        """Return the times of the model cut along its depth into parts of so many `layers`.

        A rank holds `chunks` parts, over which the framework's time per micro-batch is spread.
        Multi-token prediction goes with the head, as in the estimate.
        """
        edges = np.concatenate([[0], np.cumsum(layers)])
        until = np.concatenate([[0], np.cumsum(self.with_experts)])
        moe = until[edges[1:]] - until[edges[:-1]]
        held = np.stack([np.asarray(layers) - moe, moe]).astype(np.float64)
        held[int(self.with_experts.any()), -1] += self.mtp_layers
        forward, weight_input, weight, experts = self.layers[row].T @ held
        head, embedding = self.head_s[row], self.embedding_s[row]
        forward[0] += EMBEDDING_FORWARD * embedding
        weight[0] += (1 - EMBEDDING_FORWARD) * embedding
        forward[-1] += HEAD_FORWARD * head
        weight[-1] += HEAD_WEIGHT * head
        weight_input[-1] += (1 - HEAD_FORWARD - HEAD_WEIGHT) * head
        each = self.framework_s / chunks / 2
        return PartTimes(forward + each, weight_input + each, weight, experts)

    def fixed_seconds(self, row: int, parts: int, *, chunks: int) -> FloatArray:
        """Return the seconds of each part without its layers: embedding, head, framework."""
        empty = self.parts(row, [0] * parts, chunks=chunks)
        return empty.forward_s + empty.backward_input_s + empty.backward_weight_s


def prices(x: Inputs) -> Prices:
    """Return what the stages of each layout are made of."""
    sent = 2.0 * x.rank_tokens * x.model.hidden / x.layouts.tp
    latency = point_to_point_s(x, np.zeros_like(sent))
    return Prices(
        layers=np.stack([_directions(x, moe=moe) for moe in (False, True)], axis=1),
        embedding_s=first_s(x),
        head_s=head_s(x),
        framework_s=x.stack.microbatch_s,
        latency_s=latency,
        transfer_s=point_to_point_s(x, sent) - latency,
        exposed=x.stack.p2p_exposed,
        with_experts=np.array(x.model.moe_layers, dtype=np.bool_) & bool(x.model.experts),
        mtp_layers=x.model.mtp_layers,
    )


def _directions(x: Inputs, *, moe: bool) -> FloatArray:
    """Return (forward, backward input, backward weight, hidden expert traffic) of one layer."""
    hidden = hideable_s(x) if moe else np.zeros(len(x.layouts))
    return np.concatenate([directions_s(x, moe=moe), hidden[:, None]], axis=1)

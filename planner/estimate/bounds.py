"""Step times that no cut of a layout's layers can beat, however its pipeline runs.

A simulated pipeline takes as long as the longest chain of actions in which each waits for the one
before: any chain is a lower bound. With stage r's time per micro-batch `T_r` (forward, backward and
the sends that hold it up), the slowest `S >= sum(T)/p`, m micro-batches and K one send:

- every schedule: all that one stage does, after a micro-batch has come to it and before one has
  gone back from it, `before_r + m T_r`;
- every schedule but those with weight gradients apart: one micro-batch's whole way, `sum(T)`;
- one chunk a rank: one micro-batch's whole way, and all other forwards (or all other backwards) of
  the slowest stage, `sum(T) + (m-1) S/2`;
- GPipe, where every forward of a rank comes before its first backward: `sum(T) + (m-1) S`;
- 1F1B, where the first backward of stage r waits for a round trip to the last stage, and so does
  the last one: `2 sum(T) + (m-p-1) S`;
- interleaved: the slowest of all ranks is least when ranks that start late have less to do;
- weight gradients apart: a stage that starts late may make them when others have nothing to do, so
  only what comes before its first forward counts, `F_0 + ... + F_(r-1)`;
- a forward and a backward run as one: all expert traffic that this may hide counts as hidden.

Where the model lies there and back the first stage holds both ends, and nothing is sent at the
turn; two copies of it share the micro-batches, and a stage has a part of either.
"""

from __future__ import annotations

import numpy as np

from planner.estimate.communication import pp_microbatch_s, tied_embedding_s
from planner.estimate.compute import head_s
from planner.estimate.inputs import FloatArray, Inputs, term
from planner.estimate.layer import dense_layer_total_s, directions_s, moe_layer_total_s
from planner.estimate.optimizer import optimizer_s
from planner.estimate.params import stage_dense_parameters, stage_expert_parameters
from planner.estimate.pipelined import first_s, hidden_s, hideable_s, stage_microbatch_s
from planner.estimate.stages import EMBEDDING_FORWARD
from planner.estimate.step import exposed_s, step_s
from planner.layouts.split import cuts_freely
from planner.layouts.table import HIDES, SPLITS, IntArray
from planner.pipeline.behind import layers_ahead
from planner.pipeline.in_turn import cuts_in_turn
from planner.sources import MEGATRON_CORE

GPIPE = 1
STEPS = 24
"""Halvings of the interval of a bound that counts whole layers: 1e-7 of it is left."""


def least_step_s(x: Inputs) -> FloatArray:
    """Return a lower bound of every layout's step; exact where it has no pipeline."""
    return np.where(x.layouts.pp > 1, _least_pipeline_s(x) + _least_once_s(x), step_s(x))


def whole_layers_s(x: Inputs) -> FloatArray:
    """Return a higher bound that counts whole layers; where all, or all but a few, are alike."""
    return np.where(
        x.layouts.pp > 1,
        np.maximum(_least_pipeline_s(x, whole=True), 0.0) + _least_once_s(x),
        step_s(x),
    )


def _least_once_s(x: Inputs) -> FloatArray:
    """Return what a step has once if the heaviest stage held no more than the mean of all."""
    share = mean_share(x)
    return exposed_s(x, share) + tied_embedding_s(x) + share * optimizer_s(x) + x.stack.step_s


@term(
    unit="1",
    formula="mean / heaviest stage's parameters, the lesser of experts and the rest",
    source=MEGATRON_CORE,
    on=("tp", "pp", "vpp", "ep", "etp"),
)
def mean_share(x: Inputs) -> FloatArray:
    """Parameters of the mean stage over those of the heaviest: what no cut can go below."""
    count = x.stages.count
    stages = count.sum(axis=1)
    out = np.ones(len(x.layouts))
    for held in (stage_dense_parameters(x), stage_expert_parameters(x)):
        heaviest = held.max(axis=1)
        mean = (held * count).sum(axis=1) / stages
        out = np.minimum(out, np.where(heaviest > 0, mean / np.maximum(heaviest, 1.0), 1.0))
    return out


class _Chain:
    """What the bounds are made of, one entry a layout."""

    def __init__(self, x: Inputs) -> None:
        """Price layers, ends and sends."""
        lay, model = x.layouts, x.model
        self.p, self.v, self.m = lay.pp, lay.vpp, lay.num_microbatches
        self.dense, self.moe = dense_layer_total_s(x), moe_layer_total_s(x)
        self.hidden = np.zeros(len(lay))
        if x.runs(HIDES):
            self.hidden = np.where(HIDES[lay.schedule], hideable_s(x), 0.0)
            self.moe = self.moe - self.hidden
        sorts = [self.moe if moe else self.dense for moe in sorted(set(model.moe_layers))]
        self.layer = np.minimum.reduce(sorts)
        ahead = layers_ahead(model.moe_layers)
        self.dealt = ahead is not None
        self.common = self.moe if model.moe_layers[-1] else self.dense
        with_experts = sum(model.moe_layers) if model.experts else 0
        exposed = x.stack.p2p_exposed
        each = pp_microbatch_s(x) / (2 * lay.vpp * exposed) if exposed else 0.0 * self.dense
        self.send = min(exposed, 1.0) * each
        self.first = first_s(x)
        self.last = head_s(x) + model.mtp_layers * (self.moe if model.experts else self.dense)
        self.framework = x.stack.microbatch_s
        layers = (model.layers - with_experts) * self.dense + with_experts * self.moe
        self.total = layers + self.first + self.last + self.p * self.framework
        turn = lay.folds == 1
        self.total = self.total + 2 * (self.p * self.v - 1 - turn) * self.send
        self.count = model.layers - (ahead or 0)  # a few that differ are left out
        self.splits, self.loops = SPLITS[lay.schedule], lay.folds == 0
        # the fewest layers of a chunk, in any cut that is considered; only the ends may hold none
        fewest = model.layers // (self.p * self.v)
        self.lap = np.maximum(fewest, 1) * self.layer + 2 * self.send
        self.lap_first = np.maximum(fewest - 1, 0) * self.layer + self.first + 2 * self.send
        if self.splits.any():
            self._forwards_only(x, fewest)

    def _forwards_only(self, x: Inputs, fewest: IntArray) -> None:
        """Count only the forwards of a stage as what others wait for, where backward is split."""
        sorts = [directions_s(x, moe=moe)[:, 0] for moe in sorted(set(x.model.moe_layers))]
        ahead = np.minimum.reduce(sorts)
        lap = np.maximum(fewest, 1) * ahead + self.send
        first = np.maximum(fewest - 1, 0) * ahead + EMBEDDING_FORWARD * self.first + self.send
        both = x.layouts.folds == 2  # the other copy's stages may begin at once
        self.lap = np.where(self.splits, np.where(both, 0.0, lap), self.lap)
        self.lap_first = np.where(self.splits, np.where(both, 0.0, first), self.lap_first)


def _least_pipeline_s(x: Inputs, *, whole: bool = False) -> FloatArray:
    c = _Chain(x)
    slowest = np.maximum(c.total / c.p, _usual_slowest_s(x, c))
    late = (c.p - 1) * (c.lap_first + (c.p - 2) / 2 * c.lap)
    spread = (c.m * c.total + late) / c.p - c.send
    if whole and c.dealt:
        slowest = np.maximum(slowest, np.where(c.loops, _whole_s(c, late=False), 0.0))
        spread = np.maximum(spread, np.where(c.loops, _whole_s(c, late=True), 0.0))
    busiest = c.m * slowest - c.send
    longer_half = c.total + (c.m - 1) * slowest / 2
    trips = np.where(c.m > c.p, 2 * c.total + (c.m - c.p - 1) * slowest - 3 * c.send, longer_half)
    gpipe = c.total + (c.m - 1) * slowest
    flat = np.where(x.layouts.schedule == GPIPE, gpipe, np.maximum(trips, longer_half))
    flat = np.where(c.v > 1, np.maximum(spread, c.total), flat)
    bound: FloatArray = np.maximum(busiest, np.where(c.splits, spread, flat))
    return bound


def _usual_slowest_s(x: Inputs, c: _Chain) -> FloatArray:
    """Return the slowest stage of the usual cut where no other is considered, else nothing."""
    alone = c.v > 0
    if cuts_freely(x.workload.stack):
        kinds = x.model.moe_layers
        cut = [v for v in np.unique(c.v).tolist() if c.dealt or cuts_in_turn(kinds, v)]
        alone = (c.v > 1) & ~np.isin(c.v, cut)
    if not alone.any():
        return np.zeros(len(c.v))
    sends = 2 * c.v[:, None] - x.stages.first - x.stages.last - 2 * (x.layouts.folds == 1)[:, None]
    sends = np.maximum(sends, 0)
    apart = stage_microbatch_s(x) - pp_microbatch_s(x)[:, None] + sends * c.send[:, None]
    apart = apart - x.stages.moe_layers * (c.hidden - hidden_s(x))[:, None]
    slowest = np.where(x.stages.count > 0, apart, 0.0).max(axis=1)
    return np.where(alone, slowest, 0.0)


def _whole_s(c: _Chain, *, late: bool) -> FloatArray:
    """Return the least X with room for all layers, each rank in whole ones.

    Rank r has X for its m micro-batches, less what comes before it starts where `late`; else X is
    the time of one micro-batch on the slowest rank.
    """
    turns = (c.m if late else np.ones_like(c.m)).astype(np.float64)
    before = c.p * (c.lap + c.lap_first) if late else 0.0 * c.layer
    low: FloatArray = np.zeros(len(c.layer))
    high = turns * (c.total + c.p * (c.common + c.send)) + before
    ranks = int(c.p.max(initial=1))
    for _ in range(STEPS):
        middle = (low + high) / 2
        enough = _layers_within(c, middle, turns, ranks, late=late) >= c.count
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return low


def _layers_within(
    c: _Chain, limit_s: FloatArray, turns: FloatArray, ranks: int, *, late: bool
) -> FloatArray:
    r = np.arange(ranks)[:, None]
    before = np.where(r > 0, c.lap_first + (r - 1) * c.lap, 0.0) if late else 0.0
    slack = c.send if late else 0.0
    ends = (r == 0) * (c.first - c.send) + (r == c.p - 1) * (c.last - c.send)
    fixed = c.framework + 2 * c.v * c.send + ends
    room = np.floor(((limit_s + slack - before) / turns - fixed) / c.common + 1e-9)
    held: FloatArray = np.where(r < c.p, np.maximum(room, 0.0), 0.0).sum(axis=0)
    return held

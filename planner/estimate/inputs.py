"""Term and Inputs: how a formula sees its arguments, and how it is computed only once.

A term names the columns that it depends on. It is then evaluated on the distinct combinations of
these columns only, and the result gathered: a million layouts hold a few hundred distinct kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.layouts.split import StageKinds, all_stages, stage_kinds
from planner.layouts.table import IntArray, Layouts
from planner.sources import Source
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.stack import Stack, stack_named
from planner.specs.workload import Workload

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Term:
    """One formula: what it is called, its unit, its text, where it comes from, what it reads."""

    name: str
    unit: str
    formula: str
    source: Source
    on: tuple[str, ...]
    function: Callable[[Inputs], FloatArray]
    doc: str

    def __call__(self, x: Inputs) -> FloatArray:
        """Return the term for every layout of `x`, shape (layouts,) or (layouts, stage kinds)."""
        return x.of(self)


def term(
    *, unit: str, formula: str, source: Source, on: tuple[str, ...] = ()
) -> Callable[[Callable[[Inputs], FloatArray]], Term]:
    """Make a term of a function; `on` names the columns it depends on (none: all of them)."""

    def make(function: Callable[[Inputs], FloatArray]) -> Term:
        doc = " ".join((function.__doc__ or "").split())
        name = getattr(function, "__name__", "term")
        return Term(name, unit, formula, source, on, function, doc)

    return make


def ranks_of(values: IntArray, bound: int | None = None) -> tuple[IntArray, int]:
    """Return each value's rank among the distinct values, and how many there are.

    Small non-negative integers (below `bound`, default: the largest + 1) are ranked through a table
    of the values present, without a sort.
    """
    if not len(values):
        return values, 0
    bound = int(values.max()) + 1 if bound is None else bound
    if bound > 64 * len(values) + (1 << 16):
        distinct, ranks = np.unique(values, return_inverse=True)
        return ranks.astype(np.int64), len(distinct)
    present = np.zeros(bound, dtype=np.bool_)
    present[values] = True
    table = np.cumsum(present)
    return (table - 1)[values], int(table[-1])


@dataclass(frozen=True)
class Flows:
    """What the uplinks of the busiest leaf and of the busiest pod carry, one row a layout.

    Each is [layout, tier], tier 0 a leaf and 1 a pod: `rings` that leave it (those of one stage and
    tensor rank 0), `sends` in GPUs whose next stage is outside, `experts` in GPUs' worth of
    all-to-all. A placement knows them; without one the estimate assumes pipelines under one leaf.
    """

    rings: FloatArray
    sends: FloatArray
    experts: FloatArray


class Inputs:
    """One model, cluster and workload, and the layouts to score. Terms are kept once computed."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: ClusterSpec,
        workload: Workload,
        layouts: Layouts,
        *,
        every_stage: bool = False,
        flows: Flows | None = None,
        kinds: StageKinds | None = None,
    ) -> None:
        """Take the layouts; `every_stage` keeps all stages apart (for one layout, to show them).

        With `flows` the uplinks carry those of a placement, row by row. `kinds` are the stages
        of another cut of the layers than the usual one, without multi-token prediction.
        """
        self.model = model
        self.cluster = cluster
        self.workload = workload
        self.layouts = layouts
        self.stack: Stack = stack_named(workload.stack)
        self._values: dict[str, FloatArray] = {}
        self._reduced: dict[tuple[str, ...], tuple[Inputs, IntArray] | None] = {}
        self._codes: dict[str, tuple[IntArray, int]] = {}
        self.flows = flows
        self._kinds = kinds
        self._every_stage = every_stage
        self._stages: StageKinds | None = None

    def of(self, t: Term) -> FloatArray:
        """Return a term's values; computed on the distinct arguments only."""
        if t.name not in self._values:
            reduced = self._reduce(self._columns(t.on)) if t.on else None
            if reduced is None:
                value = t.function(self)
            else:
                inner, inverse = reduced
                value = inner.of(t)[inverse]
            self._values[t.name] = value
        return self._values[t.name]

    def _columns(self, on: tuple[str, ...]) -> tuple[str, ...]:
        """Return what a term depends on; blocks of recompute are counted chunk by chunk."""
        if "recompute" in on and self.workload.recompute_method == "block":
            on = tuple(dict.fromkeys((*on, "pp", "vpp")))
        if "vpp" in on and bool(self.layouts.folds.any()):  # which parts of the model a stage holds
            return (*on, "folds")
        return on

    def _reduce(self, on: tuple[str, ...]) -> tuple[Inputs, IntArray] | None:
        """Return inputs with the distinct rows of `on`, or None where that gains nothing."""
        if on not in self._reduced:
            first, inverse = self._distinct(on)
            alone = self._every_stage or self.flows is not None or self._kinds is not None
            if len(first) * 2 > len(self.layouts) or alone:
                self._reduced[on] = None
            else:
                inner = Inputs(self.model, self.cluster, self.workload, self.layouts.take(first))
                self._reduced[on] = (inner, inverse)
        return self._reduced[on]

    def _distinct(self, on: tuple[str, ...]) -> tuple[IntArray, IntArray]:
        """Return one row of each distinct combination of `on`, and each row's combination."""
        code, count = np.zeros(len(self.layouts), dtype=np.int64), 1
        for name in on:
            if name not in self._codes:
                self._codes[name] = ranks_of(getattr(self.layouts, name))
            column, width = self._codes[name]
            if width > 1:
                code, count = ranks_of(code * width + column, count * width)
        first = np.zeros(count, dtype=np.int64)
        first[code] = np.arange(len(code))
        return first, code

    @property
    def stages(self) -> StageKinds:
        """Return the kinds of stage of each layout; multi-token prediction sits on the last."""
        if self._stages is None:
            if self._kinds is not None:
                kinds = self._kinds
            else:
                deal = all_stages if self._every_stage else stage_kinds
                kinds = deal(self.model, self.layouts, by_cost=self.stack.split == "by-cost")
            extra = kinds.last * self.model.mtp_layers
            if self.model.experts:
                kinds = kinds._replace(moe_layers=kinds.moe_layers + extra)
            else:
                kinds = kinds._replace(dense_layers=kinds.dense_layers + extra)
            self._stages = kinds
        return self._stages

    @property
    def rank_tokens(self) -> IntArray:
        """Return the tokens of one micro-batch on one rank: micro_batch * seq / cp."""
        return self.layouts.micro_batch * self.workload.seq_tokens // self.layouts.cp

    @property
    def sp_ways(self) -> IntArray:
        """Return how many ways the norms and residuals are split: tp with sp, else 1."""
        return np.where(self.layouts.sp == 1, self.layouts.tp, 1)

    @property
    def qk_dim(self) -> int:
        """Return the width of one query (and key) head."""
        mla = self.model.mla
        return mla.qk_nope_head_dim + mla.qk_rope_head_dim if mla else self.model.head_dim

    @property
    def v_dim(self) -> int:
        """Return the width of one value head."""
        return self.model.mla.v_head_dim if self.model.mla else self.model.head_dim

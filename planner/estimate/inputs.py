"""Term and Inputs: how a formula sees its arguments, and how it is computed only once.

A term names the columns that it depends on. It is then evaluated on the distinct combinations of
these columns only, and the result gathered: a million layouts hold a few hundred distinct kernels.
Where layouts come in parts of one space, what has few combinations is computed once for all parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.layouts.factored import Factored, Index, all_of, blocks_in, codes_of, in_order
from planner.layouts.split import StageKinds, all_stages, stage_kinds
from planner.layouts.table import FOLDS, IntArray, Layouts
from planner.sources import Source
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.stack import Stack, stack_named, stack_with
from planner.specs.workload import Workload

FloatArray = NDArray[np.float64]
T = TypeVar("T")

MOST_SHARED = 1 << 13
"""Combinations of columns whose terms are computed for a whole space, and kept for all parts."""


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


def widest(values: FloatArray) -> FloatArray:
    """Return the largest of each row's few columns; faster than a reduction along a short axis."""
    return np.maximum.reduce(list(values.T)) if values.shape[1] > 1 else values[:, 0]


V = TypeVar("V", np.int64, np.float64)


def gathered(values: NDArray[V], rows: Index) -> NDArray[V]:
    """Return some rows; those of a few columns so that each column is contiguous.

    An operation on (layouts, 1) and (layouts, kinds) then runs along the layouts, of which there
    are many, and not along the kinds: three times as fast.
    """
    if values.ndim != 2:
        return values.take(rows, axis=0)
    return values.T.take(rows, axis=1).T


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
    apart: IntArray
    """Ranks of an expert group, of those that fit into a scale-up domain, that stand outside."""

    def take(self, rows: Any) -> Flows:
        """Return the rows that an index, a slice or a mask picks."""
        return Flows(self.rings[rows], self.sends[rows], self.experts[rows], self.apart[rows])


@dataclass(frozen=True)
class Shared:
    """What all parts of one space have in common: inputs of the combinations of some columns."""

    inputs: dict[tuple[str, ...], Inputs] = field(default_factory=dict)


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
        shared: Shared | None = None,
        own: tuple[str, ...] = (),
        near: dict[tuple[str, ...], Inputs] | None = None,
    ) -> None:
        """Take the layouts; `every_stage` keeps all stages apart (for one layout, to show them).

        With `flows` the uplinks carry those of a placement, row by row. `kinds` are the stages
        of another cut of the layers than the usual one, without multi-token prediction. `shared`
        is one for all parts of a space, `own` the columns whose combinations the layouts are, and
        `near` what is known of the combinations of their part.
        """
        self.model = model
        self.cluster = cluster
        self.workload = workload
        self.layouts = layouts
        measured = cluster.figures_of(workload.stack)
        name = workload.stack
        self.stack: Stack = stack_with(name, measured.numbers) if measured else stack_named(name)
        self._values: dict[Callable[[Inputs], FloatArray], FloatArray] = {}
        self._reduced: dict[tuple[str, ...], tuple[Inputs, Index] | None] = {}
        self.flows = flows
        self._kinds = kinds
        self._every_stage = every_stage
        self._alone = every_stage or flows is not None or kinds is not None
        self._made: dict[Callable[[Inputs], Any], Any] = {}
        self._shared = shared or Shared()
        self._own = own
        self._near = {} if near is None else near
        self._stages: StageKinds | None = None
        self._schedules: IntArray | None = None
        self._blocks: bool | None = None

    def of(self, t: Term) -> FloatArray:
        """Return a term's values; computed on the distinct arguments only."""
        return self.by(t.on, t.function)

    def by(self, on: tuple[str, ...], function: Callable[[Inputs], FloatArray]) -> FloatArray:
        """Return a function's values; computed on the distinct combinations of `on` only."""
        if function not in self._values:
            reduced = self._reduce(self._columns(on)) if on else None
            if reduced is None:
                value = function(self)
            else:
                inner, inverse = reduced
                value = gathered(inner.by(on, function), inverse)
            self._values[function] = value
        return self._values[function]

    def once(self, function: Callable[[Inputs], T]) -> T:
        """Return what a function makes of these inputs, made once however often it is asked for."""
        if function not in self._made:
            self._made[function] = function(self)
        made: T = self._made[function]
        return made

    def _columns(self, on: tuple[str, ...]) -> tuple[str, ...]:
        """Return what a term depends on; blocks of recompute are counted chunk by chunk.

        Which parts of the model a stage holds goes by the schedule where some fold the pipeline.
        """
        if "recompute_units" in on and self.has_blocks:
            on = tuple(dict.fromkeys((*on, "pp", "vpp")))
        if ("pp" in on or "vpp" in on) and "schedule" not in on and self.runs(FOLDS > 0):
            return (*on, "schedule")
        return on

    def runs(self, schedules: NDArray[np.bool_]) -> bool:
        """Return whether any layout has one of some schedules, given by code."""
        if self._schedules is None:
            rows = self.layouts
            if isinstance(rows, Factored):
                self._schedules = rows.space.schedules
            else:
                self._schedules = np.unique(rows.schedule)
        return bool(schedules[self._schedules].any())

    @property
    def has_blocks(self) -> bool:
        """Return whether any layout recomputes the first layers of each chunk, and no others."""
        if self._blocks is None:
            rows, asked = self.layouts, self.workload.recompute_method == "block"
            if isinstance(rows, Factored):
                self._blocks = asked or rows.space.has_blocks
            else:
                self._blocks = asked or blocks_in(rows.recompute_units)
        return self._blocks

    @property
    def recut(self) -> bool:
        """Return whether the layers are cut in another way than the stack's own."""
        return self._kinds is not None

    @property
    def has_units(self) -> bool:
        """Return whether full recompute is anywhere by more, or fewer, than each layer."""
        work, rows = self.workload, self.layouts
        if (work.recompute_method, work.recompute_layers) != ("uniform", 1):
            return True
        if isinstance(rows, Factored):
            return rows.space.has_units
        return bool(rows.recompute_units.any())

    def _reduce(self, on: tuple[str, ...]) -> tuple[Inputs, Index] | None:
        """Return inputs with the distinct rows of `on`, or None where that gains nothing."""
        if on not in self._reduced:
            self._reduced[on] = None if self._alone else self._distinct(on)
        return self._reduced[on]

    def _distinct(self, on: tuple[str, ...]) -> tuple[Inputs, Index] | None:
        """Return one row of each distinct combination of `on`, and each row's combination."""
        rows = self.layouts
        if not isinstance(rows, Factored):
            found = codes_of(vars(rows), on, len(rows))
            few = found.size * 2 <= len(rows)
            return (self._with(rows.take(found.first())), found.code) if few else None
        on = in_order(on)
        if on == self._own:
            return None
        if rows.everywhere(on) <= MOST_SHARED:
            return self._everywhere(on), rows.of_space(on)
        if on not in self._near:
            if rows.combinations(on) * 2 > len(rows):
                return None
            self._near[on] = self._with(rows.every(on))
        return self._near[on], rows.of_every(on)

    def only(self, rows: Any) -> Inputs:
        """Return the inputs of some rows, which share what was computed of few combinations."""
        around = (self.model, self.cluster, self.workload)
        return Inputs(*around, self.layouts.only(rows), shared=self._shared, near=self._near)

    def _everywhere(self, on: tuple[str, ...]) -> Inputs:
        """Return the inputs of all combinations that the space has, which its parts share."""
        known, rows = self._shared.inputs, self.layouts
        if on not in known and isinstance(rows, Factored):
            known[on] = self._with(all_of(rows.space, on), own=on)
        return known[on]

    def _with(self, layouts: Layouts, own: tuple[str, ...] = ()) -> Inputs:
        around = (self.model, self.cluster, self.workload)
        return Inputs(*around, layouts, shared=self._shared, own=own)

    @property
    def stages(self) -> StageKinds:
        """Return the kinds of stage of each layout; multi-token prediction sits on the last."""
        if self._stages is None:
            reduced = self._reduce(self._columns(("pp", "vpp")))
            if reduced is None:
                self._stages = self._dealt()
            else:
                inner, inverse = reduced
                self._stages = StageKinds(*(gathered(part, inverse) for part in inner.stages))
        return self._stages

    def _dealt(self) -> StageKinds:
        if self._kinds is not None:
            kinds = self._kinds
        else:
            deal = all_stages if self._every_stage else stage_kinds
            kinds = deal(self.model, self.layouts, by_cost=self.stack.split == "by-cost")
        extra = kinds.last * self.model.mtp_layers
        if self.model.experts:
            return kinds._replace(moe_layers=kinds.moe_layers + extra)
        return kinds._replace(dense_layers=kinds.dense_layers + extra)

    @property
    def rank_tokens(self) -> IntArray:
        """Return the tokens of one micro-batch on one rank: micro_batch * seq / cp."""
        return self.layouts.micro_batch * self.workload.seq_tokens // self.layouts.cp

    @property
    def vocab_ways(self) -> IntArray:
        """Return over how many ranks the token table and the output layer are split."""
        return self.layouts.tp if self.stack.vocab_split else np.ones_like(self.layouts.tp)

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

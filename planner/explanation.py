"""Explanation: one layout opened into its terms, or the reasons why it won't do and what would."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import ConfigDict, Field

from planner.frames import frame
from planner.plan import Estimate, Layout, PlanRecord

if TYPE_CHECKING:
    from polars import DataFrame

EXPLAIN_SCHEMA: Final = "meshwright.explain/1"


class TermValue(PlanRecord):
    """One formula with its value for the layout; stage terms give the heaviest stage."""

    name: str
    value: float
    unit: str
    formula: str
    source: str
    about: str = ""
    applies: bool = Field(True, description="Whether it counts in this layout's time or memory.")


class SyncRow(PlanRecord):
    """What one gradient synchronisation moves under one scheme, in bytes."""

    scheme: str
    per_gpu_sent_bytes: float
    busiest_link_bytes: float
    total_bytes: float
    formula: str
    source: str


class MemoryPart(PlanRecord):
    """What a part of the memory is made of: one value a pipeline stage."""

    name: str
    unit: str
    formula: str
    source: str = ""
    about: str = ""
    stages: list[float]


class MemoryTerm(MemoryPart):
    """One part of the memory of a stage in bytes; the last, `total`, is the sum of the others."""

    terms: list[str] = Field(
        default_factory=list, description="Names in Explanation.terms that this is, and no more."
    )
    parts: list[MemoryPart] = Field(default_factory=list)


class Mend(PlanRecord):
    """A layout that fits, by what changes from the one that does not."""

    idea: str = Field(description="'more recompute'; empty for whatever the nearest layout takes.")
    changes: dict[str, tuple[int | str | bool, int | str | bool]]
    layout: Layout
    gpus: int
    nodes: int
    more_gpus: bool = Field(False, description="Takes more GPUs than the layout asked for.")
    peak_bytes: float
    limit_bytes: float
    at_risk: bool
    step_time_s: float
    slower: float | None = Field(
        None, description="Share of step time over the layout asked for; None where it is illegal."
    )

    @property
    def change(self) -> str:
        """Return what changes, as 'zero=1 -> 3, dp=4 -> 2'."""
        return ", ".join(f"{n}={_word(a)} -> {_word(b)}" for n, (a, b) in self.changes.items())


class BrokenRule(PlanRecord):
    """A rule that the layout breaks: its name, the sentence with its figures, who enforces it."""

    name: str
    sentence: str
    where: str = ""


class Against(PlanRecord):
    """The layout against the best of as many GPUs: what it takes more, term by term.

    Positive is more than the best; both of the terms in `time_s` and of the parts in
    `memory_bytes`, which are those of each layout's fullest stage.
    """

    best: Layout
    best_step_time_s: float
    best_peak_bytes: float
    place: int | None = Field(None, description="Among the layouts that fit; None: it does not.")
    of: int
    slower_s: float
    slower: float = Field(description="Share of the best step time.")
    larger_bytes: float
    tie: bool = Field(False, description="Too close for the estimate to tell them apart.")
    time_s: dict[str, float]
    memory_bytes: dict[str, float]


class OnMap(PlanRecord):
    """Where the layout would be placed, and its step time there and without a map."""

    pipelines: str = Field(description="The rule: under-leaf or fastest.")
    step_time_s: float
    on_paper_s: float = Field(description="Pipelines under one leaf, every ring leaving it.")
    splits: int = Field(description="Pipeline edges that leave a leaf, over all pipelines.")
    tiers: dict[str, dict[str, int]] = Field(description="As in `place --json`.")


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Explanation(PlanRecord):
    """The answer of `explain`; `mends` are the nearest changes that make the layout work."""

    schema_: Literal["meshwright.explain/1"] = Field(EXPLAIN_SCHEMA, alias="schema")
    legal: bool
    feasible: bool
    reasons: list[str] = Field(default_factory=list)
    mends: list[str] = Field(default_factory=list)
    mend_layouts: list[Mend] = Field(
        default_factory=list, description="The same, to be read by scripts; cheapest first."
    )
    assumed: dict[str, int | str | bool] = Field(default_factory=dict)
    layout: Layout | None = None
    estimate: Estimate | None = Field(
        None, description="On the links of its placement, where `on_map` has one."
    )
    on_map: OnMap | None = None
    stage_layers: list[list[int]] = Field(default_factory=list)
    terms: list[TermValue] = Field(default_factory=list)
    memory_terms: list[MemoryTerm] = Field(default_factory=list)
    peak_points: list[str] = Field(
        default_factory=list, description="FSDP2: the point of a step at which each stage peaks."
    )
    broken_rules: list[BrokenRule] = Field(
        default_factory=list, description="Every rule that it breaks, the first one first."
    )
    compared: list[str] = Field(default_factory=list)
    against: Against | None = Field(None, description="The same as `compared`, for scripts.")
    gradient_sync: list[SyncRow] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True
    )

    def to_frame(self) -> DataFrame:
        """Return a polars frame, one row a term: name, value, unit, formula, source."""
        return frame([term.model_dump(mode="json") for term in self.terms])

    def to_json(self) -> str:
        """Return the document that `explain --json` prints."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        return json.dumps(data, allow_nan=False, separators=(",", ":")) + "\n"


class Switch(PlanRecord):
    """What a setting outside the layout is worth: the same layout with it turned on."""

    flag: str
    setting: str = Field(description="As the framework spells it.")
    advice: str
    step_time_s: float
    slower: float = Field(description="Share of the job's step time; below zero, it gains.")


class Audit(PlanRecord):
    """The answer about a job that exists; nothing is `better` where its layout does not fit."""

    explanation: Explanation
    better: list[Mend] = Field(default_factory=list)
    switches: list[Switch] = Field(default_factory=list)

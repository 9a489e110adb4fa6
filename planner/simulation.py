"""Simulation: what running a plan's pipeline action by action says, as a plain record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field

from planner.pipeline.timeline import Timeline
from planner.plan import Layout, PlanRecord

SIMULATION_SCHEMA: Final = "meshwright.simulation/1"


class RankTimes(PlanRecord):
    """One rank of the pipeline; busy, sending and idle seconds sum to the makespan."""

    stage: int
    layers: list[int] = Field(description="Transformer layers of each of its chunks.")
    forward_s: float = Field(description="One micro-batch through its chunks; mean over copies.")
    backward_s: float
    busy_s: float
    sending_s: float = Field(description="Blocked by sends.")
    idle_s: float
    peak_chunks_in_flight: int
    peak_in_flight: float = Field(description="The same in whole stages (chunks / chunks a rank).")


class ClosedForm(PlanRecord):
    """What ranking takes for the same plan: m * slowest stage + bubble."""

    makespan_s: float
    bubble_s: float
    step_time_s: float


class Straggler(PlanRecord):
    """The same pipeline with some stages slower (or faster)."""

    factors: dict[int, float]
    makespan_s: float
    step_time_s: float
    slower_s: float
    slower: float = Field(description="slower_s / step_time_s without it.")


class LessRecompute(PlanRecord):
    """The same pipeline with less recomputation on the stages whose memory allows it."""

    recompute: str = Field(description="What these stages would recompute: 'none', 'selective'.")
    stages: list[int]
    peak_bytes: float = Field(description="Of the fullest of these stages then.")
    makespan_s: float
    step_time_s: float
    gained_s: float
    gained: float = Field(description="gained_s / step_time_s as it is.")


class Simulation(PlanRecord):
    """The answer of `simulate`. `step_time_s` adds to the makespan what a step has once."""

    schema_: Literal["meshwright.simulation/1"] = Field(SIMULATION_SCHEMA, alias="schema")
    plan_rank: int
    layout: Layout
    schedule: str
    chunks: int = Field(description="Chunks of the model that a rank holds.")
    num_microbatches: int
    model_copies: int = Field(1, description="2 where a schedule keeps the model twice.")
    makespan_s: float
    step_time_s: float
    bubble_s: float = Field(
        description="What the busiest stage waits; `bubble` in the times of `plan` and `explain`."
    )
    bubble_fraction: float = Field(description="bubble_s / step_time_s, as there.")
    busiest_stage: int
    idle_s: float = Field(description="Idle seconds of a stage, mean over all.")
    idle_fraction: float = Field(description="idle_s / makespan_s.")
    closed_form: ClosedForm
    ranks: list[RankTimes]
    straggler: Straggler | None = None
    less_recompute: LessRecompute | None = Field(
        None, description="Where some stage has the memory for it; of the plan's own pipeline."
    )
    notes: list[str] = Field(default_factory=list)

    model_config = PlanRecord.model_config | {"populate_by_name": True}


@dataclass(frozen=True)
class Simulated:
    """The record, and the events that a chart or a trace file draws."""

    record: Simulation
    timeline: Timeline

"""From a saved plan to its pipeline as it runs: stage times from the estimate, then every event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from planner.errors import InfeasibleError, SpecError
from planner.estimate.cutting import dealt_out
from planner.estimate.inputs import Inputs
from planner.estimate.pipelined import bubble_s
from planner.estimate.stages import Prices, prices
from planner.estimate.step import once_s, pipeline_s, pressure_slowdown, step_s
from planner.layouts.rules import Context
from planner.layouts.split import StageKinds, Table, chunk_layers, cut_stages, dealt, fits, in_order
from planner.layouts.table import FOLDS_OF, Layouts
from planner.pipeline.actions import Order, Shape
from planner.pipeline.partition import StageCosts, cut
from planner.pipeline.registry import schedule_named
from planner.pipeline.schedule import Schedule
from planner.pipeline.simulate import simulate as run
from planner.pipeline.timeline import Timeline, peak_in_flight
from planner.pipeline.timing import Links, StageTimes
from planner.plan import Layout, Plan, RankedPlan
from planner.simulation import (
    SIMULATION_SCHEMA,
    ClosedForm,
    LessRecompute,
    RankTimes,
    Simulated,
    Simulation,
    Straggler,
)
from planner.units import gib, seconds
from planner.workflow.recomputing import less_recompute

MOST_ACTIONS = 20_000_000
"""Some ten seconds and three gigabytes; more is refused rather than begun."""
LARGEST_DEGREE = 100_000_000
SAME_TIME = 5e-4
"""Share of a pipeline's time that rounds to 0.1 %."""


@dataclass(frozen=True)
class SimulationRequest:
    """What is asked of a saved plan; None takes what the plan says.

    `straggler` is how many times longer a stage (rank of the pipeline) takes, by its number.
    """

    plan: Plan
    plan_rank: int = 1
    schedule: str | None = None
    chunks: int | None = None
    microbatches: int | None = None
    straggler: Mapping[int, float] = field(default_factory=dict)
    balance: bool = False
    """Cut the layers anew, so that the slowest stage is as fast as it can be."""


@dataclass(frozen=True)
class _Pipeline:
    """A pipeline ready to run: the layers of each part of the model, and what each stage costs."""

    schedule: Schedule
    order: Order
    layers: list[int]
    times: StageTimes
    links: Links
    kinds: StageKinds
    """The stages of the plan's own cut, whatever is run."""


def simulate(request: SimulationRequest) -> Simulated:
    """Return a plan's pipeline, run action by action.

    Raises SpecError for a schedule, a plan or a stage that there is not, InfeasibleError where the
    schedule cannot run at the plan's size.
    """
    chosen = _chosen(request)
    layout = chosen.layout
    if request.microbatches:
        layout = layout.model_copy(update={"num_microbatches": request.microbatches})
    asked = request.plan.request_of(chosen)
    one = Layouts.of([layout.model_dump()])
    folds = int(one.folds[0])
    kinds = cut_stages(asked.model, [_own_table(chosen, asked.model.layers)], [folds])
    x = Inputs(asked.model, asked.cluster, asked.workload, one, kinds=kinds)
    pipeline = _pipeline(request, chosen, x, kinds)
    line = run(pipeline.order, pipeline.times, pipeline.links)
    closed = _closed_form(x)
    # memory pressure stretches all of a step, and is told with what a step has once
    slowdown = float(pressure_slowdown(x)[0])
    once = float(once_s(x)[0]) * slowdown + (slowdown - 1.0) * line.makespan_s
    slow = _slowed(request, pipeline)
    record = Simulation(
        schema=SIMULATION_SCHEMA,
        plan_rank=chosen.rank,
        layout=layout,
        schedule=pipeline.schedule.name,
        chunks=pipeline.order.shape.chunks,
        num_microbatches=pipeline.order.shape.microbatches,
        model_copies=pipeline.schedule.model_copies,
        makespan_s=line.makespan_s,
        step_time_s=line.makespan_s + once,
        bubble_s=line.bubble_s,
        bubble_fraction=line.bubble_s / (line.makespan_s + once),
        busiest_stage=line.busiest,
        idle_s=float(line.idle_s.mean()),
        idle_fraction=line.idle_fraction,
        closed_form=closed,
        ranks=_ranks(pipeline, line),
        straggler=_straggler(request, slow, line.makespan_s, once),
        less_recompute=_advice(request, pipeline, x, line.makespan_s, once),
        notes=[
            *_too_big(chosen),
            *_notes(request, pipeline, layout),
            *_cut_anew(request, chosen, pipeline, x, line),
        ],
    )
    return Simulated(record, slow or line)


def _chosen(request: SimulationRequest) -> RankedPlan:
    """Return the plan asked for; a file made by hand may hold a layout that is none."""
    for row in request.plan.plans:
        if row.rank == request.plan_rank:
            break
    else:
        known = ", ".join(str(row.rank) for row in request.plan.plans)
        raise SpecError(f"--plan-rank {request.plan_rank}: the plan holds ranks {known}")
    layout, layers = row.layout, request.plan.request.model.layers
    degrees = {k: v for k, v in layout.model_dump().items() if type(v) is int and k != "zero"}
    if not 1 <= min(degrees.values()) <= max(degrees.values()) <= LARGEST_DEGREE:
        raise SpecError(f"plan {row.rank}: layout: degrees are 1 to {LARGEST_DEGREE:,}")
    if not 0 <= layout.zero <= 3:
        raise SpecError(f"plan {row.rank}: layout: zero={layout.zero} is not 0, 1, 2 or 3")
    if not fits(layers, layout.pp, layout.vpp):
        raise SpecError(
            f"plan {row.rank}: pp={layout.pp} x vpp={layout.vpp} chunks for {layers} layers"
        )
    return row


def _pipeline(
    request: SimulationRequest, chosen: RankedPlan, x: Inputs, kinds: StageKinds
) -> _Pipeline:
    layout = chosen.layout
    own = "1f1b" if layout.schedule == "none" else layout.schedule
    schedule = schedule_named(request.schedule or own)
    chunks = request.chunks or _usual_chunks(schedule, layout)
    shape = Shape(layout.pp, chunks, int(x.layouts.num_microbatches[0]))
    if 3 * shape.stages * shape.microbatches > MOST_ACTIONS:
        raise InfeasibleError(
            f"{shape.stages:,} chunks x {shape.microbatches:,} micro-batches are too many to run "
            "one by one",
            hint="--microbatches 1000: the steady phase only repeats",
        )
    order, priced = schedule.order(shape), prices(x)
    layers = _balanced(x, priced, order) if request.balance else _layers(chosen, order, x)
    times = _times(priced, layers, order)
    return _Pipeline(schedule, order, layers, times, priced.links(0, shape.stages), kinds)


def _times(priced: Prices, layers: list[int], order: Order) -> StageTimes:
    """Return the seconds of every stage of an order for parts of so many layers."""
    parts = priced.parts(0, layers, chunks=order.depth // order.shape.ranks)
    forward, backward_input, weight, experts = (part[order.model_part] for part in parts)
    return StageTimes(forward, backward_input, weight, hidden_s=experts)


def _usual_chunks(schedule: Schedule, layout: Layout) -> int:
    """Return the plan's chunks where the schedule takes them, else the schedule's usual number."""
    shape = schedule.shape(layout.pp, layout.vpp, layout.num_microbatches)
    takes = not schedule.refuses(shape) and schedule.takes(layout.vpp)
    return shape.chunks if takes else schedule.usual_chunks


def _own_table(chosen: RankedPlan, layers: int) -> Table:
    """Return the plan's own cut; a file made by hand may hold none that is one."""
    layout, table = chosen.layout, chosen.stage_layers
    if (
        len(table) == layout.pp
        and all(len(row) == layout.vpp and min(row) >= 0 for row in table)
        and sum(map(sum, table)) == layers
    ):
        return table
    folds = FOLDS_OF[schedule_named(layout.schedule).style] if layout.pp > 1 else 0
    return chunk_layers(layers, layout.pp, layout.vpp, folds)


def _layers(chosen: RankedPlan, order: Order, x: Inputs) -> list[int]:
    """Return the layers of each part of the model: the plan's own cut where it is the same."""
    layers, ranks = x.model.layers, order.shape.ranks
    laps, folds = order.depth // ranks, FOLDS_OF[order.style]
    if laps == chosen.layout.vpp and folds == int(x.layouts.folds[0]):
        return in_order(_own_table(chosen, layers), folds)
    if not fits(layers, ranks, laps, folds):
        raise InfeasibleError(f"{layers} layers do not fill {order.depth} chunks")
    return in_order(chunk_layers(layers, ranks, laps, folds), folds)


def _balanced(x: Inputs, priced: Prices, order: Order) -> list[int]:
    """Return the exact cut: of any layers for one chunk a rank, alike but for a few for more."""
    shape, each = order.shape, priced.layer_seconds(0)
    fixed = priced.fixed_seconds(0, order.depth, chunks=shape.chunks)
    if order.style == "loop" and shape.chunks == 1:
        return cut(StageCosts(each, fixed))
    if order.style == "both":
        raise InfeasibleError(
            "no exact cut is known for two copies of the model", hint="--schedule dualpipev"
        )
    back = order.style == "v"
    places = dealt(range(order.depth), shape.ranks, FOLDS_OF[order.style])
    try:
        table = dealt_out(each, fixed[np.array(places)].sum(axis=1), shape, priced, None, back=back)
    except InfeasibleError as error:
        raise InfeasibleError(
            f"an exact cut into several chunks a rank: {error}",
            hint="--schedule 1f1b",
        ) from error
    return in_order(table, FOLDS_OF[order.style])


def _closed_form(x: Inputs) -> ClosedForm:
    """Return what the closed form takes for the plan's own schedule."""
    return ClosedForm(
        makespan_s=float(pipeline_s(x)[0]),
        bubble_s=float(bubble_s(x)[0]),
        step_time_s=float(step_s(x)[0]),
    )


def _ranks(pipeline: _Pipeline, line: Timeline) -> list[RankTimes]:
    order, times = pipeline.order, pipeline.times
    peaks = peak_in_flight(order)
    copies = pipeline.schedule.model_copies  # a micro-batch passes one of them
    forward = times.forward_s / copies
    backward = (times.backward_input_s + times.backward_weight_s) / copies
    out = []
    for rank in range(order.shape.ranks):
        held = np.flatnonzero(order.rank_of == rank)
        out.append(
            RankTimes(
                stage=rank,
                layers=[pipeline.layers[part] for part in order.model_part[held]],
                forward_s=float(forward[held].sum()),
                backward_s=float(backward[held].sum()),
                busy_s=float(line.busy_s[rank]),
                sending_s=float(line.blocked_s[rank]),
                idle_s=float(line.idle_s[rank]),
                peak_chunks_in_flight=int(peaks[rank]),
                peak_in_flight=float(peaks[rank]) / (order.depth // order.shape.ranks),
            )
        )
    return out


def _slowed(request: SimulationRequest, pipeline: _Pipeline) -> Timeline | None:
    """Return the pipeline run again with the slower stages."""
    if not request.straggler:
        return None
    ranks = pipeline.order.shape.ranks
    factors = np.ones(ranks)
    for stage, factor in request.straggler.items():
        if not 0 <= stage < ranks:
            raise SpecError(f"--straggler stage={stage}: the stages are 0 to {ranks - 1}")
        factors[stage] = factor
    slowed = pipeline.times.slowed(factors[pipeline.order.rank_of])
    return run(pipeline.order, slowed, pipeline.links)


def _straggler(
    request: SimulationRequest, slow: Timeline | None, makespan_s: float, once_s: float
) -> Straggler | None:
    """Return what the slower stages cost; what a step has once stays."""
    if slow is None:
        return None
    slow_s = slow.makespan_s
    return Straggler(
        factors=dict(request.straggler),
        makespan_s=slow_s,
        step_time_s=slow_s + once_s,
        slower_s=slow_s - makespan_s,
        slower=(slow_s - makespan_s) / (makespan_s + once_s),
    )


def _advice(
    request: SimulationRequest, pipeline: _Pipeline, x: Inputs, makespan_s: float, once: float
) -> LessRecompute | None:
    """Return what recomputing less would gain; only of the plan's own pipeline is memory known."""
    if request.schedule or request.chunks or request.balance:
        return None
    return less_recompute(
        Context(x.model, x.cluster, x.workload),
        x.layouts,
        pipeline.kinds,
        pipeline.order,
        times=pipeline.times,
        links=pipeline.links,
        times_of=lambda priced: _times(priced, pipeline.layers, pipeline.order),
        makespan_s=makespan_s,
        once_s=once,
    )


def _too_big(chosen: RankedPlan) -> list[str]:
    """Return that the plan would run out of memory, where it would."""
    memory = chosen.estimate.memory
    if chosen.feasible:
        return []
    return [
        f"plan {chosen.rank} does not fit: {gib(memory.peak_bytes)} of {gib(memory.limit_bytes)}; "
        "it is run as if it did"
    ]


def _cut_anew(
    request: SimulationRequest, chosen: RankedPlan, pipeline: _Pipeline, x: Inputs, line: Timeline
) -> list[str]:
    """Return what cutting the layers for even stages gains or costs against the usual cut."""
    if not request.balance:
        return []
    try:
        layers = _layers(chosen, pipeline.order, x)
    except InfeasibleError:
        return []
    before = run(pipeline.order, _times(prices(x), layers, pipeline.order), pipeline.links)
    more = line.makespan_s / before.makespan_s - 1
    if abs(more) < SAME_TIME:
        return ["the cut for even stages takes as long as the plan's own"]
    told = f"{seconds(line.makespan_s)} in place of {seconds(before.makespan_s)} ({more:+.1%})"
    if more < 0:
        return [f"the cut for even stages shortens the pipeline: {told}"]
    return [
        f"the cut for even stages LENGTHENS the pipeline: {told}; the slowest stage is faster, but "
        "the first micro-batch takes longer to pass"
    ]


def _notes(request: SimulationRequest, pipeline: _Pipeline, layout: Layout) -> list[str]:
    shape, schedule = pipeline.order.shape, pipeline.schedule
    out = []
    if layout.pp == 1:
        out.append("the plan has no pipeline (pp=1): its micro-batches run one after the other")
    if request.schedule and schedule.name != layout.schedule:
        chunks = f"{shape.chunks} chunk{'s' * (shape.chunks > 1)} a rank"
        out.append(
            f"{schedule.name} with {chunks} in place of the plan's {layout.schedule}; "
            "the closed form is the plan's own, and its memory is not checked again"
        )
    if schedule.model_copies > 1:
        out.append(f"{schedule.name} keeps {schedule.model_copies} copies of the model")
    if schedule.style != "loop" and pipeline.times.hidden_s.any():
        out.append("forwards and backwards that run together hide their expert traffic whole")
    if request.balance:
        out.append("layers are cut anew for even stages; their memory is not checked again")
    if request.microbatches:
        out.append(f"{request.microbatches} micro-batches in place of the plan's")
    return out

"""The report of a simulated pipeline: the chart, each stage's time, the closed form beside."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from planner.pipeline.registry import SCHEDULES
from planner.pipeline.timeline import Timeline
from planner.report.gantt import MOST_RANKS, gantt, legend
from planner.report.parts import indented, notes, title
from planner.simulation import LessRecompute, RankTimes, Simulated, Simulation
from planner.units import gib, seconds


class _Chart:
    """The chart, as wide as the terminal."""

    def __init__(self, line: Timeline) -> None:
        self.line = line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text in gantt(self.line, options.max_width - 2):
            yield Text("  ").append_text(text)


def simulation_report(found: Simulated) -> list[RenderableType]:
    """Return the parts of the report, top to bottom."""
    record = found.record
    return [
        title(f"{SCHEDULES[record.schedule].title}; {record.layout.short()}"),
        *map(indented, _sentences(record)),
        Text(),
        title("Timeline" + (" with the straggler" if record.straggler else "")),
        _Chart(found.timeline),
        indented(legend(found.timeline)),
        Text(),
        title("Stages" + (" without it" if record.straggler else "")),
        _stages(record),
        indented("in flight: most micro-batches' activations held at once, in whole stages"),
        *notes(record.notes),
    ]


def _sentences(record: Simulation) -> list[str]:
    """Return what came out, in a few sentences."""
    closed = record.closed_form
    more = record.step_time_s / closed.step_time_s - 1
    beside = "the same" if abs(more) < 5e-4 else f"{abs(more):.1%} {'more' if more > 0 else 'less'}"
    worst = record.ranks[record.busiest_stage]
    idlest = max(record.ranks, key=lambda r: r.idle_s)
    out = [
        f"{record.num_microbatches:,} micro-batches in {seconds(record.makespan_s)}, "
        f"a step of {seconds(record.step_time_s)}",
        f"bubble: {record.bubble_fraction:.1%} of the step ({seconds(record.bubble_s)}), what the "
        f"busiest stage waits; stages idle {record.idle_fraction:.1%} of the pipeline's time on "
        "average",
        f"the closed form that ranks all layouts: {seconds(closed.step_time_s)} a step; "
        f"simulated {beside}",
    ]
    if len(record.ranks) > 1:
        out.append(
            f"slowest: stage {worst.stage} ({seconds(worst.forward_s + worst.backward_s)} a "
            f"micro-batch); idlest: stage {idlest.stage} "
            f"({idlest.idle_s / record.makespan_s:.1%})"
        )
    if late := record.straggler:
        which = ", ".join(f"stage {s} x{f:g}" for s, f in sorted(late.factors.items()))
        word = "slower" if late.slower_s >= 0 else "faster"
        out.append(
            f"straggler ({which}): a step of {seconds(late.step_time_s)}, "
            f"{seconds(abs(late.slower_s))} ({abs(late.slower):.1%}) {word}"
        )
    if less := record.less_recompute:
        out.append(_less_recompute(less, len(record.ranks)))
    return out


def _less_recompute(less: LessRecompute, stages: int) -> str:
    """Return which stages could recompute less, and what it would gain."""
    whole = len(less.stages) == stages
    one = len(less.stages) == 1
    some = f"stage {less.stages[0]} has" if one else f"stages {runs_of(less.stages)} have"
    who = "every stage has" if whole else some
    room = f"{who} the memory for recompute={less.recompute} ({gib(less.peak_bytes)} at most)"
    if less.gained < 5e-4:
        return f"{room}, but the others set the pace: it would gain nothing"
    return f"{room}: {seconds(less.gained_s)} ({less.gained:.1%}) off a step"


def runs_of(numbers: Sequence[int]) -> str:
    """Return ascending numbers in words: '1, 3-7'."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1][1:] = [n]
        else:
            runs.append([n])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _stages(record: Simulation) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("stage", "layers", "forward", "backward", "busy", "send", "idle", "in flight"):
        table.add_column(heading, justify="right", no_wrap=True)
    ranks = record.ranks
    half = MOST_RANKS // 2
    for at, rank in enumerate(ranks):
        if len(ranks) > MOST_RANKS and half <= at < len(ranks) - half:
            if at == half:
                table.add_row("...")
            continue
        table.add_row(*_cells(rank, record))
    return table


def _cells(rank: RankTimes, record: Simulation) -> list[str]:
    spans = [rank.busy_s, rank.sending_s, rank.idle_s]
    layers = "+".join(map(str, rank.layers)) if len(rank.layers) <= 4 else str(sum(rank.layers))
    return [
        str(rank.stage),
        layers,
        seconds(rank.forward_s),
        seconds(rank.backward_s),
        *(f"{span / record.makespan_s:.1%}" for span in spans),
        f"{rank.peak_in_flight:.2f}".rstrip("0").rstrip("."),
    ]

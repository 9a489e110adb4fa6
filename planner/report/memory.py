"""Memory of the pipeline stages as stacked bars against the limit of one GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from planner.plan import Memory, StageMemory
from planner.report.bars import LETTERS, legend, stacked
from planner.units import GIB, gib

BARS_SHOWN = 6
ALIKE = 0.01
"""Neighbours whose terms all differ by less than this share of the limit are drawn as one."""


class _Bar:
    """A stacked bar as wide as its cell."""

    def __init__(self, stage: StageMemory, limit_bytes: float) -> None:
        self.parts = terms_of(stage)
        self.limit_bytes = limit_bytes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield stacked(self.parts, self.limit_bytes, max(10, options.max_width - 2))


def terms_of(stage: StageMemory) -> dict[str, float]:
    """Return the bytes of one stage by term, in the order in which they are drawn."""
    return {name: getattr(stage, name) for name in LETTERS}


def memory_report(memory: Memory) -> RenderableType:
    """Return one bar per group of like stages, with totals, shares and a legend."""
    groups = list(grouped(memory.stages, memory.limit_bytes))
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for first, last, stage in shortened(groups):
        if stage is None:
            table.add_row(f"  {_stages(first, last)}", "between these")
            continue
        table.add_row(
            f"  {_stages(first, last)}",
            _Bar(stage, memory.limit_bytes),
            f"{stage.total / GIB:.1f} GiB",
            f"{stage.total / memory.limit_bytes:.0%}",
        )
    used = [n for n in LETTERS if any(getattr(s, n) > 0 for s in memory.stages)]
    return Group(
        Text(f"Memory of one GPU by pipeline stage; the bar is {gib(memory.limit_bytes)}", "bold"),
        table,
        Text("  ").append_text(legend(used)),
        *([Text(f"  at its peak: {memory.peak_point}")] if memory.peak_point else []),
    )


def grouped(
    stages: Sequence[StageMemory], limit_bytes: float
) -> Iterator[tuple[int, int, StageMemory]]:
    """Yield (first, last, heaviest) of each run of neighbours that look alike."""
    first = 0
    for index in range(1, len(stages) + 1):
        if index < len(stages) and _alike(stages[first], stages[index], limit_bytes):
            continue
        yield first, index - 1, max(stages[first:index], key=lambda s: s.total)
        first = index


def _alike(a: StageMemory, b: StageMemory, limit_bytes: float) -> bool:
    pairs = zip(terms_of(a).values(), terms_of(b).values(), strict=True)
    return all(abs(x - y) < ALIKE * limit_bytes for x, y in pairs)


Bars = list[tuple[int, int, StageMemory | None]]


def shortened(groups: Sequence[tuple[int, int, StageMemory]]) -> Bars:
    """Return at most `BARS_SHOWN` groups: the ends and the heaviest, None for those between."""
    if len(groups) <= BARS_SHOWN:
        return list(groups)
    heaviest = max(range(len(groups)), key=lambda i: groups[i][2].total)
    keep = sorted({0, 1, heaviest, len(groups) - 2, len(groups) - 1})
    out: Bars = []
    for left, right in zip(keep, [*keep[1:], len(groups)], strict=True):
        out.append(groups[left])
        if right - left > 1:
            out.append((groups[left + 1][0], groups[right - 1][1], None))
    return out


def _stages(first: int, last: int) -> str:
    return f"stage {first}" if first == last else f"stages {first}-{last}"


def heaviest_of_groups(memory: Memory) -> list[tuple[int, int, int]]:
    """Return (first, last, heaviest) stage of each group that is drawn."""
    totals = [stage.total for stage in memory.stages]
    shown = shortened(list(grouped(memory.stages, memory.limit_bytes)))
    return [
        (first, last, max(range(first, last + 1), key=totals.__getitem__))
        for first, last, stage in shown
        if stage is not None
    ]

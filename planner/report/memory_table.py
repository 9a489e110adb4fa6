"""Memory as a table: a row a part, a column a group of like stages, formula and source beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from planner.plan import Memory
from planner.report.memory import heaviest_of_groups
from planner.report.parts import indented
from planner.report.text import printable
from planner.units import GIB, MIB, count

if TYPE_CHECKING:
    from planner.explanation import Explanation, MemoryPart

LEAST_FORMULA = 34
"""Columns below which formulas stand under the table instead of in it."""


class _Line(NamedTuple):
    """One row: its name, the figure of each group, its formula; `deep` lines are parts."""

    name: str
    figures: list[str]
    formula: Text
    deep: bool


class _MemoryTable:
    """The table, with a column of formulas where there is room, else with a list of them below."""

    def __init__(
        self, headings: Sequence[str], lines: Sequence[_Line], remarks: Sequence[str]
    ) -> None:
        self.headings = headings
        self.lines = lines
        self.remarks = [indented(remark) for remark in remarks]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        figures = self._table(formulas=False)
        width = Measurement.get(console, options.update(width=1000), figures).maximum
        if options.max_width - width > LEAST_FORMULA:
            yield self._table(formulas=True)
            yield from self.remarks
            return
        yield figures
        yield from self.remarks
        yield Text()
        for line in self.lines:
            if line.formula:
                yield indented(f"{line.name.split(',')[0]} = {line.formula}")

    def _table(self, *, formulas: bool) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
        table.add_column("GiB of a GPU on stage", no_wrap=True)
        for heading in self.headings:
            table.add_column(heading, justify="right", no_wrap=True)
        if formulas:
            table.add_column("formula [source]", overflow="fold")
        for line in self.lines:
            cells: list[RenderableType] = [f"{'  ' * line.deep}{line.name}", *line.figures]
            if formulas:
                cells.append(line.formula)
            last = line is self.lines[-2]
            table.add_row(*cells, style="dim" if line.deep else "", end_section=last)
        return table


def memory_table(answer: Explanation, memory: Memory, sources: Sequence[str]) -> RenderableType:
    """Return the table of an explanation, and for FSDP2 where in a step its stages peak."""
    groups = heaviest_of_groups(memory)
    lines = list(_lines(answer, [heaviest for _, _, heaviest in groups], sources))
    headings = [_runs(range(first, last + 1)) for first, last, _ in groups]
    remarks = []
    if left := len(memory.stages) - sum(last - first + 1 for first, last, _ in groups):
        remarks.append(f"{left} stages between these are left out (--json has them all)")
    points = dict.fromkeys(answer.peak_points)
    for point in points if len(points) > 1 else ():  # a single one is told with the bars
        stages = [p for p, name in enumerate(answer.peak_points) if name == point]
        verb = "stage {} peaks" if len(stages) == 1 else "stages {} peak"
        remarks.append(f"{verb.format(_runs(stages))} at: {point}")
    return _MemoryTable(headings, lines, remarks)


def _lines(answer: Explanation, shown: Sequence[int], sources: Sequence[str]) -> Iterator[_Line]:
    """Yield the rows: every part that is not nothing, then what it is made of, each told once."""
    told: set[str] = set()
    for row in answer.memory_terms:
        if not any(row.stages):
            continue
        yield _Line(
            row.name, [f"{row.stages[p] / GIB:.2f}" for p in shown], _formula(row, sources), False
        )
        for part in row.parts:
            if part.name not in told:
                told.add(part.name)
                unit, figures = _figures(part, shown)
                name = _words(part.name)
                name = f"kept {name}" if name == row.name else name
                yield _Line(f"{name}{unit}", figures, _formula(part, sources), True)


def _figures(part: MemoryPart, shown: Sequence[int]) -> tuple[str, list[str]]:
    """Return the unit to say, if it is not GiB, and the figures of the stages shown."""
    values = [part.stages[p] for p in shown]
    if part.unit == "parameters":
        return "", [count(v) for v in values]
    if part.unit != "bytes":
        return "", [f"{v:.4g}" for v in values]
    if max(part.stages) < GIB:
        return ", MiB", [f"{v / MIB:.1f}" for v in values]
    return "", [f"{v / GIB:.2f}" for v in values]


def _formula(part: MemoryPart, sources: Sequence[str]) -> Text:
    if not part.source:
        return Text()
    return Text(f"{printable(part.formula)} [{sources.index(part.source) + 1}]")


def _words(name: str) -> str:
    return printable(name.removesuffix("_bytes").replace("_", " "))


def _runs(stages: Sequence[int]) -> str:
    """Return '0-6' for neighbours, '0, 2' for others."""
    first, last = stages[0], stages[-1]
    if len(stages) > 1 and last - first == len(stages) - 1:
        return f"{first}-{last}"
    return ", ".join(map(str, stages))

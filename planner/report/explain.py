"""The report of an explanation: what is wrong first, then every term down to its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.plan import Estimate
from planner.report.memory import memory_report
from planner.report.memory_table import memory_table
from planner.report.mends import mends_table
from planner.report.parts import indented, notes, title
from planner.report.tables import layers_line, time_report
from planner.report.text import printable
from planner.units import GB, GIB, MIB, count, decimal_bytes, gib, seconds

if TYPE_CHECKING:
    from planner.explanation import Explanation, MemoryPart, SyncRow, TermValue


def explain_report(answer: Explanation) -> RenderableType:
    """Return the whole report of `meshwright explain`."""
    parts: list[RenderableType] = [verdict(answer)]
    parts += mended(answer)
    taken = [f"{field}={_word(value)}" for field, value in answer.assumed.items()]
    parts += section(
        f"Left out, so {_best(answer)} legal value was taken", [", ".join(taken)] if taken else []
    )
    parts += section("Compared with the best layout", answer.compared)
    if answer.estimate:
        parts += [Text(), headline(answer.estimate)]
        if answer.layout:
            parts.append(layers_line(answer.layout, answer.estimate, answer.stage_layers))
        parts += [Text(), time_report(answer.estimate)]
        parts += [Text(), memory_report(answer.estimate.memory)]
    sources = list(dict.fromkeys(row.source for row in _cited(answer) if row.source))
    if answer.estimate and answer.memory_terms:
        parts += [Text(), title("What that memory is made of")]
        parts.append(memory_table(answer, answer.estimate.memory, sources))
    if answer.terms:
        parts += [Text(), title("Terms"), terms_table(_told_once(answer), sources)]
    if answer.gradient_sync:
        parts += [Text(), title("One gradient synchronisation")]
        parts.append(sync_table(answer.gradient_sync, sources))
    cited = [indented(f"[{n}] {source}") for n, source in enumerate(sources, start=1)]
    parts += [Text(), title("Sources"), *cited] if cited else []
    return Group(*parts, *notes(answer.notes))


def mended(answer: Explanation) -> list[RenderableType]:
    """Return what would mend the layout: as a table, where it is known in figures."""
    told = len(answer.mend_layouts)
    lines = section("What would mend it", answer.mends[: len(answer.mends) - told])
    if not told:
        return lines
    heading = [] if lines else [Text(), title("What would mend it")]
    return [*lines, *heading, mends_table(answer.mend_layouts)]


def _cited(answer: Explanation) -> list[TermValue | SyncRow | MemoryPart]:
    memory = [part for row in answer.memory_terms for part in (row, *row.parts)]
    return [*memory, *(t for t in answer.terms if t.value and t.applies), *answer.gradient_sync]


def _told_once(answer: Explanation) -> list[TermValue]:
    """Return the terms that apply, without those that the table of memory shows."""
    shown = {name for row in answer.memory_terms for name in row.terms}
    shown |= {part.name for row in answer.memory_terms for part in row.parts}
    return [term for term in answer.terms if term.applies and term.name not in shown]


def _best(answer: Explanation) -> str:
    """Return what the fields left out were filled in for: the fastest of all where nothing fits."""
    return "the fastest" if answer.legal and not answer.feasible else "the best"


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def section(heading: str, lines: Sequence[str]) -> list[RenderableType]:
    """Return lines under a heading; nothing when there are none."""
    rows = [indented(line) for line in lines]
    return [Text(), title(heading), *rows] if rows else []


def verdict(answer: Explanation) -> RenderableType:
    """Return the layout and whether it runs, with the reasons when it does not."""
    name = answer.layout.short() if answer.layout else "this layout"
    if not answer.legal:
        state, style = "is not legal", "bold red"
    elif not answer.feasible:
        state, style = "is legal, but does not fit", "bold red"
    else:
        state, style = "is legal and fits in memory", "bold"
        if answer.estimate and answer.estimate.memory.at_risk:
            share = answer.estimate.memory.peak_bytes / answer.estimate.memory.limit_bytes
            state += f", but is at risk: {share:.0%} of it is taken, and allocators may thrash"
    head = Text(f"{printable(name)} {state}", style)
    return Group(head, *(indented(f"- {reason}") for reason in answer.reasons))


def headline(estimate: Estimate) -> RenderableType:
    """Return the figures that people compare."""
    words = [
        f"{seconds(estimate.step_time_s)} a step",
        f"{estimate.tokens_per_s_per_gpu:,.0f} tokens/s/GPU",
        f"{estimate.tflops_per_gpu:,.0f} TFLOP/s/GPU",
        f"MFU {estimate.mfu:.1%}",
        f"bubble {estimate.bubble_fraction:.1%}",
    ]
    return indented(", ".join(words))


def terms_table(terms: Sequence[TermValue], sources: Sequence[str]) -> RenderableType:
    """Return name, value and formula of each term; a number points to its source.

    Terms that are zero for this layout are named in one line.
    """
    table = _formula_table(("term", "value"))
    for term in terms:
        if term.value:
            table.add_row(
                printable(term.name),
                human(term.value, term.unit),
                _formula(term.formula, term.source, sources),
            )
    nothing = ", ".join(term.name for term in terms if not term.value)
    return Group(table, Text(), indented(f"zero here: {nothing}")) if nothing else table


def sync_table(rows: Sequence[SyncRow], sources: Sequence[str]) -> RenderableType:
    """Return the traffic of each scheme of gradient synchronisation."""
    table = _formula_table(("scheme", "a GPU sends", "busiest link", "in all"))
    for row in rows:
        amounts = (row.per_gpu_sent_bytes, row.busiest_link_bytes, row.total_bytes)
        table.add_row(
            printable(row.scheme),
            *map(decimal_bytes, amounts),
            _formula(row.formula, row.source, sources),
        )
    return table


def sync_report(rows: Sequence[SyncRow], heading: str, note: str) -> RenderableType:
    """Return the whole report of `meshwright gradient-sync`."""
    sources = list(dict.fromkeys(row.source for row in rows))
    cited = [indented(f"[{n}] {source}") for n, source in enumerate(sources, start=1)]
    table = sync_table(rows, sources)
    return Group(title(heading), table, Text(), title("Sources"), *cited, *notes([note]))


def _formula_table(headings: Sequence[str]) -> Table:
    """Return a table of a name, figures, and a formula that wraps."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("formula [source]", overflow="fold")
    return table


def _formula(formula: str, source: str, sources: Sequence[str]) -> Text:
    text = Text(printable(formula))
    return text.append(f" [{sources.index(source) + 1}]", "dim") if source else text


def human(value: float, unit: str) -> str:
    """Return a value as it reads best: bytes as GiB, seconds as ms, counts as 1.23B.

    The unit of a count is left out: a term's name ends in it.
    """
    if unit == "bytes":
        return gib(value) if abs(value) >= GIB / 100 else f"{value / MIB:.2f} MiB"
    if unit == "s":
        return seconds(value)
    if unit == "bytes/s":
        return f"{value / GB:,.1f} GB/s"
    return count(value) if abs(value) >= 1000 else f"{value:.4g}"

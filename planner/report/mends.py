"""What would mend a layout, as a table: the change, its memory, its step time and the cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from planner.report.parts import indented
from planner.report.text import printable
from planner.units import GIB, gib, many, seconds

if TYPE_CHECKING:
    from planner.explanation import Mend


def mends_table(mends: Sequence[Mend]) -> RenderableType:
    """Return a row a mend, cheapest first as they come, with a footnote for those at risk."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("  change", overflow="fold")
    for heading in ("GiB", "step", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for mend in mends:
        cost = "" if mend.slower is None else f"{mend.slower:+.1%}"
        mark = "*" if mend.at_risk else " "
        peak = f"{mend.peak_bytes / GIB:.1f}{mark}"
        table.add_row(indented(_change(mend)), peak, seconds(mend.step_time_s), cost)
    return Group(table, *map(indented, _footnotes(mends)))


def _change(mend: Mend) -> str:
    """Return the idea, what changes, and on how many nodes where that changes too."""
    idea = f"{mend.gpus:,} GPUs, {many(mend.nodes, 'node')}" if mend.more_gpus else mend.idea
    return printable(": ".join(filter(None, (idea, mend.change))))


def _footnotes(mends: Sequence[Mend]) -> Iterable[str]:
    yield f"GiB: peak memory of the fullest GPU; it has {gib(mends[0].limit_bytes)} to give"
    if any(mend.slower is not None for mend in mends):
        yield "cost: step time against the layout asked for, if that one fitted"
    if any(mend.at_risk for mend in mends):
        yield "* so close to the limit that allocators may thrash (--risk-memory)"

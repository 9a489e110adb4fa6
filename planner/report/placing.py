"""The report of a placement: what is proved, which tiers the groups cross, what is left over."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.plan import Placement
from planner.report.text import printable
from planner.units import many, seconds

HOSTS_SHOWN = 8
SHOWN = 0.0005
"""A relative difference in step time that shows in print."""
WHERE = {
    "node": "inside a node",
    "domain": "inside a scale-up domain",
    "leaf": "under one leaf",
    "pod": "inside a pod",
    "across": "across pods",
}
"""Tier -> words; a group is counted at the widest tier that it needs."""


def placement_lines(placement: Placement) -> list[str]:
    """Return the placement in a few sentences."""
    leafs = dict.fromkeys(r.leaf for r in placement.ranks)
    head = (
        f"{many(len(placement.ranks), 'rank')} on {many(len(placement.hosts), 'host')} "
        f"under {many(len(leafs), 'leaf', 'leafs')}"
    )
    lines = [f"{head}; {_splits(placement)}", *_step(placement), *tier_lines(placement)]
    return [*lines, *map(printable, placement.notes)]


def _splits(placement: Placement) -> str:
    """Return how often pipelines leave a leaf, how sure that is, and what hostname order costs."""
    edges = f"{placement.splits:,}" if placement.splits else "no"
    words = f"{edges} pipeline edge{'s' * (placement.splits != 1)} between leafs"
    before = placement.baseline.get("splits")
    if before is not None and before != placement.splits:
        words += f" ({before:,} with hosts in name order)"
    if placement.question != "fewest-splits":
        return words
    if placement.status == "optimal":
        return f"{words}, proved fewest" if placement.splits else words
    return f"{words}, not proved fewest (at least {placement.bound:g})"


def _step(placement: Placement) -> list[str]:
    """Return the step time on the links of this map, and how near its bound that is."""
    took, bound = placement.step_time_s, placement.step_time_bound_s
    if took is None or bound is None:
        return []
    by_name = placement.baseline.get("step_time_s")
    words = f"{seconds(took)} a step on these links"
    if by_name is not None and abs(by_name / took - 1) >= SHOWN:
        words += f" ({seconds(by_name)} with hosts in name order)"
    if took <= bound * (1 + SHOWN):
        return [f"{words}: no map is faster"]
    return [f"{words}, at most {took / bound - 1:.1%} above the fastest there can be"]


def tier_lines(placement: Placement) -> list[str]:
    """Return 'tp groups: 64 inside a node' for every kind of group with more than one member."""
    grown = {k for k in placement.tiers if any(getattr(r, k, 1) for r in placement.ranks)}
    by_name = placement.baseline.get("tiers") or {}
    lines = []
    for kind, counts in placement.tiers.items():
        if kind in grown:
            line = f"{kind} groups: {_counts(counts)}"
            if by_name.get(kind, counts) != counts:
                line += f" (hosts in name order: {_counts(by_name[kind])})"
            lines.append(line)
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {WHERE.get(t, t)}" for t, number in counts.items() if number)


def place_report(placement: Placement) -> RenderableType:
    """Return the report of `meshwright place`: the sentences, then the ranks of each host."""
    lines = [Text(line) for line in placement_lines(placement)]
    return Group(*lines, Text(), _host_table(placement))


def _host_table(placement: Placement) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for name in ("host", "leaf"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("ranks", "pp", "dp", "cp", "ep", "tp"):
        table.add_column(name, justify="right", no_wrap=True)
    hosts = placement.hosts
    shown = hosts if len(hosts) <= HOSTS_SHOWN else (*hosts[: HOSTS_SHOWN - 1], hosts[-1])
    for host in shown:
        if len(hosts) > HOSTS_SHOWN and host == hosts[-1]:
            table.add_row("...")
        rows = [r for r in placement.ranks if r.host == host]
        spans = (_span([getattr(r, axis) for r in rows]) for axis in ("pp", "dp", "cp", "ep", "tp"))
        table.add_row(
            printable(host), printable(rows[0].leaf), _span([r.rank for r in rows]), *spans
        )
    more = Text("--json lists every rank", "dim") if len(hosts) > HOSTS_SHOWN else Text()
    return Group(table, more)


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"

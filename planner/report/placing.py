"""The report of a placement: what is proved, which tiers the groups cross, what is left over."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.plan import Placement
from planner.report.text import printable
from planner.specs.cluster import ClusterSpec

HOSTS_SHOWN = 8


def placement_lines(placement: Placement, cluster: ClusterSpec) -> list[str]:
    """Return the placement in a few sentences."""
    hosts, leafs = placement.hosts, dict.fromkeys(r.leaf for r in placement.ranks)
    lines = [
        f"{len(placement.ranks)} ranks on {len(hosts)} hosts under {_many(len(leafs), 'leaf')}; "
        f"{_proof(placement)}",
        _splits(placement),
        *tier_lines(placement.tiers),
    ]
    if spare := cluster.nodes - len(hosts):
        lines.append(f"{_many(spare, 'host')} of the cluster left over")
    return [*lines, *(printable(note) for note in placement.notes)]


def _proof(placement: Placement) -> str:
    if placement.status == "optimal":
        return "proved optimal"
    return f"feasible: cost {placement.objective:g}, none is below {placement.bound:g}"


def _splits(placement: Placement) -> str:
    words = f"{_many(placement.splits, 'pipeline edge')} between leafs"
    before = placement.baseline.get("splits")
    return words if before is None else f"{words} ({before} with hosts in name order)"


def tier_lines(tiers: dict[str, dict[str, int]]) -> list[str]:
    """Return 'tp groups: 64 inside a node' for every kind of group that has more than one GPU."""
    return [
        f"{kind} groups: " + ", ".join(f"{n:,} {_where(tier)}" for tier, n in counts.items() if n)
        for kind, counts in tiers.items()
        if any(counts.values())
    ]


def _where(tier: str) -> str:
    near = {"node": "inside a node", "leaf": "under one leaf", "pod": "inside a pod"}
    return near.get(tier, "across pods" if tier == "across" else f"inside a {tier}")


def _many(number: int, word: str) -> str:
    plural = {"leaf": "leafs"}.get(word, f"{word}s")
    return f"{number:,} {word if number == 1 else plural}"


def place_report(placement: Placement, cluster: ClusterSpec) -> RenderableType:
    """Return the report of `meshwright place`: the sentences, then the ranks of each host."""
    lines = [Text(line) for line in placement_lines(placement, cluster)]
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

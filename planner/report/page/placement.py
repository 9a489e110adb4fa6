"""The placement as a map: leafs, the nodes under them, and the ranks on each node.

A job has up to a hundred thousand nodes, and most leafs look alike: neighbours with the same
pattern of pipeline stages are drawn once, with how many they are.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from planner.plan import Placement, RankPlace
from planner.report.page.markup import Html, bullets, join, table, tag
from planner.report.placing import placement_lines

LEAFS_SHOWN = 40
NODES_SHOWN = 64
HOSTS_LISTED = 64


class Node(NamedTuple):
    """One host: its leaf, the stages on it, and its ranks."""

    host: str
    leaf: str
    stages: tuple[int, ...]
    ranks: tuple[RankPlace, ...]


class Leaf(NamedTuple):
    """One leaf and its nodes in rank order."""

    name: str
    nodes: tuple[Node, ...]

    @property
    def pattern(self) -> tuple[tuple[int, ...], ...]:
        """Return the stages of its nodes, which is what leafs are compared by."""
        return tuple(node.stages for node in self.nodes)


def nodes_of(placement: Placement) -> list[Node]:
    """Return the hosts in node-rank order."""
    held: dict[str, list[RankPlace]] = {}
    for rank in placement.ranks:
        held.setdefault(rank.host, []).append(rank)
    return [
        Node(host, ranks[0].leaf, tuple(sorted({r.pp for r in ranks})), tuple(ranks))
        for host, ranks in held.items()
    ]


def leafs_of(nodes: Sequence[Node]) -> list[Leaf]:
    """Return the leafs in the order of their names, as the fabric counts them."""
    held: dict[str, list[Node]] = {}
    for node in nodes:
        held.setdefault(node.leaf, []).append(node)
    return [Leaf(name, tuple(held[name])) for name in sorted(held)]


def runs(leafs: Sequence[Leaf]) -> list[list[Leaf]]:
    """Return neighbours with one pattern together."""
    return [list(run) for _, run in groupby(leafs, key=lambda leaf: leaf.pattern)]


def placement_map(placement: Placement) -> Html:
    """Return what the placement achieves, the map, and the ranks of each host."""
    nodes = nodes_of(placement)
    stages = sorted({stage for node in nodes for stage in node.stages})
    drawn = runs(leafs_of(nodes))
    shown = drawn
    if len(drawn) > LEAFS_SHOWN:
        shown = [*drawn[: LEAFS_SHOWN - 1], drawn[-1]]
    parts = [_run(run, len(stages)) for run in shown]
    if len(shown) < len(drawn):
        hidden = sum(len(run) for run in drawn[LEAFS_SHOWN - 1 : -1])
        parts.insert(-1, tag("p", f"... {hidden:,} more leafs between these", class_="dim"))
    return join(bullets(placement_lines(placement)), _legend(stages), *parts, _ranks(nodes))


def _run(run: Sequence[Leaf], stages: int) -> Html:
    first, last = run[0], run[-1]
    nodes = f"{len(first.nodes)} node{'s' * (len(first.nodes) != 1)}"
    if len(run) == 1:
        heading = join(tag("b", first.name), f": {nodes}")
    else:
        alike = f": {len(run):,} leafs alike, {nodes} each"
        heading = join(tag("b", first.name), " to ", tag("b", last.name), alike)
    return tag("div", tag("p", heading), _cells(first, stages), class_="leaf")


def _cells(leaf: Leaf, stages: int) -> Html:
    """Return a cell a node; equal neighbours share one where there are too many."""
    groups = [[node] for node in leaf.nodes]
    if len(groups) > NODES_SHOWN:
        groups = [list(run) for _, run in groupby(leaf.nodes, key=lambda node: node.stages)]
    cells = [_cell(group, stages) for group in groups[:NODES_SHOWN]]
    if len(groups) > NODES_SHOWN:
        rest = sum(map(len, groups[NODES_SHOWN:]))
        cells.append(tag("span", f"and {rest:,} nodes more", class_="dim"))
    return tag("div", *cells, class_="nodes")


def _cell(group: Sequence[Node], stages: int) -> Html:
    node, last = group[0], group[-1]
    times = f" x{len(group)}" if len(group) > 1 else ""
    host = node.host if node is last else f"{node.host} to {last.host}"
    middle = node.stages[len(node.stages) // 2]
    return tag(
        "div",
        tag("b", span(node.stages)),
        times,
        class_="node",
        style=f"--c:{colour(middle, stages)}",
        title=f"{host}: {_ranks_of(node)}",
    )


def _ranks_of(node: Node) -> str:
    ranks = span([r.rank for r in node.ranks])
    axes = (f"{a} {span([getattr(r, a) for r in node.ranks])}" for a in ("pp", "dp", "cp", "tp"))
    return f"ranks {ranks}, {', '.join(axes)}"


def colour(stage: int, stages: int) -> str:
    """Return a light colour whose hue tells the stage; dark text reads on all of them."""
    hue = 0.58 + 0.82 * stage / max(1, stages)
    lightness = 0.72 if stage % 2 else 0.80
    red, green, blue = colorsys.hls_to_rgb(hue % 1, lightness, 0.6)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def span(values: Sequence[int]) -> str:
    """Return '0-7', '0,2,4' or '3' for whole numbers."""
    found = sorted(set(values))
    if len(found) == 1:
        return str(found[0])
    if found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]}-{found[-1]}"
    listed = ",".join(map(str, found[:6]))
    return listed if len(found) <= 6 else f"{found[0]}..{found[-1]} ({len(found)})"


def _legend(stages: Sequence[int]) -> Html:
    """Return what the cells mean: the number in a cell is the pipeline stage it holds."""
    if len(stages) == 1:
        return tag("p", "Every node holds the only pipeline stage, 0.", class_="dim")
    text = "Each cell is a node; its number is the pipeline stage (or stages) it holds:"
    few = list(stages) if len(stages) <= 16 else [*stages[:8], *stages[-8:]]
    swatches = [
        tag(
            "span",
            tag("span", class_="swatch", style=f"--c:{colour(s, len(stages))}"),
            str(s),
            class_="k",
        )
        for s in few
    ]
    return tag("p", text, tag("span", *swatches, class_="swatches"), class_="dim")


def _ranks(nodes: Sequence[Node]) -> Html:
    """Return the ranks of each host as a table to open; the plan's JSON has every one."""
    listed = nodes if len(nodes) <= HOSTS_LISTED else [*nodes[: HOSTS_LISTED - 1], nodes[-1]]
    axes = ("pp", "dp", "cp", "ep", "tp")
    rows = [
        [
            node.host,
            node.leaf,
            span([r.rank for r in node.ranks]),
            *(span([getattr(r, axis) for r in node.ranks]) for axis in axes),
        ]
        for node in listed
    ]
    more = f" (the first {HOSTS_LISTED - 1} and the last of {len(nodes):,})"
    heading = "Ranks of each host" + (more if len(nodes) > HOSTS_LISTED else "")
    kinds = ["k", "k", *["n"] * (1 + len(axes))]
    return tag(
        "details",
        tag("summary", heading),
        table(["host", "leaf", "ranks", *axes], rows, kinds=kinds),
    )

"""Slurm's topology.conf and topology.yaml: which hosts share a leaf, which leafs share a pod.

Tree: a switch with nodes is a leaf, the switch above it its pod. Block: a base block is a leaf, as
many of them in a row as the largest block size holds are a pod. Formats: topology.conf(5) and
topology.yaml(5) of Slurm 25.05.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner.errors import SpecError
from planner.specs.cluster import Leaf
from planner.specs.hostlist import expand
from planner.specs.parse import parse_yaml, shown

MOST_NAME = 64
"""Characters in the name of a switch (topology.conf(5)); blocks are held to it too."""
_PAIR = re.compile(r"([A-Za-z]+)\s*=\s*(\S+)")
_KEYS = {
    "switchname": "switch",
    "switches": "children",
    "nodes": "nodes",
    "linkspeed": "speed",
    "blockname": "block",
    "blocksizes": "sizes",
}


@dataclass(frozen=True)
class _Switch:
    """One line: its hosts, or the switches below it."""

    name: str
    hosts: tuple[str, ...] = ()
    children: tuple[str, ...] = ()


def slurm_leafs(text: str, origin: str) -> list[Leaf]:
    """Return the leafs that a topology.conf or topology.yaml describes, those of a pod together.

    `origin` (the file) begins the message of the SpecError that anything else raises.
    """
    body = "\n".join(line.partition("#")[0] for line in text.splitlines())
    if not body.strip():
        raise SpecError(f"{origin}: describes no switch and no block")
    if re.search(r"^\s*(SwitchName|BlockName|BlockSizes|RingName)\s*=", body, re.I | re.M):
        leafs = _from_conf(body, origin)
    else:
        leafs = _from_yaml(text, origin)
    seen = Counter(host for leaf in leafs for host in leaf.hosts)
    if twice := next((host for host, count in seen.items() if count > 1), None):
        raise SpecError(f"{origin}: host {twice!r} is under two leafs")
    return leafs


def _from_conf(text: str, origin: str) -> list[Leaf]:
    switches: list[_Switch] = []
    blocks: list[_Switch] = []
    sizes: list[int] = []
    joined = re.sub(r"\\[ \t]*\n", "", text)  # a line may go on after a backslash
    for line in filter(str.strip, joined.splitlines()):
        pairs = _pairs(line, origin)
        if "sizes" in pairs:
            sizes = _sizes(pairs["sizes"].split(","), origin)
        elif "block" in pairs:
            blocks.append(_block(pairs["block"], pairs, origin))
        elif "switch" in pairs:
            for name in _hosts(pairs["switch"], "SwitchName", origin):
                switches.append(_switch(name, pairs, origin))
        else:
            raise SpecError(
                f"{origin}: {shown(line.strip(), 80)!r} names no switch and no block",
                hint="lines begin with SwitchName=, BlockName= or BlockSizes=",
            )
    if switches and blocks:
        raise SpecError(f"{origin}: holds both switches and blocks")
    return _tree(switches, origin) if switches else _blocks(blocks, sizes, origin)


def _pairs(line: str, origin: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    rest = _PAIR.sub("", line).strip()
    for key, value in _PAIR.findall(line):
        if key.lower() not in _KEYS:
            raise SpecError(
                f"{origin}: {shown(key, 40)!r} is not known in {shown(line.strip(), 80)!r}",
                hint=f"tree and block topologies have {', '.join(sorted(_KEYS))} (any case)",
            )
        pairs[_KEYS[key.lower()]] = value
    if rest:
        raise SpecError(f"{origin}: {shown(rest, 60)!r} is not KEY=VALUE")
    return pairs


def _switch(name: str, fields: Mapping[str, Any], origin: str) -> _Switch:
    nodes, children = fields.get("nodes"), fields.get("children")
    if (nodes is None) == (children is None):
        both = "both nodes and switches" if nodes else "neither nodes nor switches"
        raise SpecError(f"{origin}: switch {shown(name, 60)!r} has {both}")
    hosts = _hosts(nodes, name, origin) if nodes is not None else ()
    below = _hosts(children, name, origin) if children is not None else ()
    return _Switch(_checked(name, origin), hosts, below)


def _block(name: str, fields: Mapping[str, Any], origin: str) -> _Switch:
    return _Switch(_checked(name, origin), _hosts(fields.get("nodes", ""), name, origin))


def _checked(name: str, origin: str) -> str:
    """Return a switch's name, which Slurm bounds too."""
    if len(name) > MOST_NAME:
        raise SpecError(f"{origin}: the name {shown(name, 40)!r} is longer than {MOST_NAME}")
    return name


def _hosts(value: object, name: str, origin: str) -> tuple[str, ...]:
    words = value if isinstance(value, list) else [value]
    try:
        found = tuple(host for word in words for host in expand(str(word)))
    except ValueError as error:
        raise SpecError(f"{origin}: {shown(name, 60)}: {error}") from error
    if not found:
        raise SpecError(f"{origin}: {shown(name, 60)} names no node")
    return found


def _sizes(words: Iterable[object], origin: str) -> list[int]:
    texts = [str(word).strip() for word in words]
    if bad := next((t for t in texts if not re.fullmatch("[1-9][0-9]{0,6}", t)), None):
        raise SpecError(f"{origin}: block size {shown(bad, 40)!r} is not a number of nodes")
    return [int(t) for t in texts]


def _tree(switches: Sequence[_Switch], origin: str) -> list[Leaf]:
    by_name = {switch.name: switch for switch in switches}
    if len(by_name) < len(switches):
        seen = Counter(switch.name for switch in switches)
        raise SpecError(f"{origin}: switch {seen.most_common(1)[0][0]!r} is described twice")
    above: dict[str, str] = {}
    for switch in switches:
        for child in switch.children:
            if child not in by_name:
                raise SpecError(f"{origin}: {switch.name}: no switch is named {child!r}")
            if child in above and above[child] != switch.name:
                raise SpecError(
                    f"{origin}: switch {child!r} is below {above[child]!r} and {switch.name!r}",
                    hint="a tree gives every switch one switch above it",
                )
            above[child] = switch.name
    leafs = [
        Leaf(name=switch.name, pod=above.get(switch.name, switch.name), hosts=switch.hosts)
        for switch in switches
        if switch.hosts
    ]
    if not leafs:
        raise SpecError(f"{origin}: no switch has nodes")
    _refuse_circles(by_name, above, origin)
    if not above:  # no switch above the leafs is described: take them as joined
        leafs = [leaf.model_copy(update={"pod": ""}) for leaf in leafs]
    order = list(dict.fromkeys(_line_of(leaf.pod, above) for leaf in leafs))
    return sorted(leafs, key=lambda leaf: order.index(_line_of(leaf.pod, above)))


def _line_of(name: str, above: Mapping[str, str]) -> tuple[str, ...]:
    """Return the switches from the top down to `name`."""
    line = [name]
    while line[-1] in above:
        line.append(above[line[-1]])
    return tuple(reversed(line))


def _refuse_circles(names: Iterable[str], above: Mapping[str, str], origin: str) -> None:
    for name in names:
        at, steps = name, 0
        while at in above:
            at, steps = above[at], steps + 1
            if steps > len(above):
                raise SpecError(f"{origin}: switch {name!r} is below itself")


def _blocks(blocks: Sequence[_Switch], sizes: Sequence[int], origin: str) -> list[Leaf]:
    """Return base blocks as leafs; the largest block size says how many of them make a pod."""
    if not blocks:
        raise SpecError(f"{origin}: describes no block")
    if len({block.name for block in blocks}) < len(blocks):
        seen = Counter(block.name for block in blocks)
        raise SpecError(f"{origin}: block {seen.most_common(1)[0][0]!r} is described twice")
    per_pod = max(sizes) // min(sizes) if sizes else len(blocks)
    if per_pod <= 1:
        per_pod = len(blocks)
    return [
        Leaf(name=block.name, pod=f"blocks{n // per_pod}", hosts=block.hosts)
        for n, block in enumerate(blocks)
    ]


# --- topology.yaml ------------------------------------------------------------------------------


def _from_yaml(text: str, origin: str) -> list[Leaf]:
    data = parse_yaml(text, origin)
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise SpecError(
            f"{origin}: neither topology.conf lines nor a topology.yaml list",
            hint="topology.conf begins with SwitchName= or BlockName=, topology.yaml with "
            "'- topology: NAME'",
        )
    chosen = _default_topology(data, origin)
    if isinstance(tree := chosen.get("tree"), dict) and tree:
        switches = [
            _switch(_text(entry, "switch", origin), entry, origin)
            for entry in _entries(tree, "switches", origin)
        ]
        return _tree(switches, origin)
    block = chosen["block"]
    blocks = [
        _block(_text(entry, "block", origin), entry, origin)
        for entry in _entries(block, "blocks", origin)
    ]
    sizes = block.get("block_sizes") or []
    return _blocks(blocks, _sizes(sizes if isinstance(sizes, list) else [sizes], origin), origin)


def _default_topology(data: Sequence[dict[str, Any]], origin: str) -> dict[str, Any]:
    """Return the topology marked cluster_default, else the first that is a tree or blocks."""
    shaped = [
        item
        for item in data
        if any(isinstance(item.get(shape), dict) and item[shape] for shape in ("tree", "block"))
    ]
    marked = [item for item in shaped if str(item.get("cluster_default")).lower() == "true"]
    if not shaped:
        raise SpecError(f"{origin}: holds no tree and no block topology")
    return (marked or shaped)[0]


def _entries(shape: Mapping[str, Any], field: str, origin: str) -> list[dict[str, Any]]:
    entries = shape.get(field)
    if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
        raise SpecError(f"{origin}: field '{field}' must be a list of mappings")
    return entries


def _text(entry: Mapping[str, Any], field: str, origin: str) -> str:
    if not entry.get(field):
        raise SpecError(f"{origin}: an entry lacks '{field}'")
    return shown(entry[field], 2 * MOST_NAME)

"""Place: every rank of a layout on a host and a GPU, with as few split pipelines as possible.

The names below load on first use: the command line imports this package without numpy or ortools,
and ortools is only loaded when some pipeline has to be split.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.place.certificate import RULES, Rule, rule_named
    from planner.place.check import PlacementError, check_placement
    from planner.place.clock import Clock, contended
    from planner.place.hosts import FreeNodes, free_nodes, nodes_from_file, with_hosts
    from planner.place.placing import loads_of, place, trades_of
    from planner.place.relax import kinds_of, left_out
    from planner.place.traffic import TIERS, Load, flows_of
    from planner.place.tree import Tree

_HOME = {
    "Clock": "clock",
    "Load": "traffic",
    "RULES": "certificate",
    "TIERS": "traffic",
    "Rule": "certificate",
    "Tree": "tree",
    "FreeNodes": "hosts",
    "PlacementError": "check",
    "check_placement": "check",
    "contended": "clock",
    "flows_of": "traffic",
    "free_nodes": "hosts",
    "kinds_of": "relax",
    "left_out": "relax",
    "loads_of": "placing",
    "nodes_from_file": "hosts",
    "place": "placing",
    "rule_named": "certificate",
    "trades_of": "placing",
    "with_hosts": "hosts",
}

__all__ = [
    "RULES",
    "TIERS",
    "Clock",
    "FreeNodes",
    "Load",
    "PlacementError",
    "Rule",
    "Tree",
    "check_placement",
    "contended",
    "flows_of",
    "free_nodes",
    "kinds_of",
    "left_out",
    "loads_of",
    "nodes_from_file",
    "place",
    "rule_named",
    "trades_of",
    "with_hosts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

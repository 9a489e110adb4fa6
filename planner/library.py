"""The commands as functions: the same questions, checked alike, with typed answers.

They read their arguments by the command line's own readers, so that what `meshwright` refuses is
refused here, in the same words. Nothing is printed; defaults that were filled in stand in the
answer's `request`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import timedelta
from functools import partial
from os import PathLike, fsdecode, fspath
from pathlib import Path
from typing import Any, TypedDict, Unpack

from planner import workflow
from planner.cli.aiming import Wanted
from planner.cli.amounts import number, share, tokens, whole
from planner.cli.asking import Asked, request_of
from planner.cli.options import MOST_SHOWN, fields_of
from planner.errors import SpecError, did_you_mean
from planner.explanation import Explanation
from planner.plan import Placed, Placement, Plan
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.units import MOST

Model = str | PathLike[str] | ModelSpec
Cluster = str | PathLike[str] | ClusterSpec
Fields = str | Mapping[str, Any]
"""'tp=8,pp=4|8' or {"tp": 8, "pp": [4, 8]}."""
Words = str | Iterable[str]
Amount = str | float
"""'15T' or 15e12."""
Time = str | float | timedelta
"""'30d', seconds, or a timedelta."""
File = str | PathLike[str]


class Common(TypedDict, total=False):
    """What every function takes; as the options of the command line."""

    seq: int | str
    precision: str
    optimizer: str
    stack: str
    gpus: int
    mixed: bool
    expert_imbalance: float
    capacity_factor: float
    expert_load: File
    max_memory: float | str
    risk_memory: float | str
    recompute_modules: Words
    recompute_layers: int | str


class Options(Common, total=False):
    """What is asked of one layout."""

    global_batch: int


class Hosts(TypedDict, total=False):
    """Which hosts there are, and which may be used."""

    unhealthy: Words
    slow: Words
    pipelines: str
    nodes_file: File
    slurm_topology: File
    node_state: File


class PlaceOptions(Options, Hosts, total=False):
    """What `place` and `explain` take."""


class PlanOptions(Common, Hosts, total=False):
    """What `plan` takes: also what to choose by, and among what."""

    global_batch: int | str | Iterable[int]
    fix: Fields
    top: int
    objective: str
    nodes: int | str | Iterable[int]
    price: float
    power: float
    tokens: Amount
    deadline: Time
    budget: Amount
    max_step_time: Time
    sensitivity: bool
    search: Words


AIM = {f.name for f in fields(Wanted)}
TYPED = {
    "seq": tokens,
    "max_memory": share("--max-memory"),
    "risk_memory": share("--risk-memory"),
}
"""Readers of what may be typed as a person would: '8k', '90%'."""
NUMBERS: dict[str, Callable[[Any], Any]] = {
    "seq": whole("--seq", 1, MOST),
    "global_batch": whole("--global-batch", 1, MOST),
    "top": whole("--top", 1, MOST_SHOWN),
    "gpus": whole("--gpus"),
    "price": number("--price"),
    "power": number("--power"),
    "expert_imbalance": number("--expert-imbalance"),
    "capacity_factor": number("--capacity-factor"),
    "max_memory": number("--max-memory"),
    "risk_memory": number("--risk-memory"),
}


def plan(model: Model, cluster: Cluster, **options: Unpack[PlanOptions]) -> Plan:
    """Return the best layouts of a model on a cluster, the first of them placed.

    As `meshwright plan`. Raises SpecError for a wrong question, InfeasibleError for one without an
    answer.
    """
    return workflow.plan(_request(model, cluster, PlanOptions, options))


def explain(
    model: Model, cluster: Cluster, layout: Fields, **options: Unpack[PlaceOptions]
) -> Explanation:
    """Return one layout opened into its terms, compared with the best, mended if it won't do.

    As `meshwright explain`; fields left out of `layout` take the best legal value.
    """
    asked = fields_of(_typed("layout", layout), option="--layout")
    request = _request(model, cluster, PlaceOptions, options, layout=asked)
    return workflow.explain(request, asked)


def place(
    model: Model,
    cluster: Cluster,
    layout: Fields,
    *,
    moved_from: Placement | None = None,
    **options: Unpack[PlaceOptions],
) -> Placed:
    """Return the host and the GPU of every rank of a layout, and what it is a layout of.

    As `meshwright place`; with `moved_from` as few ranks as possible move from that placement.
    """
    asked = fields_of(_typed("layout", layout), option="--layout")
    request = _request(model, cluster, PlaceOptions, options, layout=asked)
    return workflow.place(request, asked, moved_from=moved_from)


def _request(
    model: Model,
    cluster: Cluster,
    takes: Any,
    options: Mapping[str, Any],
    *,
    layout: Mapping[str, str] | None = None,
) -> workflow.PlanRequest:
    known = takes.__annotations__
    if strange := next((name for name in options if name not in known), None):
        near = did_you_mean(strange, known)
        raise SpecError(
            f"there is no option {strange!r}", hint=near or f"options: {', '.join(known)}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    wanted = {name: _typed(name, value) for name, value in given.items() if name in AIM}
    if takes is PlanOptions and "global_batch" in given:  # there it may be several
        given["batches"] = given.pop("global_batch")
    rest = {name: _typed(name, value) for name, value in given.items() if name not in AIM}
    specs = _named(model, "model"), _named(cluster, "cluster")
    asked = Asked(*specs, wanted=Wanted(**wanted), layout=layout, **rest)
    return request_of(asked, lambda _: None)


def _named(spec: Any, what: str) -> Any:
    """Return a spec as it is, or its name or path as text; SpecError for anything else."""
    own = ModelSpec if what == "model" else ClusterSpec
    if isinstance(spec, own):
        return spec
    if not isinstance(spec, str | PathLike):
        raise SpecError(
            f"{what}: {type(spec).__name__} is not allowed, must be a name, a path or a "
            f"{own.__name__}"
        )
    text = fspath(spec)
    return text if isinstance(text, str) else fsdecode(text)


def _typed(name: str, value: Any) -> Any:
    """Return a value as a person would have typed it; SpecError for what nobody could type."""
    if name in TYPED and isinstance(value, str):
        return TYPED[name](value)
    reader = READERS.get(name)
    try:
        return reader(value) if reader else value
    except (TypeError, AttributeError):
        option = f"--{name.replace('_', '-')}"
        raise SpecError(f"{option}: {type(value).__name__} is not allowed here") from None


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _words(value: Words) -> str:
    """Return ['a', 'b'] as 'a,b'."""
    return value if isinstance(value, str) else ",".join(value)


def _amount(value: Amount | timedelta) -> str:
    return str(value.total_seconds() if isinstance(value, timedelta) else value)


def _listed(value: Any, option: str) -> str:
    """Return 8 as '8' and (8, 16) as '8|16'."""
    if isinstance(value, str):
        return value
    several = value if isinstance(value, Iterable) and not isinstance(value, bytes) else [value]
    return "|".join(map(str, map(whole(option), several)))


def _pairs(value: Fields) -> str:
    """Return {'tp': 8, 'pp': [4, 8]} as 'tp=8,pp=4|8'."""
    if isinstance(value, str):
        return value
    return ",".join(f"{name}={_word(each)}" for name, each in value.items())


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "|".join(map(_word, value)) if isinstance(value, list | tuple) else str(value)


READERS: dict[str, Callable[[Any], Any]] = {
    **NUMBERS,
    **dict.fromkeys(("expert_load", "nodes_file", "slurm_topology", "node_state"), Path),
    **dict.fromkeys(("unhealthy", "slow", "recompute_modules", "search"), _words),
    **dict.fromkeys(("tokens", "budget", "deadline", "max_step_time", "recompute_layers"), _amount),
    **dict.fromkeys(("precision", "optimizer", "stack", "pipelines", "objective"), _text),
    "fix": _pairs,
    "layout": _pairs,
    "nodes": partial(_listed, option="--nodes"),
    "batches": partial(_listed, option="--global-batch"),
}
"""Option -> what makes of a value the text that is typed; others stay as they are."""

"""Points: settings made into requests, each with an id that is a hash of what it resolves to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.errors import PlannerError, SpecError, did_you_mean
from planner.layouts.ranges import FIXABLE, parse_fix
from planner.place import RULES, rule_named
from planner.specs.catalog import load_cluster, load_model
from planner.specs.changing import changed
from planner.specs.cluster import ClusterSpec
from planner.specs.mixing import joined
from planner.specs.model import ModelSpec
from planner.specs.parse import shown
from planner.specs.read import validate
from planner.specs.stack import stack_named
from planner.specs.workload import Workload
from planner.sweep.evaluate import Cell, Outcome, refusal
from planner.sweep.study import Settings, Study
from planner.workflow import PlanRequest
from planner.workflow.formats import refuse_format, usual_precision
from planner.workflow.variants import axes_named, refuse_twice

SPEC_FILE = re.compile(r"\.(yaml|yml|json)(:\d+)?$", re.IGNORECASE)
WORKLOAD = {
    "seq": "seq_tokens",
    "global_batch": "global_batch",
    "precision": "precision",
    "optimizer": "optimizer",
    "stack": "stack",
    "max_memory": "max_memory",
    "risk_memory": "risk_memory",
    "expert_imbalance": "expert_imbalance",
    "capacity_factor": "capacity_factor",
}
"""Setting -> field of a workload."""


@dataclass(frozen=True)
class Point:
    """One point: its place in the study, what is known of its inputs, and what to ask.

    `refused` is its outcome when the settings contradict each other; then there is no request.
    """

    index: int
    id: str
    inputs: Mapping[str, Cell]
    request: PlanRequest | None = None
    refused: Outcome | None = None


@dataclass(frozen=True)
class _Shelf:
    """Specs that were read once, for the thousands of points that share them."""

    origin: str
    folder: Path
    models: dict[str, tuple[ModelSpec, str]] = field(default_factory=dict)
    clusters: dict[str, tuple[ClusterSpec, str]] = field(default_factory=dict)


def points_of(study: Study, path: Path) -> list[Point]:
    """Return every point of the study, in its order; spec files are relative to the study's folder.

    Raises SpecError for a model, a cluster, a stack or a dotted path that does not exist.
    """
    shelf = _Shelf(shown(path), path.parent)
    _refuse_unknown(study, shelf)
    return [_point(index, settings, shelf) for index, settings in enumerate(study.settings())]


def _refuse_unknown(study: Study, shelf: _Shelf) -> None:
    """Raise SpecError for names that lead nowhere, before a point is made of them."""
    first: dict[str, Any] = {}
    seen: set[str] = set()
    for settings in study.settings():
        first = first or dict(settings)
        for name in ("model", "cluster", "stack", "fix", "search"):
            value = settings.get(name)
            key = f"{name} {value}"
            if value is None or key in seen:
                continue
            seen.add(key)
            try:
                _load(name, value, shelf)
            except PlannerError as error:
                raise SpecError(f"{shelf.origin}: {error.message}", hint=error.hint) from error
        if settings.get("nodes") and re.search(r":\d+$", settings["cluster"]):
            raise SpecError(
                f"{shelf.origin}: cluster '{shown(settings['cluster'], 80)}' gives its nodes, and "
                "so does 'nodes'",
                hint="leave one of them out",
            )
    base = {
        "model": _load("model", first["model"], shelf).model_dump(mode="json"),
        "cluster": _load("cluster", first["cluster"], shelf).model_dump(mode="json"),
    }
    for name in first:
        root, dot, rest = name.partition(".")
        if root in base and dot:
            _refuse_unknown_path(base[root], name, rest.split("."), shelf.origin)
        elif dot and rest not in FIXABLE:
            hint = did_you_mean(rest[:100], FIXABLE) or f"fields: {', '.join(FIXABLE)}"
            raise SpecError(f"{shelf.origin}: '{shown(name, 80)}' is no layout field", hint=hint)


def _refuse_unknown_path(data: Any, name: str, parts: list[str], origin: str) -> None:
    """Raise SpecError when `parts` leads to no field; what is optional and unset will do."""
    for part in parts:
        if data is None:
            return
        if isinstance(data, Mapping) and part not in data:
            hint = did_you_mean(part[:100], data) or f"fields: {', '.join(data)}"
            raise SpecError(f"{origin}: '{shown(name, 80)}' is no field", hint=hint)
        data = data[part] if isinstance(data, Mapping) else None


def _load(name: str, text: str, shelf: _Shelf) -> Any:
    """Return what a model, a cluster, a stack or `fix` says; raise SpecError if it says nothing."""
    if name == "stack":
        return stack_named(text)
    if name == "search":
        return _axes(text)
    if name == "fix":
        return parse_fix(_pairs({"fix": text}))
    own = SPEC_FILE.search(text) or "/" in text
    place = str(shelf.folder / text) if own else text
    return load_model(place) if name == "model" else load_cluster(place)


def _axes(text: str) -> tuple[str, ...]:
    return axes_named(text.replace(" ", "").split(","))


def _point(index: int, settings: Settings, shelf: _Shelf) -> Point:
    """Return one point; what contradicts itself becomes a refused point, not an error."""
    inputs = _as_given(settings)
    try:
        model, model_id = _model(settings, shelf)
        inputs |= {"model": model.name}
        cluster, cluster_id = _cluster(settings, shelf)
        inputs |= {"cluster": cluster.name, "nodes": cluster.nodes, "gpus": cluster.gpus}
        workload = _workload(settings, cluster)
        fix = _fix(settings)
        parse_fix(fix)
        inputs |= _inputs(workload, fix, settings.get("gpus"))
        rule = rule_named(settings.get("pipelines") or RULES[0], "pipelines")
        inputs |= {"pipelines": rule} if "pipelines" in settings else {}
        axes = _axes(settings.get("search") or "")
        inputs |= {"search": ",".join(axes)} if "search" in settings else {}
        request = PlanRequest(
            model,
            cluster,
            workload,
            fix=fix,
            top=1,
            gpus=_gpus(settings, cluster),
            pipelines=rule,
            search=axes,
        )
        refuse_twice(request)
    except PlannerError as error:
        return Point(index, _digest([_as_given(settings)]), inputs, refused=refusal(error))
    parts = [model_id, cluster_id, workload.model_dump(mode="json"), fix, request.gpus]
    parts += [rule] if rule != RULES[0] else []
    parts += [",".join(axes)] if axes else []
    return Point(index, _digest(parts), inputs, request=request)


def _as_given(settings: Settings) -> dict[str, Cell]:
    """Return the settings as columns: those of dotted paths, and what is known before resolving."""
    plain = {name: None for name in ("model", "cluster", "nodes", "gpus")}
    known = {n: settings.get(n) for n in plain}
    work = {column: settings.get(name) for name, column in WORKLOAD.items()}
    fix = {"fix": ",".join(f"{k}={v}" for k, v in _pairs(settings).items())}
    dotted = {n: _cell(v) for n, v in settings.items() if "." in n and not n.startswith("fix.")}
    rule = {"pipelines": _cell(settings["pipelines"])} if "pipelines" in settings else {}
    rule |= {"search": _cell(settings["search"])} if "search" in settings else {}
    return {**known, **work, **fix, **rule, **dotted}


def _inputs(workload: Workload, fix: Mapping[str, str], gpus: int | None) -> dict[str, Cell]:
    """Return the columns of the workload and the layout as they were resolved."""
    values = workload.model_dump(mode="json")
    out: dict[str, Cell] = {column: values[column] for column in WORKLOAD.values()}
    out["fix"] = ",".join(f"{name}={text}" for name, text in fix.items())
    return out | ({"gpus": gpus} if gpus else {})


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value, sort_keys=True)


def _gpus(settings: Settings, cluster: ClusterSpec) -> int | None:
    gpus: int | None = settings.get("gpus")
    if gpus is not None and gpus > cluster.gpus:
        raise SpecError(f"gpus: {gpus} is more than the {cluster.gpus} of {cluster.name}")
    return gpus


def _fix(settings: Settings) -> dict[str, str]:
    """Return the fixed layout fields of `fix` and of `fix.FIELD`.

    Raises SpecError when one is set in both.
    """
    pairs = _pairs({"fix": settings.get("fix")})
    for name, value in settings.items():
        root, dot, rest = name.partition(".")
        if root == "fix" and dot:
            if rest in pairs:
                raise SpecError(f"{name}: {rest} is set by 'fix' too")
            pairs[rest] = _word(value)
    return dict(sorted(pairs.items()))


def _pairs(settings: Settings) -> dict[str, str]:
    given = settings.get("fix")
    if isinstance(given, Mapping):
        pairs = {str(name): _word(value) for name, value in given.items()}
    else:
        texts = [part.strip() for part in (given or "").split(",") if part.strip()]
        split = [text.partition("=") for text in texts]
        if bad := next((text for text, s in zip(texts, split, strict=True) if not s[1]), None):
            raise SpecError(f"fix: '{shown(bad, 60)}' has no value", hint="write fix: tp=8,pp=4")
        pairs = {name.strip(): value.strip() for name, _, value in split}
    dotted = {n[4:]: _word(v) for n, v in settings.items() if n.startswith("fix.")}
    return dict(sorted((pairs | dotted).items()))


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "|".join(map(_word, value)) if isinstance(value, list) else str(value)


def _model(settings: Settings, shelf: _Shelf) -> tuple[ModelSpec, str]:
    changes = _changes("model", settings)
    key = json.dumps([settings["model"], changes], sort_keys=True)
    if key not in shelf.models:
        base = _load("model", settings["model"], shelf)
        model = changed(base, changes, "model") if changes else base
        shelf.models[key] = model, _digest([model.model_dump(mode="json")])
    return shelf.models[key]


def _cluster(settings: Settings, shelf: _Shelf) -> tuple[ClusterSpec, str]:
    changes = _changes("cluster", settings)
    if settings.get("nodes"):
        changes = {"nodes": settings["nodes"], **changes}
    key = json.dumps([settings["cluster"], changes], sort_keys=True)
    if key not in shelf.clusters:
        base = _load("cluster", settings["cluster"], shelf)
        cluster = _changed_cluster(base, changes) if changes else base
        shelf.clusters[key] = cluster, _digest([cluster.model_dump(mode="json")])
    return shelf.clusters[key]


def _changed_cluster(base: ClusterSpec, changes: dict[str, Any]) -> ClusterSpec:
    """Return a cluster with fields changed; of a mix those of every type."""
    if not base.mix:
        return changed(base, changes, "cluster")
    if "nodes" in changes:
        raise SpecError(f"nodes: {base.name} says the nodes of each of its types itself")
    parts = [changed(part, changes, "cluster") for part in base.mix]
    return joined(parts, base.name, "cluster")


def _workload(settings: Settings, cluster: ClusterSpec) -> Workload:
    given = {field: settings[name] for name, field in WORKLOAD.items() if name in settings}
    workload = validate(Workload, {"precision": usual_precision(cluster), **given}, "workload")
    refuse_format(workload, cluster)
    return workload


def _changes(root: str, settings: Settings) -> dict[str, Any]:
    size = len(root) + 1
    return {name[size:]: v for name, v in settings.items() if name.startswith(f"{root}.")}


def _digest(parts: list[Any]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]

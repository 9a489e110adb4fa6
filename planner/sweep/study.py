"""Study: the file that a sweep reads. Fixed values, and axes whose product is the grid.

Names that stand for one option of `plan` (`nodes`, `seq`, ...) and dotted paths into the model, the
cluster or the layout (`cluster.fabric.leaf_oversubscription`, `fix.tp`) may be fixed or an axis.
What can be wrong with one value alone is refused here, with its place in the file; what only a
combination gets wrong becomes a failed point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from planner import units
from planner.errors import SpecError, did_you_mean
from planner.specs.parse import shown
from planner.specs.read import read_mapping, validate
from planner.specs.record import Record

TEXT, COUNT, NUMBER, FIX = "text", "a whole number of 1 or more", "a number above 0", "fix"
LENGTH, SHARE = "a number of tokens, 8192 or 8k", "a share above 0, 0.9 or 90%"
NAMES = {
    "model": TEXT,
    "cluster": TEXT,
    "nodes": COUNT,
    "gpus": COUNT,
    "seq": LENGTH,
    "global_batch": COUNT,
    "precision": TEXT,
    "optimizer": TEXT,
    "stack": TEXT,
    "fix": FIX,
    "pipelines": TEXT,
    "search": TEXT,
    "max_memory": SHARE,
    "risk_memory": SHARE,
    "expert_imbalance": NUMBER,
    "capacity_factor": NUMBER,
}
"""Setting -> what its values are."""
NEEDED = ("model", "cluster", "seq", "global_batch")
ROOTS = ("model", "cluster", "fix")
"""What a dotted path may begin with."""
MOST_POINTS = 100_000

Settings = Mapping[str, Any]


class Study(Record):
    """A grid of plans. `axes` maps a name, or several joined by commas, to the values it takes."""

    name: str = Field("", max_length=200)
    about: str = Field("", description="For people.")
    fixed: dict[str, Any] = Field(default_factory=dict, description="Name -> value of all points.")
    axes: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="Name -> values; 'nodes, global_batch' takes pairs, which vary together.",
    )

    @property
    def points(self) -> int:
        """Return the number of points of the grid."""
        return math.prod(len(values) for values in self.axes.values())

    def settings(self) -> Iterator[Settings]:
        """Yield each point's settings; the last axis varies fastest."""
        axes = [_Axis.of(key, values) for key, values in self.axes.items()]
        for combination in product(*(axis.values for axis in axes)):
            point = dict(self.fixed)
            for axis, values in zip(axes, combination, strict=True):
                point |= zip(axis.names, values, strict=True)
            yield {name: plain(name, value) for name, value in point.items()}


class _Axis(NamedTuple):
    names: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, key: str, values: list[Any]) -> _Axis:
        """Return the names of an axis, and one tuple of values for each step along it."""
        names = _split(key)
        steps = ((v,) if len(names) == 1 else tuple(v) for v in values)
        return cls(names, tuple(steps))


def _split(key: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in key.split(","))


def read_study(path: Path) -> Study:
    """Return the study in a YAML or JSON file; its `name` defaults to the file's.

    Raises SpecError naming the file, the field and the value for whatever is wrong with one value.
    """
    origin = shown(path)
    study = validate(Study, {"name": path.stem[:200], **read_mapping(path)}, origin)
    for name, value in study.fixed.items():
        _check_name(name, f"{origin}: fixed")
        _check_value(name, value, f"{origin}: fixed.{shown(name, 80)}")
    for key, values in study.axes.items():
        _check_axis(key, values, origin)
    _check_names_together(study, origin)
    if study.points > MOST_POINTS:
        lengths = " x ".join(str(len(v)) for v in study.axes.values())
        raise SpecError(
            f"{origin}: {lengths} = {study.points:,} points; at most {MOST_POINTS:,} are swept",
            hint="shorten an axis, or split the study",
        )
    return study


def study_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study: every name with what its values are."""
    whole, above = {"type": "integer", "minimum": 1}, {"type": "number", "exclusiveMinimum": 0}
    values: dict[str, dict[str, Any]] = {
        TEXT: {"type": "string", "minLength": 1},
        COUNT: whole,
        NUMBER: above,
        LENGTH: {"anyOf": [whole, {"type": "string", "pattern": f"^{units.TOKENS}$"}]},
        SHARE: {"anyOf": [above, {"type": "string", "pattern": f"^{units.SHARE}$"}]},
        FIX: {"type": ["string", "object"]},
    }
    paths: dict[str, Any] = {r"^(model|cluster|fix)\.": {}}
    joined = {r",": {"type": "array", "minItems": 1, "items": {"type": "array"}}}
    axes = {n: {"type": "array", "minItems": 1, "items": values[k]} for n, k in NAMES.items()}
    document = Study.model_json_schema()
    document["properties"]["fixed"] |= {
        "properties": {name: values[kind] for name, kind in NAMES.items()},
        "patternProperties": paths,
        "additionalProperties": False,
    }
    document["properties"]["axes"] |= {
        "properties": axes,
        "patternProperties": {r"^(model|cluster|fix)\.": {"type": "array"}, **joined},
        "additionalProperties": False,
    }
    return document


def _check_axis(key: str, values: list[Any], origin: str) -> None:
    """Raise SpecError for an axis without values, or with one that its name cannot take."""
    where = f"{origin}: axes.{shown(key, 80)}"
    names = _split(key)
    for name in names:
        _check_name(name, f"{origin}: axes")
    if not values:
        raise SpecError(f"{where}: lists no values", hint="give one value, or leave the axis out")
    for index, value in enumerate(values):
        if len(names) > 1 and (not isinstance(value, list) or len(value) != len(names)):
            raise SpecError(
                f"{where}[{index}]: must be a list of {len(names)} values, one for each of "
                f"{', '.join(names)}"
            )
        for name, one in zip(names, value if len(names) > 1 else [value], strict=True):
            _check_value(name, one, f"{where}[{index}]")


def _check_names_together(study: Study, origin: str) -> None:
    """Raise SpecError for a name that is set twice, a missing one, or two that contradict."""
    names = list(study.fixed)
    for key in study.axes:
        for name in _split(key):
            if name in names:
                raise SpecError(f"{origin}: '{shown(name, 80)}' is set twice")
            names.append(name)
    for needed in NEEDED:
        if needed not in names:
            raise SpecError(
                f"{origin}: '{needed}' is neither fixed nor an axis",
                hint=f"write it under fixed: or under axes:; needed are {', '.join(NEEDED)}",
            )
    for name in names:
        parts = name.split(".")
        for end in range(2, len(parts)):
            above = ".".join(parts[:end])
            if above in names:
                raise SpecError(f"{origin}: '{shown(name, 80)}' is part of '{shown(above, 80)}'")


def _check_name(name: str, where: str) -> None:
    root, dot, rest = name.partition(".")
    if name in NAMES or (dot and root in ROOTS and all(rest.split("."))):
        if name in ("cluster.nodes", "cluster.name", "model.name", "cluster.hosts"):
            use = {"cluster.nodes": "nodes", "model.name": "model"}.get(name, "cluster")
            raise SpecError(f"{where}: '{name}' cannot be changed", hint=f"set '{use}'")
        return
    known = ", ".join(NAMES)
    near = did_you_mean(name[:100], NAMES)
    raise SpecError(
        f"{where}: unknown name '{shown(name, 80)}'",
        hint=f"{near} known: {known}; and paths such as cluster.fabric.efficiency, fix.tp".lstrip(),
    )


def plain(name: str, value: Any) -> Any:
    """Return '8k' and '90%' as the numbers that they are under names that take them."""
    if not isinstance(value, str) or NAMES.get(name) not in (LENGTH, SHARE):
        return value
    read = units.tokens_of if NAMES[name] == LENGTH else units.share_of
    number = read(value)
    return value if number is None else number


def _check_value(name: str, value: Any, where: str) -> None:
    """Raise SpecError for a value of the wrong kind; values of dotted paths are checked later."""
    kind, value = NAMES.get(name), plain(name, value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    right = (
        kind is None
        or (kind == TEXT and isinstance(value, str) and value)
        or (kind in (COUNT, LENGTH) and number and isinstance(value, int) and value > 0)
        or (kind in (NUMBER, SHARE) and number and value > 0)
        or (kind == FIX and isinstance(value, str | dict))
    )
    if not right:
        allowed = "text such as 'tp=8,pp=4', or a mapping" if kind == FIX else kind
        raise SpecError(f"{where}: {shown(repr(value), 60)} is not allowed, must be {allowed}")

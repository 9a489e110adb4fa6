"""A spec with some of its fields changed, by dotted path, and checked as a whole again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from planner.errors import SpecError
from planner.specs.catalog import load_accelerator
from planner.specs.parse import shown
from planner.specs.read import validate
from planner.specs.record import Record

R = TypeVar("R", bound=Record)


def changed(record: R, changes: Mapping[str, Any], root: str) -> R:
    """Return `record` with the fields at dotted paths replaced, checked as a whole.

    Raises SpecError, naming `root` and the path, for a path that leads nowhere and for values that
    are refused.
    """
    data = record.model_dump(mode="json")
    for path, value in changes.items():
        _set(data, path, value, root)
    return validate(type(record), data, root)


def _set(data: Any, path: str, value: Any, root: str) -> None:
    *above, last = path.split(".")
    here = data
    for part in above:
        here = here.get(part) if isinstance(here, dict) else None
        if not isinstance(here, dict):
            raise SpecError(f"{root}.{path}: '{shown(part, 60)}' holds no fields to change")
    if path == "accelerator" and isinstance(value, str):
        value = load_accelerator(value).model_dump(mode="json")
    here[last] = value

"""Records as a data frame. polars is optional, and loads only when a frame is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planner.errors import SpecError

if TYPE_CHECKING:
    from polars import DataFrame


def frame(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Return one row a mapping, whose nested mappings become columns 'outer.inner'.

    Raises SpecError where polars is not installed.
    """
    try:
        from polars import DataFrame  # noqa: PLC0415  an optional package
    except ImportError as error:
        raise SpecError(
            "to_frame: needs polars, which is not installed",
            hint='pip install "meshwright[frame]"',
        ) from error
    return DataFrame([flat(row) for row in rows], infer_schema_length=None)


def flat(row: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return a nested mapping as one, its lists left out."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{above}{name}.")
        elif not isinstance(value, list | tuple):
            out[f"{above}{name}"] = value
    return out

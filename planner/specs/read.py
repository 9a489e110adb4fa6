"""Reading spec files: bytes from a path to a checked record, with one message when they are wrong.

pydantic says what is wrong per field in its own words; here that becomes one sentence that names
file, field, value and what is allowed.
"""

from __future__ import annotations

import stat
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from planner.errors import SpecError, did_you_mean
from planner.specs.parse import MAX_DEPTH, parse_json, parse_yaml, shown
from planner.specs.record import Record

MAX_FILE_BYTES = 2**20
MAPPING_TYPES = {"model_type", "model_attributes_type", "dict_type"}
R = TypeVar("R", bound=Record)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file (or, with the suffix .json, a JSON file) holds.

    Raises SpecError, naming the file, for anything but one plain mapping in a regular UTF-8 file
    of at most `MAX_FILE_BYTES`.
    """
    origin = shown(path)
    text = read_text(path, origin)
    parse = parse_json if path.suffix.lower() == ".json" else parse_yaml
    try:
        data = parse(text, origin)
    except RecursionError:
        raise SpecError(f"{origin}: nested too deeply; at most {MAX_DEPTH} levels") from None
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds a {_kind(data)} at its top level"
        raise SpecError(f"{origin} {what}; it must hold a mapping of fields")
    return data


def validate(record_type: type[R], data: Mapping[str, Any], origin: str) -> R:
    """Return `data` as a record; `origin` (a file, an option) begins the message when it is wrong.

    Raises SpecError with the first thing wrong, and how many more there are. An unknown field is
    said first: a misspelt name is also why another one is missing.
    """
    try:
        record = record_type.model_validate(data)
    except ValidationError as error:
        message, hint = complaint(record_type, error, origin)
        raise SpecError(message, hint=hint) from None
    _refuse_booleans_as_numbers(data, record, origin, ())
    return record


def complaint(record_type: type[BaseModel], error: ValidationError, origin: str) -> tuple[str, str]:
    """Return message and hint for the first thing that is wrong, and how many more there are."""
    found = error.errors(include_url=False)
    found.sort(key=lambda e: e["type"] != "extra_forbidden")
    message, hint = _explain(record_type, found[0], origin)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return message + more, hint


def _explain(record_type: type[BaseModel], error: ErrorDetails, origin: str) -> tuple[str, str]:
    """Return message and hint for one of pydantic's errors."""
    if error["type"] == "json_invalid":
        return f"{origin}: {_no_json(error)}", ""
    path = tuple(part for part in error["loc"] if part != "[key]")
    if not path and error["type"] in MAPPING_TYPES:
        return f"{origin}: it holds {_value(error['input'])}, not a mapping of fields", ""
    field = ".".join(str(part) for part in path)
    if error["type"] == "missing":
        return f"{origin}: field '{shown(field, 80)}' is missing", ""
    if error["type"] == "extra_forbidden":
        known = _fields_at(record_type, path[:-1])
        hint = did_you_mean(str(path[-1]), known) or f"known fields: {', '.join(known)}"
        return f"{origin}: unknown field '{shown(field, 80)}'", hint
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        where = f"field '{shown(field, 80)}': " if field else ""
        return f"{origin}: {where}{shown(what, 400)}", ""
    what = _allowed(error["type"], what)
    value = _value(error["input"])
    return f"{origin}: field '{shown(field, 80)}': {value} is not allowed, must {what}", ""


def _no_json(error: ErrorDetails) -> str:
    """Return what is wrong with a text that is no JSON: empty, cut off, or something else."""
    if not error["input"].strip():
        return "it is empty"
    why, at, where = str(error.get("ctx", {}).get("error", "")).rpartition(" at line ")
    if why.startswith("EOF"):
        return f"it is cut off: its JSON ends too early{at}{where}"
    return f"it is not JSON: {shown(why, 200)}{at}{where}"


def _allowed(kind: str, message: str) -> str:
    """Return what pydantic's message allows, in words that follow 'must'."""
    if kind in MAPPING_TYPES:
        return "be a mapping of fields"
    if kind in {"tuple_type", "list_type"}:
        return "be a list"
    if kind == "string_type":
        return "be text (put it in quotes)"
    return shown(message.partition(" should ")[2] or message, 200)


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, int) and abs(value) >= 10**60:  # str() refuses thousands of digits
        return "a number of more than 60 digits"
    return shown(repr(value) if isinstance(value, str) else value, 60)


def _fields_at(record_type: type[BaseModel], path: Sequence[object]) -> tuple[str, ...]:
    """Return the field names of the record that `path` leads to from `record_type`."""
    for part in path:
        field = record_type.model_fields.get(str(part))
        nested = _record_in(field.annotation) if field else None
        record_type = nested or record_type  # a number in the path is an item of a list
    return tuple(record_type.model_fields)


def _record_in(annotation: object) -> type[BaseModel] | None:
    """Return the record inside `Record | None`, `tuple[Record, ...]` and the like."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next(filter(None, map(_record_in, get_args(annotation))), None)


def _refuse_booleans_as_numbers(
    given: object, taken: object, origin: str, path: tuple[str, ...]
) -> None:
    """Refuse `layers: true`, which pydantic takes for 1."""
    if isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        word = _value(given)
        raise SpecError(
            f"{origin}: field '{'.'.join(path)}': {word} is not allowed, must be a number"
        )
    if isinstance(given, Mapping):
        for name, value in given.items():
            inner = taken.get(name) if isinstance(taken, dict) else getattr(taken, name, None)
            _refuse_booleans_as_numbers(value, inner, origin, (*path, str(name)))
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for index, pair in enumerate(zip(given, taken, strict=False)):
            _refuse_booleans_as_numbers(*pair, origin, (*path, str(index)))


def read_text(path: Path, origin: str) -> str:
    """Return what a regular UTF-8 file of at most `MAX_FILE_BYTES` holds; SpecError for others."""
    raw = _read_bytes(path, origin)
    if b"\0" in raw:
        raise SpecError(f"{origin} is a binary file; a spec is a text file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{origin} is not UTF-8 text: byte {error.start} is invalid") from None


def _read_bytes(path: Path, origin: str) -> bytes:
    """Return the bytes of a regular file of bounded size; looks before it opens."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise SpecError(f"{origin} is a directory; a spec is a file")
        if not stat.S_ISREG(found.st_mode):
            raise SpecError(f"{origin} is not a regular file")
        if found.st_size > MAX_FILE_BYTES:
            _refuse_size(origin, f"{found.st_size:,} bytes")
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(f"{origin}: no such file") from None
    except OSError as error:
        raise SpecError(f"{origin} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise SpecError(f"{origin} cannot be read: {error}") from None
    if len(raw) > MAX_FILE_BYTES:  # it grew, or lies about its size as files under /proc do
        _refuse_size(origin, f"more than {MAX_FILE_BYTES:,} bytes")
    return raw


def _refuse_size(origin: str, size: str) -> NoReturn:
    raise SpecError(f"{origin} is {size} long; a spec holds at most {MAX_FILE_BYTES:,} bytes")


def _kind(data: object) -> str:
    names = {list: "list", str: "text", bool: "true/false value", type(None): "null"}
    return names.get(type(data), "number")

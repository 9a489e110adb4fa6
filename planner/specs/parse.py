"""Plain YAML and JSON text to data, and nothing that could surprise.

Spec files come from strangers, so this takes the part of YAML that specs need (mappings, lists,
scalars of the YAML 1.2 core schema) and refuses the rest: aliases (a few hundred bytes of them
expand to gigabytes), tags, duplicate fields, several documents. It builds from parser events
rather than through `yaml.safe_load`, which resolves `no`, `12:30` and `2021-04-09` into booleans,
numbers and dates and leaves `1e12` a string.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

from planner.errors import SpecError

MAX_DEPTH = 32
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML was built with it

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}


def shown(value: object, limit: int = 200) -> str:
    """Return `value` as text that is safe to print: no control characters, not overlong."""
    text = str(value)
    text = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- JSON ---------------------------------------------------------------------------------------


def parse_json(text: str, origin: str) -> Any:
    """Return what JSON text holds; raise SpecError, naming `origin`, for what is not plain."""
    if not text.strip():
        return None

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(items)
        if len(mapping) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise SpecError(f"{origin}: field '{shown(twice, 60)}' stands twice in one mapping")
        return mapping

    def constant(word: str) -> NoReturn:
        _refuse_number(word, origin)

    def number(word: str) -> float:
        return _finite(word, origin)

    def integer(word: str) -> int:
        return _integer(word, origin)

    try:
        data = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_constant=constant,
            parse_float=number,
            parse_int=integer,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise SpecError(f"{origin} is not valid JSON: {error.msg} at {where}") from None
    return _bounded(data, origin)


def _bounded(data: Any, origin: str) -> Any:
    """Return `data` unless it is nested deeper than `MAX_DEPTH`."""
    level, depth = [data], 0
    while level := [
        child
        for node in level
        if isinstance(node, dict | list)
        for child in (node.values() if isinstance(node, dict) else node)
    ]:
        depth += 1
        if depth > MAX_DEPTH:
            raise SpecError(f"{origin}: nested too deeply; at most {MAX_DEPTH} levels")
    return data


# --- YAML ---------------------------------------------------------------------------------------


def parse_yaml(text: str, origin: str) -> Any:
    """Return what one YAML document holds; raise SpecError as `parse_json` does."""
    try:
        events = (e for e in yaml.parse(text, Loader=_LOADER) if not _is_stream_edge(e))
        return _document(events, origin)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{origin} is not valid YAML: {error.problem}{where}") from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", "it cannot be parsed")
        raise SpecError(f"{origin} is not valid YAML: {reason}") from None


def _is_stream_edge(event: yaml.Event) -> bool:
    return isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent)


def _document(events: Iterator[yaml.Event], origin: str) -> Any:
    """Return the one document of a stream, or None when there is none."""
    if next(events, None) is None:
        return None
    data = _node(next(events), events, origin, 0)
    next(events)  # the document's end
    if second := next(events, None):
        raise SpecError(f"{origin}{_line(second)}: a second document; a spec file holds one")
    return data


def _node(event: yaml.Event, events: Iterator[yaml.Event], origin: str, depth: int) -> Any:
    """Return the value that starts with `event`, taking what belongs to it from `events`."""
    _refuse_extras(event, origin)
    if depth > MAX_DEPTH:
        raise SpecError(f"{origin}{_line(event)}: nested too deeply; at most {MAX_DEPTH} levels")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event, origin)
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events, origin, depth)
    items = []
    while not isinstance(item := next(events), yaml.SequenceEndEvent):
        items.append(_node(item, events, origin, depth + 1))
    return items


def _mapping(events: Iterator[yaml.Event], origin: str, depth: int) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        _refuse_extras(key, origin)
        if not isinstance(key, yaml.ScalarEvent):
            raise SpecError(f"{origin}{_line(key)}: a field's name must be plain text")
        if key.value in mapping:
            name = shown(key.value, 60)
            raise SpecError(f"{origin}{_line(key)}: field '{name}' stands twice in one mapping")
        mapping[key.value] = _node(next(events), events, origin, depth + 1)
    return mapping


def _refuse_extras(event: yaml.Event, origin: str) -> None:
    """Refuse anchors, aliases and tags: specs have no use for them, attacks do."""
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise SpecError(
            f"{origin}{_line(event)}: YAML anchors and aliases (&name, *name) are not allowed",
            hint="write the value out, or put it in quotes if the & or * belongs to it",
        )
    if getattr(event, "tag", None):
        tag = shown(getattr(event, "tag", ""), 60)
        raise SpecError(f"{origin}{_line(event)}: YAML tags ({tag}) are not allowed")


def _scalar(event: yaml.ScalarEvent, origin: str) -> Any:
    """Return a scalar by the YAML 1.2 core schema; what is quoted is text."""
    text = event.value
    if not event.implicit[0]:
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    where = origin + _line(event)
    if _INT.fullmatch(text):
        return _integer(text, where)
    if _FLOAT.fullmatch(text):
        return _finite(text, where)
    if _NOT_FINITE.fullmatch(text):
        _refuse_number(text, where)
    return text


def _line(event: yaml.Event) -> str:
    return f", line {event.start_mark.line + 1}" if event.start_mark else ""


# --- numbers ------------------------------------------------------------------------------------


def _integer(text: str, origin: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:  # thousands of digits, which Python refuses to convert
        raise SpecError(f"{origin}: a number of {len(text):,} digits is too long") from None


def _finite(text: str, origin: str) -> float:
    value = float(text.replace("_", ""))
    if not math.isfinite(value):
        _refuse_number(text, origin)
    return value


def _refuse_number(text: str, origin: str) -> NoReturn:
    raise SpecError(f"{origin}: {shown(text, 60)} is not a number that a spec may hold")

"""YAML that every reader takes the same way: strings always quoted, floats with dot and exponent.

YAML 1.1 readers (PyYAML) and 1.2 readers (Go's, so Kubernetes') disagree about bare `no`, `012`,
`1e-5` and dates. Quoted strings, plain integers, and floats like 1.0e-05 mean the same to both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

NOT_STRINGS = frozenset(["true", "false", "yes", "no", "on", "off", "y", "n", "null"])
"""Words that YAML 1.1 reads as something else when they stand bare."""


def yaml_text(data: Mapping[str, Any]) -> str:
    """Return the mapping as YAML; values are mappings, lists, strings, numbers, bools or None."""
    return "".join(f"{line}\n" for line in _mapping(data))


def _mapping(data: Mapping[str, Any]) -> Iterator[str]:
    for key, value in data.items():
        yield from _entry(f"{_key(key)}:", value, indent="  ")


def _entry(head: str, value: Any, *, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield head
        yield from (indent + line for line in _mapping(value))
    elif isinstance(value, list | tuple) and value:
        yield head
        for item in value:
            yield from (indent + line for line in _item(item))
    else:
        yield f"{head} {_scalar(value)}"


def _item(item: Any) -> Iterator[str]:
    """Yield one entry of a list; a mapping starts on the line of its dash."""
    if isinstance(item, Mapping) and item:
        for number, line in enumerate(_mapping(item)):
            yield ("  " if number else "- ") + line
    elif isinstance(item, Mapping | list | tuple) and item:
        raise TypeError("a list within a list has no use here")
    else:
        yield f"- {_scalar(item)}"


def _key(key: str) -> str:
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", key) and key.lower() not in NOT_STRINGS
    return key if plain else _quoted(key)


def _scalar(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return _number(value)
        case str():
            return _quoted(value)
        case _ if not value:
            return "{}" if isinstance(value, Mapping) else "[]"
    raise TypeError(f"{type(value).__name__} has no YAML form here")


def _number(value: float) -> str:
    """Return a float that YAML 1.1 and 1.2 both take as one: 3.0e-04."""
    text = repr(float(value))
    if "e" not in text:
        return text
    digits, exponent = text.split("e")
    return f"{digits if '.' in digits else digits + '.0'}e{int(exponent):+03d}"


def _quoted(text: str) -> str:
    """Return a double-quoted string; what YAML does not call printable is escaped."""
    plain = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else _escape(c) for c in plain)


def _escape(character: str) -> str:
    return f"\\U{ord(character):08x}"

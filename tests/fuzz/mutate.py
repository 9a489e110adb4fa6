"""Damage to texts, JSON trees and argument lists, all from one random generator."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

WORDS = (
    *("0", "-1", "1", "7", "64", "1e9", "1e308", "1e309", "NaN", ".nan", "inf", "-0", "0x10"),
    *("1_0", "9" * 25, "9" * 5000, "1" + "0" * 30, "1.5", "true", "null", "~", "", " ", "[]", "{}"),
    *("[[[[", "&a", "*a", "!!python/x", "---", "...", "\x00", "\x1b[31m", "\x07", "\u202e"),
    *("\ufeff", "é", "漢字", "\U0001d54f", "\ud7ff", "\r\n", "\t", "'", '"', "\\", "`id`"),
    *("$(id)", "${X}", "%s", "{0}", "../../etc/passwd", "/dev/null", ",", ":", "=", "|", ".."),
    *("#", "tp=", "=8", "node[001-999999999]", "node[9-1]", "[", "a" * 3000, "-", "--", "--json"),
    *("bf16", "full", "none"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1.5, 1e300, -1e300, 1e-300, 10**9, 10**30, "", "x"),
    *("tp=8", [], {}, [None], [1, 2], {"a": 1}, "\x00", "\x1b[2J", "漢字", "a" * 1000, ["a"] * 50),
)


def text(rng: random.Random, source: str) -> str:
    """Return `source` with one to four damages."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        source = rng.choice(TEXTS)(rng, source)
    return source[:200_000]


def _at(rng: random.Random, source: str) -> tuple[int, int]:
    first = rng.randrange(len(source) + 1)
    return first, min(len(source), first + rng.choice((1, 1, 3, 10, 100)))


def _cut(rng: random.Random, source: str) -> str:
    first, last = _at(rng, source)
    return source[:first] + source[last:]


def _end(rng: random.Random, source: str) -> str:
    return source[: rng.randrange(len(source) + 1)]


def _double(rng: random.Random, source: str) -> str:
    first, last = _at(rng, source)
    return source[:last] + source[first:last] * rng.choice((1, 2, 200)) + source[last:]


def _insert(rng: random.Random, source: str) -> str:
    first, _ = _at(rng, source)
    return source[:first] + rng.choice(WORDS) + source[first:]


def _replace(rng: random.Random, source: str) -> str:
    """Replace one word of the text, numbers first."""
    spans = list(_words(source))
    if not spans:
        return rng.choice(WORDS)
    first, last = rng.choice(spans)
    return source[:first] + rng.choice(WORDS) + source[last:]


def _words(source: str) -> Iterator[tuple[int, int]]:
    start = None
    for index, letter in enumerate(source + " "):
        if letter.isalnum() or letter in "._-":
            start = index if start is None else start
        elif start is not None:
            yield start, index
            start = None


def _swap(rng: random.Random, source: str) -> str:
    lines = source.splitlines(keepends=True)
    if len(lines) > 1:
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[a], lines[b] = lines[b], lines[a]
    return "".join(lines)


def _line(rng: random.Random, source: str) -> str:
    lines = source.splitlines(keepends=True) or [""]
    chosen = rng.randrange(len(lines))
    again = lines[chosen] if rng.random() < 0.5 else ""
    return "".join((*lines[:chosen], again, again, *lines[chosen + 1 :]))


TEXTS = (_cut, _end, _double, _insert, _replace, _replace, _replace, _swap, _line)


def blob(rng: random.Random, source: bytes) -> bytes:
    """Return bytes with some of them changed: no text any more, perhaps."""
    data = bytearray(source)
    for _ in range(rng.choice((1, 2, 8, 64))):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def tree(rng: random.Random, data: Any) -> Any:
    """Return a JSON tree with one to three nodes replaced, dropped or doubled."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _damage(rng, data)
    return data


def _damage(rng: random.Random, data: Any) -> None:
    holders = [node for node in _nodes(data) if isinstance(node, dict | list) and node]
    if not holders:
        return
    holder = rng.choice(holders[: rng.choice((5, 50, 5000))])
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    key = rng.choice(list(keys))
    match rng.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("x", "", "schema", "layers", str(key) + "s"))] = holder[key]
        case 2 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = rng.choice(
                (0, -1, 1, 3, holder[key] * 2, holder[key] * 1000, -holder[key])
            )
        case _:
            holder[key] = copy.deepcopy(rng.choice(VALUES))


def _nodes(data: Any) -> Iterator[Any]:
    level = [data]
    while level:
        yield from level
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]


def words(rng: random.Random, source: list[str]) -> list[str]:
    """Return an argument list with words changed, dropped, doubled, moved or made up."""
    out = list(source)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0 if out:
                del out[min(place, len(out) - 1)]
            case 1 if out:
                out[min(place, len(out) - 1)] = rng.choice(WORDS)
            case 2 if out:
                place = min(place, len(out) - 1)
                out[place] = text(rng, out[place])
            case 3:
                out.insert(place, rng.choice((*WORDS, *out)))
            case _:
                rng.shuffle(out)
    return [word.replace("\x00", "\\0").encode("utf-8", "replace").decode() for word in out]

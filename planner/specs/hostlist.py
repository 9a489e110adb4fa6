"""Host lists as Slurm writes them: `tux[0-3,12],login1` to names.

Written anew rather than asked of `scontrol show hostnames`: the planner runs where no Slurm is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
MOST_HOSTS = 262_144
"""Longest list that one expression may make; twice the largest cluster."""

_PIECE = re.compile(r"([^\[\],\s]*)\[([^\[\]]*)\]")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def expand(text: str) -> list[str]:
    """Return the hosts of an expression, in its order: `n[08-10,3]` is n08 n09 n10 n3.

    Several brackets in a name multiply, the last one fastest; a low end with leading zeros sets the
    width. Raises ValueError, naming the part, for what is no such expression.
    """
    out: list[str] = []
    for word in words(text):
        names = _names(word)
        out += itertools.islice(names, MOST_HOSTS + 1 - len(out))
        if len(out) > MOST_HOSTS:
            raise ValueError(f"{word[:80]!r} makes more than {MOST_HOSTS:,} hosts")
    if odd := next((name for name in out if not HOSTNAME.fullmatch(name)), None):
        raise ValueError(f"{odd[:80]!r} is not a hostname")
    return out


def words(text: str) -> Iterator[str]:
    """Yield the parts between commas and blanks that stand outside brackets."""
    word, depth = "", 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if depth not in (0, 1):
            raise ValueError(f"brackets do not match in {text[:80]!r}")
        if depth == 0 and (character == "," or character.isspace()):
            yield from filter(None, [word])
            word = ""
        else:
            word += character
    if depth:
        raise ValueError(f"brackets do not match in {text[:80]!r}")
    yield from filter(None, [word])


def _names(word: str) -> Iterator[str]:
    """Return the names that one word makes, lazily: a few brackets can ask for billions."""
    choices: list[list[str]] = []
    at, count = 0, 1
    for piece in _PIECE.finditer(word):
        if piece.start() != at:
            break
        choices += [[piece[1]], _numbers(piece[2], word)]
        count, at = count * len(choices[-1]), piece.end()
        if count > MOST_HOSTS:
            raise ValueError(f"{word[:80]!r} makes more than {MOST_HOSTS:,} hosts")
    rest = word[at:]
    if "[" in rest or "]" in rest:
        raise ValueError(f"{word[:80]!r} is not a host expression")
    return map("".join, itertools.product(*choices, [rest]))


def _numbers(text: str, word: str) -> list[str]:
    """Return `0-3,12` as 0 1 2 3 12."""
    out: list[str] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        if not found:
            raise ValueError(f"{part[:40]!r} in {word[:80]!r} is not a number or a range")
        low, high = found[1], found[2] or found[1]
        if int(low) > int(high):
            raise ValueError(f"range {part[:40]!r} in {word[:80]!r} runs backwards")
        if int(high) - int(low) >= MOST_HOSTS:
            raise ValueError(f"{word[:80]!r} makes more than {MOST_HOSTS:,} hosts")
        out += [f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)]
    return out

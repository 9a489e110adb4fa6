"""Amounts as people type them: 15T tokens, 2M dollars, 30d, 20s, 8..128, 8,16,32."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from planner.errors import SpecError
from planner.units import MOST, share_of, tokens_of

SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
NUMBER = r"\d{1,30}(?:\.\d{1,30})?(?:[eE][+-]?\d{1,3})?"
MOST_LISTED = 131_072
"""As many nodes as a cluster may have."""


def amount(text: str, *, option: str, example: str) -> float:
    """Return '15T' as 15e12; SpecError for what is no positive amount."""
    found = re.fullmatch(rf"({NUMBER})\s*([kKmMbBgGtT]?)", text.strip())
    size = float(found[1]) * SIZES[found[2].lower()] if found else 0.0
    if not 0 < size < 1e30:
        raise SpecError(
            f"{option}: {text[:80]!r} is not an amount above 0 and below 1e30",
            hint=f"write {option} {example}; k, M, B and T are thousands to trillions",
        )
    return size


def duration_s(text: str, *, option: str, example: str) -> float:
    """Return '30d' as seconds; a bare number is seconds. SpecError for what is none."""
    found = re.fullmatch(rf"({NUMBER})\s*(ms|s|min|m|h|d|w|)", text.strip())
    size = float(found[1]) * SECONDS[found[2] or "s"] if found else 0.0
    if not 0 < size < 1e30:
        raise SpecError(
            f"{option}: {text[:80]!r} is not a duration above 0 and below 1e30 s",
            hint=f"write {option} {example}; units: ms, s, m, h, d, w",
        )
    return size


def tokens(text: str) -> int:
    """Return '8192' or '8k' as 8192; SpecError for what is no length of a sequence."""
    found = tokens_of(str(text))
    if found is None or found > MOST:
        raise SpecError(
            f"--seq: {str(text)[:80]!r} is not allowed, must be from 1 to {MOST:,} tokens",
            hint="write --seq 8192 or --seq 8k",
        )
    return found


def share(option: str) -> Callable[[str], float]:
    """Return a reader of '0.9' or '90%' as 0.9; the range is the workload's question."""

    def read(text: str) -> float:
        found = share_of(str(text))
        if found is None:
            raise SpecError(
                f"{option}: {str(text)[:80]!r} is not allowed, must be a share of a GPU's memory",
                hint=f"write {option} 0.9 or {option} 90%",
            )
        return found

    return read


def whole(option: str, least: int = 1, most: int | None = None) -> Callable[[Any], int]:
    """Return a reader of whole numbers, as text or as they are; SpecError for any other."""
    span = f" from {least} to {most:,}" if most is not None else ""

    def read(value: Any) -> int:
        found = _whole_number(value)
        if found is None or (most is not None and not least <= found <= most):
            told = _typed(value if found is None else found)
            raise SpecError(f"{option}: {told} is not allowed, must be a whole number{span}")
        return found

    return read


def _whole_number(value: Any) -> int | None:
    """Return 8, '8' and 8.0 as 8; None for what is none, True among it."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,30}\s*", value) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return operator.index(value)
    except TypeError:
        return None


def number(option: str) -> Callable[[Any], float]:
    """Return a reader of numbers, as text or as they are; SpecError for what is none."""

    def read(value: Any) -> float:
        try:
            if isinstance(value, bool | bytes):
                raise TypeError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise SpecError(f"{option}: {_typed(value)} is not allowed, must be a number") from None

    return read


def _typed(value: Any) -> str:
    """Return a value for a message: text in quotes, nothing overlong."""
    if isinstance(value, int) and abs(value) >= 10**60:  # repr refuses thousands of digits
        return "a number of more than 60 digits"
    return repr(value[:80]) if isinstance(value, str) else repr(value)[:80]


def counts(text: str, *, option: str, doubling: bool = False) -> tuple[int, ...]:
    """Return "8..12,16" as (8, 9, 10, 11, 12, 16); with `doubling` "8..32" is (8, 16, 32).

    Raises SpecError for what is no list of counts, and for a range that is empty.
    """
    found: set[int] = set()
    most = MOST if doubling else MOST_LISTED
    for part in re.split(r"[|,]", text):
        low, dots, high = part.partition("..")
        first = _count(low, option, text, most)
        last = _count(high, option, text, most) if dots else first
        if first > last:
            raise SpecError(f"{option}: {part.strip()!r} is empty ({first} is more than {last})")
        while first <= last:
            found.add(first)
            first = first * 2 if doubling else first + 1
    return tuple(sorted(found))


def _count(word: str, option: str, text: str, most: int) -> int:
    word = word.strip().lstrip("0")
    if not (word.isascii() and word.isdigit()):
        raise SpecError(
            f"{option}: {text[:80]!r} is not allowed, must be a whole number above zero, a list "
            "(8,16) or a range (8..32)"
        )
    if len(word) > len(str(most)) or int(word) > most:
        raise SpecError(f"{option}: {word[:40]} is more than {most:,}")
    return int(word)

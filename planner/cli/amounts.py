"""Amounts as people type them: 15T tokens, 2M dollars, 30d, 20s, 8..128, 8,16,32."""

from __future__ import annotations

import re
from collections.abc import Callable

from planner.errors import SpecError
from planner.units import share_of, tokens_of

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
            f"{option}: {text[:80]!r} is not an amount above zero",
            hint=f"write {option} {example}; k, M, B and T are thousands to trillions",
        )
    return size


def duration_s(text: str, *, option: str, example: str) -> float:
    """Return '30d' as seconds; a bare number is seconds. SpecError for what is none."""
    found = re.fullmatch(rf"({NUMBER})\s*(ms|s|min|m|h|d|w|)", text.strip())
    size = float(found[1]) * SECONDS[found[2] or "s"] if found else 0.0
    if not 0 < size < 1e30:
        raise SpecError(
            f"{option}: {text[:80]!r} is not a duration above zero",
            hint=f"write {option} {example}; units: ms, s, m, h, d, w",
        )
    return size


def tokens(text: str) -> int:
    """Return '8192' or '8k' as 8192; SpecError for what is no length of a sequence."""
    found = tokens_of(str(text))
    if found is None:
        raise SpecError(
            f"--seq: {str(text)[:80]!r} is not allowed, must be a number of tokens above zero",
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


def counts(text: str, *, option: str, doubling: bool = False) -> tuple[int, ...]:
    """Return "8..12,16" as (8, 9, 10, 11, 12, 16); with `doubling` "8..32" is (8, 16, 32).

    Raises SpecError for what is no list of counts, and for a range that is empty.
    """
    found: set[int] = set()
    for part in re.split(r"[|,]", text):
        low, dots, high = part.partition("..")
        first = _count(low, option, text)
        last = _count(high, option, text) if dots else first
        if first > last:
            raise SpecError(f"{option}: {part.strip()!r} is empty ({first} is more than {last})")
        if last > MOST_LISTED and not doubling:
            raise SpecError(f"{option}: {last} is more than {MOST_LISTED:,}")
        while first <= last:
            found.add(first)
            first = first * 2 if doubling else first + 1
    return tuple(sorted(found))


def _count(word: str, option: str, text: str) -> int:
    word = word.strip()
    if not (word.isascii() and word.isdigit() and len(word) <= 9 and int(word)):
        raise SpecError(
            f"{option}: {text[:80]!r} is not allowed, must be a whole number above zero, a list "
            "(8,16) or a range (8..32)"
        )
    return int(word)

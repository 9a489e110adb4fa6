"""Units: bytes, seconds and FLOPs as people write and read them."""

from __future__ import annotations

import re

GIB = 1024**3
MIB = 1024**2
GB = 10**9
TERA = 10**12
MOST = 100_000_000
"""Tokens of a sequence, and sequences of a step, at most."""


def gib(amount_bytes: float) -> str:
    """Return bytes as GiB with two digits: `gib(2**31)` is '2.00 GiB'."""
    return f"{amount_bytes / GIB:.2f} GiB"


def decimal_bytes(amount_bytes: float) -> str:
    """Return bytes with a decimal prefix: `decimal_bytes(2e12)` is '2.00 TB'."""
    for size, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(amount_bytes) >= size:
            return f"{amount_bytes / size:.2f} {name}"
    return f"{amount_bytes:.0f} B"


def seconds(amount_s: float) -> str:
    """Return a duration in the unit that reads best: '12.3 s', '4.56 ms', '7.8 us'."""
    if abs(amount_s) >= 1:
        return f"{amount_s:.2f} s" if abs(amount_s) < 100 else f"{amount_s:.0f} s"
    if abs(amount_s) >= 1e-3:
        return f"{amount_s * 1e3:.2f} ms"
    return f"{amount_s * 1e6:.1f} us"


def count(amount: float) -> str:
    """Return a count with a short suffix: `count(405_853_388_800)` is '405.85B'."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= size:
            return f"{amount / size:.2f}{name}"
    return f"{amount:.0f}"


def figure(amount: float) -> str:
    """Return five significant digits, thousands apart, never an exponent: '718,480', '0.123'."""
    if abs(amount) >= 1e4:
        return f"{amount:,.0f}"
    return f"{amount:,.5g}"


def many(number: int, word: str, plural: str = "") -> str:
    """Return a count of things: `many(1, 'node')` is '1 node', `many(2, 'node')` '2 nodes'."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


TOKENS = r"([0-9]{1,12})\s*([kKmM]?)"
SHARE = r"(-?[0-9]{1,30}(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?)\s*(%?)"


def tokens_of(text: str) -> int | None:
    """Return '8192', '8k' or '8K' as 8192, None for what is none: lengths have binary thousands."""
    found = re.fullmatch(TOKENS, text.strip())
    if not found or not int(found[1]):
        return None
    return int(found[1]) * {"": 1, "k": 1024, "m": 1024**2}[found[2].lower()]


def share_of(text: str) -> float | None:
    """Return '0.9' or '90%' as 0.9, None for what is neither."""
    found = re.fullmatch(SHARE, text.strip())
    return float(found[1]) / (100.0 if found[2] else 1.0) if found else None

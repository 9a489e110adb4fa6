"""Fields of a row: what they hold, or the sentence that says what is missing."""

from __future__ import annotations

from collections.abc import Mapping

MOST = 100_000_000
"""Above any size that a run can have."""


class NotStatedError(Exception):
    """The row lacks something; the message names the field."""


def whole(row: Mapping[str, str], name: str, blank: int | None = None) -> int:
    """Return a whole number of the row; raises NotStatedError when blank or no number."""
    text = row.get(name, "")
    if not text:
        if blank is None:
            raise NotStatedError(f"{name}: not stated")
        return blank
    try:
        value = float(text)
        if value != int(value) or not 0 <= value <= MOST:
            raise ValueError
    except (ValueError, OverflowError):
        raise NotStatedError(f"{name}: {text[:40]!r} is not a whole number") from None
    return int(value)

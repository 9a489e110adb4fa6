"""Text that is safe on a terminal, whatever a spec file or a file name holds."""

from __future__ import annotations

LONGEST = 2000
"""Characters of one message; the rest of a pasted megabyte helps nobody."""


def printable(text: str, *, longest: int = LONGEST) -> str:
    """Return `text` without control characters (escape sequences, bells), cut to `longest`."""
    short = text if len(text) <= longest else text[:longest] + "..."
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in short)

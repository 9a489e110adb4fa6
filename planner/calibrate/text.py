"""Measurement files as text: bounded in size, decoded as far as they can be, never trusted."""

from __future__ import annotations

import gzip
import stat
import zlib
from pathlib import Path

from planner.errors import SpecError
from planner.specs.parse import shown

MOST_LOG_BYTES = 64 * 2**20
MOST_LINE = 4000
"""Characters of a line that are looked at: no line of a log that matters is longer."""
_GZIP = b"\x1f\x8b"


def bytes_of(path: Path, *, most: int = MOST_LOG_BYTES) -> bytes:
    """Return the bytes of a regular file, unpacked where it is gzip; at most `most` of them.

    Raises SpecError, naming the file, for what cannot be read or is larger.
    """
    origin = shown(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SpecError(f"{origin} is not a regular file")
        with path.open("rb") as file:
            raw = file.read(most + 1)
        if raw.startswith(_GZIP):
            with gzip.open(path, "rb") as packed:
                raw = packed.read(most + 1)
    except FileNotFoundError:
        raise SpecError(f"{origin}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SpecError(f"{origin} cannot be unpacked: {error}") from None
    except OSError as error:
        raise SpecError(f"{origin} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise SpecError(f"{origin} cannot be read: {error}") from None
    if len(raw) > most:
        raise SpecError(f"{origin}: larger than {most // 2**20:,} MiB")
    return raw


def lines_of(path: Path) -> list[str]:
    """Return the lines of a log; bytes that are no UTF-8 stand as replacement characters."""
    text = bytes_of(path).decode("utf-8-sig", errors="replace")
    return [line[:MOST_LINE] for line in text.splitlines()]

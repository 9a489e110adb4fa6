"""A CSV table of timed matrix multiplies, whatever its columns are called."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planner.calibrate.text import bytes_of
from planner.errors import SpecError, did_you_mean
from planner.specs.parse import shown

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

SIZES = {"m": ("m",), "n": ("n",), "k": ("k",)}
TIMES: dict[str, float] = {
    **dict.fromkeys(("seconds", "time_s", "s", "time_sec", "duration_s"), 1.0),
    **dict.fromkeys(("time_ms", "ms", "milliseconds", "duration_ms"), 1e-3),
    **dict.fromkeys(("time_us", "us", "microseconds", "usec", "duration_us"), 1e-6),
    **dict.fromkeys(("time_ns", "ns", "nanoseconds", "duration_ns"), 1e-9),
}
"""Column -> seconds of its unit."""
RATES: dict[str, float] = {
    **dict.fromkeys(("tflops", "tflops/s", "tflop/s", "tflop_s", "tflops_per_s"), 1e12),
    **dict.fromkeys(("gflops", "gflops/s", "gflop/s", "gflops_per_s"), 1e9),
}
DTYPES = ("dtype", "type", "precision", "datatype")
PRECISIONS: dict[str, str] = {
    **dict.fromkeys(("bf16", "bfloat16", "torch.bfloat16"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "half", "f16", "torch.float16"), "fp16"),
    **dict.fromkeys(("fp8", "fp8_e4m3", "float8_e4m3fn", "e4m3", "torch.float8_e4m3fn"), "fp8"),
}
MOST_ROWS = 100_000
MOST_SIZE = 2**31


@dataclass(frozen=True)
class Multiply:
    """One timed multiply of (m, k) with (k, n)."""

    m: int
    n: int
    k: int
    precision: str
    seconds: float


@dataclass(frozen=True)
class Multiplies:
    """What a table held, and what of it was left out."""

    rows: tuple[Multiply, ...]
    warnings: tuple[str, ...] = ()


def read_multiplies(path: Path) -> Multiplies:
    """Return the multiplies of a CSV file.

    Raises SpecError, naming the file and a line, where a column is missing or no row can be used.
    """
    origin = shown(path)
    text = bytes_of(path).decode("utf-8-sig", errors="replace").replace("\0", "")
    try:
        reader = csv.reader(io.StringIO(text, newline=""))
        head = [cell.strip().lower() for cell in next(reader, [])]
        columns = _columns(head, origin)
        found, bad = _rows(reader, columns)
    except csv.Error as error:
        raise SpecError(f"{origin}: not a CSV table ({error})") from None
    if not found:
        line, reason = bad[0] if bad else (1, "the table is empty")
        raise SpecError(f"{origin}, line {line}: no multiply can be used: {reason}")
    said = [f"{origin}: {len(bad)} rows left out; line {bad[0][0]}: {bad[0][1]}"] if bad else []
    return Multiplies(tuple(found), tuple(said))


def _columns(head: Sequence[str], origin: str) -> dict[str, tuple[int, float]]:
    """Return where sizes, dtype and time (or rate) stand, and the unit of the last two."""
    at: dict[str, tuple[int, float]] = {}
    for i, name in enumerate(head):
        key = name.replace(" ", "_").strip("()")
        if key in SIZES:
            at.setdefault(key, (i, 1.0))
        elif key in DTYPES:
            at.setdefault("dtype", (i, 1.0))
        elif key in TIMES:
            at.setdefault("time", (i, TIMES[key]))
        elif key in RATES:
            at.setdefault("rate", (i, RATES[key]))
    missing = [name for name in SIZES if name not in at]
    if "time" not in at and "rate" not in at:
        missing.append("seconds (or time_us, time_ms, tflops)")
    if missing:
        near = did_you_mean(missing[0], [name for name in head if name])
        raise SpecError(f"{origin}, line 1: columns missing: {', '.join(missing)}", hint=near)
    return at


def _rows(
    reader: CsvReader, at: Mapping[str, tuple[int, float]]
) -> tuple[list[Multiply], list[tuple[int, str]]]:
    found: list[Multiply] = []
    bad: list[tuple[int, str]] = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        line = reader.line_num
        try:
            found.append(_multiply(row, at))
        except (ValueError, IndexError, OverflowError) as error:
            bad.append((line, str(error) or "a cell is missing"))
        if len(found) + len(bad) >= MOST_ROWS:
            bad.append((line, f"only {MOST_ROWS:,} rows are read"))
            break
    return found, bad


def _multiply(row: Sequence[str], at: Mapping[str, tuple[int, float]]) -> Multiply:
    m, n, k = (_size(row[at[name][0]], name) for name in SIZES)
    dtype = row[at["dtype"][0]].strip().lower() if "dtype" in at else "bf16"
    precision = PRECISIONS.get(dtype)
    if precision is None:
        raise ValueError(f"dtype {shown(dtype, 30)!r} is not bf16, fp16 or fp8")
    if "time" in at:
        seconds = _positive(row[at["time"][0]], "time") * at["time"][1]
    else:
        seconds = 2.0 * m * n * k / (_positive(row[at["rate"][0]], "rate") * at["rate"][1])
    if not 1e-9 < seconds < 3600:
        raise ValueError(f"{seconds:g} s is no time of a multiply")
    return Multiply(m, n, k, precision, seconds)


def _size(text: str, name: str) -> int:
    value = _positive(text, name)
    if value != int(value) or value > MOST_SIZE:
        raise ValueError(f"{name}: {shown(text.strip(), 30)!r} is not a size")
    return int(value)


def _positive(text: str, name: str) -> float:
    try:
        value = float(text.strip()[:40])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: {shown(text.strip(), 30)!r} is not a positive number")
    return value

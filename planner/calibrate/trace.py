"""Kernels of PyTorch's profiler (Kineto's Chrome trace) and of Nsight Systems' SQLite export."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from planner.calibrate.kernels import Activity, Kernel, activity_of
from planner.calibrate.text import bytes_of
from planner.errors import SpecError
from planner.specs.parse import shown

MOST_TRACE_BYTES = 512 * 2**20
MOST_KERNELS = 5_000_000
KERNEL_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
_SQLITE = b"SQLite format 3\0"
_SQLITE_STEPS = 200_000_000
"""Instructions of SQLite's machine after which a hostile file is given up."""


def read_profile(path: Path) -> Activity:
    """Return the kernels of a profile.

    Raises SpecError, naming the file, for what is neither a trace nor an export, or has no kernel.
    """
    origin = shown(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SpecError(f"{origin} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise SpecError(f"{origin} cannot be read: {error}") from None
    kernels = _from_sqlite(path, origin) if head == _SQLITE else _from_trace(path, origin)
    kernels = [k for k in kernels if k.seconds > 0]
    if not kernels:
        raise SpecError(
            f"{origin}: no kernel of a GPU in this profile",
            hint="record with activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]",
        )
    return activity_of(origin, kernels)


# --- Kineto -------------------------------------------------------------------------------------


def _from_trace(path: Path, origin: str) -> list[Kernel]:
    raw = bytes_of(path, most=MOST_TRACE_BYTES)
    try:
        data = json.loads(raw)
    except UnicodeDecodeError as error:
        raise SpecError(f"{origin} is not UTF-8 text: byte {error.start} is invalid") from None
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{origin}, line {error.lineno}: not a Chrome trace ({error.msg})"
        ) from None
    except (RecursionError, ValueError):
        raise SpecError(f"{origin}: not a Chrome trace that can be read") from None
    events = data.get("traceEvents") if isinstance(data, Mapping) else data
    if not isinstance(events, list):
        raise SpecError(f"{origin}: no traceEvents; is it a trace of torch.profiler?")
    plain = [e for e in events if isinstance(e, dict)]
    ops = {}
    for event in plain:
        if event.get("cat") == "cpu_op" and (key := _id(event)) is not None:
            ops[key] = event
    return [
        kernel
        for event in plain
        if event.get("cat") in KERNEL_CATEGORIES and (kernel := _kernel(event, ops))
    ][:MOST_KERNELS]


def _arguments(event: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = event.get("args")
    return arguments if isinstance(arguments, Mapping) else {}


def _id(event: Mapping[str, Any]) -> int | None:
    found = _arguments(event).get("External id")
    return found if isinstance(found, int) else None


def _kernel(event: Mapping[str, Any], ops: Mapping[int, Mapping[str, Any]]) -> Kernel | None:
    start, length = _seconds(event.get("ts")), _seconds(event.get("dur"))
    name, device = event.get("name"), _arguments(event).get("device")
    if start is None or length is None or not isinstance(name, str):
        return None
    key = _id(event)
    op = ops.get(key, {}) if key is not None else {}
    told = _arguments(op)
    types = told.get("Input type")
    return Kernel(
        name=name,
        start_s=start,
        seconds=max(length, 0.0),
        device=device if isinstance(device, int) else 0,
        op=str(op.get("name", ""))[:200],
        dims=_dims(told.get("Input Dims")),
        dtype=next((str(t) for t in types if t), "") if isinstance(types, list) else "",
        causal="True" in told.get("Concrete Inputs", ())
        if isinstance(told.get("Concrete Inputs", ()), list)
        else False,
    )


def _seconds(value: object) -> float | None:
    """Return microseconds as seconds; None for what is no finite number."""
    try:
        found = float(value) * 1e-6 if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and abs(found) < 1e12 else None


def _dims(value: object) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list):
        return ()
    return tuple(
        tuple(n for n in shape if isinstance(n, int) and 0 < n < 2**31)
        if isinstance(shape, list)
        else ()
        for shape in value[:8]
    )


# --- Nsight Systems -----------------------------------------------------------------------------

_QUERY = """
SELECT s.value, k.start, k.end, k.deviceId FROM CUPTI_ACTIVITY_KIND_KERNEL AS k
JOIN StringIds AS s ON s.id = k.demangledName LIMIT ?
"""


def _from_sqlite(path: Path, origin: str) -> list[Kernel]:
    """Return the kernels of `nsys export --type sqlite`; times there are nanoseconds."""
    place = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(place, uri=True)) as database:
            database.set_progress_handler(_counted(_SQLITE_STEPS), 10_000)
            tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
            names = {str(row[0]) for row in database.execute(tables)}
            if not {"CUPTI_ACTIVITY_KIND_KERNEL", "StringIds"} <= names:
                raise SpecError(
                    f"{origin}: no table of kernels",
                    hint="export with: nsys export --type sqlite report.nsys-rep",
                )
            rows = database.execute(_QUERY, (MOST_KERNELS,)).fetchall()
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        raise SpecError(f"{origin}: not an export of Nsight Systems ({error})") from None
    kernels = []
    for name, start, end, device in rows:
        if isinstance(start, int) and isinstance(end, int) and isinstance(device, int):
            kernels.append(Kernel(str(name), start * 1e-9, max(0, end - start) * 1e-9, device))
    return kernels


def _counted(most: int) -> Any:
    """Return a handler that stops SQLite after so many instructions."""
    left = [most // 10_000]

    def spend() -> int:
        left[0] -= 1
        return int(left[0] < 0)

    return spend

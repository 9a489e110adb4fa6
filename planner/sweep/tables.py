"""Rows as files: JSONL, CSV and Parquet with the same columns in the same order, written whole."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from planner.errors import SpecError
from planner.files import write_whole_bytes
from planner.specs.parse import shown
from planner.sweep.evaluate import Cell

Row = Mapping[str, Cell]
FORMATS = (".jsonl", ".csv", ".parquet")
EXTRA = "pip install 'meshwright[sweep]'"
MAX_FILE_BYTES = 2**30

INTEGERS = {
    *("point", "nodes", "gpus", "seq_tokens", "global_batch", "gpus_used", "splits"),
    *("tp", "pp", "vpp", "cp", "ep", "etp", "dp", "dp_replicate", "zero", "micro_batch"),
    *("num_microbatches", "layouts_enumerated", "layouts_legal", "layouts_feasible"),
}
NUMBERS = {
    *("max_memory", "risk_memory", "expert_imbalance", "capacity_factor", "step_time_s"),
    *(
        "tokens_per_s",
        "tokens_per_s_per_gpu",
        "tflops_per_gpu",
        "mfu",
        "mfu_causal",
        "bubble_fraction",
    ),
    *("memory_peak_bytes", "memory_limit_bytes", "dropped_tokens"),
}
TRUTHS = {"sp", "at_risk"}
TEXTS = {
    *("id", "status", "reason", "hint", "model", "cluster", "precision", "stack", "fix"),
    *("optimizer", "pipelines", "search"),
    *("layout", "recompute", "schedule", "offload", "dp_sync", "placement"),
}
"""Columns by what they hold; `time_s.*` are numbers, others hold what the study gave them."""
Kind = Literal["int", "float", "bool", "str"]
WORDS = {"int": "whole number", "float": "number", "bool": "truth", "str": "text"}


def format_of(out: Path) -> str:
    """Return '.jsonl', '.csv' or '.parquet'.

    Raises SpecError for another suffix, and when Parquet needs a package that is not installed.
    """
    suffix = out.suffix.lower()
    if suffix not in FORMATS:
        raise SpecError(
            f"-o: {shown(out)} ends in none of {', '.join(FORMATS)}",
            hint="the suffix is the format, such as -o out.csv",
        )
    if suffix == ".parquet":
        _pyarrow(out)
    return suffix


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow  # noqa: PLC0415  an extra
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise SpecError(
            f"{shown(path)}: Parquet needs pyarrow, which is not installed",
            hint=f"{EXTRA}, or use .csv or .jsonl",
        ) from error
    return pyarrow


def write_rows(out: Path, rows: Sequence[Row]) -> None:
    """Write the rows to `out`, whole or not at all, in the format that its suffix names.

    Raises SpecError when the file cannot be written.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    encode = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[format_of(out)]
    try:
        write_whole_bytes(out, encode(columns, rows))
    except OSError as error:
        raise SpecError(
            f"-o: {shown(out)} cannot be written ({error.strerror or error})",
            hint="finished points are kept in its journal; the same command writes it",
        ) from error


def _jsonl(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    lines = (json.dumps({c: row.get(c) for c in columns}, allow_nan=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(row.get(name)) for name in columns] for row in rows)
    return text.getvalue().encode("utf-8", errors="backslashreplace")


def _csv_cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _parquet(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    arrow = _pyarrow(Path("out.parquet"))
    arrays, fields = [], []
    for name in columns:
        values = [row.get(name) for row in rows]
        types = {"int": arrow.int64(), "float": arrow.float64(), "bool": arrow.bool_()}
        arrow_type = types.get(_kind(name, values), arrow.string())
        if arrow_type == arrow.string():
            values = [v if v is None else _utf8(v) for v in values]
        arrays.append(arrow.array(values, type=arrow_type))
        fields.append(arrow.field(name, arrow_type))
    sink = arrow.BufferOutputStream()
    arrow.parquet.write_table(arrow.table(arrays, schema=arrow.schema(fields)), sink)
    return bytes(sink.getvalue().to_pybytes())


def _utf8(value: Cell) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _kind(name: str, values: Sequence[Cell] = ()) -> Kind:
    """Return what a column holds, also where every value is missing."""
    declared: dict[Kind, set[str]] = {
        "int": INTEGERS,
        "float": NUMBERS,
        "bool": TRUTHS,
        "str": TEXTS,
    }
    for kind, names in declared.items():
        if name in names:
            return kind
    return "float" if name.startswith("time_s.") else _kind_of(values)


def _kind_of(values: Sequence[Cell]) -> Kind:
    """Return the narrowest kind that holds all values; text when there are none."""
    found = {type(v) for v in values if v is not None}
    if found == {bool}:
        return "bool"
    if found == {int} and all(abs(v) < 2**63 for v in values if isinstance(v, int)):
        return "int"
    return "float" if found and found <= {int, float} else "str"


def read_rows(path: Path) -> list[dict[str, Cell]]:
    """Return the rows of a file that a sweep wrote.

    Raises SpecError, naming the file and the line, for what is no table of a sweep.
    """
    suffix = format_of(path)
    readers: dict[str, Callable[[Path], list[dict[str, Cell]]]] = {
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    try:
        if not path.exists():
            raise SpecError(f"{shown(path)}: no such file")
        if not path.is_file():
            raise SpecError(f"{shown(path)}: is not a regular file")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise SpecError(f"{shown(path)}: {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        rows = readers[suffix](path)
    except OSError as error:
        raise SpecError(f"{shown(path)}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # NUL in the path, not UTF-8
        raise SpecError(f"{shown(path)}: cannot be read ({shown(error, 200)})") from error
    if not rows:
        raise SpecError(f"{shown(path)}: holds no rows")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("status"), str):
            raise SpecError(
                f"{shown(path)}: row {number} has no 'status'",
                hint="give a file that `meshwright sweep` wrote, or a plan",
            )
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Cell]]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                raise SpecError(
                    f"{shown(path)}, line {number}: not JSON ({shown(error, 100)})"
                ) from error
            if not isinstance(row, dict):
                raise SpecError(f"{shown(path)}, line {number}: not a row of a sweep")
            if bad := next((k for k, v in row.items() if not _is_cell(k, v)), None):
                raise SpecError(
                    f"{shown(path)}, line {number}: '{shown(bad, 60)}' holds "
                    f"{shown(json.dumps(row[bad]), 60)}, which is no {WORDS[_kind(bad)]}"
                )
            rows.append(row)
    return rows


def _no_constant(word: str) -> Cell:
    raise ValueError(f"{word} is not allowed")


def _is_cell(name: str, value: object) -> bool:
    """Return whether a column may hold `value`."""
    if value is None:
        return True
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if not isinstance(value, str | int | float):
        return False
    own, wanted = _kind_of([value]), _kind(name, [value])
    return own == wanted or (own == "int" and wanted == "float")


def _read_csv(path: Path) -> list[dict[str, Cell]]:
    csv.field_size_limit(2**20)
    with path.open(encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            return [_from_csv(row, path, reader.line_num) for row in reader]
        except csv.Error as error:
            raise SpecError(f"{shown(path)}: not CSV ({shown(error, 100)})") from error


def _from_csv(row: dict[str, str], path: Path, line: int) -> dict[str, Cell]:
    where = f"{shown(path)}, line {line}"
    if None in row or None in row.values():
        raise SpecError(f"{where}: not as many cells as the first line has columns")
    return {name: _from_text(name, text, where) for name, text in row.items()}


def _from_text(name: str, text: str, where: str) -> Cell:
    if text == "":
        return "" if name in ("reason", "hint", "fix") else None
    convert: dict[Kind, Callable[[str], Cell]] = {"int": int, "float": float, "bool": _truth}
    try:
        value = text if name in TEXTS else convert.get(_kind(name), _guess)(text)
    except (ValueError, KeyError):
        raise SpecError(f"{where}: '{shown(name, 60)}' holds {shown(text, 60)!r}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{where}: '{shown(name, 60)}' holds {shown(text, 60)!r}")
    return value


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text]


def _guess(text: str) -> Cell:
    """Return a number or a truth where the text is one; columns of the study's own hold either."""
    if text in ("true", "false"):
        return text == "true"
    for convert in (int, float):
        with contextlib.suppress(ValueError):
            return convert(text)
    return text


def _read_parquet(path: Path) -> list[dict[str, Cell]]:
    arrow = _pyarrow(path)
    try:
        rows: list[dict[str, Cell]] = arrow.parquet.read_table(path).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise SpecError(f"{shown(path)}: not Parquet ({shown(error, 100)})") from error
    for number, row in enumerate(rows, start=1):
        if bad := next((k for k, v in row.items() if not _is_cell(k, v)), None):
            raise SpecError(
                f"{shown(path)}: row {number}: '{shown(bad, 60)}' holds no {WORDS[_kind(bad)]}"
            )
    return rows

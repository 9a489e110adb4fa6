"""Logs of nccl-tests and rccl-tests: what collective, among how many ranks of which hosts.

A log is what a scheduler left of it: lines with the prefixes of mpirun or srun, torn lines, several
tests in one file. A row counts only where its numbers agree with each other (bytes / time = algbw),
so a torn or merged line drops out instead of bending a fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from planner.calibrate.text import lines_of
from planner.errors import SpecError
from planner.specs.parse import shown

OPERATIONS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "sendrecv": "send_recv",
}
"""Name of a test's program, without `_perf` -> what it is here."""
ALIASES = {**OPERATIONS, "all_to_all": "all_to_all", "send_recv": "send_recv"}
"""What may stand before `=` in `--nccl-tests all_gather=LOG`."""
UNUSED = ("broadcast", "reduce", "gather", "scatter", "hypercube")
"""Tests whose collective the planner never costs."""
ITEM_BYTES = {
    **dict.fromkeys(("int8", "uint8", "char", "f8e4m3", "f8e5m2", "fp8_e4m3", "fp8_e5m2"), 1),
    **dict.fromkeys(("half", "bfloat16", "float16", "bf16"), 2),
    **dict.fromkeys(("float", "int32", "uint32", "float32", "int"), 4),
    **dict.fromkeys(("double", "int64", "uint64", "float64"), 8),
}
MOST_RANKS = 1_000_000
MOST_ROWS = 20_000
WIDE = 0.03
"""How far algbw may be from bytes / time: both are printed with three digits or more."""

_PREFIX = re.compile(r"^\s*(?:\[\d+,\d+\]<\w+>:?|\d{1,6}:|\[\d{1,6}\])\s*")
_RANK = re.compile(r"\bRank\s+(\d{1,7})\b.*?\bon\s+(\S{1,255})\s+device\s+(\d{1,3})\s+\[")
_TEST = re.compile(r"\b([a-z_]{3,20})_perf\b")
_START = re.compile(r"nThread\s+\d+\s+nGpus\s+\d+|Collective test starting", re.IGNORECASE)


@dataclass(frozen=True)
class Timing:
    """One line of a log: `bytes` as nccl-tests counts them, out of place where it was measured."""

    bytes: float
    time_s: float
    line: int


@dataclass(frozen=True)
class Log:
    """One test's run: its collective, its ranks and hosts, and its timings by size."""

    file: str
    op: str
    ranks: int
    nodes: int
    timings: tuple[Timing, ...]
    warnings: tuple[str, ...] = ()


@dataclass
class _Section:
    op: str = ""
    first_line: int = 1
    hosts: dict[int, str] = field(default_factory=dict)
    rows: list[_Row] = field(default_factory=list)
    torn: int = 0
    wrong: int = 0
    unused: str = ""


@dataclass(frozen=True)
class _Row:
    bytes: int
    count: int
    item: int
    reduces: bool
    time_us: float
    alg: float
    bus: float
    line: int


def read_logs(
    path: Path, *, op: str = "", ranks: int | None = None, nodes: int | None = None
) -> list[Log]:
    """Return the tests of a log; `op`, `ranks` and `nodes` say what it does not.

    Raises SpecError, naming the file and a line, where nothing in it can be used.
    """
    sections = [s for s in _sections(lines_of(path), op) if s.rows or s.torn or s.wrong]
    origin = shown(path)
    logs, refused = [], []
    for section in sections:
        try:
            logs.append(_log(section, origin, ranks, nodes))
        except SpecError as error:
            refused.append(error)
    if not logs:
        raise refused[0] if refused else _nothing(origin)
    if refused:
        logs[0] = replace(logs[0], warnings=(*logs[0].warnings, *(e.message for e in refused)))
    return logs


def _nothing(origin: str) -> SpecError:
    return SpecError(
        f"{origin}, line 1: no timing of nccl-tests or rccl-tests in this file",
        hint="give what all_reduce_perf and its like print, header included",
    )


def _sections(lines: Sequence[str], op: str) -> Iterator[_Section]:
    """Yield the tests of a file, one after the other."""
    now = _Section(op=op)
    for number, line in enumerate(lines, start=1):
        text = _PREFIX.sub("", line)
        if _START.search(text) and (now.rows or now.torn):
            yield now
            now = _Section(op=op, first_line=number)
        if rank := _RANK.search(text):
            now.hosts.setdefault(int(rank[1]), rank[2])
        elif (named := _TEST.search(text)) and not op:
            if named[1] in OPERATIONS:
                if now.rows:
                    yield now
                    now = _Section(first_line=number)
                now.op = OPERATIONS[named[1]]
            elif named[1] in UNUSED:
                now.unused = named[1]
        elif len(now.rows) < MOST_ROWS:
            _take(now, text, number)
    yield now


def _take(section: _Section, text: str, number: int) -> None:
    """Put a line of the table into the section, or count it as torn or wrong."""
    words = text.split()
    if len(words) < 6 or not (words[0].isdecimal() and words[1].isdecimal()):
        return
    if len(words[0]) > 18 or len(words[1]) > 18 or words[2] not in ITEM_BYTES:
        section.torn += 1
        return
    row, wrong = _row(words, number)
    if row is None:
        section.torn += not wrong
        section.wrong += wrong
    elif row.bytes:
        section.rows.append(row)


def _row(words: Sequence[str], number: int) -> tuple[_Row | None, bool]:
    """Return a row, or None and whether its results were wrong (else it is torn)."""
    rest = list(words[3:])
    redop = rest.pop(0) if rest and not _number(rest[0]) else "none"
    if len(rest) % 4 == 1 or len(rest) == 7:
        rest.pop(0)  # the root
    width = 4 if len(rest) in (4, 8) else 3
    if len(rest) not in (3, 4, 6, 8):
        return None, False
    for at in range(0, len(rest), width):  # out of place, then in place
        block = rest[at : at + width]
        values = [_number(word) for word in block[:3]]
        if None in values:
            continue
        time_us, alg, bus = (v or 0.0 for v in values)
        if width == 4 and (_number(block[3]) or 0.0) > 0:
            return None, True
        size = int(words[0])
        if time_us > 0 and _agree(size, time_us, alg):
            item = ITEM_BYTES[words[2]]
            reduces = redop in ("sum", "prod", "min", "max", "avg", "all", "mulsum")
            return _Row(size, int(words[1]), item, reduces, time_us, alg, bus, number), False
    return None, False


def _agree(size: int, time_us: float, alg: float) -> bool:
    """Return whether bytes / time is the bandwidth printed beside it, to its last digit."""
    truth = size / time_us / 1e3
    return abs(alg - truth) <= 0.0101 + WIDE * truth


def _number(word: str) -> float | None:
    """Return a finite number of at most 24 characters; None for `N/A` and torn words."""
    if len(word) > 24 or not re.fullmatch(r"-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]{1,3})?", word):
        return None
    value = float(word)
    return value if math.isfinite(value) else None


def _log(section: _Section, origin: str, ranks: int | None, nodes: int | None) -> Log:
    where = f"{origin}, line {section.first_line}"
    if section.unused and not section.op:
        raise SpecError(f"{where}: {section.unused}_perf is a collective that is not planned with")
    if not section.rows:
        what = "results are wrong (#wrong above 0)" if section.wrong else "lines are torn"
        raise SpecError(f"{where}: no timing can be used; {what}")
    listed = len(section.hosts)
    found = ranks or listed or _ranks_by_count(section)
    if not found or not 2 <= found <= MOST_RANKS:
        raise SpecError(
            f"{where}: the number of ranks is not in the log",
            hint="say it with --ranks and --nodes",
        )
    hosts = nodes or len(set(section.hosts.values())) or 1
    if found % hosts:
        raise SpecError(f"{where}: {found} ranks do not fill {hosts} nodes evenly")
    op = section.op or _op_by_numbers(section, found)
    if not op:
        raise SpecError(
            f"{where}: all_gather, reduce_scatter and alltoall cannot be told apart in this log",
            hint=f"say which: --nccl-tests all_gather={origin}",
        )
    timings = tuple(Timing(r.bytes, r.time_us * 1e-6, r.line) for r in section.rows)
    return Log(origin, op, found, hosts, timings, tuple(_complaints(section, where, found)))


def _complaints(section: _Section, where: str, ranks: int) -> Iterator[str]:
    if section.torn:
        yield f"{where}: {section.torn} torn or inconsistent lines left out"
    if section.wrong:
        yield f"{where}: {section.wrong} lines with wrong results left out (#wrong above 0)"
    if section.hosts and max(section.hosts) + 1 != ranks:
        last = max(section.hosts)
        yield f"{where}: the header lists {len(section.hosts)} ranks, the last is {last}"


def _ranks_by_count(section: _Section) -> int:
    """Return bytes / (count * item) of tests whose ranks each hold a part; 0 for the others."""
    big = max(section.rows, key=lambda r: r.bytes)
    each = big.count * big.item
    return big.bytes // each if each and big.bytes % each == 0 and big.bytes > each else 0


def _op_by_numbers(section: _Section, ranks: int) -> str:
    """Return the collective by bus over algorithm bandwidth and by what it reduces with."""
    big = max(section.rows, key=lambda r: r.alg)
    if big.alg < 1.0:
        return ""
    ratio = big.bus / big.alg
    parts = (ranks - 1) / ranks
    if big.reduces:
        return min(
            ("all_reduce", "reduce_scatter"),
            key=lambda op: abs(ratio - parts * (2 if op == "all_reduce" else 1)),
        )
    return "send_recv" if abs(ratio - 1) < 0.01 and abs(parts - 1) > 0.02 else ""

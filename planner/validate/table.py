"""The table of runs as a file: its columns, and which of them a prediction or a score reads.

A column that nothing reads is said: a misspelled `zero_stage` would otherwise be predicted with the
stack's usual value, and the error of that looks like the planner's.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.errors import SpecError, did_you_mean

PUBLISHED = Path(__file__).parent / "published.csv"
"""A few dozen published runs, one of each kind, that ship with the package."""
NEEDED = ("id", "source", "framework", "hardware", "gpus", "arch_json", "seq", "global_batch")
PREDICTS = (
    *NEEDED,
    *("framework_version", "gpus_per_node", "inter_link", "model", "micro_batch", "dtype"),
    *("tp", "sp", "pp", "vpp", "cp", "ep", "etp", "dp", "zero_stage", "fsdp", "recompute"),
    *("attention", "offload", "dist_optimizer", "overlap", "note"),
)
"""What a prediction reads."""
SCORES = (
    *("step_time_s", "tflops_per_gpu", "tflops_convention", "mfu", "tokens_per_s_per_gpu"),
    *("samples_per_s", "peak_mem_gib", "mem_kind", "oom", "family"),
)
"""What was measured: read after the prediction, and apart from it."""
REMARKS = ("source_ref", "year", "intra_link", "params_b", "schedule", "confidence")
"""Columns of such tables that nothing reads: `schedule` follows from pp and vpp."""
OTHER_WORDS = {
    "zero": "zero_stage",
    "sequence_length": "seq",
    "seq_len": "seq",
    "seq_tokens": "seq",
    "precision": "dtype",
    "gbs": "global_batch",
    "batch": "global_batch",
    "mbs": "micro_batch",
    "stack": "framework",
    "cluster": "hardware",
    "gpu": "hardware",
    "num_gpus": "gpus",
    "step_time": "step_time_s",
    "memory_gib": "peak_mem_gib",
}
"""What people call a column -> its name; anything else is compared letter by letter."""
_LIMIT = 200_000_000
_SHOWN = 40


@dataclass(frozen=True)
class Table:
    """The rows of a file, and the names of its columns in order."""

    names: tuple[str, ...]
    rows: list[dict[str, str]]

    @property
    def used(self) -> list[str]:
        """Return the columns that a prediction or a score reads."""
        return [name for name in dict.fromkeys(self.names) if name in (*PREDICTS, *SCORES)]

    @property
    def remarks(self) -> list[str]:
        """Return the columns that are known, and kept for people only."""
        return [name for name in self.names if name in REMARKS]

    @property
    def unknown(self) -> list[str]:
        """Return the columns that have no meaning here."""
        names = dict.fromkeys(self.names)
        return [name for name in names if name not in (*PREDICTS, *SCORES, *REMARKS)]


def read_table(path: Path) -> Table:
    """Return a table of runs; SpecError when it cannot be read or lacks what every run needs."""
    try:
        if path.stat().st_size > _LIMIT:
            raise SpecError(f"{path}: larger than {_LIMIT:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text") from error
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        rows = list(reader)
    except csv.Error as error:
        raise SpecError(f"{path}: not a CSV table ({error})") from error
    table = Table(tuple(reader.fieldnames or ()), rows)
    missing = [name for name in NEEDED if name not in table.names]
    if missing:
        raise SpecError(f"{path}: columns missing: {', '.join(missing)}", hint=_hint(table))
    return table


def _hint(table: Table) -> str:
    """Return which column may have been meant, else where to see them all."""
    near = [f"{name!r}: {said}" for name in table.unknown[:3] if (said := meant(name, table.names))]
    if near:
        return "; ".join(near)
    return f"`meshwright validate` without a file reads {PUBLISHED}; it has all columns"


def columns_told(table: Table) -> list[str]:
    """Return a sentence on each column without meaning, with the one that may have been meant."""
    twice = [name for name, times in Counter(table.names).items() if times > 1]
    out = [f"column {name[:80]!r} is there more than once; the last is read" for name in twice]
    for name in table.unknown[:_SHOWN]:
        near = meant(name, table.names)
        out.append(f"column {name[:80]!r} is unknown and not read{'; ' if near else ''}{near}")
    if (more := len(table.unknown) - _SHOWN) > 0:
        out.append(f"{more:,} more columns are unknown and not read")
    return out


def meant(name: str, there: Sequence[str]) -> str:
    """Return "did you mean 'x'?" for a column that the table does not have yet, or nothing."""
    word = name.strip().lower().replace("-", "_").replace(" ", "_")
    known = [one for one in (*PREDICTS, *SCORES) if one not in there]
    if word in known:
        return f"did you mean {word!r}?"
    if OTHER_WORDS.get(word) in known:
        return f"did you mean {OTHER_WORDS[word]!r}?"
    return did_you_mean(word, known)

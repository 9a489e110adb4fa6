"""Plans by the hundred for one target: models x layouts drawn from what the target declares.

Drawn once a process, and read in one folder that only takes what the next bundle has anew: whoever
reads hundreds should pay for the reading alone.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plan_grid import MODELS, plan

from planner.emit.base import Artifact, Emitter
from planner.plan import Plan
from planner.specs.catalog import load_model

MANY = 200
DRAWN: dict[str, Sequence[Any]] = {
    "tp": (1, 1, 2, 4, 8),
    "pp": (1, 1, 2, 3, 4),
    "vpp": (1, 1, 2),
    "cp": (1, 1, 1, 2, 4),
    "ep": (1, 2, 4, 8),
    "dp": (1, 2, 4, 8, 16),
    "dp_replicate": (1, 1, 1, 2, 4),
    "zero": (0, 1, 2, 3),
    "recompute": ("none", "none", "selective", "full"),
    "offload": ("none", "none", "none", "optimizer", "optimizer+params"),
    "dp_sync": ("all-reduce",),
    "micro_batch": (1, 1, 2),
    "rounds": (1, 2, 4),
    "precision": ("bf16", "bf16", "fp16", "fp8"),
    "optimizer": ("adamw", "adamw", "adamw", "sgd", "muon", "adamw-8bit"),
    "gpipe": (False, False, False, True),
    "seq": (2048, 4096, 8192),
    "etp_is_tp": (False, True),
    "placeholders": (False, True),
}
MOST_GPUS = 64
SHIPPED: list[dict[str, Any]] = [
    {"dp": 8, "zero": 3},
    {"dp": 8, "zero": 1},
    {"dp": 4, "tp": 2, "zero": 2, "etp": 2},
    {"dp": 4, "tp": 2, "zero": 1, "etp": 1, "ep": 2, "recompute": "full"},
    {"dp": 4, "pp": 2, "zero": 1, "ep": 2},
    {"dp": 4, "pp": 2, "zero": 2, "ep": 4},
    {"dp": 8, "zero": 0, "dp_sync": "parameter-server"},
]
"""Layouts that any shipped model is drawn in, whether or not its memory would do."""


@functools.cache
def many(emitter: Emitter, count: int = MANY) -> tuple[Plan, ...]:
    """Return `count` different plans that the target says it can run, the same ones each time."""
    out = {}
    for answer in _drawn(emitter, tuple(MODELS)):
        work = answer.request.workload
        key = (answer.request.model.name, answer.request.model.experts, answer.request.model.mla,
               answer.best.layout, work.precision, work.optimizer, work.seq_tokens)  # fmt: skip
        if str(key) not in out and not emitter.unsupported(answer):
            out[str(key)] = answer
        if len(out) == count:
            break
    return tuple(out.values())


@functools.cache
def shipped(name: str) -> tuple[Plan, ...]:
    """Return plans of a shipped model in layouts of every kind."""
    spec = load_model(name)
    seq = min(4096, spec.max_seq_tokens)
    rows = (row if spec.experts else row | {"ep": 1, "etp": row.get("tp", 1)} for row in SHIPPED)
    return tuple(plan(spec, seq=seq, **row) for row in rows)


class Folder:
    """One bundle's folder, filled with bundle after bundle; a file that stays is left alone."""

    def __init__(self, path: Path) -> None:
        self.path, self._texts = path, dict[str, str]()

    def fill(self, artifacts: Sequence[Artifact]) -> Path:
        """Make the folder hold these files and no others of ours; return it."""
        texts = {a.path: a.text for a in artifacts}
        for name in self._texts.keys() - texts.keys():
            (self.path / name).unlink()
        for name, text in texts.items():
            if self._texts.get(name) != text:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).write_text(text, encoding="utf-8")
        self._texts = texts
        return self.path


def _drawn(emitter: Emitter, models: Sequence[str]) -> Iterator[Plan]:
    rng = random.Random(emitter.name)
    for _ in range(60_000):
        name = rng.choice(models)
        row = {field: rng.choice(_values(emitter, field)) for field in DRAWN}
        if answer := _plan(name, row):
            yield answer


def _values(emitter: Emitter, field: str) -> Sequence[Any]:
    """Return the values to draw from: those of the table, where it has any of ours."""
    can = emitter.can.get(field)
    if can is None or can.values is None:
        return DRAWN[field]
    held = [v for v in DRAWN[field] if can.holds(v)]
    return held or [getattr(v, "value", v) for v in can.values]


def _plan(name: str, row: dict[str, Any]) -> Plan | None:
    spec, row = MODELS[name], dict(row)
    rounds, gpipe, same = row.pop("rounds"), row.pop("gpipe"), row.pop("etp_is_tp")
    tp, pp, cp, dp, vpp = (row[k] for k in ("tp", "pp", "cp", "dp", "vpp"))
    ranks = tp * cp * dp
    if spec.experts is None:
        row |= {"ep": 1, "etp": 1}
    else:
        row["etp"] = tp if same or row["ep"] == 1 else 1
    fits = ranks % (row["ep"] * row["etp"]) == 0 and dp % row["dp_replicate"] == 0
    if ranks * pp > MOST_GPUS or not fits or (pp == 1 and vpp > 1) or (gpipe and vpp > 1):
        return None
    schedule = "none" if pp == 1 else "gpipe" if gpipe else "interleaved" if vpp > 1 else "1f1b"
    return plan(spec, **row, schedule=schedule, num_microbatches=pp * rounds)

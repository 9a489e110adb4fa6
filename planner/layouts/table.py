"""Layouts: one int64 array per degree. One row is one layout; a formula sees all rows at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from planner.pipeline.registry import SCHEDULES

IntArray = NDArray[np.int64]

RECOMPUTE = ("none", "selective", "full")
SCHEDULE = ("none", *SCHEDULES)
OFFLOAD = (
    "none",
    "optimizer",
    "optimizer+params",
    "optimizer-nvme",
    "optimizer+params-nvme",
)
"""What leaves the GPU: to the host's memory, or through it to the node's NVMe drives."""
DP_SYNC = ("all-reduce", "parameter-server")
NAMES: Mapping[str, tuple[str, ...]] = {
    "recompute": RECOMPUTE,
    "schedule": SCHEDULE,
    "offload": OFFLOAD,
    "dp_sync": DP_SYNC,
}
"""Columns that hold a code: the index of the name in its tuple."""
SPLITS = np.array([False, *(s.splits_backward for s in SCHEDULES.values())])
"""Schedule code -> whether its weight gradients are actions of their own."""
HIDES = np.array([False, *(s.runs_both_at_once for s in SCHEDULES.values())])
"""Schedule code -> whether a forward and a backward run as one."""
FOLDS_OF: Mapping[str, int] = {"loop": 0, "v": 1, "both": 2}
"""Where the model's parts lie: dealt round, there and back, or both ways (two copies)."""
FOLDS = np.array([0, *(FOLDS_OF[schedule.style] for schedule in SCHEDULES.values())])
"""Schedule code -> the same."""


@dataclass(frozen=True)
class Layouts:
    """Struct of arrays, all of one length; `sp` is 0 or 1, columns in `NAMES` hold codes.

    Rank order is tp-cp-ep-dp-pp, tp fastest (Megatron-LM's default). Every row satisfies
    tp * pp * cp * dp = gpus; experts are split over ep * etp ranks of the tp * cp * dp of a stage.
    """

    tp: IntArray
    sp: IntArray
    pp: IntArray
    vpp: IntArray
    cp: IntArray
    ep: IntArray
    etp: IntArray
    dp: IntArray
    dp_replicate: IntArray
    zero: IntArray
    micro_batch: IntArray
    num_microbatches: IntArray
    recompute: IntArray
    schedule: IntArray
    offload: IntArray
    dp_sync: IntArray
    recompute_units: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """What full recompute goes by where a search chooses it, by number: 0 is what the workload
    says, 1, 3, 5 ... are units of 2, 3, 4 ... layers, and 2, 4, 6 ... the first 1, 2, 3 ... layers
    of each chunk. Not a layout's own: a plan tells it as the workload's `recompute_layers`."""

    def __post_init__(self) -> None:
        """Take what the workload says where no units were chosen."""
        if len(self.recompute_units) != len(self.tp):
            object.__setattr__(self, "recompute_units", np.zeros(len(self.tp), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.tp)

    @property
    def gpus(self) -> IntArray:
        """Return the GPUs that each layout uses."""
        return self.tp * self.pp * self.cp * self.dp

    @property
    def edp(self) -> IntArray:
        """Return the data-parallel size of the experts: tp * cp * dp / (ep * etp)."""
        return self.tp * self.cp * self.dp // (self.ep * self.etp)

    @property
    def folds(self) -> IntArray:
        """Return where the parts of the model lie: 0 dealt round, 1 there and back, 2 both ways."""
        folds: IntArray = FOLDS[self.schedule]
        return folds

    @property
    def copies(self) -> IntArray:
        """Return how often a pipeline holds the model."""
        return np.where(self.folds == 2, 2, 1)

    def take(self, rows: Any) -> Self:
        """Return the layouts at `rows` (an index array, a mask or a slice)."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def only(self, rows: Any) -> Self:
        """Return the layouts at `rows` in the form in which they are kept."""
        return self.take(rows)

    def row(self, index: int) -> dict[str, int | str | bool]:
        """Return one layout as plain values, codes turned into names and sp into a bool."""
        out: dict[str, int | str | bool] = {}
        for name in COLUMNS:
            value = int(getattr(self, name)[index])
            out[name] = NAMES[name][value] if name in NAMES else value
        out["sp"] = bool(out["sp"])
        return out

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Self:
        """Return the layouts of plain rows as `row` gives them; names are turned into codes."""
        columns = {
            name: np.array([_code(name, row[name]) for row in rows], dtype=np.int64)
            for name in COLUMNS
        }
        return cls(**columns)

    @classmethod
    def empty(cls) -> Self:
        """Return no layouts."""
        return cls(**{name: np.zeros(0, dtype=np.int64) for name in COLUMNS})

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Return all rows of `parts`, in order."""
        return cls(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in EVERY_COLUMN})


EVERY_COLUMN = tuple(f.name for f in fields(Layouts))
COLUMNS = tuple(name for name in EVERY_COLUMN if name != "recompute_units")
"""The columns that are a layout's own."""


def _code(name: str, value: Any) -> int:
    return NAMES[name].index(value) if name in NAMES else int(value)

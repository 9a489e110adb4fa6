"""What every fit of collectives has in common: its columns, whether it is used, and its errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from planner.calibrate.figure import (
    Found,
    Prediction,
    Quality,
    Residual,
    residuals,
)
from planner.calibrate.nccl import Log
from planner.calibrate.solve import FloatArray
from planner.specs.links import Collective

FEWEST = 5
"""Sizes of one log below which its latency and its bandwidth cannot be told apart."""
CONTRADICTORY = 0.25
"""Median error after a fit above which the measurements cannot be believed together."""
SMALL_BYTES, LARGE_BYTES = 2**20, 2**26
SHOWN_BYTES = (2**20, 2**26, 2**30)
OPS: tuple[str, ...] = get_args(Collective)


def op_of(op: str) -> Collective:
    """Return an operation's name as the type that the estimate takes."""
    if op not in OPS:
        raise ValueError(op)
    return cast(Collective, op)


def columns(
    logs: Sequence[Log], *, least: float = 0.0
) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """Return bytes, seconds and the log's index of every timing of at least so many bytes."""
    rows = [
        (t.bytes, t.time_s, i)
        for i, log in enumerate(logs)
        for t in log.timings
        if t.bytes >= least
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2].astype(np.int64)


def worth(
    found: Found,
    group: str,
    quality: Quality,
    file: str,
    *,
    least_gain: float = 0.0,
    weighed: bool = False,
) -> bool:
    """Count the fit and say what is wrong with it; return whether its figures are used.

    They are where they bring the median error down by more than `least_gain`, if that is given. A
    fit that is `weighed` stays off on purpose, and contradicts nothing.
    """
    found.fits += 1
    idle = least_gain and quality.median_after > quality.median_before - least_gain
    if quality.worse or idle:
        found.warnings.append(
            f"{file}: what ships predicts {group} as well ({quality.median_before:.1%} against "
            f"{quality.median_after:.1%}); nothing changed"
        )
        return False
    if quality.median_after > CONTRADICTORY and not weighed:
        found.warnings.append(
            f"{file}: {group} is {quality.median_after:.0%} off in the median even after the fit: "
            "the measurements contradict each other, or the formula does not hold here"
        )
    return True


def by_size(
    group: str, sizes: FloatArray, before: FloatArray, after: FloatArray, measured: FloatArray
) -> list[Residual]:
    """Return the errors of small, middling and large messages."""
    small, large = sizes < SMALL_BYTES, sizes >= LARGE_BYTES
    rows = {"below 1 MiB": small, "1 to 64 MiB": ~small & ~large, "from 64 MiB": large}
    return residuals(group, rows, np.log(before / measured), np.log(after / measured))


def at_sizes(
    what: str, sizes: FloatArray, before: FloatArray, after: FloatArray, measured: FloatArray
) -> list[Prediction]:
    """Return the predictions at a few sizes of those measured."""
    out = []
    for size in SHOWN_BYTES:
        if len(at := np.flatnonzero(sizes == size)):
            i = int(at[np.argsort(measured[at])[len(at) // 2]])
            label = f"{what}, {size // 2**20:,} MiB"
            kind = "collective"
            out.append(
                Prediction(label, kind, float(before[i]), float(after[i]), float(measured[i]))
            )
    return out

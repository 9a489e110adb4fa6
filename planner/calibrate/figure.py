"""What a calibration found: figures with their quality, and what it would rather say aloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.calibrate.solve import FloatArray, Solution

TELLING = 3
"""Points below which nothing is said of how well the next one will be predicted."""
NOT_ENOUGH = "not enough to tell"


@dataclass(frozen=True)
class Quality:
    """How well figures fit what they were fitted to. Errors are |predicted / measured - 1|."""

    points: int
    dropped: int
    """Outliers left out of the fit."""
    median_before: float
    median_after: float
    p90_after: float
    r2: float | None
    """Share of the variance of log seconds that the fit explains; None where points say nothing
    of it."""
    median_unseen: float | None = None
    """The median with each point left out of the fit in turn."""

    @classmethod
    def of(cls, found: Solution, measured_s: FloatArray) -> Quality:
        """Return the quality of a solution, over the points that it was fitted to.

        Fewer than `TELLING` points fit whatever they are: they say nothing of the next one.
        """
        log = np.log(measured_s[found.kept])
        error = found.error[found.kept]
        spread = float(((log - log.mean()) ** 2).sum())
        tells = len(error) >= TELLING
        return cls(
            points=len(measured_s),
            dropped=int((~found.kept).sum()),
            median_before=_median(found.before[found.kept]),
            median_after=_median(error),
            p90_after=float(np.quantile(np.abs(np.expm1(error)), 0.9)),
            r2=1.0 - float((error**2).sum()) / spread if tells and spread > 0 else None,
            median_unseen=_median(found.unseen[found.kept]) if tells else None,
        )

    @property
    def worse(self) -> bool:
        """Return whether what ships predicts these points better than the fit does."""
        return self.median_after > self.median_before + 1e-9

    def words(self) -> str:
        """Return the quality in a few words, for a comment."""
        out = f", {self.dropped} outliers dropped" if self.dropped else ""
        points = f"{self.points} point{'s' if self.points != 1 else ''}"
        r2 = NOT_ENOUGH if self.r2 is None else f"R2 {self.r2:.3f}"
        return (
            f"{points}{out}; |error| median {self.median_before:.1%} -> "
            f"{self.median_after:.1%}, p90 {self.p90_after:.1%}; {r2}"
        )


def _median(log_error: FloatArray) -> float:
    return float(np.median(np.abs(np.expm1(np.minimum(log_error, 50.0))))) if len(log_error) else 0


@dataclass(frozen=True)
class Figure:
    """One number of the overlay: where it stands, what it was and is."""

    path: tuple[str, ...]
    """`("fabric", "efficiency")`; a collective is `("scale_up", "collectives", "all_reduce 8",
    "alpha_us")`."""
    unit: str
    before: float | None
    after: float
    spread: float
    """Standard deviation of its logarithm: what the measurements leave open."""
    quality: Quality
    group: str
    """What it was fitted with: one fit gives several figures."""

    @property
    def name(self) -> str:
        """Return the path as people write it."""
        return ".".join(self.path)

    def record(self) -> dict[str, Any]:
        """Return the figure as plain data."""
        q = self.quality
        return {
            "name": self.name,
            "unit": self.unit,
            "before": self.before,
            "after": self.after,
            "relative_spread": self.spread,
            "fit": self.group,
            "points": q.points,
            "outliers": q.dropped,
            "median_abs_error_before": q.median_before,
            "median_abs_error": q.median_after,
            "p90_abs_error": q.p90_after,
            "median_abs_error_left_out": q.median_unseen,
            "r2": q.r2,
        }


@dataclass(frozen=True)
class Prediction:
    """One thing predicted before and after, beside what was measured (None: a reference job)."""

    what: str
    kind: str
    before_s: float
    after_s: float
    measured_s: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the prediction as plain data."""
        return {
            "what": self.what,
            "kind": self.kind,
            "before_s": self.before_s,
            "after_s": self.after_s,
            "measured_s": self.measured_s,
        }


@dataclass(frozen=True)
class Residual:
    """How far off the measurements of one size are, before and after; the median, with its sign."""

    fit: str
    size: str
    points: int
    before: float
    after: float

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "fit": self.fit,
            "size": self.size,
            "points": self.points,
            "median_error_before": self.before,
            "median_error": self.after,
        }

    @property
    def telling(self) -> str:
        """Return a sentence where sizes stay off after the fit, else nothing."""
        if self.points < 2 or abs(self.after) <= STAYS_OFF:
            return ""
        fast = "fast" if self.after < 0 else "slow"
        return (
            f"{self.fit}, {self.size}: still told {abs(self.after):.0%} too {fast} in the median "
            f"({self.points} points), which the formula cannot follow; plans that rest on such "
            f"sizes are told too {fast}"
        )


STAYS_OFF = 0.1
"""Median error of one size after a fit that a user should hear of."""


def residuals(
    fit: str, sizes: Mapping[str, NDArray[np.bool_]], before: FloatArray, after: FloatArray
) -> list[Residual]:
    """Return the errors by size; `before` and `after` are log(predicted / measured)."""
    return [
        Residual(
            fit,
            size,
            int(rows.sum()),
            *(float(np.expm1(np.median(error[rows]))) for error in (before, after)),
        )
        for size, rows in sizes.items()
        if rows.any()
    ]


@dataclass
class Found:
    """What one kind of measurement gave: figures, predictions, warnings, and plain facts."""

    figures: list[Figure] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    residuals: list[Residual] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    fits: int = 0
    """Fits tried, whether or not their figures are better than what ships."""

    def add(self, other: Found) -> None:
        """Take over all of another's."""
        self.figures += other.figures
        self.predictions += other.predictions
        self.residuals += other.residuals
        self.warnings += other.warnings
        self.facts += other.facts
        self.fits += other.fits


CHANGE = 0.005
"""A figure that moves by less stays as it ships."""


def figures_of(
    group: str,
    found: Solution,
    quality: Quality,
    places: Sequence[tuple[tuple[str, ...], str, float | None]],
) -> list[Figure]:
    """Return the figures that moved; `places` are (path, unit, shipped) of each number."""
    return [
        Figure(path, unit, before, rounded(value), float(spread), quality, group)
        for (path, unit, before), value, spread in zip(
            places, found.values.tolist(), found.spread, strict=True
        )
        if before is None or before == 0 or abs(value / before - 1) >= CHANGE
    ]


def rounded(value: float) -> float:
    """Return four significant digits."""
    return float(f"{value:.4g}")

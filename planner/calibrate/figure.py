"""What a calibration found: figures with their quality, and what it would rather say aloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planner.calibrate.solve import FloatArray, Solution


@dataclass(frozen=True)
class Quality:
    """How well figures fit what they were fitted to. Errors are |predicted / measured - 1|."""

    points: int
    dropped: int
    """Outliers left out of the fit."""
    median_before: float
    median_after: float
    p90_after: float
    r2: float
    """Share of the variance of log seconds that the fit explains."""
    median_unseen: float | None = None
    """The median with each point left out of the fit in turn."""

    @classmethod
    def of(cls, found: Solution, measured_s: FloatArray) -> Quality:
        """Return the quality of a solution, over the points that it was fitted to."""
        log = np.log(measured_s[found.kept])
        error = found.error[found.kept]
        spread = float(((log - log.mean()) ** 2).sum())
        return cls(
            points=len(measured_s),
            dropped=int((~found.kept).sum()),
            median_before=_median(found.before[found.kept]),
            median_after=_median(error),
            p90_after=float(np.quantile(np.abs(np.expm1(error)), 0.9)),
            r2=1.0 - float((error**2).sum()) / spread if spread > 0 else 0.0,
            median_unseen=_median(found.unseen[found.kept]),
        )

    @property
    def worse(self) -> bool:
        """Return whether what ships predicts these points better than the fit does."""
        return self.median_after > self.median_before + 1e-9

    def words(self) -> str:
        """Return the quality in a few words, for a comment."""
        out = f", {self.dropped} outliers dropped" if self.dropped else ""
        return (
            f"{self.points} points{out}; |error| median {self.median_before:.1%} -> "
            f"{self.median_after:.1%}, p90 {self.p90_after:.1%}; R2 {self.r2:.3f}"
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


@dataclass
class Found:
    """What one kind of measurement gave: figures, predictions, warnings, and plain facts."""

    figures: list[Figure] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    fits: int = 0
    """Fits tried, whether or not their figures are better than what ships."""

    def add(self, other: Found) -> None:
        """Take over all of another's."""
        self.figures += other.figures
        self.predictions += other.predictions
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

"""Maximum a posteriori in logarithms: damped Gauss-Newton, one prediction per column of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.knobs import LINEAGE_OF, Knob, Planner, device_of, knobs
from calibration.runs import Table, predictions
from planner.estimate.inputs import FloatArray

SCALE = 0.04
"""Error up to which a run's residual counts as a square; beyond it grows linearly (soft L1)."""
STEP = 0.02


@dataclass
class Problem:
    """Runs, knobs, priors, and the planner that they turn."""

    table: Table
    planner: Planner
    knobs: list[Knob]

    @classmethod
    def of(cls, table: Table) -> Problem:
        """Return the problem of fitting every knob to the table."""
        return cls(table, Planner(), knobs())

    def residuals(self, theta: FloatArray) -> FloatArray:
        """Return log(predicted / measured) of every run."""
        contexts = [g[0] for g in self.table.groups]
        moved = self.planner.apply(self.knobs, theta.tolist(), contexts)
        every = np.arange(len(contexts))
        return np.log(predictions(self.table, moved, every) / self.table.measured_s)

    def prior(self) -> tuple[FloatArray, FloatArray]:
        """Return (centre, width) of each knob; a stack's centre is its lineage."""
        centre = [
            -self.planner.lineage_offset(k)
            if k.kind == "stack" and self.planner.value(k) > 0
            else 0.0
            for k in self.knobs
        ]
        return np.array(centre), np.array([k.width for k in self.knobs])

    def jacobian(self, theta: FloatArray, base: FloatArray) -> FloatArray:
        """Return d residual / d knob; knobs of one column are moved together, runs tell them apart.

        A run depends on one stack, one lineage and one device group only.
        """
        out = np.zeros((len(self.table), len(self.knobs)))
        of = np.array([k.column for k in self.knobs])
        for column in dict.fromkeys(of.tolist()):
            moved = theta.copy()
            kinds = {k.kind for k in self.knobs if k.column == column}
            lead = "lineage" if "lineage" in kinds else next(iter(kinds))
            at = [i for i, k in enumerate(self.knobs) if k.column == column and k.kind == lead]
            moved[at] += STEP
            slope = (self.residuals(moved) - base) / STEP
            for i, knob in enumerate(self.knobs):
                if knob.column == column:
                    out[:, i] = slope * self._concerns(knob)
        return out

    def _concerns(self, knob: Knob) -> NDArray[np.bool_]:
        t = self.table
        if knob.kind == "stack":
            return np.array([s == knob.group for s in t.stack])
        if knob.kind == "lineage":
            return np.array([LINEAGE_OF.get(s) == knob.group for s in t.stack])
        if knob.kind == "device":
            return np.array([device_of(a) == knob.group for a in t.accelerator])
        return np.ones(len(t), dtype=np.bool_)


def loss(residual: FloatArray, weight: FloatArray, pull: FloatArray) -> float:
    """Return soft-L1 of the runs plus the squares of the priors."""
    z = (residual / SCALE) ** 2
    return float((weight * 2 * (np.sqrt(1 + z) - 1)).sum() + (pull**2).sum())


def newton_step(
    problem: Problem, theta: FloatArray, residual: FloatArray, jac: FloatArray, weight: FloatArray
) -> FloatArray:
    """Return the step to the minimum of the loss as it looks from `theta`."""
    centre, width = problem.prior()
    robust = weight / np.sqrt(1 + (residual / SCALE) ** 2) / SCALE**2
    normal = jac.T @ (robust[:, None] * jac) + np.diag(width**-2.0)
    gradient = jac.T @ (robust * residual) + (theta - centre) / width**2
    return np.asarray(-np.linalg.solve(normal, gradient), dtype=np.float64)


def fit(
    problem: Problem,
    theta: FloatArray,
    weight: FloatArray,
    *,
    jac: FloatArray | None = None,
    residual: FloatArray | None = None,
    rounds: int = 4,
    chords: int = 3,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (theta, residuals, jacobian) at the minimum, starting from `theta`.

    With `jac` the slopes are kept: enough to leave one source out from the fit of all. `residual`
    is that at `theta`, where it is known.
    """
    centre, width = problem.prior()
    residual, given = problem.residuals(theta) if residual is None else residual, jac is not None
    for _ in range(1 if given else rounds):
        if not given:
            jac = problem.jacobian(theta, residual)
        assert jac is not None
        for _ in range(chords):
            step = newton_step(problem, theta, residual, jac, weight)
            now = loss(residual, weight, (theta - centre) / width)
            for damp in (1.0, 0.5, 0.25):
                new = theta + damp * step
                tried = problem.residuals(new)
                better = loss(tried, weight, (new - centre) / width)
                if better < now:
                    break
            if better >= now:
                break
            theta, residual = new, tried
            if now - better < 1e-3 * now:
                break
    assert jac is not None
    return theta, residual, jac


def used(problem: Problem, jac: FloatArray, weight: FloatArray) -> Sequence[bool]:
    """Return whether the runs say more about each knob than its prior does."""
    _, width = problem.prior()
    known = (weight[:, None] * jac**2).sum(axis=0) / SCALE**2
    return [bool(k > w**-2.0) for k, w in zip(known, width, strict=True)]

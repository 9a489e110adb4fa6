"""Robust fit of a few positive numbers: maximum a posteriori in logarithms, outliers dropped.

Every number is drawn towards what ships, as far as its `width` allows, so that what measurements do
not identify stays where it is and a handful of them cannot bend a dozen numbers. Errors are
relative. They count as squares up to `SCALE` and linearly beyond (soft L1); what then still stands
far out of the spread of the others is left out and the rest is fitted again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Predict = Callable[[FloatArray], FloatArray]
"""Values of the numbers -> seconds of every measurement."""

SCALE = 0.04
"""Relative error up to which a measurement counts as a square: the noise between reruns."""
STEP = 0.01
FAR = 4.0
"""Standard deviations beyond which a measurement is an outlier."""
MOST_OUTLIERS = 0.3
"""Share of the measurements that may be left out; with more of them far off, none is."""
ROUNDS = 40
CLOSE = 1e-7


@dataclass(frozen=True)
class Number:
    """One number to fit: what ships, how far off it may be (standard deviation of its log)."""

    name: str
    shipped: float
    width: float
    low: float = 0.0
    high: float = np.inf


@dataclass(frozen=True)
class Solution:
    """What was found. `before` and `error` are log(predicted / measured), shipped and fitted."""

    values: FloatArray
    spread: FloatArray
    """Standard deviation of each value's logarithm."""
    before: FloatArray
    error: FloatArray
    unseen: FloatArray
    """The same with each measurement left out of the fit in turn."""
    kept: NDArray[np.bool_]


def solve(
    predict: Predict,
    measured_s: FloatArray,
    numbers: Sequence[Number],
    *,
    start: Sequence[float] | None = None,
) -> Solution:
    """Return the numbers under which `predict` comes closest to the measurements."""
    problem = _Problem(predict, np.log(measured_s), tuple(numbers))
    centre = problem.centre
    theta = problem.clipped(np.log(start)) if start is not None else centre
    everything = np.ones(len(measured_s))
    theta, residual, jac = problem.descend(theta, everything)
    if len(measured_s) > len(numbers) and len(measured_s) >= 4:
        weight = (~outliers(residual)).astype(np.float64)
        if not weight.all():
            theta, residual, jac = problem.descend(theta, weight)
    else:
        weight = everything
    curvature = problem.curvature(residual, jac, weight)
    noise = max(1.0, _sigma(residual[weight > 0]) / SCALE)
    return Solution(
        values=np.exp(theta),
        spread=np.sqrt(np.diag(np.linalg.inv(curvature))) * noise,
        before=problem.residual(centre),
        error=residual,
        unseen=_left_out(residual, jac, weight, curvature),
        kept=weight > 0,
    )


def outliers(residual: FloatArray) -> NDArray[np.bool_]:
    """Return which residuals stand far out of the spread of the others."""
    centre = float(np.median(residual))
    far: NDArray[np.bool_] = np.abs(residual - centre) > FAR * max(_sigma(residual), SCALE / 2)
    return far if far.mean() <= MOST_OUTLIERS else np.zeros_like(far)


def _sigma(residual: FloatArray) -> float:
    """Return a standard deviation that outliers do not move."""
    return float(1.4826 * np.median(np.abs(residual - np.median(residual))))


def _left_out(
    residual: FloatArray, jac: FloatArray, weight: FloatArray, curvature: FloatArray
) -> FloatArray:
    """Return each residual without its own pull on the numbers, to first order: r / (1 - h)."""
    robust = weight / np.sqrt(1 + (residual / SCALE) ** 2) / SCALE**2
    hat = np.einsum("ij,jk,ik->i", jac, np.linalg.inv(curvature), jac) * robust
    out: FloatArray = residual / np.maximum(1.0 - hat, 0.05)
    return out


@dataclass(frozen=True)
class _Problem:
    predict: Predict
    log_measured: FloatArray
    numbers: tuple[Number, ...]

    @property
    def centre(self) -> FloatArray:
        return np.log([n.shipped for n in self.numbers])

    @property
    def width(self) -> FloatArray:
        return np.array([n.width for n in self.numbers])

    def clipped(self, theta: FloatArray) -> FloatArray:
        low = np.log([max(n.low, 1e-300) for n in self.numbers])
        high = np.log([n.high for n in self.numbers])
        return np.clip(theta, low, high)

    def residual(self, theta: FloatArray) -> FloatArray:
        with np.errstate(all="ignore"):
            out: FloatArray = np.log(self.predict(np.exp(theta))) - self.log_measured
        return np.nan_to_num(out, nan=50.0, posinf=50.0, neginf=-50.0)

    def jacobian(self, theta: FloatArray, base: FloatArray) -> FloatArray:
        columns = []
        for i in range(len(theta)):
            moved = theta.copy()
            step = -STEP if theta[i] + STEP > np.log(self.numbers[i].high) else STEP
            moved[i] += step
            columns.append((self.residual(moved) - base) / step)
        return np.stack(columns, axis=1)

    def curvature(self, residual: FloatArray, jac: FloatArray, weight: FloatArray) -> FloatArray:
        robust = weight / np.sqrt(1 + (residual / SCALE) ** 2) / SCALE**2
        out: FloatArray = jac.T @ (robust[:, None] * jac) + np.diag(self.width**-2.0)
        return out

    def loss(self, theta: FloatArray, residual: FloatArray, weight: FloatArray) -> float:
        pull = (theta - self.centre) / self.width
        size = 2 * (np.sqrt(1 + (residual / SCALE) ** 2) - 1)
        return float((weight * size).sum() + (pull**2).sum())

    def descend(
        self, theta: FloatArray, weight: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (theta, residuals, slopes) at the minimum: damped Gauss-Newton."""
        residual = self.residual(theta)
        jac = self.jacobian(theta, residual)
        now = self.loss(theta, residual, weight)
        for _ in range(ROUNDS):
            robust = weight / np.sqrt(1 + (residual / SCALE) ** 2) / SCALE**2
            pull = (theta - self.centre) / self.width**2
            gradient = jac.T @ (robust * residual) + pull
            newton = np.linalg.solve(self.curvature(residual, jac, weight), gradient)
            step: FloatArray = -np.asarray(newton, dtype=np.float64)
            step *= min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
            found = self._shorter(theta, step, weight, now)
            if found is None:
                break
            theta, residual, better = found
            jac = self.jacobian(theta, residual)
            if now - better < CLOSE * max(now, 1e-9):
                break
            now = better
        return theta, residual, jac

    def _shorter(
        self, theta: FloatArray, step: FloatArray, weight: FloatArray, now: float
    ) -> tuple[FloatArray, FloatArray, float] | None:
        """Return the first of ever shorter steps that is an improvement, if one is."""
        for damp in (1.0, 0.5, 0.25, 0.1, 0.02):
            new = self.clipped(theta + damp * step)
            residual = self.residual(new)
            better = self.loss(new, residual, weight)
            if better < now:
                return new, residual, better
        return None

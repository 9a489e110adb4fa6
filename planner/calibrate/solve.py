"""Robust fit of a few positive numbers: maximum a posteriori in logarithms, outliers dropped.

Every number is drawn towards what ships, as far as its `width` allows, so that what measurements do
not identify stays where it is and a handful of them cannot bend a dozen numbers. Errors are
relative. They count as squares up to `SCALE` and linearly beyond (soft L1); what then still stands
far out of the spread of the others is left out and the rest is fitted again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Predict = Callable[[FloatArray], FloatArray]
"""Values of the numbers -> seconds of every measurement."""

SCALE = 0.04
"""Relative error up to which a measurement counts as a square: the noise between reruns."""
COARSE = 0.2
"""The same of a first descent: from a start that is far off all measurements show the way."""
STEP = 0.01
FAR = 4.0
"""Standard deviations beyond which a measurement is an outlier."""
MOST_OUTLIERS = 0.3
"""Share of the measurements that may be left out; with more of them far off, none is."""
UNTOLD = 0.9
"""Share of its width that a number may keep and still count as measured."""
ROUNDS = 40
CLOSE, NEAR = 1e-4, 1e-2
"""Relative gains at which a descent, and the first one, is over."""
MOST_DAMPING = 1e3


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
    told: NDArray[np.bool_]
    """Of which numbers the measurements say more than what ships."""


def solve(
    predict: Predict,
    measured_s: FloatArray,
    numbers: Sequence[Number],
    *,
    start: Sequence[float] | None = None,
    keep_untold: bool = False,
) -> Solution:
    """Return the numbers under which `predict` comes closest to the measurements.

    With `keep_untold` the numbers of which the measurements say less than what ships are kept as
    they ship, and the others fitted again.
    """
    found = _solved(predict, measured_s, numbers, start)
    if not keep_untold:
        return found
    told = found.told
    if told.all() or not told.any():
        return found
    values = np.array([n.shipped for n in numbers])

    def some(few: FloatArray) -> FloatArray:
        every = values.copy()
        every[told] = few
        return predict(every)

    left = [n for n, known in zip(numbers, told, strict=True) if known]
    again = _solved(some, measured_s, left, found.values[told].tolist())
    values[told] = again.values
    spread = found.spread.copy()
    spread[told] = again.spread
    return replace(again, values=values, spread=spread, told=told)


def _solved(
    predict: Predict,
    measured_s: FloatArray,
    numbers: Sequence[Number],
    start: Sequence[float] | None,
) -> Solution:
    problem = _Problem(predict, np.log(measured_s), tuple(numbers))
    centre = problem.centre
    theta = problem.clipped(np.log(start)) if start is not None else centre
    everything = np.ones(len(measured_s))
    theta, _, _ = problem.descend(theta, everything, scale=COARSE, close=NEAR)
    theta, residual, jac = problem.descend(theta, everything)
    if len(measured_s) > len(numbers) and len(measured_s) >= 4:
        weight = (~outliers(residual)).astype(np.float64)
        if not weight.all():
            theta, residual, jac = problem.descend(theta, weight)
    else:
        weight = everything
    curvature = problem.curvature(residual, jac, weight)
    noise = max(1.0, _sigma(residual[weight > 0]) / SCALE)
    spread = np.sqrt(np.diag(np.linalg.inv(curvature)))
    return Solution(
        values=np.exp(theta),
        spread=spread * noise,
        before=problem.residual(centre),
        error=residual,
        unseen=_left_out(residual, jac, weight, curvature),
        kept=weight > 0,
        told=spread * noise < UNTOLD * problem.width,
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

    def jacobian(
        self, theta: FloatArray, base: FloatArray, idle: NDArray[np.bool_] | None = None
    ) -> FloatArray:
        """Return d residual / d number; that of `idle` numbers is known to be zero."""
        columns = []
        for i in range(len(theta)):
            if idle is not None and idle[i]:
                columns.append(np.zeros(len(base)))
                continue
            moved = theta.copy()
            step = -STEP if theta[i] + STEP > np.log(self.numbers[i].high) else STEP
            moved[i] += step
            columns.append((self.residual(moved) - base) / step)
        return np.stack(columns, axis=1)

    def curvature(
        self, residual: FloatArray, jac: FloatArray, weight: FloatArray, scale: float = SCALE
    ) -> FloatArray:
        robust = weight / np.sqrt(1 + (residual / scale) ** 2) / scale**2
        out: FloatArray = jac.T @ (robust[:, None] * jac) + np.diag(self.width**-2.0)
        return out

    def loss(
        self, theta: FloatArray, residual: FloatArray, weight: FloatArray, scale: float
    ) -> float:
        pull = (theta - self.centre) / self.width
        size = 2 * (np.sqrt(1 + (residual / scale) ** 2) - 1)
        return float((weight * size).sum() + (pull**2).sum())

    def descend(
        self, theta: FloatArray, weight: FloatArray, *, scale: float = SCALE, close: float = CLOSE
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return (theta, residuals, slopes) at the minimum: Levenberg-Marquardt."""
        residual = self.residual(theta)
        jac = self.jacobian(theta, residual)
        idle = np.asarray((jac == 0.0).all(axis=0))
        now = self.loss(theta, residual, weight, scale)
        damping = 0.0
        for _ in range(ROUNDS):
            robust = weight / np.sqrt(1 + (residual / scale) ** 2) / scale**2
            gradient = jac.T @ (robust * residual) + (theta - self.centre) / self.width**2
            normal = self.curvature(residual, jac, weight, scale)
            damped = normal + damping * np.diag(np.diag(normal))
            step = -np.asarray(np.linalg.solve(damped, gradient), dtype=np.float64)
            step *= min(1.0, 1.0 / max(float(np.abs(step).max()), 1e-12))
            new = self.clipped(theta + step)
            tried = self.residual(new)
            better = self.loss(new, tried, weight, scale)
            if better >= now:
                damping = max(10 * damping, 0.1)
                if damping > MOST_DAMPING:
                    break
                continue
            gain, now, damping = now - better, better, damping / 10
            theta, residual = new, tried
            jac = self.jacobian(theta, residual, idle)
            if gain < close * max(now, 1e-9):
                break
        return theta, residual, jac

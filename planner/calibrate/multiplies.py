"""Matrix multiplies: an accelerator's rate and shape terms from a benchmark of its owner's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.calibrate.figure import Found, Prediction, Quality, figures_of, residuals
from planner.calibrate.fitted import worth
from planner.calibrate.gemm import Multiply
from planner.calibrate.peaks import told_impossible
from planner.calibrate.probe import probe
from planner.calibrate.solve import FloatArray, Number, solve
from planner.estimate.kernels import gemm_s
from planner.specs.accelerator import GemmFit
from planner.specs.cluster import ClusterSpec
from planner.specs.figures import StackFigures
from planner.units import TERA, many

FEWEST = 6
"""Multiplies below which a fit would say nothing."""
NUMBERS: dict[str, tuple[str, float, float]] = {
    "t0_us": ("us", 1.0, 1000.0),
    "emax": ("", 0.5, 1.0),
    "m0": ("", 0.7, 1e5),
    "n0": ("", 0.7, 1e5),
    "k0": ("", 0.7, 1e5),
}
"""Number -> unit, width of its prior, most."""
LAUNCH_S, LAUNCHES = 15e-6, 2.5
"""A table whose shortest time is longer than this, for a multiply that should take half of it at
most, was timed launch by launch: what is within so many times the shortest says how fast a host
launches, and nothing of multiplies in training."""
SHOWN = 3
SIZES_TFLOP = (0.1, 1.0, 10.0)
"""Where the sizes part by which errors are told: 4096 x 4096 x 4096 has 0.14 TFLOP."""


def fit_multiplies(
    cluster: ClusterSpec, rows: Sequence[Multiply], file: str
) -> tuple[Found, ClusterSpec]:
    """Return what a benchmark says of the accelerator, and the cluster with it put in."""
    found = Found()
    for field, kinds in (("gemm", ("bf16", "fp16")), ("gemm_fp8", ("fp8",))):
        mine = [row for row in rows if row.precision in kinds]
        if not mine:
            continue
        if getattr(cluster.accelerator, field) is None:
            name = cluster.accelerator.name
            found.warnings.append(f"{file}: {name} has no {field} figures: fp8 rows left out")
            continue
        what = f"multiplies in {' or '.join(kinds)}"
        mine = _possible(cluster, mine, what, file, found)
        if not mine:
            continue
        mine, launched = _without_launches(cluster, field, mine)
        if launched:
            found.facts.append(
                f"{file}: {launched} {what} as short as launching them takes are left out, "
                "and t0_us stays"
            )
        if len(mine) < FEWEST:
            some = many(len(mine), what.replace("multiplies", "multiply"), what)
            found.warnings.append(f"{file}: {some} where {FEWEST} are needed: left out")
        else:
            names = [name for name in NUMBERS if name != "t0_us" or not launched]
            cluster = _fit(cluster, field, mine, names, file=file, found=found)
    return found, cluster


def _possible(
    cluster: ClusterSpec, rows: Sequence[Multiply], what: str, file: str, found: Found
) -> list[Multiply]:
    """Return the multiplies that the GPU can have done in that time; say so of the others."""
    flops, seconds = _flops(rows), np.array([row.seconds for row in rows])
    precision = rows[0].precision
    above, sentence = told_impossible(what, cluster.accelerator, precision, flops, seconds)
    if sentence:
        found.warnings.append(f"{file}: {sentence}")
    return [row for row, no in zip(rows, above, strict=True) if not no]


def _flops(rows: Sequence[Multiply]) -> FloatArray:
    return np.array([2.0 * r.m * r.n * r.k for r in rows])


def _without_launches(
    cluster: ClusterSpec, field: str, rows: Sequence[Multiply]
) -> tuple[list[Multiply], int]:
    """Return the multiplies that take longer than launching them, and how many do not."""
    shortest = min(rows, key=lambda row: row.seconds)
    least = shortest.seconds
    if least <= LAUNCH_S or multiplies_s(cluster, field, {}, [shortest])[0] > least / 2:
        return list(rows), 0
    longer = [row for row in rows if row.seconds > LAUNCHES * least]
    return longer, len(rows) - len(longer)


def _fit(
    cluster: ClusterSpec,
    field: str,
    rows: Sequence[Multiply],
    names: Sequence[str],
    *,
    file: str,
    found: Found,
) -> ClusterSpec:
    measured = np.array([row.seconds for row in rows])
    shipped: GemmFit = getattr(cluster.accelerator, field)

    def predict(values: FloatArray) -> FloatArray:
        return multiplies_s(cluster, field, dict(zip(names, values.tolist(), strict=True)), rows)

    now = [float(getattr(shipped, name)) for name in names]
    numbers = [
        Number(name, value if name == "emax" else max(value, 1.0), width, low=1e-3, high=most)
        for name, value in zip(names, now, strict=True)
        for _, width, most in [NUMBERS[name]]
    ]
    before = predict(np.array(now))
    solution = solve(predict, measured, numbers, keep_untold=True)
    solution = replace(solution, before=np.log(before / measured))
    quality = Quality.of(solution, measured)
    group = f"multiplies in {rows[0].precision}"
    if not worth(found, group, quality, file):
        return cluster
    if solution.values[names.index("emax")] > 0.999:
        found.warnings.append(
            f"{file}: {group} run as fast as the dense peak of {cluster.accelerator.name} or "
            "faster; is the peak right, and are the inputs random?"
        )
    places = [
        (("accelerator", field, name), NUMBERS[name][0], value)
        for name, value in zip(names, now, strict=True)
    ]
    figures = figures_of(group, solution, quality, places)
    found.figures += figures
    fit = {f.path[-1]: f.after for f in figures}
    after = multiplies_s(cluster, field, fit, rows)
    found.predictions += _shown(rows, before, after, measured)
    found.residuals += residuals(
        group, _sizes(rows), np.log(before / measured), np.log(after / measured)
    )
    gpu = cluster.accelerator.model_copy(update={field: shipped.model_copy(update=fit)})
    return cluster.model_copy(update={"accelerator": gpu})


def _sizes(rows: Sequence[Multiply]) -> dict[str, NDArray[np.bool_]]:
    """Return which multiplies are how large."""
    tflop = _flops(rows) / TERA
    edges = (0.0, *SIZES_TFLOP, np.inf)
    words = [f"up to {SIZES_TFLOP[0]:g} TFLOP"]
    words += [f"{a:g} to {b:g} TFLOP" for a, b in pairwise(SIZES_TFLOP)]
    words.append(f"above {SIZES_TFLOP[-1]:g} TFLOP")
    return {
        word: (tflop > low) & (tflop <= high)
        for word, (low, high) in zip(words, pairwise(edges), strict=True)
    }


def multiplies_s(
    cluster: ClusterSpec, field: str, fit: Mapping[str, float], rows: Sequence[Multiply]
) -> FloatArray:
    """Return what the estimate says of bare multiplies: without derate, stack or scaling costs."""
    gpu = cluster.accelerator
    bare = getattr(gpu, field).model_copy(update={**fit, "derate": 1.0})
    alone = StackFigures(gemm=1.0)
    at = cluster.model_copy(
        update={
            "accelerator": gpu.model_copy(update={field: bare}),
            "stacks": {**cluster.stacks, "any": alone},
        }
    )
    out = np.zeros(len(rows))
    for precision in sorted({row.precision for row in rows}):
        mine = np.array([row.precision == precision for row in rows])
        sizes = np.array([(r.m, r.n, r.k) for r in rows if r.precision == precision], np.float64)
        out[mine] = gemm_s(probe(at, precision=precision), *sizes.T)
    return out


def _shown(
    rows: Sequence[Multiply], before: FloatArray, after: FloatArray, measured: FloatArray
) -> list[Prediction]:
    """Return the predictions of the multiplies that take longest, one of each shape."""
    out: dict[str, Prediction] = {}
    for i in np.argsort(-measured, kind="stable").tolist():
        r = rows[i]
        what = f"{r.precision} {r.m} x {r.n} x {r.k}"
        out.setdefault(
            what,
            Prediction(what, "multiply", float(before[i]), float(after[i]), float(measured[i])),
        )
        if len(out) == SHOWN:
            break
    return list(out.values())

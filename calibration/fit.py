"""Fit the planner's step-time numbers to published runs, and score them on runs left out.

    python calibration/fit.py RUNS.csv            # fit, leave families and sources out, print
    python calibration/fit.py RUNS.csv --write    # and write numbers, intervals and scores

The planner's own closed form is what is fitted (planner/estimate), so what is printed is what a
user gets. One process; some ten minutes for 2,600 runs. See docs/model.md, Calibration.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from calibration.runs import FAMILY_FOLDS, Table, family_folds, read  # noqa: E402
from calibration.solve import Problem, fit, used  # noqa: E402
from calibration.write import replace_assigned, write_numbers  # noqa: E402
from planner.estimate.inputs import FloatArray  # noqa: E402
from planner.layouts.table import IntArray  # noqa: E402
from planner.validate.seen import write_fitted  # noqa: E402

SCORES = ROOT / "planner" / "validate" / "left_out.csv"
UNCERTAINTY = ROOT / "planner" / "estimate" / "uncertainty.py"
FEWEST_RUNS, FEWEST_FAMILIES, FEWEST_OF_A_SOURCE = 10, 5, 5


class Residuals(NamedTuple):
    """log(predicted / measured) of every run: fitted to it, its family left out, its source out."""

    fitted: FloatArray
    family: FloatArray
    source: FloatArray


def main() -> None:
    """Fit, cross-validate, print; write with --write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="slopes are taken anew so often")
    parser.add_argument("--write", action="store_true", help="write what was found into the tree")
    asked = parser.parse_args()
    table = read(asked.runs)
    problem = Problem.of(table)
    start = np.zeros(len(problem.knobs))
    theta, fitted, jac = fit(problem, start, table.weight, rounds=asked.rounds)
    known = sum(used(problem, jac, table.weight))
    print(f"{len(table):,} runs, {(table.weight > 0).sum():,} fitted to")
    print(f"{len(theta)} numbers, {known} of them known better from the runs than before")
    residuals = Residuals(
        fitted,
        left_out(problem, theta, fitted, jac, family_folds(table)),
        left_out(problem, theta, fitted, jac, source_folds(table)),
    )
    rows = scores(table, residuals)
    for row in rows:
        print(f"{row[0]:52}", *(f"{cell:>6}" for cell in row[1:]))
    if asked.write:
        problem.residuals(theta)
        write_numbers(problem.planner, problem.knobs, theta.tolist())
        write_scores(rows, len(theta), known, int((table.weight > 0).sum()))
        write_intervals(table, residuals)
        write_fitted(run.row for run, w in zip(table.runs, table.weight, strict=True) if w > 0)


def source_folds(table: Table) -> IntArray:
    """Return each run's fold; a source is one."""
    return np.unique(table.source, return_inverse=True)[1].astype(np.int64)


def left_out(
    problem: Problem, theta: FloatArray, fitted: FloatArray, jac: FloatArray, fold: IntArray
) -> FloatArray:
    """Return each run's residual when its fold is left out, from the slopes of the full fit."""
    out = np.full(len(problem.table), np.nan)
    for k in np.unique(fold):
        weight = np.where(fold == k, 0.0, problem.table.weight)
        _, residual, _ = fit(problem, theta, weight, jac=jac, residual=fitted, chords=2)
        out[fold == k] = residual[fold == k]
    return out


def _errors(residual: FloatArray) -> tuple[float, float]:
    size = np.abs(np.expm1(residual))
    return float(np.median(size)), float(np.quantile(size, 0.9))


def scores(table: Table, residuals: Residuals) -> list[tuple[str, ...]]:
    """Return (what, runs, median and p90 of |error| in % for each kind of residual), by source."""
    names = ["all", *sorted(set(table.source.tolist()))]
    rows: list[tuple[str, ...]] = []
    medians: list[list[float]] = []
    for name in names:
        mine = table.usual & ((table.source == name) | (name == "all"))
        if not mine.any():
            continue
        cells = [_errors(r[mine]) for r in residuals]
        rows.append((name, f"{mine.sum()}", *(f"{100 * v:.1f}" for c in cells for v in c)))
        if name != "all":
            medians.append([v for c in cells for v in c])
    mean = np.mean(medians, axis=0)
    return [("mean over sources", f"{len(medians)}", *(f"{100 * v:.1f}" for v in mean)), *rows]


def write_scores(rows: list[tuple[str, ...]], numbers: int, known: int, fitted_to: int) -> None:
    """Write the scores for docs/accuracy.md; the first line says what was fitted to how much."""
    head = ("what", "runs", *(f"{k}_{m}" for k in Residuals._fields for m in ("median", "p90")))
    with SCORES.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# numbers {numbers} known {known} runs {fitted_to} folds {FAMILY_FOLDS}\n")
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def write_intervals(table: Table, residuals: Residuals) -> None:
    """Write intervals and ties into planner/estimate/uncertainty.py."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for i in np.flatnonzero(table.usual):
        groups[table.stack[i], table.generation[i]].append(float(np.exp(-residuals.family[i])))
    lines = [
        f'    ("{stack}", "{kind}"): Interval('
        f"{min(1.0, np.quantile(v, 0.1)):.2f}, {max(1.0, np.quantile(v, 0.9)):.2f}, {len(v)}),\n"
        for (stack, kind), v in sorted(groups.items())
        if len(v) >= FEWEST_RUNS
    ]
    unseen = _unseen(table, residuals.source)
    replace_assigned(
        UNCERTAINTY,
        {
            "UNSEEN": f"Interval({unseen[0]:.2f}, {unseen[1]:.2f}, 0)",
            "INTERVALS": "{\n" + "".join(lines) + "}",
            "TIES": "{\n" + "".join(_ties(table, residuals.family)) + "}",
        },
    )


def _unseen(table: Table, residual: FloatArray) -> tuple[float, float]:
    """Return the median over sources of the 10th and 90th percentile, each left out of the fit."""
    mine = [
        np.exp(-residual[table.usual & (table.source == s)])
        for s in sorted(set(table.source.tolist()))
    ]
    spread = [np.quantile(np.abs(v - 1), 0.9) for v in mine if len(v) >= FEWEST_OF_A_SOURCE]
    wide = float(np.median(spread))
    return 1 / (1 + wide), 1 + wide


def _ties(table: Table, residual: FloatArray) -> list[str]:
    """Return a line for each stack: how much two errors of one family differ in the median."""
    found: dict[str, list[float]] = defaultdict(list)
    stated = np.array([bool(r.row.get("family")) for r in table.runs]) & table.usual
    for family in sorted(set(table.family[stated].tolist())):
        mine = np.flatnonzero(stated & (table.family == family))
        gaps = np.abs(residual[mine][:, None] - residual[mine][None, :])
        stack = str(table.stack[mine[0]])
        if len(mine) > 1:
            found[stack].append(float(np.median(gaps[np.triu_indices(len(mine), 1)])))
    return [
        f'    "{s}": {np.median(v):.2f},\n'
        for s, v in sorted(found.items())
        if len(v) >= FEWEST_FAMILIES and np.median(v) > 0.03
    ]


if __name__ == "__main__":
    main()

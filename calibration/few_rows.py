"""Show what a few measured steps of a stack are worth that the planner has never seen.

    python calibration/few_rows.py RUNS.csv
    python calibration/few_rows.py RUNS.csv --source vTrain --source llm-foundry --draws 10

One source of the table is left out whole and the planner's numbers are fitted to all others. Then
`--rows` runs of that source, drawn at random, go through what `meshwright calibrate --steps` does,
and the rest of the source is scored before and after. Twice: `left out` keeps what the other stacks
of its lineage say of it; `stranger` forgets the lineage too, and starts from the mean of the others
(profiles were fitted with the source in, so a lineage may remember it). The first fit takes two
minutes, each source some more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from calibration.knobs import FIELDS, LINEAGE_OF, LINEAGES, Planner  # noqa: E402
from calibration.runs import Table, read  # noqa: E402
from calibration.solve import Problem, fit  # noqa: E402
from planner.calibrate.stacks import Step, Steps, fit_stack, numbers_of  # noqa: E402
from planner.estimate.inputs import FloatArray  # noqa: E402
from planner.specs.profile import Stack  # noqa: E402
from planner.specs.stack import STACKS, stack_named  # noqa: E402

FEWEST = 16
"""Runs of one stack in a source, beyond those drawn, below which scores say little."""


class Score(NamedTuple):
    """Median and 90th percentile of |error| of one draw's remaining runs, before and after."""

    before: float
    before_p90: float
    after: float
    after_p90: float


def main() -> None:
    """Leave sources out, calibrate with a few of their runs, print the errors of the others."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--source", action="append", help="only this source; repeat for more")
    parser.add_argument("--rows", type=int, default=8, help="measured steps to calibrate with")
    parser.add_argument("--draws", type=int, default=5, help="how often they are drawn")
    asked = parser.parse_args()
    table = read(asked.runs)
    problem = Problem.of(table)
    start = np.zeros(len(problem.knobs))
    slopes = problem.jacobian(start, problem.residuals(start))
    print(
        f"{asked.rows} of the runs drawn {asked.draws} times; median / p90 of |error| of the rest"
    )
    for source, stack in groups(table, asked.rows + FEWEST):
        if asked.source and source not in asked.source:
            continue
        weight = np.where(table.source == source, 0.0, table.weight)
        theta, _, _ = fit(problem, start, weight, jac=slopes, chords=3)
        for stranger in (False, True):
            scores = drawn(problem, theta, source, stack, asked, stranger=stranger)
            print(line(source, stack, "stranger" if stranger else "left out", scores), flush=True)


def groups(table: Table, fewest: int) -> Iterator[tuple[str, str]]:
    """Yield the (source, stack) pairs with enough runs, the largest first."""
    pairs = zip(table.source[table.usual].tolist(), table.stack[table.usual].tolist(), strict=True)
    every = list(pairs)
    counts = {pair: every.count(pair) for pair in set(every)}
    for pair, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count >= fewest:
            yield pair


def drawn(
    problem: Problem,
    theta: FloatArray,
    source: str,
    stack: str,
    asked: argparse.Namespace,
    *,
    stranger: bool,
) -> list[Score]:
    """Return a score for each draw; the planner is as shipped again afterwards."""
    planner, table = problem.planner, problem.table
    contexts = planner.apply(problem.knobs, theta.tolist(), [g[0] for g in table.groups])
    if stranger:
        STACKS[stack] = forgotten(planner, STACKS[stack])
        stack_named.cache_clear()
    mine = table.usual & (table.source == source) & (table.stack == stack)
    steps = [
        Step(context, layouts.row(j), float(table.measured_s[i]))
        for context, (_, layouts, rows) in zip(contexts, table.groups, strict=True)
        for j, i in enumerate(rows.tolist())
        if mine[i]
    ]
    numbers = numbers_of(STACKS[stack])
    whole = Steps(stack, steps)
    before = whole.closed_form_s({n.name: n.shipped for n in numbers})
    scores = []
    for seed in range(asked.draws):
        order = np.random.default_rng(seed).permutation(len(steps))
        few, rest = order[: asked.rows], order[asked.rows :]
        found = fit_stack(Steps(stack, [steps[i] for i in few]), numbers)
        values = zip(numbers, found.values.tolist(), strict=True)
        after = whole.closed_form_s({n.name: value for n, value in values})
        scores.append(Score(*errors(before, whole, rest), *errors(after, whole, rest)))
    planner.restore()
    return scores


def forgotten(planner: Planner, stack: Stack) -> Stack:
    """Return a stack whose numbers are the mean of the other lineages."""
    others = [stacks for name, stacks in LINEAGES.items() if name != LINEAGE_OF.get(stack.name)]

    def mean(field: str) -> float:
        values = [[getattr(STACKS[s], field) for s in stacks] for stacks in others]
        logs = [np.mean(np.log(v)) for v in values if min(v) > 0]
        return float(np.exp(np.mean(logs))) if logs else 0.0

    return replace(stack, **{f: mean(f) for f in FIELDS if getattr(stack, f) > 0})


def errors(predicted: FloatArray, steps: Steps, rows: FloatArray) -> tuple[float, float]:
    """Return median and 90th percentile of |error| of some rows."""
    size = np.abs(predicted / steps.measured_s - 1)[rows]
    return float(np.median(size)), float(np.quantile(size, 0.9))


def line(source: str, stack: str, how: str, scores: Sequence[Score]) -> str:
    """Return one line of the table: means over the draws, and the range of the median."""
    mean = Score(*np.mean(scores, axis=0).tolist())
    low, high = (100 * f(s.after for s in scores) for f in (min, max))
    return (
        f"{source[:30]:30} {stack[:23]:23} {how:8}"
        f" {100 * mean.before:5.1f} /{100 * mean.before_p90:6.1f}"
        f"  ->{100 * mean.after:5.1f} /{100 * mean.after_p90:6.1f}   ({low:.1f} to {high:.1f})"
    )


if __name__ == "__main__":
    main()

"""Measured steps of a job: what they say of the stack that ran them, on this cluster."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.calibrate.figure import Figure, Found, Prediction, Quality, figures_of
from planner.calibrate.fitted import worth
from planner.calibrate.peaks import impossible_step, most_factor
from planner.calibrate.solve import FloatArray, Number, Solution
from planner.calibrate.stacks import Step, Steps, fit_stack, numbers_of
from planner.specs.cluster import ClusterSpec
from planner.specs.figures import StackFigures
from planner.specs.stack import stack_with
from planner.validate.predict import measured_step_s
from planner.validate.runs import Run
from planner.validate.seen import fingerprint

FEWEST = 3
"""Steps below which a stack's numbers are not fitted."""
ENOUGH = 8
"""Steps from which the spread of their errors is believed, each left out in turn."""
MOST_RUNS = 5000
SIZES = ("tp", "pp", "cp", "dp")
RATES = ("gemm", "attention")
"""Numbers that a peak bounds."""
UNITS = {"host_s": "s", "host_moe_s": "s", "microbatch_s": "s", "step_s": "s"}


def fit_steps(
    cluster: ClusterSpec, runs: Sequence[Run], file: str, *, shipped: ClusterSpec | None = None
) -> tuple[Found, ClusterSpec]:
    """Return what the runs say of their stacks, and the cluster with that put in.

    `shipped` is the cluster before any calibration, which "before" stands for.
    """
    found, shipped = Found(), shipped or cluster
    by_stack: dict[str, list[tuple[Run, Step]]] = defaultdict(list)
    for run, step in _usable(runs, file, found):
        profile = step.context.workload.stack.split("+", maxsplit=1)[0]
        by_stack[profile].append((run, step))
    for profile, pairs in sorted(by_stack.items()):
        if len(pairs) < FEWEST:
            found.warnings.append(
                f"{file}: {len(pairs)} measured steps of {profile} where {FEWEST} are needed and "
                f"{ENOUGH} are good: left out"
            )
        else:
            cluster = _fit(cluster, profile, pairs, file, found, shipped=shipped)
    return found, cluster


def _usable(runs: Sequence[Run], file: str, found: Found) -> list[tuple[Run, Step]]:
    """Return the runs whose step can be predicted and was measured; say why others cannot."""
    out, reasons = [], Counter[str]()
    first: dict[str, int] = {}
    for line, run in enumerate(runs[:MOST_RUNS], start=2):
        reason = run.reason or "no measured step time"
        if run.context is not None and run.layout is not None:
            try:
                seconds = measured_step_s(run.row, run.context)
            except (ValueError, OverflowError, ZeroDivisionError):
                seconds = None
            if seconds is not None and (told := _impossible(run, seconds)):
                found.warnings.append(f"{file}, line {line}: {told}; left out")
                continue
            if seconds is not None and 1e-6 < seconds < 1e7:
                out.append((run, Step(run.context, run.layout, seconds)))
                continue
        reasons[reason] += 1
        first.setdefault(reason, line)
    for reason, count in reasons.most_common(5):
        found.warnings.append(f"{file}, line {first[reason]}: {reason} ({count} rows left out)")
    if len(runs) > MOST_RUNS:
        found.warnings.append(f"{file}: only the first {MOST_RUNS:,} rows are read")
    return out


def _impossible(run: Run, seconds: float) -> str:
    """Return why no machine takes so short for the run's step, or nothing."""
    if run.context is None or run.layout is None or not seconds > 0:
        return ""
    gpus = math.prod(int(run.layout[name]) for name in SIZES)
    return impossible_step(run.context, gpus, seconds)


def _fit(
    cluster: ClusterSpec,
    profile: str,
    pairs: Sequence[tuple[Run, Step]],
    file: str,
    found: Found,
    *,
    shipped: ClusterSpec,
) -> ClusterSpec:
    known = cluster.stacks.get(profile)
    steps = [_on(step, cluster) for _, step in pairs]
    numbers = [
        replace(n, high=max(n.shipped, most_factor(cluster, n.name))) if n.name in RATES else n
        for n in _numbers(cluster, profile)
    ]
    table = Steps(profile, steps)
    solution = fit_stack(table, numbers)
    unfitted = _judged_s(cluster, profile, pairs)
    found_now = zip(numbers, solution.values.tolist(), strict=True)
    after = table.judged_s({n.name: value for n, value in found_now})
    solution = replace(
        solution,
        before=np.log(unfitted / table.measured_s),
        error=np.log(after / table.measured_s),
    )
    group = f"stack {profile}"
    if not worth(found, group, Quality.of(solution, table.measured_s), file):
        return cluster
    before = _judged_s(shipped, profile, pairs)
    solution = replace(solution, before=np.log(before / table.measured_s))
    quality = Quality.of(solution, table.measured_s)
    if len(steps) < ENOUGH:
        found.warnings.append(
            f"{file}: {len(steps)} measured steps of {profile}; {ENOUGH} or more, of different "
            "layouts and sizes, would pin its numbers down"
        )
    if quality.median_unseen is not None and quality.median_unseen > quality.median_before:
        found.warnings.append(
            f"{file}: with each step left out in turn, {profile} is {quality.median_unseen:.1%} "
            f"off in the median, against {quality.median_before:.1%} as it ships: these runs may "
            "not say much about the next one"
        )
    for (run, _), kept in zip(pairs, solution.kept, strict=True):
        if not kept:
            found.warnings.append(f"{file}: {run.id} does not fit the others: left out of the fit")
    places = [(("stacks", profile, n.name), UNITS.get(n.name, ""), n.shipped) for n in numbers]
    figures = figures_of(group, solution, quality, places)
    found.figures += figures
    found.predictions += [
        Prediction(run.id, "step", float(b), float(a), step.measured_s)
        for (run, step), b, a in zip(pairs, before, after, strict=True)
    ]
    runs = [run for run, _ in pairs]
    stacks = {**cluster.stacks, profile: _figures(known, figures, solution, runs)}
    return cluster.model_copy(update={"stacks": stacks})


def _numbers(cluster: ClusterSpec, profile: str) -> list[Number]:
    """Return the numbers of a stack as they stand on a cluster."""
    known = cluster.stacks.get(profile)
    return numbers_of(stack_with(profile, known.numbers if known else {}))


def _judged_s(cluster: ClusterSpec, profile: str, pairs: Sequence[tuple[Run, Step]]) -> FloatArray:
    """Return the seconds that a plan on `cluster` would state for every step."""
    table = Steps(profile, [_on(step, cluster) for _, step in pairs])
    return table.judged_s({n.name: n.shipped for n in _numbers(cluster, profile)})


def _on(step: Step, cluster: ClusterSpec) -> Step:
    """Return a step on `cluster`, as many nodes of it as it ran on."""
    nodes = step.context.cluster.nodes
    own = cluster.model_copy(update={"nodes": nodes, "hosts": None, "leafs": None})
    return step._replace(context=step.context._replace(cluster=own))


def _figures(
    known: StackFigures | None,
    figures: Sequence[Figure],
    solution: Solution,
    runs: Sequence[Run],
) -> StackFigures:
    """Return a stack's figures with those that were found, and the interval of the runs."""
    values = {**(known.numbers if known else {}), **{f.path[-1]: f.after for f in figures}}
    low = high = None
    if len(runs) >= ENOUGH:
        ratio = np.exp(-np.clip(solution.unseen, -3, 3))
        low = float(f"{min(1.0, np.quantile(ratio, 0.1)):.3g}")
        high = float(f"{max(1.0, np.quantile(ratio, 0.9)):.3g}")
    fitted = sorted({fingerprint(run.row) for run in runs})
    return StackFigures.model_validate(
        {**values, "runs": len(runs), "low": low, "high": high, "fitted": fitted}
    )

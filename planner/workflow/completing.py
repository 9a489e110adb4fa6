"""One layout with every field filled in: the fastest that has the given fields, if one fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from planner.errors import InfeasibleError, SpecError
from planner.estimate.running import lightened
from planner.layouts.ranges import Fix, parse_fix
from planner.layouts.rules import rules_broken
from planner.layouts.table import NAMES, Layouts
from planner.place import free_nodes
from planner.plan import Layout
from planner.rank import Ranking, rank
from planner.units import gib
from planner.workflow.request import PlanRequest, Progress, quiet, told_share
from planner.workflow.rows import layout_record, plain
from planner.workflow.searching import search, usable_gpus

ENOUGH_GIB = 1e9
TIE = 1e-4
"""Relative difference of step times below which the lighter layout is taken."""
SAID = 0.001
"""A difference in memory that is worth a sentence."""
DEGREES = ("tp", "pp", "cp", "dp")


@dataclass(frozen=True)
class Completed:
    """A layout with every field filled in, and whether it is legal and fits."""

    legal: bool
    feasible: bool
    layouts: Layouts
    gpus: int
    wanted: Mapping[str, int] = field(default_factory=dict)
    """The fields that were given, codes for names."""
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> Layout | None:
        """Return the layout as a record."""
        return layout_record(self.layouts, 0) if len(self.layouts) else None


def completed(
    request: PlanRequest, given: Mapping[str, str], progress: Progress = quiet
) -> Completed:
    """Return the fastest legal layout that fits and has the given fields.

    If none fits, the fastest whatever it needs; if none is legal, one with defaults and every rule
    that it breaks.
    Raises SpecError for an unknown field or a value that is no single value.
    """
    fix = parse_fix(given)
    wanted = _single_values(fix)
    gpus, notes = _gpus_of(request, wanted)
    ranking = rank(request.context, gpus, fix, tell=told_share(gpus, progress))
    if not ranking.tally.legal and "dp" not in wanted and request.gpus is None:
        ranking, gpus, notes = _on_fewer(request, given, ranking, notes)
    if ranking.feasible:
        best = ranking.layouts.take([_lightest_of_ties(ranking)])
        return Completed(True, True, best, gpus, wanted, notes=notes)
    if ranking.tally.legal:
        fastest, peak = _fastest_anyway(request, ranking, gpus, fix)
        if lightened(request.context, fastest)[0] is not None:
            return Completed(True, True, fastest, gpus, wanted, notes=notes)
        return Completed(
            True, False, fastest, gpus, wanted, _too_large(request, ranking, peak), notes
        )
    guess = _filled(request, wanted, gpus)
    reasons = _broken(request, guess, wanted, gpus)
    reasons = reasons or [f"no layout of {gpus:,} GPUs has these fields"]
    return Completed(False, False, guess, gpus, wanted, reasons, notes)


def _broken(
    request: PlanRequest, guess: Layouts, wanted: Mapping[str, int], gpus: int
) -> list[str]:
    """Return what is wrong with a layout: what hangs on the given fields alone comes first."""
    rules = rules_broken(guess, 0, request.context)
    rules.sort(key=lambda rule: not {*rule.on} <= {*wanted})
    reasons = [rule.explain(guess, 0, request.context) for rule in rules]
    degrees = [name for name in DEGREES if name in wanted]
    asked = prod(wanted[name] for name in degrees)
    used = prod(int(getattr(guess, name)[0]) for name in DEGREES)
    if len(degrees) < len(DEGREES) and asked < gpus and gpus % asked:
        told = "*".join(f"{name}={wanted[name]}" for name in degrees)
        told += f" = {asked:,}" if len(degrees) > 1 else ""
        return [f"{told} does not divide the {gpus:,} GPUs there are", *reasons]
    if used != gpus or used > request.cluster.gpus:
        reasons.insert(0, f"tp*pp*cp*dp = {used:,} is not the {gpus:,} GPUs there are")
    return reasons


def _lightest_of_ties(ranking: Ranking) -> int:
    """Return the row that needs least of those as fast as the fastest: GPipe ties with 1F1B."""
    ties = int(np.searchsorted(ranking.step_s, ranking.step_s[0] * (1 + TIE), side="right"))
    return int(np.argmin(ranking.peak_bytes[:ties]))


def _fastest_anyway(
    request: PlanRequest, ranking: Ranking, gpus: int, fix: Fix
) -> tuple[Layouts, float]:
    """Return the fastest legal layout on GPUs with room for any, and what it needs of one."""
    cluster = request.cluster
    roomy = {"memory_gib": ENOUGH_GIB, "usable_memory_gib": ENOUGH_GIB}
    node = cluster.node.model_copy(update={"memory_gib": None})
    accelerator = cluster.accelerator.model_copy(update=roomy)
    context = replace(
        request, cluster=cluster.model_copy(update={"accelerator": accelerator, "node": node})
    ).context
    free = rank(context, gpus, fix)
    if not free.feasible:
        return ranking.lightest, ranking.lightest_bytes
    row = _lightest_of_ties(free)
    return free.layouts.take([row]), float(free.peak_bytes[row])


def _too_large(request: PlanRequest, ranking: Ranking, peak_bytes: float) -> list[str]:
    """Return why a layout does not fit, and whether other values of what is left out would help."""
    share = f"{request.workload.max_memory:.0%} of {gib(ranking.limit_bytes)}"
    if peak_bytes <= ranking.budget_bytes:
        return ["out of memory on the host: it has no room for what is offloaded"]
    over = "out of memory" if peak_bytes > ranking.limit_bytes else "too close"
    told = [
        f"{over}: needs {gib(peak_bytes)} per GPU, {gib(ranking.budget_bytes)} may be used "
        f"({share}); {gib(peak_bytes - ranking.budget_bytes)} short"
    ]
    if ranking.lightest_bytes < peak_bytes * (1 - SAID):
        light = layout_record(ranking.lightest, 0).short()
        told.append(
            f"with these fields nothing needs less than {gib(ranking.lightest_bytes)} ({light})"
        )
    return told


def _on_fewer(
    request: PlanRequest, given: Mapping[str, str], ranking: Ranking, notes: list[str]
) -> tuple[Ranking, int, list[str]]:
    """Return the search on as many GPUs as any layout with these fields can use."""
    try:
        other, said = search(replace(request, fix=dict(given)), lambda _: None)
    except InfeasibleError:
        return ranking, ranking.gpus, notes
    return other, other.gpus, said


def _single_values(fix: Fix) -> dict[str, int]:
    values: dict[str, int] = {}
    for name, choice in fix.choices.items():
        if (only := choice.only) is None:
            raise SpecError(f"{name}={choice.text}: --layout takes one value a field")
        values[name] = only
    return values


def _gpus_of(request: PlanRequest, wanted: Mapping[str, int]) -> tuple[int, list[str]]:
    """Return the GPUs of the layout: the product of its degrees where tp, pp and dp are given."""
    asked = request.gpus is None and all(name in wanted for name in ("tp", "pp", "dp"))
    used = prod(wanted.get(name, 1) for name in DEGREES) if asked else 0
    if asked and _needs_broken_nodes(request, used):
        return used, usable_gpus(replace(request, unhealthy=()))[1]
    gpus, notes = usable_gpus(request)
    if asked and used < gpus:
        return used, [*notes, f"uses {used:,} of {gpus:,} GPUs"]
    return gpus, notes


def _needs_broken_nodes(request: PlanRequest, used: int) -> bool:
    """Return whether so many GPUs are healthy only with those of partly broken nodes."""
    free = free_nodes(request.cluster, request.unhealthy)
    gpus = request.cluster.node.gpus
    return len(free.with_gpus(gpus)) * gpus < used <= int(free.healthy.sum())


def _filled(request: PlanRequest, wanted: Mapping[str, int], gpus: int) -> Layouts:
    """Return the given fields with plain defaults for the others, legal or not."""
    batch = request.workload.global_batch
    row: dict[str, int | str] = dict(plain(1, 1, batch).row(0))
    for name, value in wanted.items():
        row[name] = NAMES[name][value] if name in NAMES else value
    if "dp" not in wanted:
        row["dp"] = max(1, gpus // (int(row["tp"]) * int(row["pp"]) * int(row["cp"])))
    if "sp" not in wanted and int(row["tp"]) > 1 and request.model.experts:
        row["sp"] = 1
    if "schedule" not in wanted and int(row["pp"]) > 1:
        row["schedule"] = "interleaved" if int(row["vpp"]) > 1 else "1f1b"
    row["num_microbatches"] = max(1, batch // (int(row["dp"]) * int(row["micro_batch"])))
    return Layouts.of([row])

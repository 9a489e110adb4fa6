"""The whole road: files of measurements in, a calibrated cluster and what it changes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from planner.calibrate.effects import reference_jobs
from planner.calibrate.figure import Figure, Found
from planner.calibrate.gemm import Multiplies, read_multiplies
from planner.calibrate.kernels import Activity
from planner.calibrate.links import fit_links
from planner.calibrate.multiplies import fit_multiplies
from planner.calibrate.nccl import ALIASES, Log, read_logs
from planner.calibrate.profiled import fit_profiles
from planner.calibrate.steps import fit_steps
from planner.calibrate.trace import read_profile
from planner.errors import InfeasibleError, SpecError
from planner.specs.cluster import ClusterSpec
from planner.specs.parse import shown
from planner.specs.stack import stack_named
from planner.validate.runs import Run, runs_of
from planner.validate.table import columns_told, read_table

R = TypeVar("R")


@dataclass(frozen=True)
class Given:
    """The files of measurements that a user has, and what they do not say themselves."""

    logs: tuple[str, ...] = ()
    """Paths of nccl-tests logs, or `all_gather=PATH` where a log does not say what it timed."""
    gemm: Path | None = None
    steps: Path | None = None
    profiles: tuple[Path, ...] = ()
    ranks: int | None = None
    nodes: int | None = None
    stack: str = "any"

    @property
    def files(self) -> tuple[Path, ...]:
        """Return every file, in the order in which they are used."""
        logs = tuple(_named(word)[1] for word in self.logs)
        return (*logs, *filter(None, (self.gemm,)), *self.profiles, *filter(None, (self.steps,)))


@dataclass(frozen=True)
class Calibration:
    """A cluster as it was and as it was measured, and how the one came from the other."""

    before: ClusterSpec
    after: ClusterSpec
    found: Found
    profiles: tuple[Activity, ...]
    files: tuple[str, ...]

    @property
    def figures(self) -> list[Figure]:
        """Return what changed; of two fits that moved one figure the later, since what shipped."""
        first: dict[tuple[str, ...], Figure] = {}
        last: dict[tuple[str, ...], Figure] = {}
        for figure in self.found.figures:
            first.setdefault(figure.path, figure)
            last[figure.path] = replace(figure, before=first[figure.path].before)
        return list(last.values())

    @property
    def facts(self) -> list[str]:
        """Return what is worth knowing, each sentence once."""
        return list(dict.fromkeys(self.found.facts))

    @property
    def warnings(self) -> list[str]:
        """Return what a user should not overlook, each sentence once."""
        off = (one.telling for one in self.found.residuals)
        return list(dict.fromkeys([*self.found.warnings, *filter(None, off)]))

    def document(self, written: Path | None) -> dict[str, Any]:
        """Return the answer as plain data."""
        return {
            "schema": "meshwright.calibrate/1",
            "cluster": self.before.name,
            "written": str(written) if written else None,
            "files": list(self.files),
            "fits": self.found.fits,
            "figures": [figure.record() for figure in self.figures],
            "residuals": [one.record() for one in self.found.residuals],
            "predictions": [one.record() for one in self.found.predictions],
            "profiles": [activity.record() for activity in self.profiles],
            "facts": self.facts,
            "warnings": self.warnings,
        }


def calibrate(
    cluster: ClusterSpec, given: Given, progress: Callable[[str], None] = lambda step: None
) -> Calibration:
    """Fit the cluster to what was measured on it: links, multiplies, kernels, and steps last.

    Raises SpecError where a file cannot be read or nothing in any of them can be used, and
    InfeasibleError where nothing could be fitted.
    """
    stack_named(given.stack)
    for path in given.files:
        if not path.exists():
            raise SpecError(f"{shown(path)}: no such file")
    progress("reading")
    read = _read(given, cluster)
    found, now = Found(warnings=list(read.complaints)), cluster
    if read.logs:
        progress("links")
        now = _taken(found, fit_links(now, read.logs))
    if read.multiplies:
        progress("multiplies")
        now = _taken(found, fit_multiplies(now, read.multiplies.rows, str(given.gemm)))
        found.warnings += read.multiplies.warnings
    if read.profiles:
        progress("kernels")
        now = _taken(found, fit_profiles(now, read.profiles, given.stack, shipped=cluster))
    if read.runs and given.steps:
        progress("steps")
        now = _taken(found, fit_steps(now, read.runs, shown(given.steps), shipped=cluster))
    if not found.fits:
        reasons = found.warnings + found.facts
        raise InfeasibleError(
            "nothing could be fitted: " + ("; ".join(reasons[:3]) or "no measurement"),
            hint="docs/calibrate.md says what each kind of file needs",
        )
    if found.figures:
        progress("effects")
        named = dict.fromkeys(f.path[1] for f in found.figures if f.path[0] == "stacks")
        found.predictions += reference_jobs(cluster, now, list(named) or ["any"])
    return Calibration(
        cluster, now, found, read.profiles, tuple(dict.fromkeys(p.name for p in given.files))
    )


def _taken(found: Found, result: tuple[Found, ClusterSpec]) -> ClusterSpec:
    found.add(result[0])
    return result[1]


@dataclass(frozen=True)
class _Read:
    logs: tuple[Log, ...]
    multiplies: Multiplies | None
    profiles: tuple[Activity, ...]
    runs: tuple[Run, ...]
    complaints: tuple[str, ...]


def _read(given: Given, cluster: ClusterSpec) -> _Read:
    """Read every file; one that holds nothing is said, and refused only if all are so."""
    refused: list[SpecError] = []
    logs: list[Log] = []
    for word in given.logs:
        op, path = _named(word)
        some = _tried(
            lambda op=op, path=path: read_logs(  # type: ignore[misc]
                path, op=op, ranks=given.ranks, nodes=given.nodes
            ),
            refused,
        )
        logs += some or []
    gemm, steps = given.gemm, given.steps
    multiplies = _tried(lambda: read_multiplies(gemm), refused) if gemm else None
    activities = [_tried(lambda p=p: read_profile(p), refused) for p in given.profiles]  # type: ignore[misc]
    named = given.stack if given.stack != "any" else ""
    table = _tried(lambda: read_table(steps), refused) if steps else None
    runs = runs_of(table, cluster, named) if table else ()
    profiles = tuple(a for a in activities if a)
    if refused and not (logs or multiplies or profiles or runs):
        raise refused[0]
    complaints = [error.message for error in refused]
    complaints += [f"{shown(steps)}: {said}" for said in (columns_told(table) if table else ())]
    return _Read(tuple(logs), multiplies, profiles, tuple(runs), tuple(complaints))


def _tried(read: Callable[[], R], refused: list[SpecError]) -> R | None:
    try:
        return read()
    except SpecError as error:
        refused.append(error)
        return None


def _named(word: str) -> tuple[str, Path]:
    """Return the collective and the path of `all_gather=LOG`, or of `LOG`."""
    op, sign, rest = word.partition("=")
    if sign and op in ALIASES and not Path(word).exists():
        return ALIASES[op], Path(rest)
    return "", Path(word)

"""Scores: errors by source, and what choosing by the predictions would have cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

FAMILY_ROWS = 3
SLOW_MFU = 0.15
"""nanotron's runs below this MFU are stalls of that stack, not of their layout: scored apart."""
Records = Sequence[Mapping[str, Any]]


def summary(records: Records) -> dict[str, Any]:
    """Return the scores of all scored rows, by source, of families, and of memory."""
    timed = [r for r in records if r["error"] is not None]
    usual = [r for r in timed if not stalled(r)]
    return {
        **errors(r["error"] for r in timed),
        "rows": len(records),
        "skipped": sum(r["status"] == "skipped" for r in records),
        "without_stalled": errors(r["error"] for r in usual),
        "fitted_to": errors(r["error"] for r in usual if r["fitted_to"]),
        "not_fitted_to": errors(r["error"] for r in usual if not r["fitted_to"]),
        "by_source": by(usual, lambda r: r["source"]),
        "mean_of_source_medians": mean_of_medians(by(usual, lambda r: r["source"])),
        "by_stack": by(usual, lambda r: r["stack"].split("+")[0]),
        "families": families(timed),
        "memory": memory(records),
    }


def stalled(record: Mapping[str, Any]) -> bool:
    """Return whether a run is one of nanotron's stalls; decided by what was measured."""
    low = record["mfu_measured"] is not None and record["mfu_measured"] < SLOW_MFU
    return low and record["stack"].startswith("nanotron")


def errors(relative: Iterable[float]) -> dict[str, Any]:
    """Return the median and 90th percentile of |error|, the median error, and how many."""
    e = np.array(list(relative), dtype=np.float64)
    if not len(e):
        nothing = ("median_abs_error", "p90_abs_error", "mean_abs_error", "bias")
        return {**dict.fromkeys(nothing), "n": 0}
    size = np.abs(e)
    return {
        "median_abs_error": float(np.median(size)),
        "p90_abs_error": float(np.quantile(size, 0.9)),
        "mean_abs_error": float(size.mean()),
        "bias": float(np.median(e)),
        "n": len(e),
    }


def mean_of_medians(groups: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the mean over groups of their median |error|, so that a large one hides no other."""
    medians = [g["median_abs_error"] for g in groups.values()]
    return float(np.mean(medians)) if medians else None


def by(records: Records, key: Callable[[Mapping[str, Any]], str]) -> dict[str, dict[str, Any]]:
    """Return the errors of each group, by name."""
    groups: dict[str, list[float]] = defaultdict(list)
    for r in records:
        groups[key(r)].append(r["error"])
    return {name: errors(groups[name]) for name in sorted(groups)}


def families(timed: Records) -> dict[str, Any]:
    """Return how well predictions choose and order among runs that differ in their layout only.

    The top-1 ratio is the measured time of the run predicted fastest over the fastest measured.
    """
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for r in timed:
        if r["family"]:
            groups[r["source"] + "\0" + r["family"]].append(r)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, rows in sorted(groups.items()):
        guess = np.array([r["step_time_s_predicted"] for r in rows])
        truth = np.array([r["step_time_s_measured"] for r in rows])
        if len(rows) < FAMILY_ROWS or len(np.unique(guess)) < 2:
            continue
        ratio = float(truth[guess.argmin()] / truth.min())
        found[name.split("\0")[0]].append((ratio, kendall_tau(guess, truth)))
    every = _choices([pair for pairs in found.values() for pair in pairs])
    return {**every, "by_source": {name: _choices(pairs) for name, pairs in found.items()}}


def _choices(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the scores of families of which each is a (top-1 ratio, tau)."""
    if not pairs:
        names = ("median_top1_ratio", "mean_top1_ratio", "mean_kendall_tau")
        return {"n": 0, **dict.fromkeys(names)}
    ratios, taus = np.array(pairs).T
    return {
        "n": len(pairs),
        "median_top1_ratio": float(np.median(ratios)),
        "mean_top1_ratio": float(np.mean(ratios)),
        "mean_kendall_tau": float(np.mean(taus)),
    }


def kendall_tau(a: Iterable[float], b: Iterable[float]) -> float:
    """Return Kendall's tau-b of two orders: 1 equal, -1 reversed, 0 where one does not vary."""
    agree = tied_a = tied_b = pairs = 0
    for (x, p), (y, q) in combinations(zip(a, b, strict=True), 2):
        pairs += 1
        agree += int(np.sign(x - y) * np.sign(p - q))
        tied_a += bool(x == y)
        tied_b += bool(p == q)
    scale = ((pairs - tied_a) * (pairs - tied_b)) ** 0.5
    return agree / scale if scale else 0.0


UNDER = -0.05
"""Relative error below which a peak counts as predicted too low."""


def memory(records: Records) -> dict[str, Any]:
    """Return errors of peak memory, and how often out of memory was said of what ran and failed."""
    seen = [r for r in records if r["status"] == "ok"]
    ran = [r for r in seen if r["step_time_s_measured"] is not None and not r["oom_measured"]]
    failed = [r for r in seen if r["oom_measured"]]
    peaks = [r for r in seen if r["peak_gib_measured"] and not r["oom_measured"]]
    return {
        **_peak_errors(peaks),
        "by_source": _peaks_by(peaks, lambda r: r["source"]),
        "by_kind": _peaks_by(peaks, lambda r: r["memory_kind"]),
        "ran": len(ran),
        "ran_but_oom_predicted": sum(bool(r["oom_predicted"]) for r in ran),
        "failed": len(failed),
        "failed_and_oom_predicted": sum(bool(r["oom_predicted"]) for r in failed),
    }


def _peak_errors(peaks: Records) -> dict[str, Any]:
    relative = [r["peak_gib_predicted"] / r["peak_gib_measured"] - 1 for r in peaks]
    low = sum(e < UNDER for e in relative) / len(relative) if relative else None
    return {**errors(relative), "share_under_5_percent": low}


def _peaks_by(peaks: Records, key: Callable[[Mapping[str, Any]], str]) -> dict[str, Any]:
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for r in peaks:
        groups[key(r)].append(r)
    return {name: _peak_errors(groups[name]) for name in sorted(groups)}

"""docs/accuracy.md: what `validate` found on a table of runs, in words and tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planner.estimate.uncertainty import generation
from planner.validate.scores import Records, stalled

FITTED = (
    ("constants of the step-time model shared by all stacks", 39),
    ("constants per stack (of 18), six each", 108),
    ("constants per lineage of stacks (of 5), eight each", 40),
    ("constants of layers with experts and low precision", 28),
)
LEFT_OUT = (
    ("dense, 1,923 runs", "4.0 / 14.4", "4.9 / 16.9", "14.7 / 64.1"),
    ("dense, median over 27 sources", "3.0 / 13.5", "6.3 / 15.1", "10.2 / 28.0"),
    ("NVIDIA recipes, dense, 318 runs", "2.9 / 8.5", "4.5 / 11.7", "4.5 / 11.1"),
    ("NVIDIA recipes, experts, 113 runs", "4.7 / 13.4", "5.7 / 21.6", "11.6 / 59.5"),
)


def spreads(records: Records) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Return (10th, 90th percentile of measured / predicted, runs) by stack and generation."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for r in records:
        if r["error"] is not None and not stalled(r):
            key = (r["stack"].split("+")[0], generation(r["accelerator"]))
            groups[key].append(1 / (1 + r["error"]))
    return {
        key: (float(np.quantile(v, 0.1)), float(np.quantile(v, 0.9)), len(v))
        for key, v in sorted(groups.items())
    }


def accuracy_page(records: Records, scores: Mapping[str, Any], rows_from: str) -> str:
    """Return the page as Markdown; `rows_from` names the table of runs."""
    usual, family, memory = scores["without_stalled"], scores["families"], scores["memory"]
    parts = [
        "# Accuracy",
        f"Written by `meshwright validate {rows_from} --write-docs`. Errors are predicted over"
        " measured step time minus one; a prediction never reads the measured columns of its row.",
        f"{scores['rows']:,} rows: {scores['n']:,} with a measured step time were predicted,"
        f" {scores['skipped']:,} were skipped because they lack what a prediction needs or run what"
        " is not modelled. nanotron's runs below 15 % MFU, stalls of that stack rather than of the"
        " layout, are left out below; with them the median is"
        f" {_percent(scores, 'median_abs_error')}"
        f" and the 90th percentile {_percent(scores, 'p90_abs_error')}.",
        f"**Median {_percent(usual, 'median_abs_error')}, 90th percentile"
        f" {_percent(usual, 'p90_abs_error')}** over {usual['n']:,} runs.",
        "## Seen and unseen",
        "These rows are calibration rows: the constants were fitted to runs of the same sources,"
        " so the errors here are **in-sample**. Fitted were:",
        _table(("what", "numbers"), FITTED),
        "How far the fits themselves were off on runs left out of them (median / 90th percentile of"
        " |error|, %). They were made in two closed forms, one dense and one with experts, which"
        " the planner merges:",
        _table(("runs", "in-sample", "family left out", "source left out"), LEFT_OUT),
        "Expect the last column, not the first, for a stack that none of these runs used; host"
        " time is what transfers least.",
        "## By source",
        _errors(scores["by_source"], "source"),
        "## By stack",
        _errors(scores["by_stack"], "stack"),
        "## Choosing a layout",
        _family_words(family),
        "## Memory",
        _memory_words(memory),
        "## Intervals",
        "Measured over predicted time, 10th to 90th percentile. Estimates carry the interval of"
        " their stack and GPU generation where ten runs or more stand behind it.",
        _table(
            ("stack", "GPUs", "10 %", "90 %", "runs"),
            [
                (stack, gpus, f"{low:.2f}", f"{high:.2f}", n)
                for (stack, gpus), (low, high, n) in spreads(records).items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _percent(scores: Mapping[str, Any], name: str) -> str:
    return "n/a" if scores[name] is None else f"{100 * scores[name]:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _errors(groups: Mapping[str, Mapping[str, Any]], what: str) -> str:
    rows = [
        (name, g["n"], *(_percent(g, k) for k in ("median_abs_error", "p90_abs_error", "bias")))
        for name, g in groups.items()
    ]
    return _table((what, "runs", "median", "90th percentile", "bias"), rows)


def _family_words(family: Mapping[str, Any]) -> str:
    if not family["n"]:
        return "No family of three or more runs that differ in their layout only."
    return (
        f"{family['n']} families of three or more runs differ in nothing but their layout. The run"
        f" predicted fastest takes {family['median_top1_ratio']:.3f} times the best measured one in"
        f" the median family, {family['mean_top1_ratio']:.3f} in the mean; Kendall's tau between"
        f" the predicted and the measured order is {family['mean_kendall_tau']:.2f} in the mean."
    )


def _memory_words(memory: Mapping[str, Any]) -> str:
    return (
        f"Peak memory of {memory['n']:,} runs: median error {_percent(memory, 'median_abs_error')},"
        f" 90th percentile {_percent(memory, 'p90_abs_error')}, bias {_percent(memory, 'bias')}. Of"
        f" {memory['failed']:,} runs that ran out of memory,"
        f" {memory['failed_and_oom_predicted']:,} are predicted to; of {memory['ran']:,} that ran,"
        f" {memory['ran_but_oom_predicted']:,} are predicted to fail."
    )

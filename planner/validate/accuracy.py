"""docs/accuracy.md: what `validate` found on a table of runs, in words and tables."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planner.estimate.uncertainty import generation
from planner.validate.scores import Records, stalled

LEFT_OUT = Path(__file__).parent / "left_out.csv"
"""Errors of the fit, and of fits without each run's family or source: calibration/fit.py."""


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
        f" {_percent(usual, 'p90_abs_error')}** over {usual['n']:,} runs; the mean over sources of"
        f" their medians is {_percent(scores, 'mean_of_source_medians')}.",
        "## Seen and unseen",
        *_left_out(LEFT_OUT.read_text(encoding="utf-8").splitlines()),
        "## By source",
        _errors(scores["by_source"], "source"),
        "## By stack",
        _errors(scores["by_stack"], "stack"),
        "## Choosing a layout",
        _family_words(family),
        _family_table(family["by_source"]),
        "## Memory",
        _memory_words(memory),
        _peak_table(memory["by_source"], "source"),
        _peak_table(memory["by_kind"], "measured"),
        "## Intervals",
        "Measured over predicted time, 10th to 90th percentile, in-sample. Estimates carry the"
        " interval of their stack and GPU generation where ten runs or more stand behind it; theirs"
        " is wider, since it comes from runs whose families were left out of the fit.",
        _table(
            ("stack", "GPUs", "10 %", "90 %", "runs"),
            [
                (stack, gpus, f"{low:.2f}", f"{high:.2f}", n)
                for (stack, gpus), (low, high, n) in spreads(records).items()
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _left_out(lines: Sequence[str]) -> list[str]:
    """Return what `calibration/fit.py` found when it left runs out, as paragraphs and a table."""
    said = {name: int(n) for name, n in re.findall(r"(\w+) (\d+)", lines[0])}
    rows = [
        (r["what"], r["runs"], *(f"{r[f'{k}_median']} / {r[f'{k}_p90']}" for k in kinds))
        for kinds in [("fitted", "family", "source")]
        for r in csv.DictReader(lines[1:])
    ]
    return [
        "The planner's own numbers were fitted to these runs, so the errors above are"
        f" **in-sample**: {said['numbers']} numbers to {said['runs']:,} runs, each drawn towards"
        " what a published study or its stack's lineage says;"
        f" {said['known']} of them are known better from the runs than from that. Repeated runs of"
        " one job weigh as one, and no source weighs more than 30 runs and 8 % of its own.",
        "The same fit without the run's family (the same model, cluster and batch;"
        f" {said['folds']} folds), and without its whole source; median / 90th percentile of"
        " |error|, %. A stack that only one source ran is then predicted from its lineage:",
        _table(("runs", "number", "in-sample", "family left out", "source left out"), rows),
        "Expect the last column for a stack that none of these runs used: host time and what is"
        " fixed per step are what transfers least.",
    ]


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


def _family_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, g["n"], *(f"{g[k]:.3f}" for k in ("median_top1_ratio", "mean_top1_ratio")),
         f"{g['mean_kendall_tau']:.2f}")
        for name, g in groups.items()
    ]  # fmt: skip
    return _table(("source", "families", "median ratio", "mean ratio", "tau"), rows)


def _peak_table(groups: Mapping[str, Mapping[str, Any]], what: str) -> str:
    rows = [
        (
            name,
            f"{g['n']}",
            *(_percent(g, k) for k in ("median_abs_error", "p90_abs_error", "bias")),
            _percent(g, "share_under_5_percent"),
        )
        for name, g in groups.items()
    ]
    return _table((what, "peaks", "median", "90th percentile", "bias", "over 5 % too low"), rows)


def _memory_words(memory: Mapping[str, Any]) -> str:
    return (
        f"Peak memory of {memory['n']:,} runs: median error {_percent(memory, 'median_abs_error')},"
        f" 90th percentile {_percent(memory, 'p90_abs_error')}, bias {_percent(memory, 'bias')}. Of"
        f" {memory['failed']:,} runs that ran out of memory,"
        f" {memory['failed_and_oom_predicted']:,} are predicted to; of {memory['ran']:,} that ran,"
        f" {memory['ran_but_oom_predicted']:,} are predicted to fail. A peak is compared with what"
        " its source measures: tensors allocated, memory that the allocator reserved, or all that"
        " nvidia-smi shows, context and communicators included."
    )

"""The overlay: a cluster file that extends another and holds what was measured, and how well."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from planner.calibrate.figure import Figure
from planner.errors import SpecError
from planner.specs.catalog import load_cluster_over
from planner.specs.cluster import ClusterSpec
from planner.specs.parse import shown

WIDE = 100
"""Columns of a line in the file; comments wrap at them."""


def base_of(typed: str, out: Path | None) -> tuple[str, int | None]:
    """Return what an overlay at `out` extends, and the nodes of `typed` ('dgx-h100:64').

    Raises SpecError where that is the file that would be written.
    """
    name, colon, count = typed.rpartition(":")
    exists = Path(typed).exists()
    nodes = int(count) if colon and count.isdecimal() and not exists else None
    text = name if nodes is not None else typed
    path = Path(text)
    if not ("/" in text or path.suffix.lower() in (".yaml", ".yml", ".json") or path.is_file()):
        return text, nodes
    if out is None:
        return text, nodes
    if path.resolve() == out.resolve():
        raise SpecError(
            f"-o: {shown(out)} is the cluster itself, which the overlay extends",
            hint="give another file",
        )
    beside = os.path.relpath(path.resolve(), out.resolve().parent)
    return (beside if "/" in beside else f"./{beside}"), nodes


def overlay_text(
    base: str,
    nodes: int | None,
    figures: Sequence[Figure],
    cluster: ClusterSpec,
    files: Sequence[str],
) -> str:
    """Return the YAML of what was measured on `cluster`, a calibrated one that extends `base`.

    The text is read back and checked before it is returned, so that what is written can be used.
    """
    lines = [
        f"# What {shown(base, 80)} turned out to be, measured: meshwright calibrate.",
        "# Only what differs. Beside each figure: what it was, and how well it fits.",
        f"extends: {json.dumps(base)}",
    ]
    if nodes is not None:
        lines.append(f"nodes: {nodes}")
    lines += _accelerator(figures)
    lines += _collectives(figures)
    lines += _plain("fabric", [f for f in figures if f.path[0] == "fabric"])
    lines += _stacks(figures, cluster)
    lines += ["sources:", f"  calibration: {json.dumps('measured: ' + ', '.join(files))}"]
    return "\n".join(lines) + "\n"


def checked(text: str, out: Path) -> ClusterSpec:
    """Return the cluster that an overlay's text means at `out`; raises SpecError if it has none."""
    return load_cluster_over(text, out)


def _plain(head: str, figures: Sequence[Figure], indent: str = "") -> list[str]:
    """Return a mapping of figures, the quality of each fit above its figures."""
    if not figures:
        return []
    lines, group = [f"{indent}{head}:"], ""
    for figure in figures:
        if figure.group != group:
            group = figure.group
            lines += _comment(f"{group}: {figure.quality.words()}", indent + "  ")
        lines.append(f"{indent}  {figure.path[-1]}: {figure.after:.4g}  # {_was(figure)}")
    return lines


def _was(figure: Figure) -> str:
    unit = f" {figure.unit}" if figure.unit else ""
    before = "not known" if figure.before is None else f"{figure.before:.4g}{unit}"
    return f"was {before}; +- {min(figure.spread, 9.99):.0%}"


def _comment(text: str, indent: str) -> list[str]:
    """Return a comment in lines of at most `WIDE` columns."""
    lines, line = [], f"{indent}#"
    for word in shown(text, 2000).split(" "):
        if len(line) + 1 + len(word) > WIDE and line != f"{indent}#":
            lines.append(line)
            line = f"{indent}#"
        line += f" {word}"
    return [*lines, line]


def _accelerator(figures: Sequence[Figure]) -> list[str]:
    mine = [f for f in figures if f.path[0] == "accelerator"]
    lines = ["accelerator:"] if mine else []
    for field in dict.fromkeys(f.path[1] for f in mine):
        lines += _plain(field, [f for f in mine if f.path[1] == field], "  ")
    return lines


def _collectives(figures: Sequence[Figure]) -> list[str]:
    mine = [f for f in figures if f.path[:2] == ("scale_up", "collectives")]
    lines = ["scale_up:", "  collectives:"] if mine else []
    for group in dict.fromkeys(f.group for f in mine):
        these = [f for f in mine if f.group == group]
        op, gpus = these[0].path[2].rsplit(" ", 1)
        lines += _comment(f"{group}: {these[0].quality.words()}", "    ")
        lines += _comment("; ".join(f"{f.path[-1]} {_was(f)}" for f in these), "    ")
        values = ", ".join(f"{f.path[-1]}: {f.after:.4g}" for f in these)
        lines.append(f"    - {{op: {op}, gpus: {gpus}, {values}}}")
    return lines


def _stacks(figures: Sequence[Figure], cluster: ClusterSpec) -> list[str]:
    mine = [f for f in figures if f.path[0] == "stacks"]
    lines = ["stacks:"] if mine else []
    for profile in dict.fromkeys(f.path[1] for f in mine):
        lines += _plain(profile, [f for f in mine if f.path[1] == profile], "  ")
        figures_now = cluster.stacks[profile]
        if figures_now.runs:
            lines.append(f"    runs: {figures_now.runs}")
        if figures_now.low is not None and figures_now.high is not None:
            lines += _comment("measured / predicted, 10 % to 90 %, each run left out", "    ")
            lines += [f"    low: {figures_now.low:.4g}", f"    high: {figures_now.high:.4g}"]
        if figures_now.fitted:
            lines += _comment("fingerprints of the runs, for meshwright validate", "    ")
            lines += ["    fitted:", *(f'      - "{mark}"' for mark in figures_now.fitted)]
    return lines

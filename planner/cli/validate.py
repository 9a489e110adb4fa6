"""`meshwright validate`: predictions of published runs, against what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import options as o
from planner.cli.talk import answer_json, progress, say, show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from planner.validate.table import Table

EXAMPLES = """\
\b
Examples:
  meshwright validate
  meshwright validate runs.csv --json > errors.json
  meshwright validate my-runs.csv --cluster my.yaml
  meshwright validate runs.csv --write-docs
"""
REASONS_SHOWN = 8
COLUMNS_SHOWN = 40
PAGE = Path("docs/accuracy.md")
KEYS = (
    *("id", "source", "status", "reason", "assumed", "fitted_to", "stack", "step_time_s_predicted"),
    *("step_time_s_measured", "error", "peak_gib_predicted", "peak_gib_measured", "oom_predicted"),
)


def validate(
    runs_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUNS.csv]",
            help="Published runs, one a row. Default: a few dozen that ship.",
            show_default=False,
        ),
    ] = None,
    *,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="All rows ran on nodes of this cluster. Default: as each row's hardware says.",
        ),
    ] = None,
    write_docs: Annotated[
        bool, typer.Option("--write-docs", help=f"Write {PAGE} from the table, in a checkout.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Predict measured runs and print errors by source, and what choosing by them would cost.

    A prediction never reads the measured columns of its row. A blank that a stack has a usual value
    for is filled in and said; a row that lacks more is skipped, with the field named.
    """
    from planner.specs.catalog import load_cluster
    from planner.validate import PUBLISHED, columns_told, predicted, read_table, runs_of, summary

    own = load_cluster(cluster) if cluster else None
    table = read_table(runs_file or PUBLISHED)
    for sentence in columns_told(table):
        say(f"{runs_file}: {sentence}")
    with progress("predicting"):
        records = predicted(runs_of(table, own))
    scores = summary(records)
    if write_docs:
        say(f"wrote {_write_page(records, scores, runs_file)}")
    if as_json:
        rows = [{key: record.get(key) for key in KEYS} for record in records]
        document = {"schema": "meshwright.validate/1", "rows": rows, "summary": scores}
        answer_json(document | {"columns": _columns(table)})
        return
    show(*_report(records, scores), *(_columns_read(table) if runs_file else []))


def _columns(table: Table) -> dict[str, list[str]]:
    """Return the columns of the file by what became of them."""
    return {"used": table.used, "remarks": table.remarks, "unknown": table.unknown}


def _columns_read(table: Table) -> list[RenderableType]:
    """Say which columns of the user's file were read, and which have no effect."""
    from rich.text import Text

    from planner.report.parts import indented, title
    from planner.report.text import printable

    said = [f"read: {', '.join(table.used)}"]
    for what, names in (("for people only", table.remarks), ("unknown", table.unknown)):
        if names:
            said.append(f"not read, {what}: {', '.join(n[:80] for n in names[:COLUMNS_SHOWN])}")
    return [Text(), title("Columns"), *(indented(printable(line)) for line in said)]


def _write_page(
    records: list[dict[str, Any]], scores: Mapping[str, Any], runs_file: Path | None
) -> Path:
    from planner.errors import SpecError
    from planner.files import write_whole
    from planner.validate.accuracy import accuracy_page

    if not PAGE.parent.is_dir():
        raise SpecError(f"{PAGE.parent}: no such folder", hint="run it at the root of a checkout")
    name = runs_file.name if runs_file else ""
    write_whole(PAGE, accuracy_page(records, scores, name))
    return PAGE


def _report(records: list[dict[str, Any]], scores: Mapping[str, Any]) -> list[RenderableType]:
    """Return totals, errors by source, families, memory and what was skipped."""
    from collections import Counter

    from rich.text import Text

    from planner.report.parts import indented, title

    skipped = Counter(r["reason"] for r in records if r["status"] == "skipped")
    filled = Counter(field for r in records if r["status"] == "ok" for field in r["assumed"])
    usual = scores["without_stalled"]
    parts: list[RenderableType] = [
        Text(
            f"{scores['rows']:,} runs, {scores['n']:,} with a step time predicted: {_words(scores)}"
        ),
    ]
    if usual["n"] != scores["n"]:
        parts.append(
            indented(
                f"without nanotron's stalled runs (MFU < 15 %), {usual['n']:,}: {_words(usual)}"
            )
        )
    if (mean := scores["mean_of_source_medians"]) is not None:
        parts.append(indented(f"mean over sources of their medians: {mean:.1%}"))
    parts += [indented(sentence) for sentence in _seen(scores)]
    parts += [Text(), title("Step time by source"), _table(scores["by_source"])]
    parts += [*_families(scores["families"]), *_memory(scores["memory"])]
    if filled:
        said = ", ".join(f"{field} in {n:,}" for field, n in filled.most_common())
        parts += [Text(), title("Assumed"), indented(said)]
    if skipped:
        parts += [Text(), title(f"Skipped {scores['skipped']:,}")]
        parts += [indented(f"{n:,} x {why}") for why, n in skipped.most_common(REASONS_SHOWN)]
    return parts


def _families(family: Mapping[str, Any]) -> list[RenderableType]:
    """Return what choosing by the predictions would have cost."""
    from rich.text import Text

    from planner.report.parts import indented, title

    parts: list[RenderableType] = []
    if family["n"]:
        parts += [Text(), title("Families that differ in their layout only")]
        parts.append(
            indented(
                f"{family['n']}: predicted best over best measured "
                f"{family['median_top1_ratio']:.3f} in the median, "
                f"{family['mean_top1_ratio']:.3f} in the mean; "
                f"Kendall's tau {family['mean_kendall_tau']:.2f}"
            )
        )
    return parts


def _memory(memory: Mapping[str, Any]) -> list[RenderableType]:
    """Return errors of peaks, and which runs out of memory were told."""
    from rich.text import Text

    from planner.report.parts import indented, title

    parts: list[RenderableType] = []
    if memory["n"]:
        parts += [Text(), title("Peak memory"), indented(f"{memory['n']:,} runs: {_words(memory)}")]
        parts.append(_table(memory["by_source"]))
    parts.append(
        indented(
            f"out of memory predicted for {memory['failed_and_oom_predicted']:,} of "
            f"{memory['failed']:,} that failed, {memory['ran_but_oom_predicted']:,} of "
            f"{memory['ran']:,} that ran"
        )
    )
    return parts


def _seen(scores: Mapping[str, Any]) -> list[str]:
    """Say how many of the rows the numbers were fitted to: an error in-sample is no forecast."""
    mine, others = scores["fitted_to"], scores["not_fitted_to"]
    if not scores["n"]:
        return []
    if not mine["n"]:
        return ["none of them is among the runs that the planner's numbers were fitted to"]
    whole = f"{mine['n']:,} of them are runs that the planner's numbers were fitted to"
    if not others["n"]:
        told = f"all {mine['n']:,} with a step time are runs that the planner's numbers were "
        return [f"{told}fitted to: these errors are in-sample (unseen ones: docs/accuracy.md)"]
    return [f"{whole} (in-sample): {_words(mine)}", f"the other {others['n']:,}: {_words(others)}"]


def _words(scores: Mapping[str, Any]) -> str:
    if not scores["n"]:
        return "nothing measured"
    return (
        f"median |error| {scores['median_abs_error']:.1%}, "
        f"90th percentile {scores['p90_abs_error']:.1%}, bias {scores['bias']:+.1%}"
    )


def _table(groups: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    from rich.table import Table

    from planner.report.text import printable

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("source", no_wrap=True)
    for name in ("runs", "median", "p90", "bias"):
        table.add_column(name, justify="right")
    for name, g in groups.items():
        cells = (f"{g['median_abs_error']:.1%}", f"{g['p90_abs_error']:.1%}", f"{g['bias']:+.1%}")
        table.add_row(printable(name), f"{g['n']:,}", *cells)
    return table

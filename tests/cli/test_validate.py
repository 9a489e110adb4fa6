"""`meshwright validate`: the contract's keys, exit codes, and that it repeats byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner.cli.app import app, main

STEPS = Path(__file__).resolve().parents[2] / "examples" / "calibrate" / "h100_steps.csv"
SUMMARY = {"median_abs_error", "p90_abs_error", "n", "by_source", "families"}
ROW = {
    *("id", "status", "reason", "step_time_s_predicted", "step_time_s_measured", "error"),
    *("peak_gib_predicted", "peak_gib_measured", "oom_predicted"),
}


def test_json_holds_the_contracts_keys_and_repeats():
    first, second = (CliRunner().invoke(app, ["validate", "--json"]) for _ in range(2))
    assert first.exit_code == 0
    assert first.stdout == second.stdout
    answer = json.loads(first.stdout)
    assert answer["schema"] == "meshwright.validate/1"
    assert answer["summary"].keys() >= SUMMARY
    assert answer["summary"]["families"].keys() >= {"n", "median_top1_ratio", "mean_kendall_tau"}
    assert all(row.keys() >= ROW for row in answer["rows"])
    assert {row["status"] for row in answer["rows"]} == {"ok", "skipped"}


def test_shipped_runs_are_predicted_within_what_calibration_reached():
    """Calibration rows: a half of 10 % or a p90 of 25 % would mean that a term broke."""
    answer = json.loads(CliRunner().invoke(app, ["validate", "--json"]).stdout)
    assert answer["summary"]["n"] > 80
    assert answer["summary"]["median_abs_error"] < 0.07
    assert answer["summary"]["p90_abs_error"] < 0.25
    assert answer["summary"]["families"]["mean_kendall_tau"] > 0.7


def test_the_report_names_sources_and_what_was_assumed():
    shown = CliRunner().invoke(app, ["validate"]).stdout
    assert "vTrain" in shown
    assert "Assumed" in shown
    assert "micro_batch: not stated" in shown


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", '"', "\x00"])
def test_no_table_of_runs_ends_with_one_message_and_2(tmp_path, capsys, content):
    path = tmp_path / "runs.csv"
    path.write_text(content)
    assert main(["validate", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_empty_table_is_an_answer(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("id,source,framework,hardware,gpus,arch_json,seq,global_batch\n")
    result = CliRunner().invoke(app, ["validate", str(path)])
    assert result.exit_code == 0
    assert "nothing measured" in result.stdout


def test_write_docs_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "--write-docs"]) == 2  # no docs folder here
    (tmp_path / "docs").mkdir()
    assert main(["validate", "--write-docs"]) == 0
    page = (tmp_path / "docs" / "accuracy.md").read_text()
    assert page.startswith("# Accuracy\n")
    assert "| vTrain |" in page


def validated(*words):
    return json.loads(CliRunner().invoke(app, ["validate", *words, "--json"]).stdout)


def test_rows_that_the_numbers_were_fitted_to_are_said_to_be():
    answer = validated()
    rows = [row for row in answer["rows"] if row["error"] is not None]
    assert sum(row["fitted_to"] for row in rows) >= 0.9 * len(rows)
    summary = answer["summary"]
    told = summary["fitted_to"]["n"] + summary["not_fitted_to"]["n"]
    assert told == summary["without_stalled"]["n"]
    assert "in-sample" in CliRunner().invoke(app, ["validate"]).stdout


def test_a_cluster_fitted_to_a_users_runs_knows_them_again(tmp_path):
    """As shipped none of the rows was seen; under the overlay those that it was fitted to were."""
    lines = STEPS.read_text().splitlines()
    some, out = tmp_path / "some.csv", tmp_path / "my.yaml"
    some.write_text("\n".join(lines[:9]) + "\n")
    assert validated(str(STEPS), "--cluster", "dgx-h100")["summary"]["fitted_to"]["n"] == 0
    words = ["calibrate", "dgx-h100", "--steps", str(some), "-o", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    words = ["validate", str(STEPS), "--cluster", str(out)]
    summary = validated(*words[1:])["summary"]
    assert summary["fitted_to"]["n"] == 8
    assert summary["not_fitted_to"]["n"] == len(lines) - 9
    assert "the other 4:" in CliRunner().invoke(app, words).stdout


def test_a_column_that_nothing_reads_is_said_and_the_others_are_listed(tmp_path):
    path = tmp_path / "runs.csv"
    head, first = STEPS.read_text().splitlines()[:2]
    path.write_text(f"{head},zero\n{first},3\n")
    shown = CliRunner().invoke(app, ["validate", str(path)])
    assert "column 'zero' is unknown and not read; did you mean 'zero_stage'?" in shown.stderr
    assert "not read, unknown: zero" in shown.stdout
    columns = validated(str(path))["columns"]
    assert columns["unknown"] == ["zero"]
    assert "recompute" in columns["used"]

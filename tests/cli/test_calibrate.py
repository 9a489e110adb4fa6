"""`meshwright calibrate`: what it answers, writes, refuses, and how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner.cli.app import app, main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "calibrate"
LOG = str(EXAMPLES / "h100_all_reduce.log")
GEMM = str(EXAMPLES / "h100_gemm.csv")
STEPS = EXAMPLES / "h100_steps.csv"


def run(*words):
    return CliRunner().invoke(app, ["calibrate", *words])


def test_json_holds_figures_with_their_quality_and_what_changed():
    answer = json.loads(run("dgx-h100", "--nccl-tests", LOG, "--gemm", GEMM, "--json").stdout)
    assert answer["schema"] == "meshwright.calibrate/1"
    assert answer["written"] is None
    by_name = {figure["name"]: figure for figure in answer["figures"]}
    emax = by_name["accelerator.gemm.emax"]
    assert emax["before"] == 0.832
    assert emax["median_abs_error"] < emax["median_abs_error_before"]
    assert {"points", "outliers", "r2", "p90_abs_error", "relative_spread"} <= emax.keys()
    kinds = {p["kind"] for p in answer["predictions"]}
    assert kinds == {"collective", "multiply", "job"}


def test_before_is_the_shipped_cluster_whatever_else_is_fitted_with_the_steps(tmp_path):
    few, out, told = tmp_path / "steps.csv", tmp_path / "my.yaml", []
    few.write_text("".join(STEPS.read_text().splitlines(keepends=True)[:4]))
    for more in ([], ["--gemm", GEMM]):
        words = ["dgx-h100", *more, "--steps", str(few), "-o", str(out), "--json"]
        answer = json.loads(run(*words).stdout)
        steps = {p["what"]: p["before_s"] for p in answer["predictions"] if p["kind"] == "step"}
        (error,) = {
            figure["median_abs_error_before"]
            for figure in answer["figures"]
            if figure["fit"] == "stack any"
        }
        assert f"|error| median {error:.1%} ->" in out.read_text()
        told.append((steps, error))
    assert told[0][0]
    assert told[0] == told[1]


def test_the_same_files_give_the_same_answer_byte_for_byte(tmp_path):
    outs = [tmp_path / name for name in ("a.yaml", "b.yaml")]
    answers = [run("dgx-h100", "--gemm", GEMM, "-o", str(out)).stdout for out in outs]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    told = [
        "".join(text.split()).replace(out.name, "") for text, out in zip(answers, outs, strict=True)
    ]
    assert told[0] == told[1]


def test_the_overlay_stands_wherever_a_cluster_may(tmp_path, capsys):
    out = str(tmp_path / "my.yaml")
    assert main(["calibrate", "dgx-h100", "--nccl-tests", LOG, "--gemm", GEMM, "-o", out]) == 0
    assert main(["specs", "check", out]) == 0
    assert main(["specs", "show", f"{out}:4"]) == 0
    capsys.readouterr()
    words = ["--seq", "4096", "--global-batch", "64", "--json"]
    steps = []
    for cluster in ("dgx-h100:2", f"{out}:2"):
        assert main(["plan", "llama-3.1-8b", cluster, *words]) == 0
        steps.append(json.loads(capsys.readouterr().out)["plans"][0]["estimate"]["step_time_s"])
    assert steps[0] < steps[1] < 1.3 * steps[0]  # this H100 multiplies a tenth slower
    assert main(["validate", "--cluster", out, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["status"] for row in rows} == {"ok", "skipped"}


def test_the_report_is_plain_text_that_names_the_file(tmp_path):
    out = tmp_path / "my.yaml"
    done = run("dgx-h100", "--gemm", GEMM, "-o", str(out))
    assert done.exit_code == 0
    assert "accelerator.gemm.emax" in done.stdout
    assert "llama-3.1-70b" in done.stdout
    assert out.name in done.stdout.replace("\n", "").replace(" ", "")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("dgx-h100",), 2, "nothing to calibrate with"),
        (("dgx-h101", "--gemm", GEMM), 2, "no cluster is named"),
        (("dgx-h100", "--gemm", "nowhere.csv"), 2, "nowhere.csv: no such file"),
        (("dgx-h100", "--gemm", LOG), 2, "h100_all_reduce.log, line 1: columns missing"),
        (("dgx-h100", "--nccl-tests", GEMM), 2, "h100_gemm.csv, line 1: no timing"),
        (("dgx-h100", "--profile", GEMM), 2, "not a Chrome trace"),
        (("dgx-h100", "--steps", GEMM), 2, "columns missing"),
        (("dgx-h100", "--gemm", GEMM, "--stack", "torchtitn"), 2, "'torchtitn' is not known"),
        (("dgx-h100", "--nccl-tests", LOG, "--ranks", "1"), 2, "1"),
        (("l40s-8x", "--nccl-tests", LOG, "--nodes", "3"), 2, "do not fill 3 nodes evenly"),
    ],
)
def test_what_cannot_be_used_ends_in_one_message(words, code, said, capsys):
    assert main(["calibrate", *words]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_nothing_is_written_where_nothing_could_be_fitted(tmp_path, capsys):
    out = tmp_path / "my.yaml"
    out.write_text("mine\n")
    table = tmp_path / "few.csv"
    table.write_text("m,n,k,us\n4096,4096,4096,200\n")
    assert main(["calibrate", "dgx-h100", "--gemm", str(table), "-o", str(out)]) == 1
    assert "1 multiply in bf16" in capsys.readouterr().err
    assert out.read_text() == "mine\n"


def test_measurements_that_the_shipped_figures_predict_change_nothing(tmp_path, capsys):
    out = tmp_path / "my.yaml"
    assert main(["calibrate", "dgx-h100", "--gemm", GEMM, "-o", str(out)]) == 0
    second = tmp_path / "again.yaml"
    assert main(["calibrate", str(out), "--gemm", GEMM, "-o", str(second)]) == 0
    if second.exists():  # rounding may still move a figure by half a per cent
        assert "emax" not in second.read_text()
    else:
        assert "not written" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["calibrate", "dgx-h100", "--gemm", GEMM, "-o", str(tmp_path / "my.yaml")]) == 2
    assert "my.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["no/such/folder/my.yaml", "."])
def test_a_place_that_is_no_file_is_said_and_leaves_nothing(out, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", "dgx-h100", "--gemm", GEMM, "-o", out]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

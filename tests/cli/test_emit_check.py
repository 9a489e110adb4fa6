"""`meshwright emit --check` on a bundle that the command wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.cli import app as cli

PLAN = ["plan", "llama-3.1-8b", "dgx-h100:2", "--top", "1", "-o", "out"]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*PLAN, "--target", "megatron,slurm"]) == 0
    capsys.readouterr()
    return Path("out")


def test_what_was_just_written_agrees(bundle, capsys):
    assert cli.main(["emit", "--check", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"out/{t}: agrees with its plan ({t})" for t in ("megatron", "slurm")]
    assert cli.main(["emit", "--check", "out/slurm", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    rows = [{"folder": "out/slurm", "target": "slurm", "problems": []}]
    assert answer == {"schema": "meshwright.emit-check/1", "ok": True, "bundles": rows}


def test_what_disagrees_ends_with_2_and_a_sentence_each(bundle, capsys):
    args = bundle / "megatron" / "megatron.args"
    args.write_text(args.read_text().replace("--micro-batch-size ", "--micro-batch-size 1"))
    (bundle / "slurm" / "node.sh").unlink()
    assert cli.main(["emit", "--check", "out"]) == 2
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert first.startswith("out/megatron: megatron.args: --micro-batch-size is 1")
    assert second == "out/slurm: node.sh: is missing"
    assert captured.err.count("error: out: 2 things disagree with the plan") == 1
    assert cli.main(["emit", "--check", "out", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_placement_that_was_moved_is_told(bundle, capsys):
    file = bundle / "megatron" / "plan.json"
    plan = json.loads(file.read_text())
    plan["placement"]["ranks"][3]["leaf"] = "leaf0777"
    plan["placement"]["ranks"][0]["dp"] = 5
    file.write_text(json.dumps(plan))
    assert cli.main(["emit", "--check", "out/megatron"]) == 2
    out = capsys.readouterr().out
    assert "placement: under another leaf than claimed: rank 3" in out
    assert "dp coordinate of rank 0 is 5, not 0" in out


@pytest.mark.parametrize(
    "words",
    [
        ["--check", "nowhere"],
        ["--check", "."],
        ["--check", "out", "--target", "slurm"],
        ["out/plan.json", "--check", "out"],
        ["--check", "out/plan.json"],
        [],
        ["out/plan.json", "--target", "slurm"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_message(bundle, capsys, words):
    assert cli.main(["emit", *words]) == 2
    assert capsys.readouterr().err.count("error:") == 1

"""`simulate`: one JSON document, a trace that viewers read, a chart, and answers to what-ifs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from planner.cli import app as cli
from planner.plan import Plan
from planner.units import gib


@pytest.fixture
def saved(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text(plan.to_json())
    return "plan.json"


@pytest.fixture
def answer(saved: str, capsys: pytest.CaptureFixture[str]):
    def go(*words: str) -> dict:
        assert cli.main(["simulate", saved, *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return go


def test_json_holds_the_timeline_in_numbers(answer):
    found = answer()
    assert found["schema"] == "meshwright.simulation/1"
    assert found["schedule"] == "1f1b"
    assert found["bubble_fraction"] == pytest.approx(found["bubble_s"] / found["step_time_s"])
    assert [rank["layers"] for rank in found["ranks"]] == [[40], [40]]
    assert [rank["peak_chunks_in_flight"] for rank in found["ranks"]] == [2, 1]
    assert found["straggler"] is None
    assert answer() == found


def test_another_row_of_the_plan_is_run_with_its_own_schedule(answer):
    found = answer("--plan-rank", "2")
    assert (found["schedule"], found["chunks"], len(found["ranks"])) == ("interleaved", 2, 4)


def test_a_straggler_slows_the_step_and_says_by_how_much(answer):
    late = answer("--straggler", "stage=1:1.5")["straggler"]
    assert late["factors"] == {"1": 1.5}
    assert late["slower_s"] > 0
    both = answer("--straggler", "stage=1:1.5,0:1.5")["straggler"]
    again = answer("--straggler", "stage=1:1.5", "--straggler", "0:1.5")["straggler"]
    assert both == again
    assert both["slower_s"] > late["slower_s"]


def test_the_trace_holds_every_action_where_and_when_it_ran(answer):
    found = answer("-o", "trace.json")
    trace = json.loads(Path("trace.json").read_text())
    actions = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(actions) == 2 * 2 * 64
    assert {(e["pid"], e["tid"]) for e in actions} == {(0, 0), (0, 1)}
    assert sorted(e["name"] for e in actions if e["tid"] == 0)[:2] == ["B0", "B1"]
    ends = max(e["ts"] + e["dur"] for e in actions)
    assert ends == pytest.approx(found["makespan_s"] * 1e6, rel=1e-6)
    for stage in (0, 1):
        mine = [e for e in actions if e["tid"] == stage]
        busy = sum(e["dur"] for e in mine) / 1e6
        assert busy == pytest.approx(found["ranks"][stage]["busy_s"], rel=1e-5)
        for one, after in pairwise(mine):
            assert one["ts"] + one["dur"] <= after["ts"] + 0.01
    names = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert names == {"stage 0", "stage 1"}
    held = [e["args"]["chunks"] for e in trace["traceEvents"] if e["ph"] == "C"]
    assert max(held) == 2


def test_the_report_fits_80_columns_and_shows_the_closed_form_beside(saved, capsys):
    assert cli.main(["simulate", saved, "--straggler", "stage=0:2"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for words in (
        "closed form",
        "bubble:",
        "slowest: stage",
        "straggler (stage 0 x2)",
        "in flight",
    ):
        assert words in out
    assert out.splitlines()[0].startswith("1F1B")


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--straggler", "stage=2:1.5"], 2, "stages are 0 to 1"),
        (["--straggler", "stage=1:0"], 2, "takes stage=N:X"),
        (["--straggler", "stage=1:1.2.3"], 2, "takes stage=N:X"),
        (["--straggler", "quick"], 2, "takes stage=N:X"),
        (["--schedule", "zb-h2"], 2, "allowed: gpipe"),
        (["--schedule", "zbv", "--chunks", "3"], 1, "two chunks a rank"),
        (["--plan-rank", "3"], 2, "holds ranks 1, 2, 7"),
        (["-o", "plan.json"], 2, "is the plan itself"),
        (["-o", "."], 2, "not a regular file"),
        (["-o", "nowhere/trace.json"], 2, "is no folder"),
        (["--microbatches", "0"], 2, "microbatches"),
        (["--microbatches", "300000", "-o", "trace.json"], 1, "too long to open"),
    ],
)
def test_what_cannot_be_run_ends_in_one_message(saved, capsys, words, code, why):
    assert cli.main(["simulate", saved, *words]) == code
    err = capsys.readouterr().err
    assert why in err
    assert "Traceback" not in err
    assert not Path("trace.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "meshwright.plan/1"}', "\x00"])
def test_a_file_that_is_no_plan_is_refused(tmp_path, capsys, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    assert cli.main(["simulate", str(path)]) == 2
    assert "not a meshwright.plan/1 document" in capsys.readouterr().err


def test_a_stage_slowed_twice_is_refused_with_both_factors_together(saved, capsys):
    for words in (["stage=1:1.5,1:2"], ["stage=1:1.5", "stage=1:2"]):
        options = [part for word in words for part in ("--straggler", word)]
        assert cli.main(["simulate", saved, *options]) == 2
        err = capsys.readouterr().err
        assert "stage 1 is given twice (x1.5 and x2)" in err
        assert "stage=1:3 is both" in err


def test_a_row_that_does_not_fit_is_run_and_said_not_to_fit(answer, plan):
    (big,) = [row for row in plan.plans if not row.feasible]
    (told,) = [n for n in answer("--plan-rank", str(big.rank))["notes"] if "does not fit" in n]
    memory = big.estimate.memory
    assert gib(memory.peak_bytes) in told
    assert gib(memory.limit_bytes) in told
    assert not any("does not fit" in note for note in answer()["notes"])


def test_a_cut_anew_says_whether_it_shortens_or_lengthens(plan, tmp_path, monkeypatch, capsys):
    """Two micro-batches pass four stages: there the whole path counts, not the slowest stage."""
    monkeypatch.chdir(tmp_path)
    best = plan.best.model_copy(update={"layout": plan.best.layout.model_copy(
        update={"pp": 4, "dp": 1})})  # fmt: skip
    uneven = best.model_copy(update={"stage_layers": [[40], [20], [10], [10]]})
    for row, word in ((uneven, "shortens"), (best, "")):
        text = plan.model_copy(update={"plans": [row]}).to_json()
        Path("plan.json").write_text(text)
        makespans = []
        for more in ([], ["--balance"]):
            assert cli.main(["simulate", "plan.json", "--microbatches", "2", *more, "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            makespans.append(found["makespan_s"])
        (told,) = [note for note in found["notes"] if "cut for even stages" in note]
        change = makespans[1] / makespans[0] - 1
        expected = "shortens" if change < -5e-4 else "LENGTHENS" if change > 5e-4 else "as long"
        assert expected in told
        assert word in told

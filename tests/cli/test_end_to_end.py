"""The whole road on a small cluster, nothing replaced: the commands agree with each other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from planner.cli import app as cli
from planner.emit import EMITTER_NAMES
from planner.plan import Layout

WHAT = ("llama-3.1-8b", "dgx-h100:2", "--seq", "4096", "--global-batch", "64")


@pytest.fixture
def answer(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def go(command: str, *words: str):
        assert cli.main([command, *WHAT, *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return go


def test_the_same_question_gets_the_same_answer(answer):
    first, second = answer("plan", "--top", "3"), answer("plan", "--top", "3")
    assert first.pop("timing").keys() >= {"search_s", "place_s", "total_s"}
    assert second.pop("timing").keys() >= {"search_s", "place_s", "total_s"}
    assert first == second


def test_exposed_times_and_stage_bytes_add_up(answer):
    for row in answer("plan")["plans"]:
        estimate = row["estimate"]
        assert math.isclose(sum(estimate["time_s"].values()), estimate["step_time_s"])
        memory = estimate["memory"]
        totals = [s.pop("total") for s in memory["stages"]]
        assert totals == pytest.approx([sum(s.values()) for s in memory["stages"]])
        assert memory["peak_bytes"] == pytest.approx(max(totals))


def test_explain_and_place_agree_with_plan_about_its_winner(answer):
    plan = answer("plan", "--fix", "tp=2,pp=2", "--top", "1")
    best = plan["plans"][0]
    layout = Layout.model_validate(best["layout"]).short()
    explained = answer("explain", "--layout", layout)
    assert explained["legal"]
    assert explained["feasible"]
    assert explained["layout"] == best["layout"]
    assert explained["estimate"] == best["estimate"]
    placed = answer("place", "--layout", layout)
    assert placed.items() >= plan["placement"].items()


def test_a_placement_says_what_it_is_a_map_of(answer):
    plan = answer("plan", "--fix", "tp=2,pp=2", "--top", "1")
    layout = plan["plans"][0]["layout"]
    placed = answer("place", "--layout", Layout.model_validate(layout).short())
    assert placed["schema"] == "meshwright.place/1"
    assert placed["request"] == plan["request"]
    assert placed["layout"] == layout


def test_a_layout_that_is_illegal_is_answered_with_reasons(answer):
    explained = answer("explain", "--layout", "tp=3")
    assert not explained["legal"]
    assert any("3" in reason for reason in explained["reasons"])


def test_every_target_gets_a_bundle_and_emit_writes_the_same_again(answer, capsys):
    names = [name for name in EMITTER_NAMES if name != "dataparallel"]  # that is for one node
    answer("plan", "-o", "out", "--target", ",".join(names))
    folders = {p.name for p in Path("out").iterdir() if p.is_dir()}
    assert folders == set(names)
    for name in names:
        bundle = Path("out", name)
        words = ["emit", str(bundle / "plan.json"), "--target", name, "-o", f"again-{name}"]
        assert cli.main(words) == 0
        for file in bundle.rglob("*"):
            if file.is_file():
                copy = Path(f"again-{name}", name, file.relative_to(bundle))
                assert copy.read_bytes() == file.read_bytes(), file
    assert capsys.readouterr().err.count("error") == 0


def test_unhealthy_hosts_get_no_rank(answer):
    placement = answer("place", "--layout", "tp=8", "--gpus", "8", "--unhealthy", "node00001")
    assert {rank["host"] for rank in placement["ranks"]} == {"node00002"}

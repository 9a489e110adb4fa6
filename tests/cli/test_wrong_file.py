"""A file that is no plan is told what is wrong with it, alike by every command that reads one."""

from __future__ import annotations

import pytest

from planner import place, plan
from planner.cli.app import main

COMMANDS = {
    "simulate": ("simulate", "FILE"),
    "report": ("report", "FILE", "-o", "page.html"),
    "emit": ("emit", "FILE", "--target", "torchrun", "-o", "launch"),
}


@pytest.fixture(scope="module")
def whole():
    return plan("gpt2", "dgx-h100:1", seq=1024, top=1).to_json()


def said_of(text, command, capsys, folder):
    path = folder / "given.json"
    path.write_text(text)
    words = [str(path) if word == "FILE" else word for word in COMMANDS[command]]
    assert main(words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_wrong_with_a_file_is_said_plainly(command, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = {
        "": "it is empty",
        " \n": "it is empty",
        whole[:2000]: "it is cut off: its JSON ends too early at line 1 column 2000",
        "hello": "it is not JSON: expected value at line 1 column 1",
        "[1]": "it holds a list, not a mapping of fields",
        "{}": "field 'request' is missing (and 2 more)",
        whole.replace('"tp":', '"pt":'): "field 'plans.0.layout.tp' is missing",
        whole.replace("meshwright.plan/1", "meshwright.plan/9"): "must be 'meshwright.plan/1'",
    }
    for text, said in cases.items():
        err = said_of(text, command, capsys, tmp_path)
        assert f"given.json: not a meshwright.plan/1 document: {said}" in err or (
            said.startswith("must") and said in err
        )
        assert "pydantic" not in err
        assert "input_value" not in err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_placement_in_place_of_a_plan_is_told_where_it_belongs(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    placed = place("gpt2", "dgx-h100:1", "tp=1", seq=1024).model_dump_json()
    err = said_of(placed, command, capsys, tmp_path)
    assert "given.json: holds a placement, not a plan" in err
    assert f"emit PLAN.json --placement {tmp_path / 'given.json'}" in err

"""The library answers as the command does, in types, and loads nothing before it is used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

import planner
from planner import explain, library, place, plan
from planner.cli.app import main
from planner.errors import InfeasibleError, SpecError
from planner.explanation import Explanation
from planner.plan import Placement, Plan
from planner.specs.catalog import load_cluster, load_model

ROOT = Path(__file__).resolve().parents[3]
FIX = {"tp": "2|4", "recompute": "none", "micro_batch": 1}


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """What the command says with --json, without its timing."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    document.pop("timing", None)
    return document


def document(record: Plan | Explanation | Placement) -> dict:
    found = json.loads(record.model_dump_json(by_alias=True))
    found.pop("timing", None)
    return found


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["--seq", "4096", "--global-batch", "64"], {"seq": 4096, "global_batch": 64}),
        (["--fix", "tp=2|4,recompute=none,micro_batch=1", "--top", "3"], {"fix": FIX, "top": 3}),
        (
            ["--objective", "cost", "--price", "2.5", "--tokens", "1T", "--deadline", "200d"],
            {"objective": "cost", "price": 2.5, "tokens": 1e12, "deadline": timedelta(days=200)},
        ),
        (
            ["--global-batch", "64|128", "--max-step-time", "90s", "--unhealthy", "node00002:3"],
            {"global_batch": [64, 128], "max_step_time": 90, "unhealthy": ["node00002:3"]},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_plan_is_the_command_s_document(words, options, capsys):
    command = told(capsys, "plan", "llama-3.1-8b", "dgx-h100:3", *words)
    found = plan("llama-3.1-8b", "dgx-h100:3", **options)
    assert isinstance(found, Plan)
    assert document(found) == command
    assert capsys.readouterr() == ("", "")


def test_node_counts_are_chosen_as_the_command_does(capsys):
    command = told(capsys, "plan", "gpt2", "dgx-h100", "--nodes", "1|2", "--seq", "1024")
    for nodes in ("1|2", [1, 2], range(1, 3)):
        assert document(plan("gpt2", "dgx-h100", nodes=nodes, seq=1024)) == command


def test_explain_is_the_command_s_document(capsys):
    command = told(capsys, "explain", "llama-3.1-8b", "dgx-h100:2", "--layout", "tp=4,sp=true")
    found = explain("llama-3.1-8b", "dgx-h100:2", {"tp": 4, "sp": True})
    assert isinstance(found, Explanation)
    assert document(found) == command


def test_place_is_the_command_s_document(capsys):
    layout = "tp=8,pp=1,cp=1,dp=2"
    words = ["llama-3.1-8b", "dgx-h100:3", "--layout", layout, "--unhealthy", "node00001"]
    command = told(capsys, "place", *words)
    found = place("llama-3.1-8b", "dgx-h100:3", layout, unhealthy=["node00001"])
    assert isinstance(found, Placement)
    assert document(found) == command
    moved = place("llama-3.1-8b", "dgx-h100:3", layout, moved_from=found)
    assert moved.moved_ranks == 0


def test_specs_and_paths_are_taken_as_names_are(tmp_path):
    model, cluster = load_model("llama-3.1-8b"), load_cluster("dgx-h100:2")
    (tmp_path / "m.json").write_text(model.model_dump_json())
    named = plan("llama-3.1-8b", "dgx-h100:2", top=1)
    assert document(plan(model, cluster, top=1)) == document(named)
    assert document(plan(tmp_path / "m.json", cluster, top=1)) == document(named)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sequ": 4096}, "there is no option 'sequ'"),
        ({"seq": 0}, "--seq: 0 is not allowed"),
        ({"seq": "8kb"}, "--seq: '8kb' is not allowed"),
        ({"objective": "cost"}, "--objective cost: no price"),
        ({"fix": {"tpp": 8}}, "--fix: unknown layout field 'tpp'"),
        ({"nodes": [1, 200_000]}, "--nodes: 200000 is more than"),
        ({"nodes": 8}, "--nodes: 8 is more than the 2 nodes"),
        ({"tokens": -1.0}, "--tokens: '-1.0' is not an amount"),
        ({"top": 0}, "--top: 0 is not allowed, must be a whole number from 1 to 1,000"),
        ({"top": "x"}, "--top: 'x' is not allowed, must be a whole number from 1 to 1,000"),
        ({"gpus": "x"}, "--gpus: 'x' is not allowed, must be a whole number"),
        ({"price": "x"}, "--price: 'x' is not allowed, must be a number"),
        ({"price": 1e9}, "--price: 1e.09 is not allowed, must be above 0 and below 1,000,000,000"),
        ({"global_batch": 10**30}, "--global-batch: 10+ is more than 100,000,000"),
    ],
)
def test_what_the_command_refuses_is_refused_in_the_same_words(options, said):
    with pytest.raises(SpecError, match=said):
        plan("llama-3.1-8b", "dgx-h100:2", **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("top", 0), ("top", 1001), ("top", "x"), ("gpus", "x"), ("gpus", 99), ("price", "x")),
        *(("power", -1), ("global_batch", 10**9), ("nodes", 200_000), ("seq", "1e300")),
    ],
)
def test_a_number_is_refused_in_the_very_sentence_of_the_command(name, value, capsys):
    with pytest.raises(SpecError) as raised:
        plan("llama-3.1-8b", "dgx-h100:2", **{name: value})
    assert main(["plan", "llama-3.1-8b", "dgx-h100:2", f"--{name}".replace("_", "-"), str(value)])
    assert f"error: {raised.value.message}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("top", -1), ("top", 10**9), ("top", 2.5), ("top", True), ("gpus", 2.5), ("seq", True)),
        *(("gpus", []), ("power", []), ("max_memory", True), ("nodes", 2.5), ("seq", 10**100)),
        *(("fix", 3), ("unhealthy", 3), ("nodes_file", 3), ("precision", 8), ("objective", 1)),
    ],
)
def test_a_value_of_the_wrong_kind_or_size_is_refused_by_its_option_s_name(name, value):
    with pytest.raises(SpecError, match=f"--{name.replace('_', '-')}: .* is not allowed"):
        plan("llama-3.1-8b", "dgx-h100:2", **{name: value})


@pytest.mark.parametrize("ask", [explain, place])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"global_batch": 10**30}, "--global-batch: .* from 1 to 100,000,000"),
        ({"gpus": "x"}, "--gpus: 'x' is not allowed"),
        ({"layout": 3}, "--layout: int is not allowed"),
        ({"capacity_factor": "x"}, "--capacity-factor: 'x' is not allowed"),
    ],
)
def test_explain_and_place_refuse_alike(ask, options, said):
    with pytest.raises(SpecError, match=said):
        ask("llama-3.1-8b", "dgx-h100:2", **{"layout": "tp=8", **options})


def test_lengths_and_shares_may_be_written_as_on_the_command_line():
    mine = {"top": 1, "fix": {"tp": 8}}
    typed = plan("llama-3.1-8b", "dgx-h100:1", seq="4k", max_memory="90%", **mine)
    assert document(typed) == document(
        plan("llama-3.1-8b", "dgx-h100:1", seq=4096, max_memory=0.9, **mine)
    )


def test_what_has_no_answer_raises():
    with pytest.raises(InfeasibleError, match="nothing fits"):
        plan("llama-3.1-405b", "dgx-h100:1")
    with pytest.raises(InfeasibleError, match="not legal"):
        place("llama-3.1-8b", "dgx-h100:1", {"tp": 3})


@pytest.mark.parametrize("strange", [None, 3, {"layers": 2}])
def test_what_is_no_spec_is_refused_by_name(strange):
    with pytest.raises(SpecError, match=f"cluster: {type(strange).__name__} is not allowed"):
        plan("llama-3.1-8b", strange)
    with pytest.raises(SpecError, match=r"model: .* must be a name, a path or a ModelSpec"):
        plan(strange, "dgx-h100:2")


# --- frames


def test_frames_hold_a_row_a_plan_a_term_and_a_rank():
    pytest.importorskip("polars")
    found = plan("llama-3.1-8b", "dgx-h100:2", price=2.0, tokens="1T")
    frame = found.to_frame()
    assert len(frame) == len(found.plans)
    assert frame["step_time_s"].to_list() == [p.estimate.step_time_s for p in found.plans]
    assert frame["memory.peak_bytes"][0] == found.best.estimate.memory.peak_bytes
    assert frame["time_s.compute"][0] == found.best.estimate.time_s["compute"]
    assert frame["usd_per_trillion_tokens"][0] == found.best.usd_per_trillion_tokens
    assert frame["tp"][0] == found.best.layout.tp
    assert len(found.placement.to_frame()) == 16
    told = explain("llama-3.1-8b", "dgx-h100:2", {"tp": 2})
    assert told.to_frame()["name"].to_list() == [t.name for t in told.terms]


def test_without_polars_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(SpecError, match="needs polars") as raised:
        plan("gpt2", "dgx-h100:1", seq=1024, top=1).to_frame()
    assert "meshwright[frame]" in raised.value.hint


# --- the package


def python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_else():
    heavy = "{'numpy', 'pydantic', 'typer', 'polars', 'yaml', 'rich'}"
    script = f"import sys, planner; print({heavy} & {{m.split('.')[0] for m in sys.modules}})"
    assert python(script).strip() == "set()"


@pytest.mark.parametrize(
    "first", ["", "import planner.plan", "from planner.plan import Plan", "import planner.place"]
)
def test_plan_and_place_are_callable_whatever_was_imported_before(first):
    script = f"""
{first}
from planner import place, plan
import planner.plan, planner.place
assert callable(plan) and callable(place) and plan is planner.plan
assert planner.plan.Plan is planner.Plan
assert plan("gpt2", "dgx-h100:1", seq=1024, top=1).best.rank == 1
print(len(place("gpt2", "dgx-h100:1", "tp=1", seq=1024).ranks))
"""
    assert python(script).strip() == "8"


def test_help_of_a_callable_module_shows_the_function():
    import inspect

    assert inspect.signature(plan) == inspect.signature(library.plan)
    assert inspect.signature(place) == inspect.signature(library.place)


def test_the_stub_names_what_the_package_exports():
    names = set()
    for node in ast.parse((ROOT / "planner/__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname for alias in node.names}
            for alias in node.names:
                assert getattr(planner, alias.name) is not None
    assert names == set(planner.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pln'"):
        _ = planner.pln


def test_what_is_searched_beside_the_layout_is_asked_for_as_on_the_command_line(capsys):
    asked = ("plan", "llama-3.1-8b", "dgx-h100:1", "--seq", "2048", "--global-batch", "64")
    typed = told(capsys, *asked, "--fix", "micro_batch=1", "--search", "offload,precision")
    options = {"seq": 2048, "global_batch": 64, "fix": {"micro_batch": 1}}
    found = plan("llama-3.1-8b", "dgx-h100:1", search=["precision", "offload"], **options)
    assert document(found) == typed
    assert found.best.options == {"precision": "fp8"}


def test_every_option_of_the_commands_is_one_of_the_functions():
    import typer

    from planner.cli.app import app

    commands = typer.main.get_command(app).commands
    files = {"output", "target", "force", "as_json", "help", "model", "cluster", "layout"}
    takes = {
        "plan": library.PlanOptions.__annotations__,
        "explain": library.PlaceOptions.__annotations__,
        "place": {**library.PlaceOptions.__annotations__, "moved_from": None},
    }
    for name, options in takes.items():
        typed = {p.name for p in commands[name].params} - files
        assert typed - set(options) == set(), f"{name}: add them to planner/library.py"

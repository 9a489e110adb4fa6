"""Objectives, limits and sizes as a person asks for them: what is printed, and what is refused."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from planner import units
from planner.cli import app as cli

QUICK = ["--seq", "4096", "--fix", "micro_batch=1,recompute=none|full", "--top", "4"]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def lines_of(capsys, *words: str) -> list[str]:
    assert cli.main(["plan", "llama-3.1-8b", *words, *QUICK]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    return out.splitlines()


def test_what_search_chose_is_a_column_and_is_typed_again_for_one_layout(capsys):
    words = ("--global-batch", "64", "--search", "recompute-modules,precision")
    assert cli.main(["plan", "llama-3.1-8b", "dgx-h100:2", *words, *QUICK[:2], "--top", "4"]) == 0
    told = capsys.readouterr()
    assert "precision=fp8" in told.out
    choices = "with 14 choices of precision and recompute modules"
    assert choices in " ".join(told.out.split())
    layout = shlex.split(told.err.split("place ... ")[1])
    assert layout[:2] == ["--precision", "fp8"]
    assert cli.main(["plan", "llama-3.1-8b", "dgx-h100:2", "--search", "everything"]) == 2
    assert "axes: offload, schedule, precision" in capsys.readouterr().err


def test_the_report_of_a_cost_says_the_rate_the_run_and_each_size(capsys):
    words = ("--nodes", "1..4", "--objective", "cost", "--price", "2.5", "--tokens", "1T")
    lines = lines_of(capsys, "dgx-h100", *words)
    text = "\n".join(lines)
    assert "USD/T" in text
    assert "least cost: " in text
    assert "1.00T tokens in 238,419 steps take" in text  # of 1024 x 4096 tokens by default
    assert "- 2.5 USD a GPU-hour: given with --price" in text
    assert "- looked at 1 to 4 nodes with batch" in text
    sizes = lines[lines.index("The best layout of each size") + 3 :]
    assert [row.split()[0] for row in sizes[:4]] == ["1", "2", "3", "4"]
    assert any(line.startswith("What trades for what") for line in lines)


def test_the_report_of_the_fewest_gpus_says_why_not_fewer(capsys):
    lines = lines_of(capsys, "dgx-h100:8", "--objective", "gpus", "--max-step-time", "10s")
    at = lines.index("Why not fewer")
    assert any("nodes: " in line or "node: " in line for line in lines[at + 1 : at + 6])
    assert any(line.strip().startswith("fewest gpus: ") for line in lines)


def test_the_report_of_a_sensitivity_names_each_figure(capsys):
    text = "\n".join(lines_of(capsys, "dgx-h100:2", "--sensitivity"))
    for figure in ("matmul peak", "HBM bandwidth", "HBM size", "NVLink", "NIC", "link latency"):
        assert f"\n  {figure}" in text
    assert "elasticity" in text


def test_near_ties_have_a_mark_and_a_footnote(capsys):
    lines = lines_of(capsys, "dgx-h100:2")
    marked = [line for line in lines if "≈" in line]
    assert len(marked) > 1
    assert "too close to #1" in marked[-1]


def test_without_price_or_choice_the_report_has_neither(capsys):
    text = "\n".join(lines_of(capsys, "dgx-h100:2"))
    assert "USD" not in text
    assert "The best layout of each size" not in text
    assert "What the hardware does to it" not in text


def test_json_holds_the_new_keys_and_keeps_the_old(capsys):
    words = ["plan", "llama-3.1-8b", "dgx-h100:2", "--json", *QUICK]
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    contract = {"schema", "request", "search", "plans", "placement", "timing"}
    assert contract | {"objective", "sizes", "pareto", "sensitivity"} <= set(told)
    assert {"rank", "layout", "estimate", "nodes", "global_batch", "tie"} <= set(told["plans"][0])
    assert told["objective"]["name"] == "step-time"
    assert told["sizes"] == told["sensitivity"] == []
    assert len(told["pareto"]) > 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["dgx-h100:2", "--objective", "price"], 2, "--objective: 'price' is not known"),
        (["dgx-h100:2", "--objective", "cost"], 2, "no price of h100-sxm-80gb is known"),
        (["dgx-h100:2", "--nodes", "4"], 2, "--nodes: 4 is more than the 2 nodes of dgx-h100:2"),
        (["dgx-h100", "--nodes", "8..2"], 2, "--nodes: '8..2' is empty"),
        (["dgx-h100", "--nodes", "2", "--gpus", "8"], 2, "--nodes: does not go with --gpus"),
        (["dgx-h100:2", "--global-batch", "-1"], 2, "--global-batch: '-1' is not allowed"),
        (["dgx-h100:2", "--global-batch", "64..32"], 2, "--global-batch: '64..32' is empty"),
        (["dgx-h100:2", "--max-step-time", "0s"], 2, "--max-step-time: '0s' is not a duration"),
        (["dgx-h100:2", "--max-step-time", "1s"], 1, "--max-step-time asks for 1.00 s"),
        (["dgx-h100:2", "--deadline", "9d"], 2, "--deadline: says nothing without the tokens"),
        (["dgx-h100:200000"], 2, "'200000' is not a number of nodes"),
        (["dgx-h100:2", "--recompute-layers", "99"], 2, "--recompute-layers: 99 is more than"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_or_out_of_reach_is_one_message(words, code, said, capsys):
    assert cli.main(["plan", "llama-3.1-8b", *words, "--json"]) == code
    captured = capsys.readouterr()
    assert bool(captured.out) == (code == 1)
    assert captured.err.count("error:") == 1
    assert said in captured.err
    assert "hardware_specs" not in captured.err


def test_a_bundle_is_of_the_size_that_was_chosen(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["dgx-h100", "--nodes", "1|2", "--objective", "tokens-per-gpu"]
    words += ["-o", "out", "--target", "megatron", "--json", *QUICK]
    assert cli.main(["plan", "llama-3.1-8b", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    bundle = json.loads((tmp_path / "out/megatron/plan.json").read_text())
    for plan in (told, bundle):
        assert plan["request"]["cluster"]["nodes"] == told["plans"][0]["nodes"]
        degrees = [plan["plans"][0]["layout"][n] for n in ("tp", "pp", "cp", "dp")]
        gpus = degrees[0] * degrees[1] * degrees[2] * degrees[3]
        assert gpus == 8 * told["plans"][0]["nodes"]


def test_a_row_of_another_batch_is_simulated_with_its_own(capsys, tmp_path):
    words = ["dgx-h100:1", "--global-batch", "64|128", "--fix", "pp=4|8", "--seq", "4096"]
    assert cli.main(["plan", "llama-3.1-8b", *words, "--json"]) == 0
    file = tmp_path / "plan.json"
    file.write_text(capsys.readouterr().out)
    for row in json.loads(file.read_text())["plans"][:4]:
        cli.main(["simulate", str(file), "--plan-rank", str(row["rank"]), "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told["step_time_s"] == pytest.approx(row["estimate"]["step_time_s"])


def test_the_page_of_a_plan_shows_its_sizes_and_the_hardware(capsys, tmp_path):
    pytest.importorskip("plotly")
    words = ["--nodes", "1,2,3", "--objective", "cost", "--price", "2", "--sensitivity"]
    assert cli.main(["plan", "qwen2.5-1.5b", "dgx-h100", *words, "--top", "3", "--json"]) == 0
    told = capsys.readouterr().out
    (tmp_path / "plan.json").write_text(told)
    assert cli.main(["report", str(tmp_path / "plan.json"), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert 'id="sizes"' in page
    for size in json.loads(told)["sizes"]:
        assert f">{size['value']:,.0f}<" in page
    assert 'id="hardware"' in page
    for row in json.loads(told)["sensitivity"]:
        assert f">{row['about']}<" in page


def test_the_page_of_a_plan_asks_again_with_its_objective(capsys, tmp_path):
    pytest.importorskip("plotly")
    words = ["--objective", "cost", "--price", "2", "--tokens", "100B", "--max-step-time", "90s"]
    assert cli.main(["plan", "qwen2.5-1.5b", "dgx-h100:1", *words, "--top", "3", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    (tmp_path / "plan.json").write_text(json.dumps(first))
    assert cli.main(["report", str(tmp_path / "plan.json"), "-o", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    (typed,) = re.findall(r"meshwright (plan qwen2[^<\n]*)", page)
    capsys.readouterr()
    assert cli.main([*shlex.split(typed), "--top", "3", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    for document in (first, again):
        document.pop("timing")
    assert again == first


# --- no answer, as a document


@pytest.mark.parametrize(
    ("words", "schema", "empty"),
    [
        (("plan", "llama-3.1-405b", "dgx-h100:1"), "plan", "plans"),
        (("plan", "llama-3.1-8b", "dgx-h100:1", "--fix", "tp=7"), "plan", "plans"),
        (("place", "llama-3.1-8b", "dgx-h100:1", "--layout", "tp=3"), "place", "ranks"),
    ],
)
def test_without_an_answer_json_is_one_document_that_says_why(words, schema, empty, capsys):
    assert cli.main([*words, "--json"]) == 1
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["schema"] == f"meshwright.{schema}/1"
    assert answer[empty] == []
    assert f"error: {answer['reasons'][0]}" in captured.err


def test_a_document_without_plans_is_refused_with_its_reason(tmp_path, capsys):
    assert cli.main(["plan", "llama-3.1-405b", "dgx-h100:1", "--json"]) == 1
    path = tmp_path / "plan.json"
    path.write_text(capsys.readouterr().out)
    for words in (["report", str(path), "-o", str(tmp_path / "r.html")], ["simulate", str(path)]):
        assert cli.main(words) == 2
        assert "holds no plan: nothing fits" in capsys.readouterr().err


def test_the_batch_that_an_answer_about_gpus_hangs_on_is_said(capsys):
    words = ["plan", "llama-3.1-8b", "dgx-h100", "--nodes", "1..2", "--objective", "gpus"]
    words += ["--max-step-time", "60s", "--json"]
    assert cli.main(words) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("no --global-batch was given: 512 sequences" in note for note in notes)
    assert cli.main([*words, "--global-batch", "512"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert not any("--global-batch" in note for note in notes)


def test_large_figures_are_told_without_exponents():
    assert units.figure(718_480.3) == "718,480"
    assert units.figure(12_345.67) == "12,346"
    assert units.figure(1234.5) == "1,234.5"
    assert units.figure(0.000123456) == "0.00012346"


def test_formats_that_a_gpu_has_no_multiplies_in_are_refused(capsys):
    assert cli.main(["plan", "llama-3.1-8b", "dgx-a100:1", "--precision", "fp8"]) == 2
    assert "a100-sxm-80gb has no FP8" in capsys.readouterr().err

"""`meshwright import`: an existing job against the best, the whole road."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.cli import app as cli
from planner.plan import Plan

ARGS = """\
--tensor-model-parallel-size 8
--sequence-parallel
--pipeline-model-parallel-size 2
--num-layers 32
--hidden-size 4096
--num-attention-heads 32
--num-query-groups 8
--group-query-attention
--ffn-hidden-size 14336
--swiglu
--normalization RMSNorm
--disable-bias-linear
--attention-dropout 0
--hidden-dropout 0
--vocab-size 128256
--untie-embeddings-and-output-weights
--position-embedding-type rope
--max-position-embeddings 8192
--seq-length 4096
--micro-batch-size 1
--global-batch-size 256
--bf16
--use-distributed-optimizer
--recompute-granularity full
--log-interval 10
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("megatron.args").write_text(ARGS)
    return tmp_path


def answer(capsys, *words):
    assert cli.main(["import", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_poor_layout_is_told_by_how_much_and_why(folder, capsys):
    assert cli.main(["import", "megatron.args", "--cluster", "dgx-h100:4"]) == 0
    out = capsys.readouterr().out
    assert "Megatron job on 32 GPUs" in out
    assert "Your current layout takes" in out
    assert "slower than the best that fits" in out
    assert "tp 8 -> " in out
    assert "recompute full -> " in out
    assert "less recompute: recompute=full -> " in out
    assert "overlap_grad_reduce on: gradients travel while the backward pass" in " ".join(
        out.split()
    )
    assert "32 GPUs, all of the cluster" in out
    assert "log_interval" in out
    assert max(map(len, out.splitlines())) <= 80


def test_its_json_agrees_with_explain_and_plan(folder, capsys):
    found = answer(capsys, "megatron.args", "--cluster", "dgx-h100:4")
    assert found["schema"] == "meshwright.import/1"
    assert found["layout"]["tp"] == 8
    given = ",".join(f"{name}={value}" for name, value in found["given"].items())
    model = folder / "model.json"
    model.write_text(json.dumps(found["model"]))
    work = ["--seq", "4096", "--global-batch", "256", "--stack", found["workload"]["stack"]]
    asked = [str(model), "dgx-h100:4", *work]
    assert cli.main(["explain", *asked, "--layout", given, "--json"]) == 0
    explained = json.loads(capsys.readouterr().out)
    assert explained["estimate"] == found["explanation"]["estimate"]
    assert cli.main(["plan", *asked, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["plans"][0]
    took = best["estimate"]["step_time_s"]
    assert found["best"]["step_time_s"] == pytest.approx(took, rel=1e-3)
    assert found["slower"] == pytest.approx(found["step_time_s"] / took - 1, abs=1e-3)
    better = [m["slower"] for m in found["better"]]
    assert better
    assert better == sorted(better)
    assert all(took - 1e-9 <= m["step_time_s"] < found["step_time_s"] for m in found["better"])
    assert all(s["step_time_s"] < found["step_time_s"] for s in found["switches"])


def test_the_best_layout_is_told_to_be_that(folder, capsys):
    found = answer(capsys, "megatron.args", "--cluster", "dgx-h100:4")
    best = found["best"]["layout"]
    Path("m.json").write_text(json.dumps(found["model"]))
    layout = {k: v for k, v in best.items() if k not in ("num_microbatches",)}
    fix = ",".join(f"{k}={int(v) if isinstance(v, bool) else v}" for k, v in layout.items())
    words = ["plan", "m.json", "dgx-h100:4", "--seq", "4096", "--global-batch", "256"]
    words += ["--stack", found["workload"]["stack"], "--fix", fix, "-o", "launch"]
    assert cli.main([*words, "--target", "megatron"]) == 0
    capsys.readouterr()
    again = answer(capsys, "launch/megatron")
    assert again["layout"] == best
    assert again["slower"] == 0
    assert again["better"] == []


def test_without_a_cluster_it_translates(folder, capsys):
    assert cli.main(["import", "megatron.args", "--gpus", "64"]) == 0
    captured = capsys.readouterr()
    assert "tp=8, sp=1, pp=2, dp=4" in captured.out
    assert "--cluster CLUSTER" in captured.err
    found = answer(capsys, "megatron.args")
    assert (found["explanation"], found["best"], found["slower"]) == (None, None, None)


def test_a_layout_that_does_not_fit_gets_mends(folder, capsys):
    small = ARGS.replace("size 8", "size 1").replace("size 2", "size 1").replace("full", "none")
    Path("megatron.args").write_text(small.replace("--use-distributed-optimizer\n", ""))
    found = answer(capsys, "megatron.args", "--cluster", "dgx-a100-40gb:1")
    assert not found["explanation"]["feasible"]
    assert found["slower"] is None
    assert found["explanation"]["mend_layouts"]


def test_a_layout_that_is_not_legal_says_which_rule(folder, capsys):
    Path("megatron.args").write_text(ARGS.replace("parallel-size 8", "parallel-size 3"))
    found = answer(capsys, "megatron.args", "--cluster", "dgx-h100:4", "--gpus", "24")
    assert not found["explanation"]["legal"]
    assert found["explanation"]["reasons"]


def test_it_is_written_as_a_plan_that_other_commands_take(folder, capsys):
    words = ["megatron.args", "--cluster", "dgx-h100:4", "-o", "current.json"]
    found = answer(capsys, *words)
    plan = Plan.read(Path("current.json"))
    assert plan.best.layout.model_dump() == found["layout"]
    assert plan.placement
    assert cli.main(["emit", "current.json", "--target", "megatron", "-o", "again"]) == 0
    assert cli.main(["simulate", "current.json"]) == 0


def test_the_cluster_grows_to_the_job(folder, capsys):
    found = answer(capsys, "megatron.args", "--cluster", "dgx-h100", "--gpus", "64")
    assert found["gpus"] == 64
    assert found["explanation"]["layout"]["dp"] == 4
    assert cli.main(["import", "megatron.args", "--cluster", "dgx-h100:2", "--gpus", "64"]) == 2
    assert "64 GPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "FILE"),
        (["missing.args"], "missing.args"),
        (["/"], "no launch bundle"),
        (["megatron.args", "--set", "TP"], "NAME=VALUE"),
        (["megatron.args", "--cluster", "dgx-h1000"], "dgx-h100"),
        (["megatron.args", "--model", "llama-9"], "llama-9"),
        (["megatron.args", "--gpus", "0"], "--gpus"),
        (["megatron.args", "--gpus", "17"], "17 GPUs"),
        (["megatron.args", "-o", "plan.txt"], ".json"),
        (["megatron.args", "-o", "plan.json"], "--cluster"),
        (["megatron.args", "--cluster", "dgx-h100:4", "-o", "no/such/plan.json"], "no/such"),
        (["megatron.args", "--cluster", "dgx-h100:4", "--stack", "nothing"], "nothing"),
    ],
    ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else "",
)
def test_bad_usage_is_one_message_and_writes_nothing(words, named, folder, capsys):
    assert cli.main(["import", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error:") == 1
    assert named in captured.err
    assert [p.name for p in folder.iterdir()] == ["megatron.args"]


def test_what_turning_an_overlap_on_would_gain_is_told(folder, capsys):
    """The gain is the difference between the two jobs, each imported on its own."""
    both = ARGS + "--overlap-grad-reduce\n--overlap-param-gather\n"
    Path("both.args").write_text(both)
    Path("one.args").write_text(both.replace("--overlap-param-gather\n", ""))
    on = ("--cluster", "gcp-a3-high:4")
    best, one, none = (answer(capsys, f"{name}.args", *on) for name in ("both", "one", "megatron"))
    assert best["switches"] == []
    (gather,) = one["switches"]
    assert gather["setting"] == "overlap_param_gather"
    assert gather["step_time_s"] == pytest.approx(best["step_time_s"])
    assert gather["slower"] == pytest.approx(best["step_time_s"] / one["step_time_s"] - 1)
    assert gather["slower"] < 0
    steps = {switch["setting"]: switch["step_time_s"] for switch in none["switches"]}
    assert steps == {
        "overlap_grad_reduce": pytest.approx(one["step_time_s"]),
        "overlap_grad_reduce and overlap_param_gather": pytest.approx(best["step_time_s"]),
    }
    assert cli.main(["import", "one.args", *on]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "overlap_param_gather on: updated parameters travel" in told
    assert f"gains {-gather['slower']:.1%}" in told


def test_a_cluster_too_small_for_the_batch_is_told_with_the_keys_that_ask_for_more(folder, capsys):
    config = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2}
    config |= {"gradient_accumulation_steps": 1, "zero_optimization": {"stage": 1}}
    Path("ds.json").write_text(json.dumps(config))
    words = ["ds.json", "--model", "llama-3.1-8b", "--cluster", "dgx-h100:1", "--seq", "4096"]
    assert cli.main(["import", *words]) == 2
    assert "train_micro_batch_size_per_gpu 2" in capsys.readouterr().err


def test_a_length_given_beside_the_files_is_told_though_nothing_is_compared(folder, capsys):
    found = answer(capsys, "megatron.args", "--seq", "2k", "--global-batch", "64")
    assert found["step_time_s"] is None
    assert (found["workload"]["seq_tokens"], found["workload"]["global_batch"]) == (2048, 64)

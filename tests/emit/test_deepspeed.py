from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import bash_bundle
import pytest
from plan_grid import MODELS, model, plan, renamed

from planner.emit.deepspeed import EMITTER
from planner.errors import SpecError
from planner.layouts.rules import Context, broken_rules
from planner.layouts.table import Layouts
from planner.plan import Plan

DENSE = MODELS["dense"]


def texts(answer: Plan) -> dict[str, str]:
    return {artifact.path: artifact.text for artifact in EMITTER.emit(answer)}


def config(answer: Plan) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(  # type: ignore[no-any-return]
        texts(answer)["ds_config.json"],
        object_pairs_hook=no_duplicates,
        parse_constant=no_constants,
    )


@pytest.mark.parametrize("zero", range(4))
def test_the_three_batch_fields_agree(zero):
    made = config(plan(DENSE, dp=8, zero=zero, micro_batch=2, num_microbatches=3))
    assert made["train_batch_size"] == 48
    assert made["train_micro_batch_size_per_gpu"] == 2
    assert made["gradient_accumulation_steps"] == 3
    assert made["zero_optimization"]["stage"] == zero


def test_bucket_sizes_are_integers():
    zero = config(plan(DENSE, dp=8, zero=3))["zero_optimization"]
    sizes = [v for k, v in zero.items() if k.endswith(("_size", "_threshold"))]
    assert len(sizes) == 4
    assert all(type(size) is int for size in sizes)


def test_hybrid_sharding_is_hpz_and_the_readme_says_how_it_differs():
    answer = plan(DENSE, dp=32, zero=3, dp_replicate=4)
    assert config(answer)["zero_optimization"]["zero_hpz_partition_size"] == 8
    assert "stay sharded over" in texts(answer)["README.md"]


def test_every_layout_with_experts_that_the_rules_allow_is_expressed_and_no_other():
    """The search of stack deepspeed and the bundle know the same limits."""
    told = []
    for dp, ep, zero, pp in itertools.product((2, 4, 8), (1, 2, 4), range(4), (1, 2)):
        answer = plan(MODELS["moe"], dp=dp, ep=ep, zero=zero, pp=pp, stack="deepspeed")
        rows = Layouts.of([answer.best.layout.model_dump()])
        asked = answer.request
        context = Context(asked.model, asked.cluster, asked.workload)
        allowed = not [r for r in broken_rules(rows, 0, context) if "DeepSpeed" in r]
        told.append((allowed, EMITTER.unsupported(answer) == []))
    assert {allowed for allowed, _ in told} == {True, False}
    assert all(allowed == expressed for allowed, expressed in told)


def test_hosts_stand_in_the_plans_order():
    answer = plan(DENSE, dp=24, hosts=("b2", "a10", "a9"))
    assert texts(answer)["hostfile"] == "b2 slots=8\na10 slots=8\na9 slots=8\n"


REFUSED = [
    (plan(DENSE, tp=2, dp=4), "tp=2"),
    (plan(DENSE, cp=2, dp=4), "cp=2"),
    (plan(MODELS["moe"], dp=8, ep=8, zero=3), "ep=8) needs zero <= 2"),
    (plan(MODELS["moe"], dp=8, ep=2, offload="optimizer"), "on the GPUs"),
    (plan(MODELS["moe"], dp=8, ep=2, optimizer="muon"), "scattered ones"),
    (plan(MODELS["moe"], dp=6, ep=4), "ep=4 must divide"),
    (plan(MODELS["moe"], dp=8, capacity_factor=1.25), "which ep=1 does not use"),
    (plan(DENSE, pp=2, dp=4, zero=2), "zero <= 1, not zero=2"),
    (plan(DENSE, pp=2, vpp=2, dp=4), "schedule=interleaved"),
    (plan(DENSE, pp=2, dp=4, schedule="gpipe"), "schedule=gpipe"),
    (plan(DENSE, dp=8, recompute="selective"), "recompute=selective"),
    (plan(DENSE, dp=8, precision="fp8"), "FP8"),
    (plan(DENSE, dp=8, dp_sync="parameter-server"), "parameter-server"),
    (plan(DENSE, pp=2, dp=4, stage_layers=[[16]]), "stage_layers"),
    (plan(DENSE, dp=8, zero=1, dp_replicate=2), "dp_replicate=2 needs zero=3"),
    (plan(DENSE, dp=8, zero=3, dp_replicate=3), "dp_replicate=3 does not divide"),
]


@pytest.mark.parametrize(("answer", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_what_deepspeed_cannot_run_is_said(answer, words):
    assert [s for s in EMITTER.unsupported(answer) if words in s], EMITTER.unsupported(answer)


def test_a_batch_that_does_not_add_up_is_said():
    answer = plan(DENSE, dp=8)
    work = answer.request.workload.model_copy(update={"global_batch": 17})
    request = answer.request.model_copy(update={"workload": work})
    sentences = EMITTER.unsupported(answer.model_copy(update={"request": request}))
    assert sentences == ["micro_batch*num_microbatches*dp = 16, but global_batch is 17."]


def start(folder: Path, answer: Plan, **variables: str) -> tuple[list[str], dict[str, str]]:
    words = ("--steps", "1")
    return bash_bundle.started(folder, EMITTER.emit(answer), "deepspeed", words=words, **variables)


TAIL = ["train_deepspeed.py", "--deepspeed_config", "ds_config.json", "--steps", "1"]


def test_one_node_starts_its_own_gpus(tmp_path):
    argv, env = start(tmp_path, plan(DENSE, dp=8))
    assert argv == ["--num_gpus", "8", "--master_port", "29500", *TAIL]
    assert env["OMP_NUM_THREADS"] == "1"


def test_several_nodes_start_over_ssh_or_one_by_one(tmp_path):
    answer = plan(DENSE, dp=16, hosts=("b2", "a10"))
    common = ["--hostfile", "hostfile", "--master_addr", "b2", "--master_port", "29501"]
    for name, extra, variables in (
        ("ssh", [], {}),
        ("alone", ["--no_ssh", "--node_rank", "1"], {"NODE_RANK": "1"}),
    ):
        (tmp_path / name).mkdir()
        argv, _ = start(tmp_path / name, answer, MASTER_PORT="29501", **variables)
        assert argv == [*common, *extra, *TAIL]


def test_placeholder_hosts_need_an_address(tmp_path):
    with pytest.raises(AssertionError, match="MASTER_ADDR"):
        start(tmp_path, plan(DENSE, dp=16, placeholders=True))


def test_ssh_sends_the_environment_in_plain_pairs_and_the_users_own_wins(tmp_path):
    """The launcher splits every line at '=', and of two lines with one name takes the last."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".deepspeed_env").write_text("NCCL_DEBUG=WARN\n", "utf-8")
    mine = {"HOME": str(home), "TMPDIR": str(home), "OMP_NUM_THREADS": "3"}
    answer = plan(DENSE, dp=16, hosts=("b2", "a10"))
    _, env = start(tmp_path, answer, **mine)
    lines = Path(env["DS_ENV_FILE"]).read_text("utf-8").splitlines()
    pairs = dict(line.split("=", 1) for line in lines)
    assert pairs["OMP_NUM_THREADS"] == env["OMP_NUM_THREADS"] == "3"
    assert pairs["PYTORCH_ALLOC_CONF"] == env["PYTORCH_ALLOC_CONF"]
    assert lines[-1] == "NCCL_DEBUG=WARN"
    assert all(name.isidentifier() for name in pairs)


def test_a_hostile_model_name_reaches_no_shell(tmp_path):
    answer = plan(model(name="x$(touch owned)\nexport EVIL=1"), dp=8)
    _, env = start(tmp_path, answer)
    assert "EVIL" not in env
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("host", ["a b", "a@b", "a:0", "a,b", "-x", "a\nb slots=9"])
def test_a_host_that_is_no_host_name_is_refused(host):
    with pytest.raises(SpecError, match="not a host name"):
        EMITTER.emit(renamed(plan(DENSE, dp=16), host))


def test_the_scripts_parse(tmp_path):
    made = texts(plan(DENSE, dp=16))
    (tmp_path / "run.sh").write_text(made["run.sh"], "utf-8")
    subprocess.run(["bash", "-n", str(tmp_path / "run.sh")], check=True)
    compile(made["train_deepspeed.py"], "train_deepspeed.py", "exec")

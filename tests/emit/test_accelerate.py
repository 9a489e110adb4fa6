from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import bash_bundle
import pytest
import yaml
from plan_grid import MODELS, model, plan, renamed

from planner.emit.accelerate import EMITTER
from planner.errors import SpecError
from planner.plan import Plan

DENSE = MODELS["dense"]


def texts(answer: Plan) -> dict[str, str]:
    return {artifact.path: artifact.text for artifact in EMITTER.emit(answer)}


def config(answer: Plan) -> dict[str, Any]:
    return yaml.safe_load(texts(answer)["accelerate.yaml"])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("zero", "kind"), [(0, "MULTI_GPU"), (1, "DEEPSPEED"), (2, "FSDP"), (3, "FSDP")]
)
def test_the_zero_stage_chooses_the_engine(zero, kind):
    made = config(plan(DENSE, dp=16, zero=zero))
    assert made["distributed_type"] == kind
    assert (made["num_machines"], made["num_processes"]) == (2, 16)
    assert ("ds_config.json" in texts(plan(DENSE, dp=16, zero=zero))) == (zero == 1)
    if zero > 1:
        assert made["fsdp_config"]["fsdp_reshard_after_forward"] is (zero == 3)


def test_hybrid_sharding_and_context_parallelism_are_mesh_sizes():
    sizes = config(plan(DENSE, dp=8, cp=2, zero=3, dp_replicate=2))["parallelism_config"]
    assert sizes == {
        "parallelism_config_dp_replicate_size": 2,
        "parallelism_config_dp_shard_size": 4,
        "parallelism_config_cp_size": 2,
        "parallelism_config_tp_size": 1,
        "parallelism_config_cp_comm_strategy": "alltoall",
    }


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_layers_are_recomputed_once(zero):
    """The Trainer refuses its own recomputation together with FSDP's."""
    answer = plan(DENSE, dp=8, zero=zero, recompute="full")
    trainer = json.loads(texts(answer)["trainer_args.json"])
    fsdp = config(answer).get("fsdp_config", {}).get("fsdp_activation_checkpointing", False)
    assert [trainer["activation_checkpointing"], fsdp] == [zero < 2, zero >= 2]


REFUSED = [
    (plan(DENSE, pp=2, dp=4), "pp=2"),
    (plan(DENSE, tp=2, dp=4, zero=3), "tp=2"),
    (plan(MODELS["moe"], dp=8, ep=8, zero=3), "ep=8"),
    (plan(DENSE, dp=4, cp=2), "cp=2"),
    (plan(DENSE, dp=4, cp=2, zero=3, seq=4098), "2*cp=4"),
    (plan(DENSE, dp=8, recompute="selective"), "recompute=selective"),
    (plan(DENSE, dp=8, zero=1, precision="fp8"), "no FP8"),
    (plan(DENSE, dp=8, dp_sync="parameter-server"), "parameter-server"),
    (plan(DENSE, dp=8, zero=1, dp_replicate=2), "dp_replicate=2 needs FSDP2"),
    (plan(DENSE, dp=8, zero=3, dp_replicate=3), "dp_replicate=3 does not divide"),
    (plan(DENSE, dp=8, zero=3, dp_replicate=8), "leaves nothing"),
    (plan(DENSE, dp=1, zero=3), "nothing to shard over"),
]


@pytest.mark.parametrize(("answer", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_what_accelerate_cannot_run_is_said(answer, words):
    assert [s for s in EMITTER.unsupported(answer) if words in s], EMITTER.unsupported(answer)


def start(folder: Path, answer: Plan, **variables: str) -> tuple[list[str], dict[str, str]]:
    words = ("--steps", "1")
    return bash_bundle.started(folder, EMITTER.emit(answer), "accelerate", words=words, **variables)


def launch(bundle: Path, rank: int, address: str, port: int = 29500) -> list[str]:
    node = ["--machine_rank", str(rank), "--main_process_ip", address]
    file = ["--config_file", str(bundle / "accelerate.yaml")]
    return ["launch", *file, *node, "--main_process_port", str(port), "--same_network"]


def test_one_node_starts_by_itself(tmp_path):
    argv, env = start(tmp_path, plan(DENSE, dp=8))
    bundle = tmp_path / "a bundle"
    script = [str(bundle / "train_accelerate.py"), "--steps", "1"]
    assert argv == [*launch(bundle, 0, "127.0.0.1"), *script]
    assert env["OMP_NUM_THREADS"] == "1"


def test_a_node_finds_its_rank_by_its_line_among_the_hosts(tmp_path):
    answer = plan(DENSE, dp=24, hosts=("b2", "a10", "a9"))
    for host, rank in (("a9", 2), ("A10.example.net", 1)):
        (tmp_path / host).mkdir()
        argv, _ = start(tmp_path / host, answer, MESHWRIGHT_HOSTNAME=host)
        bundle = tmp_path / host / "a bundle"
        assert argv[:-3] == launch(bundle, rank, "b2")


def test_a_script_of_ones_own_comes_after_the_preflight(tmp_path):
    answer = plan(DENSE, dp=8)
    bundle = tmp_path / "one" / "a bundle"
    for name, tail, port in (("one", ["preflight.py"], 29501), ("two", ["/x/mine.py"], 29500)):
        (tmp_path / name).mkdir()
        more = {"only_first": "1"} if name == "one" else {}
        argv, _ = start(tmp_path / name, answer, TRAIN_SCRIPT="/x/mine.py", **more)
        bundle = tmp_path / name / "a bundle"
        script = str(bundle / tail[0]) if name == "one" else tail[0]
        options = [] if name == "one" else ["--steps", "1"]
        assert argv == [*launch(bundle, 0, "127.0.0.1", port), script, *options]


@pytest.mark.parametrize("variables", [{}, {"NODE_RANK": "1"}])
def test_placeholder_hosts_need_a_rank_and_an_address(tmp_path, variables):
    with pytest.raises(AssertionError, match=r"set NODE_RANK|set MASTER_ADDR"):
        start(tmp_path, plan(DENSE, dp=16, placeholders=True), **variables)


def test_a_hostile_model_name_reaches_no_shell(tmp_path):
    answer = plan(model(name="x$(touch owned)\nexport EVIL=1"), dp=8)
    _, env = start(tmp_path, answer)
    assert "EVIL" not in env
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("host", ["a b", "a@b", "a:0", "a,b", "-x", "a\nb"])
def test_a_host_that_is_no_host_name_is_refused(host):
    with pytest.raises(SpecError, match="not a host name"):
        EMITTER.emit(renamed(plan(DENSE, dp=16), host))


def test_the_scripts_parse(tmp_path):
    made = texts(plan(DENSE, dp=16))
    (tmp_path / "run.sh").write_text(made["run.sh"], "utf-8")
    subprocess.run(["bash", "-n", str(tmp_path / "run.sh")], check=True)
    compile(made["train_accelerate.py"], "train_accelerate.py", "exec")

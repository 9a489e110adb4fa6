from __future__ import annotations

import subprocess
from pathlib import Path

import bash_bundle
import pytest
from plan_grid import MODELS, model, plan, renamed

from planner.emit.torchtitan import EMITTER
from planner.errors import SpecError
from planner.plan import Plan

DENSE = MODELS["dense"]


def texts(answer: Plan) -> dict[str, str]:
    return {artifact.path: artifact.text for artifact in EMITTER.emit(answer)}


def arguments(answer: Plan) -> list[str]:
    lines = texts(answer)["torchtitan.args"].splitlines()
    return [line for line in lines if not line.startswith("#")]


def values(answer: Plan) -> dict[str, str]:
    return dict(a[2:].split("=", 1) for a in arguments(answer) if "=" in a)


def test_without_a_pipeline_a_micro_batch_is_a_step_and_with_one_all_are():
    plain = values(plan(DENSE, dp=8, zero=3, micro_batch=2, num_microbatches=4))
    assert (plain["training.local_batch_size"], plain["training.global_batch_size"]) == ("2", "64")
    piped = values(plan(DENSE, dp=2, pp=4, zero=2, micro_batch=2, num_microbatches=4))
    assert (piped["training.local_batch_size"], piped["training.global_batch_size"]) == ("8", "16")
    assert piped["parallelism.pipeline_parallel_microbatch_size"] == "2"


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_when_weights_are_let_go_is_said_and_never_left_to_the_default(zero):
    made = values(plan(DENSE, dp=8, zero=zero))
    shards = made["parallelism.data_parallel_shard_degree"]
    replicas = made["parallelism.data_parallel_replicate_degree"]
    assert (replicas, shards) == (("8", "1") if zero == 0 else ("1", "8"))
    assert made["parallelism.fsdp_reshard_after_forward"] == ("always" if zero == 3 else "never")


def test_cuda_graphs_are_off_under_pipelines_and_expert_parallelism_only():
    switch = "--training.disable_cuda_graphs"
    assert switch not in arguments(plan(DENSE, dp=8, zero=3))
    assert switch in arguments(plan(DENSE, dp=2, pp=4, zero=2, num_microbatches=4))
    assert switch in arguments(plan(MODELS["moe"], dp=8, ep=8, zero=3))


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_recomputation_is_the_last_word(kind):
    """A subcommand: an option of the others after it would be refused."""
    assert (
        arguments(plan(DENSE, dp=8, zero=3, recompute=kind))[-1] == f"activation-checkpoint:{kind}"
    )


MOE = MODELS["moe"]
REFUSED = [
    (plan(MODELS["mla"], dp=8, zero=3), "latent attention"),
    (plan(MODELS["many-heads"], dp=8, zero=3), "RMSNorms"),
    (plan(MODELS["many-heads"], dp=8, zero=3), "without biases"),
    (plan(MODELS["moe-bias"], dp=8, zero=3), "experts without biases"),
    (plan(MODELS["moe-bias"], dp=8, zero=3), "no windows, no sinks"),
    (plan(MODELS["moe-gate"], dp=8, zero=3), "without a gate"),
    (plan(model(qk_norm="full"), dp=8, zero=3), "head by head"),
    (plan(model(dropout=True), dp=8, zero=3), "no dropout"),
    (plan(DENSE, tp=16, dp=1, zero=3), "tp=16 does not divide 32 heads and 8 kv heads"),
    (plan(DENSE, dp=8, ep=2, zero=3), "needs a model with experts"),
    (plan(MOE, dp=8, ep=3, zero=3), "16 experts are not divisible"),
    (plan(MOE, dp=2, ep=8, zero=3), "ranks that shard"),
    (plan(MOE, dp=4, tp=2, etp=1, zero=3), "over etp=2 with ep=1, not etp=1"),
    (plan(MOE, dp=4, tp=2, etp=2, ep=2, zero=3), "over etp=1 with ep=2, not etp=2"),
    (plan(model(experts={"count": 16, "top_k": 2, "ffn": 2047}), tp=2, etp=2, zero=3), "widths"),
    (plan(MODELS["wide-heads"], dp=4, pp=2, zero=2), "tied embeddings"),
    (plan(DENSE, dp=4, pp=2, zero=2, stage_layers=[[16]]), "stage_layers"),
    (plan(DENSE, dp=4, pp=2, zero=2, stage_layers=[[16], [0]]), "in every pipeline chunk"),
    (plan(DENSE, dp=4, pp=2, zero=2, num_microbatches=1), "a micro-batch a stage"),
    (plan(DENSE, dp=2, pp=4, vpp=2, zero=2, num_microbatches=9), "multiple of 2 rounds"),
    (plan(DENSE, dp=4, pp=2, vpp=2, zero=2, schedule="1f1b"), "vpp=2"),
    (plan(DENSE, dp=4, pp=2, zero=2, schedule="zb-h1"), "no schedule=zb-h1"),
    (plan(DENSE, dp=4, pp=2, zero=2, schedule="dualpipe"), "no schedule=dualpipe"),
    (plan(DENSE, dp=4, pp=2, vpp=2, zero=2, schedule="zbv", cp=2), "needs a compiler"),
    (plan(DENSE, dp=8, zero=1), "zero=1"),
    (plan(DENSE, dp=4, tp=2, zero=0), "plain data parallelism only"),
    (plan(DENSE, dp=8, zero=3, dp_replicate=3), "must divide dp=8"),
    (plan(DENSE, dp=8, zero=3, precision="fp16"), "precision=fp16"),
    (plan(DENSE, dp=8, zero=3, seq=16384), "16384 tokens are more"),
    (plan(DENSE, dp=2, tp=2, cp=2, zero=3, seq=4100), "8 slices"),
    (plan(MOE, dp=8, zero=3, capacity_factor=1.5), "capacity_factor"),
    (plan(DENSE, dp=8, dp_sync="parameter-server", zero=0), "parameter-server"),
]


@pytest.mark.parametrize(("answer", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_what_torchtitan_cannot_run_is_said(answer, words):
    assert [s for s in EMITTER.unsupported(answer) if words in s], EMITTER.unsupported(answer)


def start(folder: Path, answer: Plan, **variables: str) -> tuple[list[str], dict[str, str]]:
    assets = folder / "my assets"
    assets.mkdir()
    (assets / "tokenizer.json").write_text("{}")
    words = ("--training.steps=3",)
    return bash_bundle.started(
        folder,
        EMITTER.emit(answer),
        "torchrun",
        words=words,
        HF_ASSETS_PATH=str(assets),
        **variables,
    )


def test_the_arguments_arrive_in_order_with_ones_own_before_the_last(tmp_path):
    answer = plan(DENSE, dp=16, zero=3, hosts=("b2", "a10"))
    argv, env = start(tmp_path, answer, MESHWRIGHT_HOSTNAME="a10", CUDA_DEVICE_MAX_CONNECTIONS="1")
    size = ["--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1"]
    where = ["--master-addr", "b2", "--master-port", "29500", "-m", "torchtitan.train"]
    given = arguments(answer)
    assert argv == [*size, *where, *given[:-1], "--training.steps=3", given[-1]]
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in env
    assert env["PYTHONPATH"].split(":")[0] == str(tmp_path / "a bundle")
    assert env["HF_ASSETS_PATH"] == str(tmp_path / "my assets")


def test_the_preflight_comes_first(tmp_path):
    argv, _ = start(tmp_path, plan(DENSE, dp=8, zero=3), only_first="1")
    assert argv[-3:] == ["--master-port", "29501", str(tmp_path / "a bundle" / "preflight.py")]


def test_without_a_tokenizer_it_says_so(tmp_path):
    with pytest.raises(AssertionError, match="set HF_ASSETS_PATH"):
        bash_bundle.started(tmp_path, EMITTER.emit(plan(DENSE, dp=8, zero=3)), "torchrun")


def test_a_hostile_model_name_reaches_no_shell(tmp_path):
    _, env = start(tmp_path, plan(model(name="x$(touch owned)\nexport EVIL=1"), dp=8, zero=3))
    assert "EVIL" not in env
    assert not list(tmp_path.rglob("owned"))


def test_a_host_that_is_no_host_name_is_refused():
    with pytest.raises(SpecError, match="not a host name"):
        EMITTER.emit(renamed(plan(DENSE, dp=16, zero=3), "a b"))


def test_the_scripts_parse(tmp_path):
    made = texts(plan(DENSE, dp=16, zero=3))
    (tmp_path / "run.sh").write_text(made["run.sh"], "utf-8")
    subprocess.run(["bash", "-n", str(tmp_path / "run.sh")], check=True)
    compile(made["titan_plan.py"], "titan_plan.py", "exec")

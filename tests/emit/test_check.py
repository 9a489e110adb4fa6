"""`emit --check`: edits that are the user's own pass, those that leave the plan are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plan_grid import MODELS, plan

from planner.emit import EMITTER_NAMES, emitter_named
from planner.emit.base import Artifact, write_bundle
from planner.emit.check import bundles_in, check_bundle, missing_files
from planner.errors import SpecError
from planner.plan import Plan

DENSE = MODELS["dense"]
SHARDED = plan(DENSE, dp=16, zero=3, hosts=("b2", "a10"))
UNNAMED = plan(DENSE, dp=16, zero=3, placeholders=True)


def written(folder: Path, answer: Plan, target: str) -> Path:
    """Write DIR/<target> as the command does and return that folder."""
    artifacts = [Artifact("plan.json", answer.to_json())]
    for artifact in emitter_named(target).emit(answer):
        artifacts.append(artifact._replace(path=f"{target}/{artifact.path}"))
    write_bundle(folder / "out", artifacts, force=False)
    return folder / "out" / target


def edited(bundle: Path, name: str, old: str, new: str) -> list[str]:
    file = bundle / name
    text = file.read_text(encoding="utf-8")
    assert old in text, text
    file.write_text(text.replace(old, new), encoding="utf-8")
    return check_bundle(bundle).problems


@pytest.mark.parametrize("target", EMITTER_NAMES)
@pytest.mark.parametrize("answer", [SHARDED, UNNAMED], ids=["hosts", "placeholders"])
def test_a_bundle_agrees_with_its_plan_as_it_is_written(target, answer, tmp_path):
    if target == "dataparallel":
        answer = plan(DENSE, dp=8, zero=0, dp_sync="parameter-server")
    elif emitter_named(target).unsupported(answer):
        answer = plan(DENSE, dp=16, zero=1, placeholders=answer is UNNAMED)
    bundle = written(tmp_path, answer, target)
    found = check_bundle(bundle)
    assert found.problems == []
    assert (found.target, found.plan) == (target, answer)
    assert bundles_in(tmp_path / "out") == [bundle]
    assert missing_files(tmp_path / "out") == []


OWN = [
    ("megatron-bridge", "plan.overrides", "optimizer.lr=1.0e-4", "optimizer.lr=3e-4\nrng.seed=7"),
    ("nanotron", "nanotron.yaml", "train_steps: 100", "train_steps: 9"),
    ("megatron", "megatron.args", "--lr 1.0e-4", "--lr 3.0e-4\n--data-cache-path /x"),
    ("megatron", "env.sh", "# export NCCL_IB_HCA", "export NCCL_IB_HCA"),
    ("deepspeed", "ds_config.json", '"lr": 0.0003', '"lr": 0.1'),
    ("deepspeed", "train_deepspeed.py", "HIDDEN, HEADS", "HEADS, HIDDEN"),
    ("torchtitan", "torchtitan.args", "training.steps=10", "training.steps=999"),
    ("torchtitan", "torchtitan.args", "fsdp_reshard_after", "fsdp-reshard-after"),
    ("accelerate", "trainer_args.json", '"learning_rate": 0.0003', '"learning_rate": 1.0'),
    ("accelerate", "accelerate.yaml", "debug: false", "debug: true"),
    ("slurm", "job.sbatch", "##SBATCH --partition=NAME", "#SBATCH --partition=big"),
    ("k8s", "jobset.yaml", "your-registry/your-image:your-tag", "me/mine:1"),
]


@pytest.mark.parametrize(("target", "name", "old", "new"), OWN, ids=map(str, range(len(OWN))))
def test_what_is_the_users_own_may_change(target, name, old, new, tmp_path):
    answer = plan(DENSE, dp=16, zero=1) if target == "nanotron" else SHARDED
    assert edited(written(tmp_path, answer, target), name, old, new) == []


LEAVING = [
    ("megatron", "megatron.args", "--global-batch-size 32", "--global-batch-size 64",
     "megatron.args: --global-batch-size is 64, the plan has 32"),
    ("megatron", "megatron.args", "# batch", "--sequence-parallel",
     "megatron.args: --sequence-parallel is set, the plan has none"),
    ("megatron", "megatron.args", "--use-megatron-fsdp\n", "",
     "megatron.args: --use-megatron-fsdp is missing, the plan has set"),
    ("megatron", "megatron.args", "# batch", "--bf16", "megatron.args: cannot be read (--bf16 sta"),
    ("megatron-bridge", "plan.overrides", "train.global_batch_size=32", "train.global_batch_size=1",
     "plan.overrides: train.global_batch_size is 1, the plan has 32"),
    ("megatron-bridge", "plan.overrides", "ddp.use_megatron_fsdp=true\n", "",
     "plan.overrides: ddp.use_megatron_fsdp is missing, the plan has true"),
    ("megatron-bridge", "plan.overrides", "# batch", "model.sequence_parallel=true",
     "plan.overrides: model.sequence_parallel is true, the plan has none"),
    ("megatron-bridge", "model.overrides", "model.num_layers=16", "model.num_layers",
     "model.overrides: cannot be read (model.num_layers has no value)"),
    ("megatron-bridge", "run.sh", "GPUS_PER_NODE=8", "GPUS_PER_NODE=4",
     "run.sh: GPUS_PER_NODE is 4, the plan has 8"),
    ("deepspeed", "ds_config.json", '"stage": 3', '"stage": 2',
     "ds_config.json: zero_optimization.stage is 2, the plan has 3"),
    ("deepspeed", "ds_config.json", '"train_batch_size": 32,', "",
     "ds_config.json: train_batch_size is missing, the plan has 32"),
    ("deepspeed", "ds_config.json", '"stage": 3', '"stage": 3, "stage": 3', "stands twice"),
    ("deepspeed", "ds_config.json", "{", "", "ds_config.json: cannot be read"),
    ("deepspeed", "hostfile", "a10 slots=8", "a10 slots=4",
     "hostfile: line 2 is a10 slots=4, the plan has a10 slots=8"),
    ("torchtitan", "torchtitan.args", "shard_degree=16", "shard_degree=8",
     "parallelism.data_parallel_shard_degree is 8, the plan has 16"),
    ("torchtitan", "torchtitan.args", "activation-checkpoint:none", "activation-checkpoint:full",
     "the last word is activation-checkpoint:full"),
    ("accelerate", "accelerate.yaml", "num_processes: 16", "num_processes: 8",
     "num_processes is 8, the plan has 16"),
    ("accelerate", "accelerate.yaml", "_dp_shard_size", "_dp_size", "dp_shard_size is missing"),
    ("accelerate", "accelerate.yaml", "debug: false", "debug: [", "cannot be read"),
    ("accelerate", "trainer_args.json", '"bf16": true', '"bf16": false',
     "bf16 is false, the plan has true"),
    ("slurm", "job.sbatch", "--nodes=2", "--nodes=3", "--nodes is 3, the plan has 2"),
    ("slurm", "job.sbatch", "\nNODES=2", "\nNODES=3", "NODES is 3, the plan has 2"),
    ("k8s", "jobset.yaml", "completions: 2", "completions: 3", "completions is 3, the plan has 2"),
    ("k8s", "jobset.yaml", 'gpu: "8"', 'gpu: "4"', 'nvidia.com/gpu is "4", the plan has "8"'),
    ("torchrun", "run.sh", "nodes=2", "nodes=4", "run.sh: nodes is 4, the plan has 2"),
    ("torchrun", "hosts.txt", "b2\na10", "a10\nb2", "hosts.txt: line 1 is a10, the plan has b2"),
    ("torchrun", "rank_map.json", '"rank": 3, "host": "b2"', '"rank": 3, "host": "a10"',
     'rank_map.json: ranks.3.host is "a10", the plan has "b2"'),
    ("torchrun", "rank_map.json", '"b2"', '"c3"', "rank_map.json: 4 more such"),
]  # fmt: skip


OTHERS = [
    ("nanotron", plan(DENSE, tp=2, dp=8, zero=1, hosts=("b2", "a10")), "nanotron.yaml",
     "tp: 2", "tp: 4", "nanotron.yaml: parallelism.tp is 4, the plan has 2"),
    ("nanotron", plan(DENSE, tp=2, dp=8, zero=1, hosts=("b2", "a10")), "nanotron.yaml",
     "zero_stage: 1", "zero_stage: 0", "nanotron.yaml: optimizer.zero_stage is 0, the plan has 1"),
    ("dataparallel", plan(DENSE, dp=8, zero=0, dp_sync="parameter-server"), "rank_map.json",
     '"world_size": 8', '"world_size": 4', "rank_map.json: world_size is 4, the plan has 8"),
    ("k8s", UNNAMED, "trainjob.yaml",
     "numNodes: 2", "numNodes: 3", "trainjob.yaml: spec.trainer.numNodes is 3, the plan has 2"),
]  # fmt: skip


@pytest.mark.parametrize("case", OTHERS, ids=[f"{row[2]}-{i}" for i, row in enumerate(OTHERS)])
def test_plans_of_other_kinds_are_held_to_as_well(case, tmp_path):
    target, answer, name, old, new, says = case
    assert says in edited(written(tmp_path, answer, target), name, old, new)


def test_no_target_is_left_without_an_edit_that_is_told():
    assert {row[0] for row in (*LEAVING, *OTHERS)} == set(EMITTER_NAMES)


@pytest.mark.parametrize("case", LEAVING, ids=[f"{row[1]}-{i}" for i, row in enumerate(LEAVING)])
def test_what_leaves_the_plan_is_told(case, tmp_path):
    target, name, old, new, says = case
    problems = edited(written(tmp_path, SHARDED, target), name, old, new)
    assert [p for p in problems if says in p], problems
    assert all(p.startswith(name) for p in problems)


def test_a_plan_that_changed_disagrees_with_the_files(tmp_path):
    bundle = written(tmp_path, SHARDED, "deepspeed")
    problems = edited(bundle, "plan.json", '"zero":3', '"zero":2')
    assert "ds_config.json: zero_optimization.stage is 3, the plan has 2" in problems


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"request"', '"reqest"', "not a meshwright.plan/1 document"),
        ('"pp":1', '"pp":2', "stage_layers does not give every stage"),
        ('"cp":1', '"cp":"x"', "not a meshwright.plan/1 document"),
        ('"recompute":"none"', '"recompute":"selective"', "recomputes whole layers"),
    ],
)
def test_a_plan_that_is_spoilt_is_told_and_no_traceback(old, new, says, tmp_path):
    bundle = written(tmp_path, SHARDED, "deepspeed")
    file = bundle / "plan.json"
    file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
    problems = check_bundle(bundle).problems
    assert [p for p in problems if says in p], problems


@pytest.mark.parametrize(
    "name", ["run.sh", "preflight.py", "plan.json", "rank_map.json", "hosts.txt"]
)
def test_a_file_that_is_gone_is_told(name, tmp_path):
    bundle = written(tmp_path, SHARDED, "torchrun")
    (bundle / name).unlink()
    assert missing_files(tmp_path / "out") == [f"torchrun/{name}: is missing"]
    assert bundles_in(tmp_path / "out") == [bundle]
    problems = check_bundle(bundle).problems
    assert [p for p in problems if p.startswith(name)], problems


def test_made_up_hosts_may_be_replaced_by_real_ones(tmp_path):
    bundle = written(tmp_path, UNNAMED, "deepspeed")
    (bundle / "hostfile").write_text("gpu-7 slots=8\ngpu-3.x slots=8\n")
    (bundle / "hosts.txt").write_text("gpu-7\ngpu-3.x\n\n")
    assert check_bundle(bundle).problems == []
    for text, says in (
        ("gpu-7\n", "has 1 hosts, the plan has 2"),
        ("gpu-7\ngpu-7\n", "names a host twice"),
        ("gpu-7\n$(x)\n", "is not a host name"),
    ):
        (bundle / "hosts.txt").write_text(text)
        assert [p for p in check_bundle(bundle).problems if says in p]
    (bundle / "hostfile").write_text("gpu-7 slots=8\ngpu-3 slots=6\n")
    assert "hostfile: line 2 is gpu-3 slots=6" in "".join(check_bundle(bundle).problems)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff\xfe", "not UTF-8"), (b"[" * 100_000, "cannot be read"), (b"[]", "holds no mapping")],
)
def test_any_bytes_in_a_file_are_a_sentence(content, says, tmp_path):
    bundle = written(tmp_path, SHARDED, "accelerate")
    (bundle / "trainer_args.json").write_bytes(content)
    problems = check_bundle(bundle).problems
    assert len(problems) == 1
    assert says in problems[0]


def test_a_folder_without_a_bundle_is_refused(tmp_path):
    with pytest.raises(SpecError, match="holds no launch bundle"):
        bundles_in(tmp_path)
    with pytest.raises(SpecError, match="is not a folder"):
        bundles_in(tmp_path / "nowhere")


def test_a_bundle_is_known_by_its_rank_map_wherever_it_lies(tmp_path):
    bundle = written(tmp_path, SHARDED, "megatron").rename(tmp_path / "my job")
    assert bundles_in(bundle) == [bundle]
    assert check_bundle(bundle).target == "megatron"
    map_file = bundle / "rank_map.json"
    data = json.loads(map_file.read_text())
    map_file.write_text(json.dumps(data | {"target": "megatorn"}))
    (problem,) = check_bundle(bundle).problems
    assert "does not say for which target" in problem

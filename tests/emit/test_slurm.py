from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from plan_grid import MODELS, model, plan, renamed

from planner.emit.base import write_bundle
from planner.emit.slurm import EMITTER, job_name
from planner.emit.wrapped import node_ranks_by_leaf
from planner.errors import SpecError
from planner.plan import Plan

DENSE = MODELS["dense"]
SRUN = """#!/bin/bash
# one task a node in the order of NODELIST, as srun would number them
while [[ "$1" == --* ]]; do shift; done
for SLURMD_NODENAME in $NODELIST; do
  export SLURMD_NODENAME SLURM_TOPOLOGY_ADDR="leaf${SLURMD_NODENAME: -1}.$SLURMD_NODENAME"
  "$@" || exit $?
done
"""


def texts(answer: Plan) -> dict[str, str]:
    return {artifact.path: artifact.text for artifact in EMITTER.emit(answer)}


def with_stack(answer: Plan, stack: str) -> Plan:
    work = answer.request.workload.model_copy(update={"stack": stack})
    return answer.model_copy(
        update={"request": answer.request.model_copy(update={"workload": work})}
    )


@pytest.mark.parametrize(
    ("stack", "file"),
    [
        ("megatron", "megatron.args"),
        ("deepspeed", "ds_config.json"),
        ("torchtitan", "train.py"),
        ("any", "train.py"),
    ],
)
def test_the_stack_chooses_the_framework_that_runs(stack, file):
    made = texts(with_stack(plan(DENSE, dp=8, zero=1 if stack != "torchtitan" else 3), stack))
    assert file in made
    assert made["run.sh"].startswith("#!")
    assert "preflight.py" in made["FRAMEWORK.md"]
    assert "sbatch job.sbatch" in made["README.md"]


def test_a_plan_that_no_framework_expresses_is_refused_by_each_in_turn():
    answer = plan(DENSE, tp=3, pp=2, dp=2, zero=3)
    sentences = EMITTER.unsupported(answer)
    assert [s.split(":")[0] for s in sentences] == [
        "torchrun", "megatron", "torchtitan", "deepspeed", "accelerate"
    ]  # fmt: skip


def test_every_option_stands_before_the_first_command():
    """Slurm ignores those after it without a word."""
    for answer in (plan(DENSE, dp=16), plan(DENSE, dp=16, placeholders=True)):
        lines = texts(answer)["job.sbatch"].splitlines()
        first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
        options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
        assert len(options) == 10
        assert max(options) < first


def test_listed_hosts_are_asked_for_and_others_by_their_leafs():
    assert "#SBATCH --nodelist=./hosts.txt" in texts(plan(DENSE, dp=16))["job.sbatch"]
    free = texts(plan(DENSE, dp=16, placeholders=True))["job.sbatch"]
    assert "#SBATCH --switches=1@01:00:00" in free
    assert "nodelist" not in free


def under(answer: Plan, leafs: list[str]) -> Plan:
    assert answer.placement
    ranks = [r.model_copy(update={"leaf": leafs[r.rank // 8]}) for r in answer.placement.ranks]
    placement = answer.placement.model_copy(update={"ranks": ranks})
    return answer.model_copy(update={"placement": placement})


def test_node_ranks_are_grouped_by_leaf_in_the_order_they_appear():
    answer = under(plan(DENSE, dp=40, placeholders=True), ["b", "a", "b", "c", "a"])
    assert node_ranks_by_leaf(answer) == [0, 2, 1, 4, 3]
    assert "BY_LEAF=(0 2 1 4 3)" in texts(answer)["job.sbatch"]
    assert "--switches=3@" in texts(answer)["job.sbatch"]


def run(folder: Path, answer: Plan, nodes: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Run job.sbatch by bash with an srun that starts the tasks one after another."""
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    bundle, tools = folder / "a bundle", folder / "bin"
    write_bundle(bundle, EMITTER.emit(answer), force=False)
    (bundle / "run.sh").write_text('echo "$NODE_RANK $SLURMD_NODENAME $MASTER_ADDR $*"\n')
    tools.mkdir()
    (tools / "srun").write_text(SRUN, encoding="utf-8")
    (tools / "srun").chmod(0o755)
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "NODELIST": nodes, "SLURM_JOB_ID": "7"}
    env["SLURM_SUBMIT_DIR"] = str(bundle)
    command = [bash, str(bundle / "job.sbatch"), "a b"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done, bundle


def test_each_node_gets_the_rank_of_its_line(tmp_path):
    done, _ = run(tmp_path, plan(DENSE, dp=24, hosts=("n9", "n10.x.org", "n1")), "n1 N9 n10")
    assert done.stdout.splitlines() == ["2 n1 n9 a b", "0 N9 n9 a b", "1 n10 n9 a b"], done.stderr


@pytest.mark.parametrize("nodes", ["n1 n2", "n1 n9.other.org", "n1 n"])
def test_a_node_that_is_not_in_the_plan_stops_the_job(tmp_path, nodes):
    done, _ = run(tmp_path, plan(DENSE, dp=16, hosts=("n1", "n9.x.org")), nodes)
    assert done.returncode == 2
    assert "0 hosts of the plan are called" in done.stderr


def test_two_hosts_of_one_short_name_stop_the_job(tmp_path):
    done, _ = run(tmp_path, plan(DENSE, dp=16, hosts=("n1.a", "n1.b")), "n1 n2")
    assert "2 hosts of the plan are called n1" in done.stderr


def test_nodes_under_one_switch_get_the_ranks_of_one_leaf(tmp_path):
    answer = under(plan(DENSE, dp=32, placeholders=True), ["x", "y", "x", "y"])
    done, _ = run(tmp_path, answer, "m2 m1 k1 k2")  # leaf 1: k1 m1, leaf 2: k2 m2
    rows = sorted(line.split()[:2] for line in done.stdout.splitlines())
    assert rows == [["0", "k1"], ["1", "k2"], ["2", "m1"], ["3", "m2"]], done.stderr


def test_too_few_nodes_stop_the_job(tmp_path):
    done, _ = run(tmp_path, plan(DENSE, dp=32, placeholders=True), "a1 a2 a3")
    assert done.returncode == 2
    assert "3 nodes answered, the plan has 4" in done.stderr


@pytest.mark.parametrize(
    "name", ["x$(touch owned)", "a \"b\" 'c'", "a\n#SBATCH --wrap=x", "größe " * 30, "  ", "-x"]
)
def test_a_hostile_model_name_is_one_word_and_reaches_no_shell(tmp_path, name):
    answer = plan(model(name=name), dp=16, hosts=("n1", "n2"))
    assert re.fullmatch(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,60}", job_name(answer))
    done, bundle = run(tmp_path, answer, "n1 n2")
    assert done.returncode == 0
    assert not list(tmp_path.rglob("owned"))
    job = (bundle / "job.sbatch").read_text("utf-8")
    assert job.count("\n#SBATCH") == 10


def test_a_host_that_is_no_host_name_is_refused():
    with pytest.raises(SpecError, match="not a host name"):
        EMITTER.emit(renamed(plan(DENSE, dp=16), "a,b"))


def test_the_rank_map_is_that_of_the_plan():
    answer = plan(DENSE, dp=16)
    assert answer.placement
    rows = json.loads(texts(answer)["rank_map.json"])["ranks"]
    assert [row["host"] for row in rows] == [r.host for r in answer.placement.ranks]

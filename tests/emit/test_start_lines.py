"""What the README says to type starts each node as its own: the lines are pasted into bash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from bash_bundle import RECORDER
from plan_grid import MODELS, plan

from planner.emit import EMITTER_NAMES, emitter_named
from planner.emit.base import write_bundle
from planner.plan import Plan

DENSE = MODELS["dense"]
TWO = ("b2", "a10")
STARTED = {"deepspeed": "deepspeed", "accelerate": "accelerate"}
RANK = {"deepspeed": "--node_rank", "accelerate": "--machine_rank"}
ADDRESS = {"deepspeed": "--master_addr", "accelerate": "--main_process_ip"}
ON_NODES = [n for n in EMITTER_NAMES if n not in ("dataparallel", "slurm", "k8s")]


def blocks(answer: Plan, target: str) -> list[str]:
    """Return the code blocks of the README's section on starting."""
    texts = {a.path: a.text for a in emitter_named(target).emit(answer)}
    start = texts["README.md"].partition("\n## Start\n")[2].partition("\n## ")[0]
    return [block.strip() for block in start.split("```")[1::2]]


def typed(folder: Path, answer: Plan, target: str, line: str) -> list[str]:
    """Paste a line in the bundle's folder, with what it names put in place; return what started."""
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    bundle, tools = folder / "bundle", folder / "bin"
    write_bundle(bundle, emitter_named(target).emit(answer), force=False)
    tools.mkdir()
    launcher = STARTED.get(target, "torchrun")
    (tools / launcher).write_text(RECORDER)
    (tools / launcher).chmod(0o755)
    for name in ("pretrain_gpt.py", "run_train.py", "tokenizer.json"):
        (tools / name).touch()
    for place in ("/path/to/Megatron-LM", "/path/to/nanotron", "/path/to/tokenizer"):
        line = line.replace(place, str(tools))
    line = line.replace("ADDRESS_OF_NODE_0", "10.0.0.7")
    env = {"PATH": f"{tools}:/usr/bin:/bin", "RECORD": str(folder), "MESHWRIGHT_HOSTNAME": "a10"}
    done = subprocess.run(
        [bash, "-c", line], cwd=bundle, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (folder / "argv").read_text("utf-8").split("\0")[:-1]


def told(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


@pytest.mark.parametrize("target", ON_NODES)
def test_each_node_of_a_cluster_without_names_has_its_own_line(target, tmp_path):
    answer = plan(DENSE, dp=16, zero=1 if target == "nanotron" else 3, placeholders=True)
    lines = blocks(answer, target)[-1].splitlines()
    assert len(lines) == 2
    argv = typed(tmp_path, answer, target, lines[1])
    assert told(argv, RANK.get(target, "--node-rank")) == "1"
    assert told(argv, ADDRESS.get(target, "--master-addr")) == "10.0.0.7"


@pytest.mark.parametrize("target", ON_NODES)
def test_nodes_that_are_named_find_themselves(target, tmp_path):
    answer = plan(DENSE, dp=16, zero=1 if target == "nanotron" else 3, hosts=TWO)
    block = blocks(answer, target)[-1].splitlines()
    assert block[0].endswith("  # on b2") if target == "deepspeed" else len(block) == 1
    argv = typed(tmp_path, answer, target, block[-1])
    assert told(argv, RANK.get(target, "--node-rank")) == "1"
    assert told(argv, ADDRESS.get(target, "--master-addr")) == "b2"


def test_of_many_nodes_the_first_two_and_the_last_are_shown():
    lines = blocks(plan(DENSE, dp=64, zero=3, placeholders=True), "accelerate")[0].splitlines()
    assert [line.partition("NODE_RANK=")[2][:2].strip() for line in lines] == ["0", "1", "", "7"]


def test_one_node_needs_nothing():
    for target in ON_NODES:
        answer = plan(DENSE, dp=8, zero=1 if target == "nanotron" else 3, placeholders=True)
        assert "NODE_RANK" not in "".join(blocks(answer, target))

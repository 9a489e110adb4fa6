"""A real Slurm controller takes the job, and node ranks land where the plan has them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_rig
from many_plans import MANY, many
from plan_grid import MODELS, plan

from planner.emit.base import write_bundle
from planner.emit.slurm import EMITTER
from planner.plan import Plan

pytestmark = pytest.mark.frameworks

ALL = ("node9", "node1", "node10", "node2")
LEAFS = {"leafa": ["node1", "node10"], "leafb": ["node2", "node9"]}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm_rig.running(tmp_path_factory.mktemp("slurm"), LEAFS, gpus=8) as env:
        yield env


def recorded(folder: Path, answer: Plan) -> Path:
    """Write the bundle with a run.sh that writes down what it was given."""
    write_bundle(folder / "bundle", EMITTER.emit(answer), force=False)
    (folder / "bundle" / "run.sh").write_text(
        '#!/usr/bin/env bash\necho "$NODE_RANK $SLURMD_NODENAME $MASTER_ADDR $*" '
        '> "$MESHWRIGHT_BUNDLE/seen.$NODE_RANK"\n'
    )
    return folder / "bundle"


def renamed(answer: Plan, hosts: tuple[str, ...]) -> Plan:
    """Return the plan on nodes that the controller has."""
    assert answer.placement
    names = dict(zip(answer.placement.hosts, hosts, strict=True))
    ranks = [r.model_copy(update={"host": names[r.host]}) for r in answer.placement.ranks]
    cluster = answer.request.cluster.model_copy(update={"hosts": hosts})
    request = answer.request.model_copy(update={"cluster": cluster})
    placement = answer.placement.model_copy(update={"ranks": ranks})
    return answer.model_copy(update={"request": request, "placement": placement})


def under(answer: Plan, leafs: str) -> Plan:
    """Return the plan with its nodes under the leafs named, a letter a node."""
    assert answer.placement
    leaf = dict(zip(answer.placement.hosts, leafs, strict=False))
    ranks = [r.model_copy(update={"leaf": leaf[r.host]}) for r in answer.placement.ranks]
    placement = answer.placement.model_copy(update={"ranks": ranks})
    return answer.model_copy(update={"placement": placement})


def submitted(bundle: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = ["sbatch", *words, "job.sbatch", "--its", "words"]
    return subprocess.run(
        command, cwd=bundle, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def seen(bundle: Path, env: dict[str, str]) -> list[list[str]]:
    """Run the job to its end and return what each node saw, by node rank."""
    done = submitted(bundle, env, "--wait")
    time.sleep(0.2)
    log = "".join(p.read_text() for p in bundle.glob("*.out"))
    assert done.returncode == 0, done.stdout + done.stderr + log
    return [p.read_text().split() for p in sorted(bundle.glob("seen.*"))]


def test_node_ranks_follow_the_plan_and_not_slurms_order(slurm, tmp_path):
    hosts = ("node10", "node2", "node1")  # neither Slurm's order nor that of strings
    bundle = recorded(tmp_path, plan(MODELS["dense"], dp=24, hosts=hosts))
    expected = [[str(n), host, "node10", "--its", "words"] for n, host in enumerate(hosts)]
    assert seen(bundle, slurm) == expected


def test_nodes_without_names_fill_the_plan_leaf_by_leaf(slurm, tmp_path):
    answer = plan(MODELS["dense"], dp=32, placeholders=True)
    bundle = recorded(tmp_path, under(answer, "abab"))  # every other node under one leaf
    hosts = [row[1] for row in seen(bundle, slurm)]
    groups = {frozenset(hosts[::2]), frozenset(hosts[1::2])}
    assert groups == {frozenset(held) for held in LEAFS.values()}


def test_the_controller_would_run_200_jobs(slurm, tmp_path):
    """sbatch --test-only: the controller looks for nodes, and starts nothing."""
    plans = [a for a in many(EMITTER, 4 * MANY) if a.placement and len(a.placement.hosts) <= 4]
    told = {}
    for number, answer in enumerate(plans[: MANY + 8]):
        nodes = len(answer.placement.hosts) if answer.placement else 0
        listed = answer.request.cluster.hosts is not None
        known = renamed(answer, ALL[:nodes]) if listed else under(answer, "aabb")
        (folder := tmp_path / str(number)).mkdir()
        done = submitted(recorded(folder, known), slurm, "--test-only")
        if done.returncode or "to start at" not in done.stderr:
            told[answer.best.layout.short()] = done.stderr
    assert number >= MANY
    assert told == {}


def test_more_nodes_than_the_leafs_hold_are_refused(slurm, tmp_path):
    answer = under(plan(MODELS["dense"], dp=32, placeholders=True), "aaaa")
    assert submitted(recorded(tmp_path, answer), slurm, "--test-only").returncode != 0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("--gpus-per-node=8", "--gpus-per-node=9"),
        ("--nodes=2", "--nodes=5"),
        ("--exclusive", "--exlusive"),
        ("--nodelist=./hosts.txt", "--nodelist=node77,node1"),
    ],
)
def test_a_planted_mistake_is_refused(slurm, tmp_path, right, wrong):
    bundle = recorded(tmp_path, plan(MODELS["dense"], dp=16, hosts=("node9", "node1")))
    job = bundle / "job.sbatch"
    assert right in job.read_text()
    job.write_text(job.read_text().replace(right, wrong))
    assert submitted(bundle, slurm, "--test-only").returncode != 0


def test_a_node_that_the_plan_lacks_stops_the_job(slurm, tmp_path):
    bundle = recorded(tmp_path, plan(MODELS["dense"], dp=16, hosts=("node9", "node1")))
    job = bundle / "job.sbatch"
    job.write_text(job.read_text().replace("--nodelist=./hosts.txt", "--nodelist=node1,node2"))
    done = submitted(bundle, slurm, "--wait")
    log = "".join(p.read_text() for p in bundle.glob("*.out"))
    assert done.returncode != 0
    assert "0 hosts of the plan are called node2" in log

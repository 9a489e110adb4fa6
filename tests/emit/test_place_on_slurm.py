"""`place` and `plan` on what a real Slurm says; it starts the ranks where the maps say."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import slurm_rig

from planner.cli import app as cli

pytestmark = pytest.mark.frameworks

# neither the order of names nor the order in which Slurm sorts them follows the switches
LEAFS = {
    "leafa": ["node1", "node10", "node7"],
    "leafb": ["node2", "node9", "node4"],
    "leafc": ["node3", "node8", "node5"],
}
DRAINED = "node9"
MODEL, CLUSTER = "llama-3.1-8b", "dgx-h100"


class Rig(NamedTuple):
    """Where its files are, and the environment that its commands need."""

    folder: Path
    env: dict[str, str]

    def run(self, *words: str, **more: str) -> str:
        done = subprocess.run(
            words, env=self.env | more, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_rig.running(folder, LEAFS, gpus=8) as env:
        rig = Rig(folder, env)
        rig.run("scontrol", "update", f"nodename={DRAINED}", "state=drain", "reason=fans")
        (folder / "nodes.txt").write_text(rig.run("scontrol", "show", "nodes"))
        yield rig


def answer(capsys: pytest.CaptureFixture[str], rig: Rig, *words: str) -> dict:
    files = ["--slurm-topology", f"{rig.folder}/topology.conf"]
    files += ["--node-state", f"{rig.folder}/nodes.txt"]
    code = cli.main([words[0], MODEL, CLUSTER, *files, *words[1:], "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


def started(rig: Rig, placement: dict, *words: str) -> list[list[str]]:
    """Start a task a rank, hosts as the placement orders them; return what each task saw."""
    hosts = rig.folder / "order.txt"
    hosts.write_text("".join(f"{rank['host']}\n" for rank in placement["ranks"]))
    said = "echo $SLURM_PROCID $SLURMD_NODENAME $SLURM_LOCALID $SLURM_TOPOLOGY_ADDR"
    count = str(len(placement["ranks"]))
    tasks = ("-m", "arbitrary", "-n", count, "--overcommit")
    told = rig.run("srun", *tasks, *words, "bash", "-c", said, SLURM_HOSTFILE=str(hosts))
    lines = told.split("\n")
    return sorted((line.split() for line in lines if line), key=lambda row: int(row[0]))


@pytest.mark.parametrize("rule", ["under-leaf", "fastest"])
def test_every_rank_starts_on_its_host_and_gpu_under_its_switch(slurm, capsys, rule):
    layout = ("--layout", "tp=8,pp=2,dp=4", "--global-batch", "32", "--pipelines", rule)
    placement = answer(capsys, slurm, "place", *layout)
    ranks = placement["ranks"]
    assert len(ranks) == 64
    assert DRAINED not in {rank["host"] for rank in ranks}
    # eight nodes under leafs of three, two and three: one pipeline of two crosses
    assert (placement["splits"] == 1) or rule == "fastest"
    expected = [
        [str(r["rank"]), r["host"], str(r["gpu"]), f"spine.{r['leaf']}.{r['host']}"] for r in ranks
    ]
    assert started(slurm, placement) == expected


def test_the_bundle_of_a_plan_starts_node_ranks_where_its_map_says(slurm, capsys, tmp_path):
    out = tmp_path / "bundle"
    words = ("--fix", "tp=8,pp=2,dp=4,vpp=1,zero=2", "--global-batch", "32")
    placement = answer(capsys, slurm, "plan", *words, "--target", "slurm", "-o", str(out))[
        "placement"
    ]
    (job,) = out.rglob("job.sbatch")
    (job.parent / "run.sh").write_text(
        "#!/usr/bin/env bash\nfor local in {0..7}; do\n"
        '  echo "$((NODE_RANK * 8 + local)) $SLURMD_NODENAME"\n'
        'done > "$MESHWRIGHT_BUNDLE/seen.$NODE_RANK"\n'
    )
    done = subprocess.run(
        ["sbatch", "--wait", "job.sbatch"],
        cwd=job.parent,
        env={**slurm.env, "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    log = "".join(p.read_text() for p in job.parent.glob("*.out"))
    assert done.returncode == 0, done.stdout + done.stderr + log
    seen = [line.split() for p in job.parent.glob("seen.*") for line in p.read_text().splitlines()]
    expected = [[str(rank["rank"]), rank["host"]] for rank in placement["ranks"]]
    assert sorted(seen, key=lambda row: int(row[0])) == expected


def test_a_drained_node_in_the_order_is_refused(slurm, capsys):
    layout = ("--layout", "tp=8,pp=2,dp=4", "--global-batch", "32")
    placement = answer(capsys, slurm, "place", *layout)
    gone = placement["ranks"][0]["host"]
    for rank in placement["ranks"]:
        rank["host"] = DRAINED if rank["host"] == gone else rank["host"]
    with pytest.raises(AssertionError, match="Required node not available"):
        started(slurm, placement, "--immediate=3")

"""The torchrun bundle without PyTorch: a recorder stands in for torchrun."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from plans import plan_of

from planner.emit import bundle
from planner.emit.base import write_bundle
from planner.emit.torchrun import EMITTER
from planner.plan import Plan

EXPERTS = {"experts": {"count": 8, "top_k": 2, "ffn": 512}}
RECORDER = """#!/bin/bash
printf '%s\\0' "$@" >>"$RECORD"
printf 'END\\0' >>"$RECORD"
"""


def written(folder: Path, plan: Plan) -> Path:
    write_bundle(folder, bundle(plan, "torchrun"), force=False)
    return folder


def run(
    folder: Path, *words: str, script: str = "./run.sh", cwd: Path | None = None, **env: str
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, str]]]:
    """Run the bundle's script; return how it ended and each torchrun call as {option: value}."""
    record = folder.parent / "record"
    torchrun = folder.parent / "fake torchrun"
    torchrun.write_text(RECORDER)
    torchrun.chmod(0o755)
    record.write_text("")
    done = subprocess.run(
        ["bash", script, *words],
        cwd=cwd or folder,
        env={"PATH": os.environ["PATH"], "TORCHRUN": str(torchrun), "RECORD": str(record), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    calls = [c.split("\0")[:-1] for c in record.read_text().split("END\0")[:-1]]
    return done, [
        {**dict(zip(c[:10:2], c[1:10:2], strict=True)), "script": c[10], "rest": " ".join(c[11:])}
        for c in calls
    ]


def options(nodes: int, gpus: int, rank: int, address: str, port: int = 29500) -> dict[str, str]:
    return {
        "--nnodes": str(nodes), "--nproc-per-node": str(gpus), "--node-rank": str(rank),
        "--master-addr": address, "--master-port": str(port),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["plain", "with space", "quo'te\"d", "$(touch pwned)", "`touch pwned`", "new\nline", "end\n",
     "-rf", "glob*[a]", "back\\slash", "a;b&c", "$HOME", "ünï"],
)  # fmt: skip
@pytest.mark.parametrize("from_outside", [True, False])
def test_one_node_starts_from_a_folder_of_any_name(tmp_path, name, from_outside):
    folder = written(tmp_path / name, plan_of(tp=2, dp=2))
    script, cwd = (str(folder / "run.sh"), tmp_path) if from_outside else ("run.sh", folder)
    done, calls = run(folder, "--steps", "5", script=script, cwd=cwd)
    assert done.returncode == 0, done.stderr
    train = {"script": str(folder / "train.py"), "rest": "--steps 5"}
    assert calls == [options(1, 4, 0, "127.0.0.1") | train]
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("seen", "rank"),
    [("beta.example.org", 0), ("beta", 0), ("BETA", 0), ("alpha", 1), ("alpha.any.where", 1),
     ("gamma.x", 2), ("gamma.y", 3)],
)  # fmt: skip
def test_a_node_finds_its_rank_by_its_name(tmp_path, seen, rank):
    hosts = ["beta.example.org", "alpha", "gamma.x", "gamma.y"]
    folder = written(tmp_path / "out", plan_of(nodes=4, hosts=hosts, dp=8))
    done, calls = run(folder, MESHWRIGHT_HOSTNAME=seen)
    assert done.returncode == 0, done.stderr
    assert calls[0].items() >= options(4, 2, rank, "beta.example.org").items()


@pytest.mark.parametrize(("seen", "lines"), [("delta", 0), ("beta.other.org", 0), ("gamma", 2)])
def test_a_node_that_cannot_tell_its_rank_starts_nothing(tmp_path, seen, lines):
    hosts = ["beta.example.org", "alpha", "gamma.x", "gamma.y"]
    folder = written(tmp_path / "out", plan_of(nodes=4, hosts=hosts, dp=8))
    done, calls = run(folder, MESHWRIGHT_HOSTNAME=seen)
    assert done.returncode == 2
    assert f"{lines} lines of" in done.stderr
    assert calls == []


def test_what_is_set_wins_over_what_is_found(tmp_path):
    folder = written(tmp_path / "out", plan_of(nodes=2, hosts=["a", "b"], dp=4))
    settings = {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "12345"}
    _, calls = run(folder, MESHWRIGHT_HOSTNAME="zeta", **settings)
    assert calls[0].items() >= options(2, 2, 1, "10.0.0.1", 12345).items()


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR"])
def test_placeholder_nodes_must_be_told_their_rank_and_the_address(tmp_path, missing):
    folder = written(tmp_path / "out", plan_of(nodes=2, dp=4))
    told = {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}
    done, calls = run(folder, **told)
    assert calls[0].items() >= options(2, 2, 1, "10.0.0.1").items()
    del told[missing]
    done, calls = run(folder, **told)
    assert done.returncode != 0
    assert f"set {missing}" in done.stderr
    assert calls == []


@pytest.mark.parametrize("hosts", [None, ["b", "a"]])
def test_each_pasted_command_starts_its_node(tmp_path, hosts):
    folder = written(tmp_path / "out", plan_of(nodes=2, hosts=hosts, dp=4))
    lines = (folder / "commands.txt").read_text().splitlines()
    for rank, line in enumerate(lines):
        (tmp_path / "line.sh").write_text(line)
        done, calls = run(folder, script=str(tmp_path / "line.sh"))
        assert done.returncode == 0, done.stderr
        address = hosts[0] if hosts else "ADDRESS_OF_NODE_0"
        assert calls[0].items() >= options(2, 2, rank, address).items()
    assert len(lines) == 2


@pytest.mark.parametrize("skip", ["", "1"])
def test_your_own_script_starts_after_a_preflight_on_the_next_port(tmp_path, skip):
    folder = written(tmp_path / "out", plan_of(dp=2))
    _, calls = run(folder, "--lr=1", TRAIN_SCRIPT="/my scripts/go.py", SKIP_PREFLIGHT=skip)
    first = options(1, 2, 0, "127.0.0.1", 29501) | {
        "script": str(folder / "preflight.py"),
        "rest": "",
    }
    second = options(1, 2, 0, "127.0.0.1") | {"script": "/my scripts/go.py", "rest": "--lr=1"}
    assert calls == ([second] if skip else [first, second])


def test_a_preflight_that_fails_keeps_your_script_from_starting(tmp_path):
    folder = written(tmp_path / "out", plan_of(dp=2))
    done, _ = run(folder, TRAIN_SCRIPT="go.py", TORCHRUN="false")
    assert done.returncode == 1
    done, _ = run(folder, TRAIN_SCRIPT="go.py", TORCHRUN=str(tmp_path / "fake torchrun"))
    assert done.returncode == 0


@pytest.mark.parametrize(
    "name", ["$(touch pwned)", "`touch pwned`", "x\ntouch pwned", "@RANK@ @X@"]
)
@pytest.mark.parametrize("nodes", [1, 2])
def test_the_name_of_a_model_is_never_run(tmp_path, name, nodes):
    plan = plan_of(nodes=nodes, hosts=["a", "b"][:nodes], model={"name": name}, dp=2)
    folder = written(tmp_path / "out", plan)
    done, calls = run(folder, MESHWRIGHT_HOSTNAME="a")
    assert done.returncode == 0, done.stderr
    assert len(calls) == 1
    assert not list(tmp_path.rglob("pwned"))


def test_the_environment_can_be_set_from_outside(tmp_path):
    folder = written(tmp_path / "out", plan_of())
    show = 'source ./env.sh; echo "$OMP_NUM_THREADS ${CUDA_DEVICE_MAX_CONNECTIONS-unset}"'
    for given, seen in (({}, "1 unset"), ({"OMP_NUM_THREADS": "3"}, "3 unset")):
        env = {"PATH": os.environ["PATH"], **given}
        done = subprocess.run(
            ["bash", "-euc", show], cwd=folder, env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == seen


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({"dp": 2, "ep": 2}, "needs a model with experts"),
        ({"tp": 2, "dp": 2, "etp": 1, "model": EXPERTS}, "etp=2 with ep=1, not 1"),
        ({"tp": 2, "dp": 2, "ep": 2, "model": EXPERTS}, "only with sp=true"),
        ({"dp": 4, "dp_replicate": 2, "zero": 3, "ep": 4, "model": EXPERTS}, "does not divide"),
        ({"dp": 4, "dp_replicate": 2, "zero": 1}, "dp_replicate=2 needs fully_shard"),
        ({"dp": 2, "tp": 2, "dp_sync": "parameter-server"}, "parameter server"),
        ({"dp": 2, "zero": 1, "dp_sync": "parameter-server"}, "parameter server"),
        ({"tp": 8}, "4 key-value heads"),
        ({"cp": 2, "seq_tokens": 4095}, "4095 tokens do not divide into 2"),
        ({"cp": 2, "tp": 2, "sp": True, "seq_tokens": 4098}, "do not divide into 4"),
        ({"pp": 4, "num_microbatches": 3, "schedule": "1f1b"}, "3 do not fill pp=4"),
        (
            {"pp": 2, "vpp": 2, "num_microbatches": 5, "schedule": "interleaved"},
            "multiple of 2 micro-batches, not 5",
        ),
        ({"pp": 2, "vpp": 2, "num_microbatches": 4, "schedule": "gpipe"}, "no gpipe schedule"),
    ],
)
def test_what_the_script_cannot_apply_is_said_in_one_sentence(layout, says):
    (sentence,) = EMITTER.unsupported(plan_of(**layout))
    assert says in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    "layout",
    [
        {"tp": 2, "sp": True, "dp": 2, "zero": 3},
        {"dp": 4, "dp_replicate": 2, "zero": 3},
        {"dp": 4, "dp_sync": "parameter-server"},
        {"pp": 4, "num_microbatches": 3, "schedule": "gpipe"},
        {"pp": 2, "vpp": 2, "num_microbatches": 6, "schedule": "interleaved"},
        {"cp": 2, "tp": 2, "zero": 1, "dp": 2},
        {"tp": 2, "sp": True, "dp": 2, "ep": 4, "zero": 3, "model": EXPERTS},
    ],
)
def test_what_the_script_applies_is_not_refused(layout):
    assert EMITTER.unsupported(plan_of(**layout)) == []

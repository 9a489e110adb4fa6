from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import bash_bundle
import pytest
from plan_grid import MODELS, model, plan
from warm import Warm

from planner.emit.base import write_bundle
from planner.emit.dataparallel import EMITTER
from planner.plan import Plan

DENSE = MODELS["dense"]


def served(spec: Any = DENSE, **more: Any) -> Plan:
    return plan(spec, **{"dp": 8, "zero": 0, "dp_sync": "parameter-server"} | more)


REFUSED = [
    (plan(DENSE, dp=8, zero=0), "dp_sync=all-reduce"),
    (served(tp=2, dp=4), "whole replicas"),
    (served(zero=2), "whole replicas"),
    (served(dp=16), "one node, not 2"),
    (served(precision="fp8"), "FP8"),
]


@pytest.mark.parametrize(("answer", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_what_one_process_cannot_do_is_said(answer, words):
    assert [s for s in EMITTER.unsupported(answer) if words in s], EMITTER.unsupported(answer)
    assert EMITTER.unsupported(served()) == []


def test_run_starts_one_process(tmp_path):
    argv, _ = bash_bundle.started(tmp_path, EMITTER.emit(served()), "python3", words=("--cpu",))
    assert argv == [str(tmp_path / "a bundle" / "train_dataparallel.py"), "--cpu"]
    (tmp_path / "two").mkdir()
    argv, _ = bash_bundle.started(
        tmp_path / "two", EMITTER.emit(served()), "python3", TRAIN_SCRIPT="my own.py"
    )
    assert argv == ["my own.py"]


def run(
    warm: Warm, folder: Path, answer: Plan, *words: str, **env: str
) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("torch")
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    write_bundle(folder / "bundle", EMITTER.emit(answer), force=False)
    command = ["bash", str(folder / "bundle" / "run.sh"), *words]
    full = warm.env("torch") | {"PYTHON": "python"} | env
    return subprocess.run(command, env=full, capture_output=True, text=True, check=False)


@pytest.mark.frameworks
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_one_replica_learns_on_a_cpu(recompute, tmp_path, warm):
    answer = served(model(layers=2), dp=4, num_microbatches=3, recompute=recompute)
    done = run(warm, tmp_path, answer, "--cpu", "--steps", "4")
    assert done.returncode == 0, done.stderr
    assert "3 x 4 sequences a step" in done.stdout
    losses = [float(x) for x in re.findall(r"^step \d+ loss (\S+)$", done.stdout, re.MULTILINE)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


@pytest.mark.frameworks
def test_another_host_or_fewer_gpus_stop_the_job(tmp_path, warm):
    answer = served(hosts=("n1",))
    (tmp_path / "a").mkdir()
    done = run(warm, tmp_path, answer, MESHWRIGHT_HOSTNAME="n2")
    assert (done.returncode, done.stderr.count("expected host n1, saw n2")) == (3, 1)
    done = run(warm, tmp_path / "a", answer, MESHWRIGHT_HOSTNAME="n1.example.net")
    assert (done.returncode, done.stderr.count("expected 8 GPUs, saw 0")) == (3, 1)

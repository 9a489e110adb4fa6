"""Any text in any name of a plan: refused, or harmless in every script and file of every target."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_grid import MODELS, plan
from pydantic import ValidationError

from planner.emit import EMITTER_NAMES, emitter_named
from planner.emit.base import write_bundle
from planner.emit.check import check_bundle
from planner.errors import SpecError
from planner.plan import Plan

TRAP = "touch pwned"
HOSTILE = {
    "spaces": "a  b   c",
    "quotes": 'it\'s "quoted"',
    "substitution": f"$({TRAP})",
    "backticks": f"`{TRAP}`",
    "end of a string": f'x"; {TRAP}; "',
    "end of another": f"x'; {TRAP}; '",
    "newline": f"x\n{TRAP}\n#SBATCH --wrap='{TRAP}'",
    "carriage return": f"x\r\n{TRAP}\r",
    "option": "--version",
    "glob": "* ? [a-z] ~ ${HOME} \\",
    "unicode": "模型-ünï\u2028\u202e\U0001f600",
    "control": "a\x1b[31m\x07\x0b",
    "yaml": f"no: [{TRAP}, *x] &y !!python/object:os.system",
    "mark": "@RANK@ {name} %s THREADS FABRIC",
    "300 letters": "n" * 300,
}
TOOLS = ("torchrun", "deepspeed", "accelerate", "srun", "python3", "sort", "scontrol")
WHERE = {
    "model.name": ("request", "model", "name"),
    "cluster.name": ("request", "cluster", "name"),
    "accelerator.name": ("request", "cluster", "accelerator", "name"),
    "fabric.name": ("request", "cluster", "fabric", "name"),
    "scale_up.kind": ("request", "cluster", "scale_up", "kind"),
    "leaf": ("leaf",),
}


def spoilt(answer: Plan, field: str, text: str) -> Plan:
    """Return the plan with the text in one field, read as a file by another hand is."""
    data = json.loads(answer.to_json())
    if field == "leaf":
        for row in data["placement"]["ranks"]:
            row["leaf"] = text
    else:
        *path, last = WHERE[field]
        part: Any = data
        for key in path:
            part = part[key]
        part[last] = text
    return Plan.model_validate(data)


def plan_for(target: str) -> Plan:
    spec = MODELS["dense"]
    if target == "dataparallel":
        return plan(spec, dp=8, zero=0, dp_sync="parameter-server")
    return plan(spec, dp=16, zero=1 if target == "nanotron" else 3, hosts=("b2", "a10"))


def run_scripts(bundle: Path, tools: Path) -> None:
    """Run every script of the bundle as a node would, with launchers that do nothing."""
    env = {
        "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(bundle), "MESHWRIGHT_HOSTNAME": "a10",
        "MEGATRON_PATH": str(tools), "NANOTRON_PATH": str(tools), "HF_ASSETS_PATH": str(tools),
        "MESHWRIGHT_BUNDLE": str(bundle), "SLURMD_NODENAME": "a10", "MESHWRIGHT_HOSTS": "b2 a10",
        "NODE_NAME": "a10", "SLURM_JOB_ID": "7", "MASTER_ADDR": "b2",
        "SLURM_SUBMIT_DIR": str(bundle),
    }  # fmt: skip
    scripts = [p for p in bundle.iterdir() if p.suffix in (".sh", ".sbatch")]
    assert scripts
    for script in scripts:
        done = subprocess.run(
            ["bash", str(script)], cwd=bundle, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (script.name, done.stderr)
        assert "command not found" not in done.stderr, done.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).write_text("#!/bin/bash\nexit 0\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    for name in ("pretrain_gpt.py", "run_train.py", "tokenizer.json"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("target", EMITTER_NAMES)
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_name_reaches_a_shell(target, kind, tmp_path, tools):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    emitter = emitter_named(target)
    answer = plan_for(target)
    for field in WHERE:
        try:
            answer = spoilt(answer, field, HOSTILE[kind])
        except ValidationError:  # refused, when it is read
            continue
    assert emitter.unsupported(answer) == []
    bundle = tmp_path / "bundle"
    write_bundle(bundle, emitter.emit(answer), force=False)
    run_scripts(bundle, tools)
    assert not list(tmp_path.rglob("pwned*"))
    for file in bundle.glob("*.json"):
        json.loads(file.read_text("utf-8"))
    for file in bundle.glob("*.yaml"):
        assert isinstance(yaml.safe_load(file.read_text("utf-8")), dict)
    assert check_bundle(bundle).problems == []


@pytest.mark.parametrize("kind", sorted(set(HOSTILE) - {"300 letters"}))
@pytest.mark.parametrize("target", EMITTER_NAMES)
def test_a_host_that_is_no_host_name_is_refused(target, kind):
    data = json.loads(plan_for(target).to_json())
    for row in data["placement"]["ranks"]:
        if row["host"] == data["placement"]["ranks"][-1]["host"]:
            row["host"] = HOSTILE[kind]
    with pytest.raises((SpecError, ValidationError)):
        emitter_named(target).emit(Plan.model_validate(data))


def test_the_traps_do_catch(tmp_path, tools):
    """A script that holds a name unquoted leaves the file that the others must not."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "run.sh").write_text(f"#!/usr/bin/env bash\necho {HOSTILE['substitution']}\n")
    run_scripts(bundle, tools)
    assert list(tmp_path.rglob("pwned"))

"""shellcheck reads every script of every bundle, where it is installed."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from plan_grid import MODELS, plan

from planner.emit import EMITTER_NAMES, emitter_named

PLANS = [
    plan(MODELS["dense"], dp=8, zero=0),
    plan(MODELS["dense"], dp=8, zero=0, dp_sync="parameter-server"),
    plan(MODELS["dense"], dp=16, zero=1, hosts=("b2", "a10")),
    plan(MODELS["dense"], dp=16, zero=3, hosts=("b2", "a10")),
    plan(MODELS["dense"], dp=16, zero=3, placeholders=True),
]


@pytest.mark.parametrize("name", EMITTER_NAMES)
def test_no_script_has_anything_to_complain_about(name, tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    emitter = emitter_named(name)
    files = []
    for number, answer in enumerate(PLANS):
        if emitter.unsupported(answer):
            continue
        for artifact in emitter.emit(answer):
            if artifact.text.startswith(("#!/usr/bin/env bash", "# shellcheck shell=bash")):
                file = tmp_path / f"{number}-{artifact.path}"
                file.write_text(artifact.text, encoding="utf-8")
                files.append(str(file))
    assert files
    # SC1091: files to source are beside the script, not here
    command = ["shellcheck", "--shell=bash", "--exclude=SC1091", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

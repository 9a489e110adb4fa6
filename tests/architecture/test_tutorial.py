"""The tutorial's commands, run as they stand, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- needs torch -->\n)?```bash\n(.*?)```", re.DOTALL)
TEXT = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
PLAIN = [code for torch, code in BLOCK.findall(TEXT) if not torch]
STARTED = [code for torch, code in BLOCK.findall(TEXT) if torch]


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block under bash, with `meshwright` of this checkout and this interpreter."""
    tools = folder / "bin"
    if not tools.exists():
        tools.mkdir()
        command = tools / "meshwright"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/cli.py" "$@"\n')
        command.chmod(0o755)
    (folder / "work").mkdir(exist_ok=True)
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder / "work",
        env=os.environ | settings | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_tutorial_runs_from_first_to_last(tmp_path):
    said = ""
    for code in PLAIN:
        done = run(code, tmp_path)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr}"
        said += done.stdout
    for promise in (
        "Compared with the best layout",
        "Your current layout takes",
        "agrees with its plan (megatron)",
        "wrote report.html",
        "6 points: 6 ok",
    ):
        assert promise in said
    made = {p.name for p in (tmp_path / "work").iterdir()}
    assert {"launch", "report.html", "study.csv", "study.html"} <= made


@pytest.mark.frameworks
def test_its_last_step_starts_a_job(tmp_path):
    pytest.importorskip("torch")
    (code,) = STARTED
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"rank 1 coordinates .* loss=[0-9.]+", done.stdout), done.stdout[-3000:]

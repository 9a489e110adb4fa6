"""A bundle's `run.sh`, run by bash with a launcher that only writes down what reaches it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from planner.emit.base import Artifact, write_bundle

RECORDER = """#!/bin/bash
[[ -z "${only_first:-}" || ! -e "$RECORD/argv" ]] || exit 0
printf '%s\\0' "$@" > "$RECORD/argv"
env -0 > "$RECORD/env"
"""


def started(
    folder: Path,
    artifacts: Sequence[Artifact],
    launcher: str,
    *,
    words: Sequence[str] = (),
    **variables: str,
) -> tuple[list[str], dict[str, str]]:
    """Write the bundle, run its `run.sh`, and return the launcher's (arguments, environment).

    Of several launches the last is written down, with `only_first` the first.
    """
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    bundle, tools = folder / "a bundle", folder / "bin"
    write_bundle(bundle, artifacts, force=False)
    tools.mkdir()
    (tools / launcher).write_text(RECORDER, encoding="utf-8")
    (tools / launcher).chmod(0o755)
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(folder), **variables}
    done = subprocess.run(
        [bash, str(bundle / "run.sh"), *words], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    argv = (folder / "argv").read_text(encoding="utf-8").split("\0")[:-1]
    pairs = (folder / "env").read_text(encoding="utf-8").split("\0")[:-1]
    return argv, dict(pair.partition("=")[::2] for pair in pairs)

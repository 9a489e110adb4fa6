"""Programs of a framework without its imports: forks of one process that has made them.

A rank that imports PyTorch spends seconds on that, and a launcher, and each of its ranks, do so
anew. `Warm.tools` gives a folder of stand-ins (python, torchrun, deepspeed, accelerate) for PATH:
the launchers are the environment's own files, and what they start is run as they start it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = ("python", "torchrun", "deepspeed", "accelerate")
SETTINGS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


class Warm(contextlib.ExitStack):
    """Holds one server a kind for as long as it is open; workers of one test run share them."""

    def __init__(self, shared: Path) -> None:
        super().__init__()
        self.shared, self.kinds = shared, dict[str, Path]()

    def tools(self, kind: str) -> Path:
        """Return a folder whose programs start with the imports of `kind` made."""
        if kind not in self.kinds:
            with (self.shared / f"warm.{kind}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self.kinds[kind] = self._leased(kind)
        return self.kinds[kind]

    def env(self, kind: str) -> dict[str, str]:
        """Return this process's variables with those programs first on PATH."""
        path = f"{self.tools(kind)}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return os.environ | SETTINGS | {"GLOO_SOCKET_IFNAME": "lo", "PATH": path}

    def _leased(self, kind: str) -> Path:
        address, folder = self.shared / f"{kind}.sock", self.shared / f"warm.{kind}"
        lease = self.enter_context(socket.socket(socket.AF_UNIX))
        try:
            lease.connect(str(address))
        except OSError:
            address.unlink(missing_ok=True)
            _start(kind, address, folder)
            lease.connect(str(address))
        return folder


def _start(kind: str, address: Path, folder: Path) -> None:
    """Start a server and return once it has its imports; say what it said where it cannot."""
    folder.mkdir(exist_ok=True)
    for program in PROGRAMS:
        words = f'"{sys.executable}" -IS "{HERE / "warm_shim.py"}" "{address}" {program} "$@"'
        (folder / program).write_text(f"#!/bin/sh\nexec {words}\n")
        (folder / program).chmod(0o755)
    log = address.with_suffix(".log")
    command = [sys.executable, "-W", "ignore", str(HERE / "warm_server.py"), address, kind, folder]
    env = os.environ | SETTINGS | {"PYTHONPATH": f"{HERE.parent / 'emit'}:{HERE.parents[1]}"}
    with log.open("wb") as said:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False
        )
    assert done.returncode == 0, log.read_text(errors="replace")

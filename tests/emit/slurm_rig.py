"""A real Slurm on this machine: one controller and emulated nodes, each with its own slurmd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port

PATIENCE_S = 180
"""More than it takes to come up on a machine that does much else."""
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "scontrol", "mungekey")


def configuration(
    folder: Path, nodes: dict[str, int], leafs: dict[str, list[str]], gpus: int
) -> str:
    """Return slurm.conf; `gpus` are counted, not real."""
    control, *each = (free_port() for _ in range(1 + len(nodes)))
    lines = [
        "ClusterName=rig",
        "SlurmctldHost=localhost(127.0.0.1)",
        f"SlurmctldPort={control}",
        "SlurmUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge.socket",
        "CredType=cred/munge",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool.%n",
        f"SlurmctldPidFile={folder}/ctld.pid",
        f"SlurmdPidFile={folder}/d.%n.pid",
        f"SlurmctldLogFile={folder}/ctld.log",
        f"SlurmdLogFile={folder}/d.%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "SchedulerParameters=sched_interval=1",
        "GresTypes=gpu",
        "ReturnToService=2",
        "TopologyPlugin=topology/tree",
        "MpiDefault=none",
    ]
    for (name, cores), port in zip(nodes.items(), each, strict=True):
        lines.append(
            f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={socket.gethostname()} Port={port} "
            f"CPUs={cores} RealMemory=100 Gres=gpu:{gpus} State=UNKNOWN"
        )
    lines.append(f"PartitionName=all Nodes={','.join(nodes)} Default=YES State=UP MaxTime=10")
    tree = [f"SwitchName={leaf} Nodes={','.join(held)}" for leaf, held in leafs.items()]
    tree.append(f"SwitchName=spine Switches={','.join(leafs)}")
    (folder / "topology.conf").write_text("\n".join(tree) + "\n")
    gres = [f"NodeName={node} Name=gpu File=/dev/tty[1-{gpus}]" for node in nodes]
    (folder / "gres.conf").write_text("\n".join(gres) + "\n")
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    return "\n".join(lines) + "\n"


@contextmanager
def running(folder: Path, leafs: dict[str, list[str]], *, gpus: int) -> Iterator[dict[str, str]]:
    """Start Slurm with `leafs` (leaf -> nodes); yield the environment that its commands need."""
    if os.geteuid() != 0 or any(shutil.which(tool, path=where()) is None for tool in TOOLS):
        pytest.skip("Slurm (Debian: slurm-wlm, munge) is not installed, or this is not root")
    nodes = {name: 2 for held in leafs.values() for name in held}
    for name in ("state", *(f"spool.{node}" for node in nodes)):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(configuration(folder, nodes, leafs, gpus))
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": where()}
    folder.chmod(0o755)
    key = folder / "munge.key"
    subprocess.run(["mungekey", "--create", "--keyfile", str(key)], env=env, check=True)
    started = []
    munge = [f"--{k}={folder}/munge.{v}" for k, v in PATHS.items()]
    commands = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", node] for node in nodes]
    try:
        for number, command in enumerate(commands):
            log = (folder / f"out.{number}").open("wb")
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            log.close()
            if number == 0:
                wait_for_munge(folder / "munge.socket")
        wait_for_nodes(env, len(nodes), folder)
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


PATHS = {f"{name}-file": name for name in ("key", "pid", "log", "seed")} | {"socket": "socket"}


def where() -> str:
    """Return a PATH with the folders of daemons in it."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def wait_for_munge(socket_of_it: Path) -> None:
    """Return once it listens; a controller that starts before gives up."""
    until = time.monotonic() + PATIENCE_S
    while not socket_of_it.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert socket_of_it.exists(), "munged does not listen"


def wait_for_nodes(env: dict[str, str], count: int, folder: Path) -> None:
    """Return once all nodes are idle."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        told = subprocess.run(
            ["sinfo", "-h", "-t", "idle", "-N"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        if len(told.stdout.split("\n")) > count:
            return
        time.sleep(0.5)
    log = (folder / "ctld.log").read_text(errors="replace")[-3000:]
    raise AssertionError(f"the nodes did not come up: {told.stdout}{told.stderr}\n{log}")

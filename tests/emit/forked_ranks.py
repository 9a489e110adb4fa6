"""Run by itself: trains bundles on gloo ranks that are forks of one process, which holds torch.

Ranks that torchrun starts import PyTorch one by one, which is most of the time of a short run. What
each runs here is the same: the bundle's own `train.py` as `__main__`, with the variables that
torchrun sets. Reads the folders of bundles from the command line; writes what rank N says to
`said.N` in each, and exits with 1 when a rank does.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor.parallel  # noqa: F401


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def become(folder: Path, rank: int, world: int, port: int) -> int:
    """Be that rank, in a process of its own, and return its exit code."""
    said = os.open(folder / f"said.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.environ |= {
        **{name: str(rank) for name in ("RANK", "LOCAL_RANK")},
        **{name: str(world) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    sys.argv, sys.path[0] = [str(folder / "train.py")], str(folder)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(folder: Path) -> bool:
    """Start every rank of a bundle; return whether all ended well."""
    world = json.loads((folder / "rank_map.json").read_bytes())["world_size"]
    port, ranks = free_port(), []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            code = become(folder, rank, world, port)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        ranks.append(pid)
    return all([os.waitpid(pid, 0)[1] == 0 for pid in ranks])


if __name__ == "__main__":
    sys.exit(0 if all([run(Path(folder)) for folder in sys.argv[1:]]) else 1)

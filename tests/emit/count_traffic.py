"""Run as TRAIN_SCRIPT of a torchrun bundle: its train.py, and what TCP carried in each step.

The kernel counts the bytes of every connection (TCP_INFO), so nothing here takes the word of a
library for what it sent. Only connections of this process count, and it has those of gloo and of
the rendezvous.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import Any

import torch.distributed as dist
import train

RECEIVED_AT, SENT_AT, SIZE = 128, 200, 232
"""Offsets of tcpi_bytes_received and tcpi_bytes_sent in struct tcp_info of Linux 4.19 and newer."""
steps: list[tuple[int, int]] = []


def traffic() -> tuple[int, int]:
    """Return the bytes (sent, received) so far over all TCP connections of this process."""
    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            copy = socket.socket(fileno=os.dup(int(name)))
            with copy:
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE)
                sent += struct.unpack_from("<Q", info, SENT_AT)[0]
                received += struct.unpack_from("<Q", info, RECEIVED_AT)[0]
    return sent, received


def counted(step: int, job: Any) -> Any:
    """Stand in for train.batch, which is called once at the start of every step."""
    dist.barrier()
    time.sleep(0.2)  # what is on its way arrives
    steps.append(traffic())
    dist.barrier()
    return batch(step, job)


class Counting(train.Optimizer):
    """Says once how many parameters there are."""

    def __init__(self, chunks: Any, job: Any) -> None:
        super().__init__(chunks, job)
        total = sum(p.numel() for p in self.params)
        print(f"parameters {total}\n", end="", flush=True)


def leaving() -> None:
    """Stand in for preflight.leave, by which train.main ends: say first what the steps carried."""
    sent, received = (after - before for before, after in zip(steps[1], steps[-1], strict=True))
    rank, between = os.environ["RANK"], len(steps) - 2
    print(f"traffic {rank} {sent / between:.0f} {received / between:.0f}\n", end="", flush=True)
    leave()


batch, leave = train.batch, train.preflight.leave
if __name__ == "__main__":
    train.batch, train.Optimizer, train.preflight.leave = counted, Counting, leaving
    train.main()

"""Ports that stay free from when they are asked for until the process that was started binds them.

A port that the kernel names and takes back is anybody's: another test's, on the other worker, or
that of any connection, as it lies in the range for those. These lie below that range, and each is
held by a UDP socket of the same number until this process ends, which other workers cannot open.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from pathlib import Path

BELOW = Path("/proc/sys/net/ipv4/ip_local_port_range")
FIRST, HERE = 15_000, "127.0.0.1"


def _last() -> int:
    """Return the end of the ports that no outgoing connection takes."""
    return int(BELOW.read_text().split()[0]) if BELOW.exists() else 32_768


def _held(port: int) -> int | None:
    """Take a port: return the file descriptor that holds it, or nothing where someone has it."""
    holder = socket.socket(type=socket.SOCK_DGRAM)
    with socket.socket() as probe:
        try:
            holder.bind((HERE, port))
            probe.bind(("", port))
        except OSError:
            holder.close()
            return None
    return holder.detach()  # open until this process ends


def _run(start: int, count: int) -> bool:
    """Take `count` ports from `start` on, all or none."""
    taken = []
    for port in range(start, start + count):
        if (descriptor := _held(port)) is None:
            for one in taken:
                os.close(one)
            return False
        taken.append(descriptor)
    return True


def free_port(count: int = 1) -> int:
    """Return the first of `count` neighbouring ports that nobody else is given."""
    last = max(FIRST + 1_000, _last()) - count
    begin = FIRST + os.getpid() * 16 % (last - FIRST)
    for start in itertools.chain(range(begin, last), range(FIRST, begin)):
        with contextlib.suppress(OSError):
            if _run(start, count):
                return start
    raise OSError(f"no {count} ports are free from {FIRST} to {last}")

"""Logs as nccl-tests prints them, of timings that a test knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MEASURED = Path(__file__).resolve().parents[2] / "measured" / "calibrate"
EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "calibrate"
REDUCING = ("all_reduce", "reduce_scatter")


def header(op: str, ranks: int, nodes: int, *, says_op: bool = True) -> list[str]:
    """Return the lines above the table."""
    each = ranks // nodes
    lines = [f"# Collective test starting: {op}_perf"] if says_op else []
    lines += ["# nThread 1 nGpus 1 minBytes 8 maxBytes 8 step: 2(factor)", "#", "# Using devices"]
    lines += [
        f"#  Rank {r:2} Group  0 Pid {9000 + r} on host{r // each:03} device {r % each:2}"
        f" [0x{27 + r % each:02x}] NVIDIA H100 80GB HBM3"
        for r in range(ranks)
    ]
    return [
        *lines,
        "#       size         count      type   redop    root     time   algbw   busbw #wrong"
        "     time   algbw   busbw #wrong",
    ]


def table_line(op: str, ranks: int, size: int, time_us: float) -> str:
    """Return one line of the table."""
    alg = size / time_us / 1e3
    parts = 1 if op == "sendrecv" else (ranks - 1) / ranks
    bus = alg * parts * (2 if op == "all_reduce" else 1)
    count = size // 2 // (1 if op in ("all_reduce", "sendrecv") else ranks)
    redop = "sum" if op in REDUCING else "none"
    one = f"{time_us:8.2f} {alg:7.2f} {bus:7.2f} {0:6}"
    return f"{size:12} {count:12} {'half':>8} {redop:>7} {-1:6} {one} {one}"


def log_text(
    op: str,
    ranks: int,
    nodes: int,
    timings: Sequence[tuple[int, float]],
    *,
    says_op: bool = True,
    says_ranks: bool = True,
) -> str:
    """Return a whole log of (bytes, microseconds)."""
    lines = header(op, ranks, nodes, says_op=says_op)
    if not says_ranks:
        lines = [line for line in lines if "Rank" not in line]
    lines += [table_line(op, ranks, size, time_us) for size, time_us in timings]
    return "\n".join([*lines, "# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 1.0", ""])

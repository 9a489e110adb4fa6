"""One gradient synchronisation, in bytes: the classic question with the right arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from planner.sources import PARAMETER_SERVER_2014, PATARASUK_2009, ZERO_2020, Source
from planner.units import count, decimal_bytes


class GradientSync(NamedTuple):
    """Bytes of one synchronisation under one scheme; one direction of each link."""

    scheme: str
    per_gpu_sent_bytes: float
    busiest_link_bytes: float
    total_bytes: float
    formula: str
    source: Source


def gradient_sync(parameters: float, replicas: int, bytes_per_value: float) -> list[GradientSync]:
    """Return what synchronising `parameters` gradients over `replicas` GPUs moves, by scheme.

    G = parameters * bytes_per_value. A worker of a parameter server sends G and receives G; the
    server's own link carries one G per worker each way (the server is not a worker here). A ring
    sends 2(n-1)/n G from every GPU. ZeRO-1 and 2 send the same in two halves (reduce-scatter, then
    all-gather of parameters); ZeRO-3 gathers the parameters twice and reduces once: 3(n-1)/n G.
    """
    n, g = replicas, parameters * bytes_per_value
    ring = (n - 1) / n * g
    rows = [
        (
            "parameter server",
            g,
            n * g,
            2 * n * g,
            "G; server link n*G each way",
            PARAMETER_SERVER_2014,
        ),
        ("ring all-reduce", 2 * ring, 2 * ring, 2 * ring * n, "2(n-1)/n * G", PATARASUK_2009),
        ("ZeRO-1", 2 * ring, 2 * ring, 2 * ring * n, "(n-1)/n * (G + P)", ZERO_2020),
        ("ZeRO-2", 2 * ring, 2 * ring, 2 * ring * n, "(n-1)/n * (G + P)", ZERO_2020),
        ("ZeRO-3", 3 * ring, 3 * ring, 3 * ring * n, "(n-1)/n * (G + 2 P)", ZERO_2020),
    ]
    return [GradientSync(*row) for row in rows]


def two_terabytes(parameters: float, bytes_per_value: float) -> str:
    """Return which model size or replica count the often-quoted 2 TB belongs to.

    With G bytes of gradient a parameter server's link takes in n * G from n workers, and a ring of
    n GPUs sends 2(n-1) * G in all.
    """
    gradient_bytes = parameters * bytes_per_value
    parts = [f"it is the gradient of {count(2e12 / bytes_per_value)} parameters"]
    workers, ring = 2e12 / gradient_bytes, 1 + 1e12 / gradient_bytes
    if workers >= 2:
        parts.append(
            f"or, with the {decimal_bytes(gradient_bytes)} here, what a parameter server takes in "
            f"from {workers:,.0f} workers, or what a ring of {ring:,.0f} GPUs sends in all"
        )
    return f"2 TB is not what one GPU sends at {bytes_per_value:g} bytes: " + ", ".join(parts)

"""What a profile of a training step shows: kernels by class, and how busy the GPU was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
CLASSES = ("multiplies", "attention", "collectives", "copies", "others")
_PATTERNS = (
    ("collectives", re.compile(r"nccl|rccl|deep_?ep|nvshmem", re.IGNORECASE)),
    ("attention", re.compile(r"flash|sdpa|fmha|attention|attn", re.IGNORECASE)),
    (
        "multiplies",
        re.compile(r"gemm|nvjet|cutlass|cublas|wgmma|xmma|_mm_|Cijk_", re.IGNORECASE),
    ),
    ("copies", re.compile(r"memcpy|memset", re.IGNORECASE)),
)
"""First match wins. Names are those of NCCL, cuBLAS, cuDNN, FlashAttention, Tensile and Triton."""


@dataclass(frozen=True)
class Kernel:
    """One kernel on one GPU; `op` and what follows stand where shapes were recorded."""

    name: str
    start_s: float
    seconds: float
    device: int = 0
    op: str = ""
    dims: tuple[tuple[int, ...], ...] = ()
    dtype: str = ""
    causal: bool = False


@dataclass(frozen=True)
class Activity:
    """Kernels of one file, and what they add up to."""

    file: str
    kernels: tuple[Kernel, ...]
    window_s: float
    """From the first kernel's start to the last one's end."""
    busy_s: float
    by_class: dict[str, float]
    exposed_s: float
    """Seconds of collectives during which nothing else ran."""

    def record(self) -> dict[str, Any]:
        """Return the sums as plain data."""
        return {
            "file": self.file,
            "kernels": len(self.kernels),
            "window_s": self.window_s,
            "busy_s": self.busy_s,
            "seconds_by_class": self.by_class,
            "exposed_collectives_s": self.exposed_s,
        }

    def words(self) -> str:
        """Return the sums as one sentence."""
        parts = ", ".join(
            f"{name} {seconds / self.window_s:.0%}"
            for name, seconds in self.by_class.items()
            if seconds
        )
        exposed = f"; {self.exposed_s / self.window_s:.0%} exposed" if self.exposed_s else ""
        return (
            f"{self.file}: {len(self.kernels):,} kernels in {self.window_s * 1e3:.1f} ms, the GPU "
            f"busy {self.busy_s / self.window_s:.0%} of it: {parts}{exposed}"
        )


def class_of(name: str) -> str:
    """Return the class of a kernel by its name."""
    head = name[:400]
    return next((kind for kind, pattern in _PATTERNS if pattern.search(head)), "others")


def activity_of(file: str, kernels: Sequence[Kernel]) -> Activity:
    """Return the kernels of the busiest GPU of a file, added up."""
    devices = np.array([k.device for k in kernels])
    numbers, counts = np.unique(devices, return_counts=True)
    mine = tuple(k for k in kernels if k.device == int(numbers[counts.argmax()]))
    kinds = np.array([class_of(k.name) for k in mine])
    spans = np.array([(k.start_s, k.start_s + k.seconds) for k in mine])
    sums = {
        kind: float((spans[kinds == kind, 1] - spans[kinds == kind, 0]).sum()) for kind in CLASSES
    }
    busy = covered(spans)
    rest = covered(spans[kinds != "collectives"])
    return Activity(
        file, mine, float(spans[:, 1].max() - spans[:, 0].min()), busy, sums, busy - rest
    )


def covered(spans: FloatArray) -> float:
    """Return how long at least one of the (start, end) spans lasts."""
    if not len(spans):
        return 0.0
    ordered = spans[np.argsort(spans[:, 0], kind="stable")]
    ends = np.maximum.accumulate(ordered[:, 1])
    before = np.concatenate([[-np.inf], ends[:-1]])
    return float(np.maximum(ends - np.maximum(ordered[:, 0], before), 0.0).sum())

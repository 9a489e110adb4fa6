"""Number formats that the GPUs of a cluster have: which is taken, and which is refused."""

from __future__ import annotations

from collections.abc import Iterator

from planner.errors import SpecError
from planner.specs.accelerator import Accelerator
from planner.specs.cluster import ClusterSpec
from planner.specs.workload import Workload


def without_bf16(cluster: ClusterSpec) -> str:
    """Return the name of a GPU of the cluster that has no bf16 (V100), or nothing."""
    return next((gpu.name for gpu in _gpus(cluster) if "bf16" not in gpu.peak_tflops), "")


def usual_precision(cluster: ClusterSpec) -> str:
    """Return bf16, or fp16 where a GPU has no bf16."""
    return "fp16" if without_bf16(cluster) else "bf16"


def refuse_format(workload: Workload, cluster: ClusterSpec) -> None:
    """Raise SpecError where a GPU has no multiplies in the format that is asked for."""
    asked = workload.precision.value
    for gpu in _gpus(cluster):
        if asked in ("fp8", "bf16") and asked not in gpu.peak_tflops:
            raise SpecError(
                f"--precision {asked}: {gpu.name} has no {asked.upper()} "
                f"(peak_tflops: {', '.join(gpu.peak_tflops)})",
                hint=f"leave the precision out: {usual_precision(cluster)}",
            )


def _gpus(cluster: ClusterSpec) -> Iterator[Accelerator]:
    for part in (cluster, *cluster.mix):
        yield part.accelerator

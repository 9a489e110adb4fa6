"""What no machine can do: measurements above a peak are refused, not fitted.

A rate above the datasheet is a mistake in the table (units, sparse figures, another precision) or
in the cluster's file (another GPU), and no weight makes it evidence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.calibrate.solve import MOST_OUTLIERS, FloatArray
from planner.estimate.flops import matmul_parameters
from planner.layouts.rules import Context
from planner.specs.accelerator import Accelerator
from planner.specs.cluster import ClusterSpec
from planner.units import TERA

BOOST = 1.1
"""Over the datasheet's peak: cards may clock higher than the boost clock that it is stated at (an
H100 1,980 against 1,830 MHz)."""
BUS = {"all_reduce": 2.0}
"""Bus bandwidth over a link's: a switch that reduces sends each byte once (NVLS); 1 for others."""


def above_peak(
    gpu: Accelerator, precision: str, flops: FloatArray, seconds: FloatArray
) -> NDArray[np.bool_]:
    """Return which multiplies would have run faster than the GPU can."""
    out: NDArray[np.bool_] = flops / seconds > BOOST * gpu.peak_flops_per_s(precision)
    return out


def told_impossible(
    what: str, gpu: Accelerator, precision: str, flops: FloatArray, seconds: FloatArray
) -> tuple[NDArray[np.bool_], str]:
    """Return which multiplies are impossible, and a sentence about them, empty if none is.

    Where more are than may be outliers, all are refused: the rest is no better evidence.
    """
    above = above_peak(gpu, precision, flops, seconds)
    if not above.any():
        return above, ""
    most = float((flops / seconds).max()) / TERA
    peak = gpu.peak_flops_per_s(precision) / TERA
    spoilt = above.mean() > MOST_OUTLIERS
    sentence = (
        f"{int(above.sum())} of {len(above)} {what} are faster than the {precision} peak of "
        f"{gpu.name}, up to {most:,.0f} against {peak:,.0f} TFLOP/s: impossible, "
        f"{'so none of them is used' if spoilt else 'left out'}; are the sizes, the unit of time, "
        "the precision and the GPU right?"
    )
    return (np.ones_like(above) if spoilt else above), sentence


def most_factor(cluster: ClusterSpec, name: str, *, derated: bool = True) -> float:
    """Return the factor of a stack's `gemm` or `attention` at which kernels run at the peak."""
    gpu = cluster.accelerator
    if name == "attention":
        return BOOST / max(gpu.attention.te, gpu.attention.fa2)
    return BOOST / (gpu.gemm.emax * (gpu.gemm.derate if derated else 1.0))


def impossible_step(context: Context, gpus: int, seconds: float) -> str:
    """Return why a step cannot have been so short, or nothing: its multiplies alone take longer.

    Attention and recompute are left out, so that what is refused is certain.
    """
    model, cluster, work = context
    gpu, precision = cluster.accelerator, work.precision
    peak = gpu.peak_flops_per_s(precision)
    if precision == "fp8":  # its multiplies may run in FP4
        peak = max(peak, TERA * max(gpu.peak_tflops.values()))
    share = 6.0 * matmul_parameters(model) * work.tokens / (seconds * gpus * peak)
    if share <= BOOST:
        return ""
    return (
        f"a step in {seconds:.4g} s would be {share:.0%} of the {precision} peak of "
        f"{gpus:,} x {gpu.name}: impossible; are gpus, global_batch, seq and the "
        "unit of time right?"
    )


def impossible_bus(cluster: ClusterSpec, op: str, gb_per_s: float) -> str:
    """Return why links cannot carry so much, or nothing."""
    most = BUS.get(op, 1.0) * cluster.scale_up.gb_per_s
    if gb_per_s <= BOOST * most:
        return ""
    return (
        f"a bus bandwidth of {gb_per_s:,.0f} GB/s is above the {most:,.0f} that "
        f"{cluster.scale_up.kind} of {cluster.name} can carry: impossible, left out; is it "
        "the cluster that was measured?"
    )

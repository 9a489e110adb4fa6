"""Time of single kernels: matrix multiplies, fused attention, memory-bound work."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.estimate.inputs import FloatArray, Inputs
from planner.specs.accelerator import GemmFit

HBM_SUSTAINED = 0.8
"""Share of the datasheet memory bandwidth that streaming kernels reach (hardware tables)."""
MISALIGNED_BY_8 = 1.57
"""A width divisible by 8 and not by 64 costs a third (fit; BLOOM's head width shows it)."""
MISALIGNED = 12.0
"""A width not even divisible by 8 leaves the tensor cores."""
BEST_SHARE = 0.87
"""Share of the peak that no multiply goes beyond: the best of many shapes on an A100, 271 of 312
TFLOP/s (ml-engineering@744d01e, random data; H100 0.80, B200 0.78). What a stack's rate was fitted
to on narrow models must not outrun it on wide ones."""
ATTENTION_HALF_TOKENS = 979.0
"""Sequence at which fused attention runs at half of its rate (kernel tables, 450 to 1,100)."""
ATTENTION_BACKWARD_RATE = 0.716
"""Backward over forward rate of fused attention; backward has 2.5 x the FLOPs."""
NARROW_HEADS = 0.658
"""Power of (query + value width) / 256 that the cuDNN class loses on heads narrower than 128."""
WEIGHT_GRADIENT_RATE = 0.99
UNFUSED_HALF_WIDTH = 64.0
"""Head width at which a batched multiply of unfused attention runs at half of its rate."""
UNFUSED_TRAFFIC = 0.712
"""Bytes that unfused softmax and dropout move over 11 + 15 per score (fit)."""

Array = NDArray[np.floating[Any]] | NDArray[np.integer[Any]] | float


def hbm_s(x: Inputs, amount_bytes: Array) -> FloatArray:
    """Return the seconds that memory traffic of `amount_bytes` takes."""
    sustained = x.cluster.accelerator.hbm_bytes_per_s * HBM_SUSTAINED
    return np.asarray(amount_bytes, dtype=np.float64) / sustained


def _alignment(width: Array) -> FloatArray:
    whole = np.round(width).astype(np.int64)
    return np.where(whole % 64 == 0, 1.0, np.where(whole % 8 == 0, MISALIGNED_BY_8, MISALIGNED))


def uses_fp8(x: Inputs) -> bool:
    """Return whether the workload's matrix multiplies run in FP8 on this accelerator."""
    return x.workload.precision == "fp8" and x.cluster.accelerator.gemm_fp8 is not None


def gemm_rate(x: Inputs, *, low_precision: bool = True) -> tuple[GemmFit, float, int]:
    """Return (fit, sustained FLOP/s of huge shapes, bytes per element) of a matrix multiply."""
    gpu = x.cluster.accelerator
    if low_precision and uses_fp8(x) and gpu.gemm_fp8 is not None:
        fit = gpu.gemm_fp8
        sustained = fit.emax * fit.derate * x.stack.gemm * x.stack.fp8_rate
        sustained *= x.stack.fp4_rate if "fp4" in gpu.peak_tflops else 1.0
        return fit, gpu.peak_flops_per_s("fp8") * sustained, 1
    fit = gpu.gemm
    precision = "fp16" if x.workload.precision == "fp16" else "bf16"
    return fit, gpu.peak_flops_per_s(precision) * fit.emax * fit.derate * x.stack.gemm, 2


def _best_rate(x: Inputs, width: int) -> float:
    """Return the FLOP/s that the best kernel reaches, on elements of `width` bytes."""
    gpu = x.cluster.accelerator
    if width == 1:
        share = x.stack.fp4_rate if "fp4" in gpu.peak_tflops else 1.0
        return BEST_SHARE * gpu.peak_flops_per_s("fp8") * share
    precision = "fp16" if x.workload.precision == "fp16" else "bf16"
    return BEST_SHARE * gpu.peak_flops_per_s(precision)


def gemm_s(x: Inputs, m: Array, n: Array, k: Array, *, low_precision: bool = True) -> FloatArray:
    """Return the seconds of one (m, k) x (k, n) multiply: t0 + max(FLOPs, bytes) * alignment.

    Calibrated roofline with one half-efficiency size per dimension; source: kernel tables of
    aiconfigurator@095f58a51, sustained in training by the accelerator's derate.
    """
    fit, rate, width = gemm_rate(x, low_precision=low_precision)
    m, n, k = (np.maximum(np.asarray(v, dtype=np.float64), 1.0) for v in (m, n, k))
    shape = (1 + fit.m0 / m) * (1 + fit.n0 / n) * (1 + fit.k0 / k)
    flops_s = 2.0 * m * n * k / rate * np.maximum(shape, rate / _best_rate(x, width))
    traffic_s = hbm_s(x, width * (m * k + k * n) + 2 * m * n)
    aligned = np.sqrt(_alignment(n) * _alignment(k))
    return fit.t0_us * 1e-6 + np.maximum(flops_s, traffic_s) * aligned


def gemm_backward_s(
    x: Inputs, m: Array, n: Array, k: Array, *, low_precision: bool = True
) -> FloatArray:
    """Return the seconds of both backward multiplies of a forward (m, n, k): data and weight."""
    data = gemm_s(x, m, k, n, low_precision=low_precision)
    weight = gemm_s(x, k, n, m, low_precision=low_precision) / WEIGHT_GRADIENT_RATE
    return data + weight


def attention_rate(x: Inputs) -> float:
    """Return the FLOP/s that the stack's fused attention sustains in forward."""
    gpu = x.cluster.accelerator
    share = gpu.attention.fa2
    if x.stack.attention_kernel == "te":
        share = gpu.attention.te * min(1.0, (x.qk_dim + x.v_dim) / 256) ** NARROW_HEADS
    precision = "fp16" if x.workload.precision == "fp16" else "bf16"
    return gpu.peak_flops_per_s(precision) * share * x.stack.attention


def unfused_attention_s(x: Inputs, *, backward: bool) -> FloatArray:
    """Return the seconds of attention as two batched multiplies and a softmax in between.

    All seq^2 scores are computed, the causal half too, and pass through memory: 11 bytes forward,
    15 backward, times 0.63 (fit). Megatron's fused softmax serves groups of four heads; otherwise
    it falls back to kernels that move 2 times (backward 1.6) as much.
    """
    lay, s, d = x.layouts, float(x.workload.seq_tokens), x.model.head_dim
    scores = lay.micro_batch * (x.model.heads / lay.tp) * s * s / lay.cp
    _, rate, _ = gemm_rate(x, low_precision=False)
    multiply: FloatArray = 4.0 * scores * d / rate * (1 + UNFUSED_HALF_WIDTH / d) * _alignment(d)
    moved, again = (15.0, 1.6) if backward else (11.0, 2.0)
    softmax = UNFUSED_TRAFFIC * moved * scores * np.where(softmax_falls_back(x), again, 1.0)
    return (2.0 if backward else 1.0) * multiply + hbm_s(x, softmax)


def softmax_falls_back(x: Inputs) -> NDArray[np.bool_]:
    """Return where micro_batch * heads / tp is no multiple of four."""
    per_rank: NDArray[np.bool_] = (x.layouts.micro_batch * x.model.heads // x.layouts.tp) % 4 != 0
    return per_rank


def attended_tokens(x: Inputs) -> int:
    """Return the tokens that attention sees at most: a sequence, or a document packed into it."""
    return min(x.workload.seq_tokens, x.stack.document_tokens or x.workload.seq_tokens)


def attended_share(x: Inputs) -> float:
    """Return attended (query, key) pairs / causal pairs, averaged over the layers' windows."""
    window, s = x.model.sliding_window_tokens, x.workload.seq_tokens
    if (document := attended_tokens(x)) < s:
        return document / s
    if window is None or window >= s:
        return 1.0
    local = (window * s - window * window / 2) / (s * s / 2)
    period = x.model.full_attention_period
    full = 1.0 / period if period else 0.0
    return full + (1.0 - full) * local

"""An accelerator's file: memory, peaks, and how near to them real kernels come."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from planner.specs.record import Record
from planner.units import GB, GIB, TERA


class GemmFit(Record):
    """Matrix-multiply time, t0 + 2mnk/(peak * emax * derate) * (1+m0/m)(1+n0/n)(1+k0/k)."""

    t0_us: NonNegativeFloat = Field(description="Launch time of one kernel.")
    emax: PositiveFloat = Field(le=1, description="Share of the dense peak reached by huge shapes.")
    m0: NonNegativeFloat = 0.0
    n0: NonNegativeFloat = 0.0
    k0: NonNegativeFloat = 0.0
    derate: PositiveFloat = Field(
        1.0, le=1.5, description="Sustained in training / in the benchmark."
    )


class AttentionFit(Record):
    """Fused attention: share of the dense 16-bit peak that the forward kernel sustains."""

    te: PositiveFloat = Field(le=1, description="cuDNN / FlashAttention-3 class kernels.")
    fa2: PositiveFloat = Field(le=1, description="FlashAttention-2 class kernels.")


class Accelerator(Record):
    """One GPU as the planner sees it: what one rank owns."""

    name: str = Field(min_length=1, max_length=200)
    vendor: Literal["nvidia", "amd", "intel", "other"] = "nvidia"
    memory_gib: PositiveFloat = Field(description="On the datasheet.")
    usable_memory_gib: PositiveFloat = Field(description="What a process can allocate.")
    hbm_gb_per_s: PositiveFloat
    peak_tflops: dict[Literal["fp32", "tf32", "bf16", "fp16", "fp8", "fp4"], PositiveFloat] = Field(
        description="Dense, never the sparse figure."
    )
    gemm: GemmFit = Field(description="16-bit matrix multiplies.")
    gemm_fp8: GemmFit | None = None
    fp8_any_layout: bool = Field(
        False, description="FP8 multiplies take operands in any order: no transposed copies."
    )
    attention: AttentionFit
    price_usd_per_hour: PositiveFloat | None = None
    tdp_w: PositiveFloat | None = None
    sources: dict[str, str] = Field(description="Field name -> where its figure comes from.")

    @model_validator(mode="after")
    def _memory_agrees(self) -> Self:
        if self.usable_memory_gib > self.memory_gib:
            raise ValueError(
                f"usable_memory_gib ({self.usable_memory_gib}) is more than "
                f"memory_gib ({self.memory_gib})"
            )
        if "bf16" not in self.peak_tflops and "fp16" not in self.peak_tflops:
            raise ValueError("peak_tflops needs bf16 or fp16")
        return self

    @property
    def usable_memory_bytes(self) -> float:
        """Return the memory that a process can allocate, in bytes."""
        return self.usable_memory_gib * GIB

    @property
    def hbm_bytes_per_s(self) -> float:
        """Return the datasheet memory bandwidth in bytes per second."""
        return self.hbm_gb_per_s * GB

    def peak_flops_per_s(self, precision: str) -> float:
        """Return the dense peak of `precision` ('bf16', 'fp16', 'fp8', 'fp32') in FLOP/s.

        A GPU without bf16 (V100) runs 16-bit work in fp16, and the other way round; one without
        fp8 (or without any fp32 figure) falls back to 16 bit.
        """
        order = {"fp8": ("fp8", "bf16", "fp16"), "fp16": ("fp16", "bf16"), "fp32": ("tf32", "fp32")}
        for name in order.get(precision, ("bf16", "fp16")):
            if name in self.peak_tflops:
                return self.peak_tflops[name] * TERA
        return self.peak_flops_per_s("bf16")

"""What was measured of a training stack on one cluster, in place of its profile's numbers.

A profile is a fit to other people's runs. The few numbers here are those that a user's own runs can
pin down; `meshwright calibrate` writes them into a cluster's file.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from planner.specs.record import Record

Factor = Annotated[float, Field(gt=0, le=100)]
Mark = Annotated[str, Field(pattern=r"^[0-9a-f]{10}$")]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class StackFigures(Record):
    """Numbers of one stack as measured on a cluster; what is left out stays the profile's."""

    gemm: Factor | None = Field(None, description="Matrix-multiply rate over the training rate.")
    attention: Factor | None = Field(None, description="The same of fused attention.")
    memory_traffic: Factor | None = Field(None, description="Bytes moved over the least possible.")
    moe_traffic: Factor | None = Field(None, description="The same of layers with experts.")
    host_s: Seconds | None = Field(None, description="Host time per layer and micro-batch.")
    host_tp: Factor | None = Field(None, description="Host time with tensor parallelism over it.")
    host_moe_s: Seconds | None = Field(None, description="The same of a layer with experts.")
    tp_exposed: Factor | None = Field(None, description="Exposed share of tensor-parallel traffic.")
    dp_exposed: Factor | None = Field(None, description="Exposed share of gradient traffic.")
    p2p_exposed: Factor | None = Field(None, description="Exposed share of sends between stages.")
    fsdp_contention: Factor | None = Field(None, description="Cost of hidden ZeRO-3 traffic.")
    accumulate: Factor | None = Field(None, description="Cost of adding up gradients.")
    microbatch_s: Seconds | None = Field(None, description="Constant of a micro-batch.")
    step_s: Seconds | None = Field(None, description="Constant of a step.")
    runs: NonNegativeInt = Field(0, description="Measured runs behind these numbers.")
    low: PositiveFloat | None = Field(
        None,
        le=1,
        description="Measured / predicted step time, 10th percentile, each run left out.",
    )
    high: PositiveFloat | None = Field(None, ge=1, description="The same, 90th percentile.")

    fitted: tuple[Mark, ...] = Field(
        (), max_length=5000, description="Those runs: `meshwright validate` says which it has seen."
    )

    @model_validator(mode="after")
    def _interval_is_whole(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high are one interval; give both or none")
        return self

    @property
    def numbers(self) -> dict[str, float]:
        """Return the profile's fields that were measured."""
        return self.model_dump(exclude_none=True, exclude={"runs", "low", "high", "fitted"})

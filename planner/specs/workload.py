"""Workload: what is trained on what, and with which training stack."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from planner.specs.record import Record


class Precision(StrEnum):
    """Number format of the matrix multiplies; weights and activations are kept in 16 bit."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"


class Optimizer(StrEnum):
    """What updates the weights, and so what is kept of them between steps."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw-8bit"
    SGD = "sgd"
    MUON = "muon"


class Workload(Record):
    """One training step: `global_batch` sequences of `seq_tokens` tokens."""

    seq_tokens: PositiveInt = Field(le=100_000_000)
    global_batch: PositiveInt = Field(le=100_000_000, description="Sequences in one step.")
    precision: Precision = Precision.BF16
    optimizer: Optimizer = Field(
        Optimizer.ADAMW,
        description="adamw; adamw-8bit: moments in a byte; sgd: with momentum; muon: on matrices "
        "of hidden layers, adamw on the rest.",
    )
    stack: str = Field("any", description="Training stack whose rules and overheads apply.")
    expert_imbalance: PositiveFloat = Field(
        1.1, ge=1, le=1000, description="Tokens on the busiest expert rank / on the mean rank."
    )
    expert_load: tuple[float, ...] | None = Field(
        None, description="Measured share of tokens per expert; replaces expert_imbalance."
    )
    capacity_factor: PositiveFloat | None = Field(
        None, description="An expert takes at most this many times its fair share; None: dropless."
    )
    max_memory: PositiveFloat = Field(
        0.97, le=1, description="Share of a GPU's usable memory that a plan may take."
    )

    @model_validator(mode="after")
    def _load_is_a_share(self) -> Self:
        if self.expert_load is not None and (
            not self.expert_load or min(self.expert_load) < 0 or sum(self.expert_load) <= 0
        ):
            raise ValueError("expert_load needs one non-negative share per expert, not all zero")
        return self

    @property
    def tokens(self) -> int:
        """Return the tokens of one step."""
        return self.seq_tokens * self.global_batch

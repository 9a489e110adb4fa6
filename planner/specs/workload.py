"""Workload: what is trained on what, and with which training stack."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from planner.specs.record import Record
from planner.units import MOST

AT_RISK = 0.85
"""Share of a GPU's usable memory above which a plan is marked: allocators may thrash there.

In nanotron's published sweep on 80 GB cards all ten runs that took 70 GiB or more were 2.9 to 7.8
times slower than expected; below 65 GiB no more of them were slow than elsewhere.
"""


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


RECOMPUTABLE = (
    "core_attn",
    "mlp",
    "moe_act",
    "layernorm",
    "mla_up_proj",
    "moe",
    "shared_experts",
)
"""Modules that selective recompute can run again (Megatron-Core transformer_config)."""
RecomputeModule = Literal[
    "core_attn", "mlp", "moe_act", "layernorm", "mla_up_proj", "moe", "shared_experts"
]


class Workload(Record):
    """One training step: `global_batch` sequences of `seq_tokens` tokens."""

    seq_tokens: PositiveInt = Field(le=MOST)
    global_batch: PositiveInt = Field(le=MOST, description="Sequences in one step.")
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
    recompute_modules: tuple[RecomputeModule, ...] | None = Field(
        None, description="What selective recompute runs again; None: what its stack does."
    )
    recompute_method: Literal["uniform", "block"] = Field(
        "uniform",
        description="Full recompute keeps the input of every recompute_layers layers (uniform), or "
        "runs recompute_layers layers of each pipeline chunk again and keeps the others (block).",
    )
    recompute_layers: PositiveInt = Field(1, le=100_000, description="See recompute_method.")
    max_memory: PositiveFloat = Field(
        0.97, le=1, description="Share of a GPU's usable memory that a plan may take."
    )
    risk_memory: PositiveFloat = Field(
        AT_RISK, le=1, description="Share of it above which a plan that fits is marked at risk."
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

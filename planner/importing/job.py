"""What the files of an existing job say: its layout, its workload, its model; what they leave open.

`None` and absent fields mean that no file says it. `assumed` and `ignored` are told to the user:
nothing that was read is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec


@dataclass(frozen=True)
class Job:
    """One training job as its configuration has it; `layout` holds text by field, as --layout."""

    framework: str
    stack: str
    layout: Mapping[str, str] = field(default_factory=dict)
    gpus: int | None = None
    gpus_from: str = ""
    """Which settings the number of GPUs follows from, where none states it."""
    seq_tokens: int | None = None
    global_batch: int | None = None
    precision: str = "bf16"
    """Empty where a script decides it that reads a plan.json of its own."""
    optimizer: str = "adamw"
    capacity_factor: float | None = None
    recompute_modules: tuple[str, ...] | None = None
    recompute_method: str = "uniform"
    recompute_layers: int = 1
    model: ModelSpec | None = None
    model_name: str | None = None
    """A shipped model that the files name, where they do not spell its shapes out."""
    cluster: ClusterSpec | None = None
    assumed: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Every setting that was read and not used."""
    without_effect: tuple[str, ...] = ()
    """Those of them that change neither layout nor memory nor speed."""


STATED = ("tp", "pp", "cp", "dp")
"""The degrees whose product is the number of GPUs."""

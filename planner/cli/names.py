"""Names that help texts and completion list, without importing what defines them."""

from __future__ import annotations

LAYOUT_FIELDS = (
    *("tp", "sp", "pp", "vpp", "cp", "ep", "etp", "dp", "dp_replicate", "zero"),
    *("micro_batch", "recompute", "schedule", "offload", "dp_sync"),
)
"""As `planner.layouts.ranges.FIXABLE`, which is not imported: it loads numpy."""

TARGETS = (
    "torchrun, deepspeed, megatron, megatron-bridge, accelerate, torchtitan, nanotron, "
    "dataparallel, slurm, k8s"
)
"""As `planner.emit.EMITTER_NAMES`, for help texts."""

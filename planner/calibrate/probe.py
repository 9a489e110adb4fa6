"""Single formulas of the estimate on a cluster, apart from any job."""

from __future__ import annotations

import numpy as np

from planner.estimate.inputs import Inputs
from planner.layouts.table import COLUMNS, Layouts
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload


def probe(
    cluster: ClusterSpec,
    *,
    precision: str = "bf16",
    stack: str = "any",
    heads: int = 1,
    kv_heads: int = 1,
    head_dim: int = 128,
    seq_tokens: int = 1,
    micro_batch: int = 1,
) -> Inputs:
    """Return inputs to ask single formulas with: one layer of such attention on one GPU."""
    columns = {name: np.ones(1, dtype=np.int64) for name in COLUMNS}
    for name in ("recompute", "schedule", "offload", "dp_sync", "zero", "sp"):
        columns[name] = np.zeros(1, dtype=np.int64)
    columns["micro_batch"] = np.full(1, micro_batch)
    work = Workload.model_validate(
        {
            "seq_tokens": seq_tokens,
            "global_batch": micro_batch,
            "precision": precision,
            "stack": stack,
        }
    )
    model = ModelSpec(
        name="probe",
        layers=1,
        hidden=heads * head_dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=128,
        vocab=128,
        max_seq_tokens=max(128, seq_tokens),
    )
    return Inputs(model, cluster, work, Layouts(**columns))

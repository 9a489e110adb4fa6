"""Clusters and layouts to place: only the degrees and the switches matter here."""

from __future__ import annotations

from typing import Any

from planner.plan import Layout
from planner.specs.cluster import ClusterSpec

ACCELERATOR = {
    "name": "GPU",
    "memory_gib": 80,
    "usable_memory_gib": 79,
    "hbm_gb_per_s": 3350,
    "peak_tflops": {"bf16": 989},
    "gemm": {"t0_us": 4, "emax": 0.7},
    "attention": {"te": 0.5, "fa2": 0.35},
    "sources": {},
}


def make_cluster(
    nodes: int,
    per_leaf: int | None = None,
    per_pod: int | None = None,
    gpus: int = 8,
    domain_gpus: int | None = None,
    **more: Any,
) -> ClusterSpec:
    fabric = {"kind": "rail", "nodes_per_leaf": per_leaf, "leafs_per_pod": per_pod}
    return ClusterSpec.model_validate(
        {
            "name": "test",
            "accelerator": ACCELERATOR,
            "node": {"gpus": gpus, "nics": 8, "nic_gbit_per_s": 400},
            "scale_up": {"kind": "NVLink", "gb_per_s": 450, "domain_gpus": domain_gpus},
            "fabric": fabric,
            "nodes": nodes,
            **more,
        }
    )


def make_layout(*, tp=1, pp=1, cp=1, dp=1, ep=1, etp=None) -> Layout:
    return Layout(
        tp=tp, sp=tp > 1, pp=pp, vpp=1, cp=cp, ep=ep, etp=etp or (tp if ep == 1 else 1), dp=dp,
        dp_replicate=1, zero=1, micro_batch=1, num_microbatches=8, recompute="none",
        schedule="1f1b" if pp > 1 else "none",
    )  # fmt: skip

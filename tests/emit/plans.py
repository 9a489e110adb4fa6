"""Plan records made by hand, so that the emitters are tested without the search."""

from __future__ import annotations

from typing import Any

from planner.plan import Plan

LAYOUT = {
    "tp": 1, "sp": False, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "dp": 1,
    "dp_replicate": 1, "zero": 0, "micro_batch": 1, "num_microbatches": 1,
    "recompute": "none", "schedule": "none",
}  # fmt: skip

MODEL = {
    "name": "small-llama", "layers": 8, "hidden": 512, "heads": 8, "kv_heads": 4, "head_dim": 64,
    "ffn": 1536, "vocab": 32000, "max_seq_tokens": 4096,
}  # fmt: skip

ACCELERATOR = {
    "name": "test GPU", "memory_gib": 80, "usable_memory_gib": 79, "hbm_gb_per_s": 3000,
    "peak_tflops": {"bf16": 900}, "gemm": {"t0_us": 4, "emax": 0.8}, "sources": {},
    "attention": {"te": 0.6, "fa2": 0.4},
}  # fmt: skip

STAGE = {
    "weights": 2.0**31, "gradients": 2.0**30, "optimizer": 2.0**32, "activations": 2.0**30,
    "logits": 2.0**29, "buffers": 0, "overhead": 2.0**30, "total": 9.5 * 2.0**30,
}  # fmt: skip


def plan_of(
    *,
    nodes: int = 1,
    hosts: list[str] | None = None,
    model: dict[str, Any] | None = None,
    seq_tokens: int = 4096,
    **layout: Any,
) -> Plan:
    """Return a plan of one layout on `nodes` equal nodes, its ranks placed in order."""
    lay = {**LAYOUT, **layout}
    world = lay["tp"] * lay["cp"] * lay["dp"] * lay["pp"]
    gpus = world // nodes
    names = hosts or [f"node{i + 1:05d}" for i in range(nodes)]
    cluster = {
        "name": "test cluster", "accelerator": ACCELERATOR, "nodes": nodes, "hosts": hosts,
        "node": {"gpus": gpus, "nics": 1, "nic_gbit_per_s": 400},
        "scale_up": {"kind": "NVLink", "gb_per_s": 450}, "fabric": {"kind": "tor"},
    }  # fmt: skip
    ranks = [
        {"rank": r, "host": names[r // gpus], "gpu": r % gpus, **place(r, lay)}
        for r in range(world)
    ]
    ranked = {
        "rank": 1, "layout": lay, "estimate": estimate(lay["pp"]),
        "stage_layers": [[8 // (lay["pp"] * lay["vpp"])] * lay["vpp"]] * lay["pp"],
    }  # fmt: skip
    return Plan.model_validate(
        {
            "schema": "meshwright.plan/1",
            "request": {
                "model": {**MODEL, **(model or {})},
                "cluster": cluster,
                "workload": {
                    "seq_tokens": seq_tokens,
                    "global_batch": lay["dp"] * lay["micro_batch"] * lay["num_microbatches"],
                },
            },
            "search": {"enumerated": 1, "legal": 1, "feasible": 1, "rejected": {}},
            "plans": [ranked],
            "placement": {
                "status": "optimal",
                "objective": 0,
                "bound": 0,
                "splits": 0,
                "ranks": ranks,
            },
        }
    )


def place(rank: int, lay: dict[str, Any]) -> dict[str, Any]:
    """Return the coordinates by taking digits off the rank, tp first and pp last."""
    out: dict[str, Any] = {"leaf": "leaf0", "ep": rank // lay["etp"] % lay["ep"]}
    for axis in ("tp", "cp", "dp", "pp"):
        rank, out[axis] = divmod(rank, lay[axis])
    return out


def estimate(stages: int) -> dict[str, Any]:
    """Return figures for the README; nothing else reads them."""
    return {
        "step_time_s": 1.5, "tokens_per_s": 1000.0, "tokens_per_s_per_gpu": 250.0,
        "tflops_per_gpu": 400.0, "mfu": 0.44, "mfu_causal": 0.4, "bubble_fraction": 0.1,
        "time_s": {"compute": 1.2, "dp": 0.3, "tp": 0.0},
        "memory": {
            "peak_bytes": 9.5 * 2**30, "limit_bytes": 79 * 2**30, "stages": [STAGE] * stages,
        },
    }  # fmt: skip

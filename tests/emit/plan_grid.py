"""Plans made by hand: models of every kind, layouts of every axis, hosts in no sorted order."""

from __future__ import annotations

import math
from typing import Any

from planner.plan import (
    Estimate,
    Layout,
    Memory,
    Placement,
    Plan,
    RankedPlan,
    RankPlace,
    Request,
    Search,
    StageMemory,
)
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload

GPUS_PER_NODE = 8


def model(**changes: Any) -> ModelSpec:
    """Return a dense model with grouped queries, 16 layers of 4096."""
    base: dict[str, Any] = {
        "name": "dense", "layers": 16, "hidden": 4096, "heads": 32, "kv_heads": 8,
        "head_dim": 128, "ffn": 14336, "vocab": 128256, "max_seq_tokens": 8192,
    }  # fmt: skip
    return ModelSpec(**base | changes)


LATENT = {
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip

MODELS: dict[str, ModelSpec] = {
    "dense": model(),
    "wide-heads": model(head_dim=256, qk_norm="head", tied_embeddings=True),
    "many-heads": model(kv_heads=32, norm="layernorm", gated_mlp=False, qkv_bias=True,
                        attention_output_bias=True, mlp_bias=True, learned_positions=8192,
                        dropout=True),
    "qkv-bias": model(qkv_bias=True, sliding_window_tokens=1024, full_attention_period=4),
    "moe": model(experts={"count": 16, "top_k": 2, "ffn": 2048}),
    "moe-period": model(experts={"count": 16, "top_k": 1, "ffn": 2048, "layer_period": 2,
                                 "shared_ffn": 2048}),
    "moe-gate": model(experts={"count": 16, "top_k": 2, "ffn": 2048, "shared_ffn": 4096,
                               "shared_gate": True}),
    "moe-bias": model(experts={"count": 32, "top_k": 4, "ffn": 2880, "router_bias": True,
                               "expert_bias": True}, qkv_bias=True, attention_output_bias=True,
                      attention_sinks=True, sliding_window_tokens=128, full_attention_period=2),
    "mla": model(layers=14, hidden=7168, heads=128, kv_heads=128, ffn=18432, mla=LATENT,
                 mtp_layers=1, head_dim=192,
                 experts={"count": 256, "top_k": 8, "ffn": 2048, "shared_ffn": 2048,
                          "first_dense_layers": 3}),
}  # fmt: skip


def layout(model: ModelSpec, **degrees: Any) -> Layout:
    """Return a layout; what is left out is 1, sp follows tp, one micro-batch a stage and chunk."""
    tp, pp, vpp = (degrees.get(k, 1) for k in ("tp", "pp", "vpp"))
    schedule = "none" if pp == 1 else "interleaved" if vpp > 1 else "1f1b"
    base: dict[str, Any] = {
        "tp": 1, "sp": tp > 1, "pp": 1, "vpp": 1, "cp": 1, "ep": 1,
        "etp": 1 if model.experts else tp, "dp": 1, "dp_replicate": 1, "zero": 1,
        "micro_batch": 1, "num_microbatches": 2 * pp, "recompute": "none", "schedule": schedule,
    }  # fmt: skip
    return Layout(**base | degrees)


def even_stages(layers: int, lay: Layout) -> list[list[int]]:
    """Return layers per stage and chunk, the first and last chunk short where it must be."""
    count = lay.pp * lay.vpp
    each = -(-layers // count)
    short = each * count - layers
    flat = [each] * count
    flat[-1] -= short // 2 + short % 2
    flat[0] -= short // 2
    return [[flat[v * lay.pp + s] for v in range(lay.vpp)] for s in range(lay.pp)]


def cluster(gpus: int, *, hosts: tuple[str, ...] | None = None) -> ClusterSpec:
    """Return nodes of 8 GPUs, or of fewer where 8 does not divide, for `gpus`."""
    each = math.gcd(gpus, GPUS_PER_NODE)
    nodes = gpus // each
    names = hosts or tuple(f"rack{9 - i % 10}-n{nodes - i}" for i in range(nodes))
    return ClusterSpec.model_validate({
        "name": "test",
        "accelerator": {
            "name": "gpu", "memory_gib": 80, "usable_memory_gib": 79, "hbm_gb_per_s": 3350,
            "peak_tflops": {"bf16": 989}, "gemm": {"t0_us": 5, "emax": 0.8},
            "attention": {"te": 0.6, "fa2": 0.4}, "sources": {},
        },
        "node": {"gpus": each, "nics": 8, "nic_gbit_per_s": 400},
        "scale_up": {"kind": "NVLink", "gb_per_s": 450},
        "fabric": {"kind": "tor", "nodes_per_leaf": 4},
        "nodes": nodes,
        "hosts": names,
    })  # fmt: skip


def placement(lay: Layout, hosts: tuple[str, ...]) -> Placement:
    """Return ranks 0..N-1 filled host by host, tp fastest, then cp, dp, pp."""
    each = lay.gpus // len(hosts)
    rows = []
    for rank in range(lay.gpus):
        tp, rest = rank % lay.tp, rank // lay.tp
        cp, rest = rest % lay.cp, rest // lay.cp
        dp, pp = rest % lay.dp, rest // lay.dp
        rows.append(RankPlace(
            rank=rank, host=hosts[rank // each], gpu=rank % each, leaf="leaf0",
            tp=tp, cp=cp, ep=(rank // lay.etp) % lay.ep, dp=dp, pp=pp,
        ))  # fmt: skip
    return Placement(status="optimal", objective=0, bound=0, splits=0, ranks=rows)


def plan(
    spec: ModelSpec,
    *,
    seq: int = 4096,
    precision: str = "bf16",
    stage_layers: list[list[int]] | None = None,
    hosts: tuple[str, ...] | None = None,
    capacity_factor: float | None = None,
    placeholders: bool = False,
    optimizer: str = "adamw",
    stack: str = "any",
    **degrees: Any,
) -> Plan:
    """Return a placed plan of one layout; with `placeholders` the cluster names no hosts."""
    lay = layout(spec, **degrees)
    machines = cluster(lay.gpus, hosts=hosts)
    work = Workload(
        seq_tokens=seq,
        global_batch=lay.micro_batch * lay.num_microbatches * lay.dp,
        precision=precision,
        capacity_factor=capacity_factor,
        optimizer=optimizer,
        stack=stack,
    )
    parts = dict.fromkeys(StageMemory.model_fields, 1.0)
    memory = Memory(
        peak_bytes=8.0, limit_bytes=9.0, stages=[StageMemory(**parts) for _ in range(lay.pp)]
    )
    estimate = Estimate(
        step_time_s=1.0, tokens_per_s=work.tokens, tokens_per_s_per_gpu=work.tokens / lay.gpus,
        tflops_per_gpu=400.0, mfu=0.4, mfu_causal=0.4, bubble_fraction=0.1,
        time_s={"compute": 1.0}, memory=memory,
    )  # fmt: skip
    stages = even_stages(spec.layers, lay) if stage_layers is None else stage_layers
    assert machines.hosts
    placed = placement(lay, machines.hosts)
    if placeholders:
        machines = machines.model_copy(update={"hosts": None})
    return Plan(
        schema="meshwright.plan/1",
        request=Request(model=spec, cluster=machines, workload=work),
        search=Search(enumerated=1, legal=1, feasible=1, rejected={}),
        plans=[RankedPlan(rank=1, layout=lay, estimate=estimate, stage_layers=stages)],
        placement=placed,
    )


def renamed(answer: Plan, host: str) -> Plan:
    """Return the plan with the last node called `host`, as only a file by another hand can be."""
    assert answer.placement
    last = answer.placement.hosts[-1]
    ranks = [
        r.model_copy(update={"host": host}) if r.host == last else r for r in answer.placement.ranks
    ]
    return answer.model_copy(
        update={"placement": answer.placement.model_copy(update={"ranks": ranks})}
    )

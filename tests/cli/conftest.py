"""A small plan made by hand, and a way to run the command line as a person does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
from planner.specs.accelerator import Accelerator, AttentionFit, GemmFit
from planner.specs.cluster import ClusterSpec, Node
from planner.specs.links import Fabric, FabricKind, ScaleUp
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload
from planner.units import GIB

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `python cli.py ...` in an empty folder, without colours asked for or refused."""

    def go(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
        return subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), *words],
            cwd=tmp_path,
            env=clean | {"COLUMNS": "80"} | more,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return go


def layout(**changes: object) -> Layout:
    base: dict[str, object] = dict(tp=8, sp=True, pp=2, vpp=1, cp=1, ep=1, etp=1, dp=2)
    base |= dict(dp_replicate=1, zero=1, micro_batch=1, num_microbatches=64)
    base |= dict(recompute="none", schedule="1f1b")
    return Layout.model_validate(base | changes)


def stage(activations_gib: float) -> StageMemory:
    parts = dict(weights=16.4, gradients=8.2, optimizer=12.3, logits=0.0, buffers=1.0, overhead=2.5)
    parts["activations"] = activations_gib
    held = {name: amount * GIB for name, amount in parts.items()}
    return StageMemory(**held, total=sum(held.values()))


def estimate(step_s: float, *stages: StageMemory, at_risk: bool = False) -> Estimate:
    peak = max(s.total for s in stages)
    return Estimate(
        step_time_s=step_s,
        tokens_per_s=1048576 / step_s,
        tokens_per_s_per_gpu=1048576 / step_s / 32,
        tflops_per_gpu=431.0,
        mfu=0.436,
        mfu_causal=0.412,
        bubble_fraction=0.0154,
        time_s={"compute": step_s - 0.75, "tp": 0.5, "bubble": 0.25, "ep": 0.0},
        memory=Memory(
            peak_bytes=peak, limit_bytes=79.1 * GIB, at_risk=at_risk, stages=list(stages)
        ),
    )


@pytest.fixture
def model() -> ModelSpec:
    return ModelSpec(
        name="tiny-70b",
        layers=80,
        hidden=8192,
        heads=64,
        kv_heads=8,
        head_dim=128,
        ffn=28672,
        vocab=128256,
        max_seq_tokens=8192,
    )


@pytest.fixture
def cluster() -> ClusterSpec:
    accelerator = Accelerator(
        name="H100",
        memory_gib=80,
        usable_memory_gib=79.1,
        hbm_gb_per_s=3350,
        peak_tflops={"bf16": 989},
        gemm=GemmFit(t0_us=5, emax=0.8),
        attention=AttentionFit(te=0.5, fa2=0.35),
        sources={},
    )
    return ClusterSpec(
        name="lab",
        accelerator=accelerator,
        node=Node(gpus=8, nics=8, nic_gbit_per_s=400),
        scale_up=ScaleUp(kind="NVLink 4", gb_per_s=450),
        fabric=Fabric(kind=FabricKind.RAIL, nodes_per_leaf=4),
        nodes=5,
    )


@pytest.fixture
def placement(cluster: ClusterSpec) -> Placement:
    ranks = [
        RankPlace(
            rank=r,
            host=cluster.host(r // 8),
            gpu=r % 8,
            leaf=f"leaf{cluster.leaf_of(r // 8)}",
            tp=r % 8,
            cp=0,
            ep=0,
            dp=r // 8 % 2,
            pp=r // 16,
        )
        for r in range(32)
    ]
    return Placement(
        status="optimal",
        objective=3,
        bound=3,
        splits=3,
        ranks=ranks,
        tiers={
            "tp": {"node": 4, "leaf": 0, "across": 0},
            "cp": {"node": 32, "leaf": 0, "across": 0},
            "pp": {"node": 0, "leaf": 16, "across": 0},
        },
        baseline={"splits": 7, "tiers": {"pp": {"node": 0, "leaf": 9, "across": 7}}},
        notes=["1 spare node"],
    )


@pytest.fixture
def plan(model: ModelSpec, cluster: ClusterSpec, placement: Placement) -> Plan:
    rows = [
        RankedPlan(
            rank=1,
            layout=layout(),
            estimate=estimate(4.0, stage(21.0), stage(14.0)),
            stage_layers=[[40], [40]],
        ),
        RankedPlan(
            rank=2,
            layout=layout(pp=4, dp=1, vpp=2, schedule="interleaved"),
            estimate=estimate(4.5, stage(37.5), stage(20.0), stage(19.9), at_risk=True),
        ),
        RankedPlan(
            rank=7,
            layout=layout(tp=1, sp=False, pp=1, dp=32, zero=0, schedule="none"),
            estimate=estimate(9.0, stage(90.0)),
            feasible=False,
            note="plain data parallelism",
        ),
    ]
    return Plan(
        request=Request(
            model=model, cluster=cluster, workload=Workload(seq_tokens=8192, global_batch=128)
        ),
        search=Search(
            enumerated=12345,
            legal=2345,
            feasible=345,
            rejected={"out of memory": 2000, "tp does not divide the heads": 10000},
        ),
        plans=rows,
        placement=placement,
        notes=["calibration covers H100 with InfiniBand"],
        timing={"search_s": 0.1, "place_s": 0.1, "total_s": 0.2},
    )


@pytest.fixture
def hostile(plan: Plan) -> Plan:
    from hostile_pages import hostile_of

    return hostile_of(plan)

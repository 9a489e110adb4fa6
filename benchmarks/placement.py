"""How long `place` takes, how many pipelines it splits, and what its maps gain over others.

    python benchmarks/placement.py [LARGEST_GPUS]
    python benchmarks/placement.py gains [GPUS]

The first prints times from 512 to 100,096 GPUs, both rules in turn. Each row is a process of its
own, so that peak memory and the import of ortools are its own too. Seconds are of the whole call:
solving (with the import of ortools, about 0.3 s, where a pipeline has to be split), expanding, one
record a rank, checking; for `fastest` also scoring every order.

The second compares maps on five fabrics: splits, bytes that leave leafs in a step (activations and
their gradients, gradients and parameters of the replicas), and the estimate's step time. It is a
model's answer, not a measurement on hardware.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time

import numpy as np

from planner.layouts.rules import Context
from planner.place import Clock, place
from planner.place.fastest import scored
from planner.place.tree import Tree
from planner.plan import Layout
from planner.specs.catalog import load_model
from planner.specs.cluster import ClusterSpec
from planner.specs.parameters import count_parameters
from planner.specs.workload import Workload
from planner.units import seconds

GPUS, LEAF_NODES = 8, 32
SIZES = (512, 2_048, 16_384, 100_096)
STAGES = (12, 16, 20, 24)
DOWN = (0.0, 0.05)
LEAFS_PER_POD = 12
FABRICS = {
    "1:1": {},
    "2:1": {"leaf_oversubscription": 2.0},
    "4:1": {"leaf_oversubscription": 4.0},
    "8:1": {"leaf_oversubscription": 8.0},
    "pods 7:1": {"pod_oversubscription": 7.0},
}
MODEL, SEQ_TOKENS, MICROBATCHES = "llama-3.1-405b", 8192, 16


def cluster_of(nodes: int, **fabric: float) -> ClusterSpec:
    """Return `nodes` nodes of 8 GPUs in leafs of 32, twelve leafs a pod."""
    accelerator = {
        "name": "GPU",
        "memory_gib": 80,
        "usable_memory_gib": 79,
        "hbm_gb_per_s": 3350,
        "peak_tflops": {"bf16": 989},
        "gemm": {"t0_us": 4, "emax": 0.7},
        "attention": {"te": 0.5, "fa2": 0.35},
        "sources": {},
    }
    return ClusterSpec.model_validate(
        {
            "name": "bench",
            "accelerator": accelerator,
            "node": {"gpus": GPUS, "nics": 8, "nic_gbit_per_s": 400},
            "scale_up": {"kind": "NVLink", "gb_per_s": 450},
            "fabric": {"kind": "rail", "nodes_per_leaf": LEAF_NODES, "leafs_per_pod": LEAFS_PER_POD}
            | fabric,
            "nodes": nodes,
        }
    )


def layout_of(pp: int, dp: int, vpp: int = 1) -> Layout:
    """Return tp 8 and the degrees given."""
    return Layout(
        tp=8, sp=True, pp=pp, vpp=vpp, cp=1, ep=1, etp=8, dp=dp, dp_replicate=1, zero=1,
        micro_batch=1, num_microbatches=MICROBATCHES if vpp > 1 else 2 * pp, recompute="none",
        schedule="interleaved" if vpp > 1 else "1f1b",
    )  # fmt: skip


def clock_of(cluster: ClusterSpec, layout: Layout) -> Clock:
    """Return the step time of the benchmark's model in that layout."""
    batch = layout.dp * layout.num_microbatches
    workload = Workload(seq_tokens=SEQ_TOKENS, global_batch=batch)
    return Clock(Context(load_model(MODEL), cluster, workload), layout)


def down_nodes(cluster: ClusterSpec, share: float) -> list[int]:
    """Return the nodes that are down, the same for everyone who asks."""
    return random.Random(1).sample(range(cluster.nodes), round(share * cluster.nodes))


def measure(gpus: int, pp: int, down: float, rule: str) -> dict[str, float | str]:
    """Place once, on as many pipelines as the healthy nodes hold."""
    cluster = cluster_of(gpus // GPUS, leaf_oversubscription=4.0)
    picked = down_nodes(cluster, down)
    layout = layout_of(pp, (cluster.nodes - len(picked)) // pp)
    unhealthy = [cluster.host(n) for n in picked]
    clock = clock_of(cluster, layout) if rule == "fastest" else None
    wall, cpu = time.perf_counter(), time.process_time()
    found = place(cluster, layout, unhealthy=unhealthy, clock=clock, pipelines=rule)
    return {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "splits": found.splits,
        "gap": found.gap,
        "by_name": found.baseline["splits"],
        "status": found.status,
        "dp": layout.dp,
    }


def orders(cluster: ClusterSpec, layout: Layout, usable: np.ndarray) -> dict[str, np.ndarray]:
    """Return nodes in rank order for people's usual ways; ranks have replicas inside stages."""
    needed = layout.pp * layout.dp

    def by_pipeline(nodes: np.ndarray) -> np.ndarray:
        return nodes[:needed].reshape(layout.dp, layout.pp).T.reshape(-1)

    shuffled = np.random.default_rng(1).permutation(usable)
    leaf = usable // LEAF_NODES
    free = np.bincount(leaf)
    height = np.arange(len(usable)) - np.repeat(np.cumsum(free) - free, free)[: len(usable)]
    whole = height < (free // layout.pp * layout.pp)[leaf]
    # greedy: whole pipelines into the emptiest leafs first, what is left over behind them
    greedy = usable[np.lexsort((usable, leaf, -free[leaf], ~whole))]
    return {
        "hostname order, replicas inner": usable[:needed],
        "hostname order, stages inner": by_pipeline(usable),
        "random order, replicas inner": shuffled[:needed],
        "random order, stages inner": by_pipeline(shuffled),
        "greedy, whole pipelines first": by_pipeline(greedy),
    }


def crossing_bytes(cluster: ClusterSpec, layout: Layout, nodes: np.ndarray) -> float:
    """Return the bytes that leave leafs in one step, over all uplinks together."""
    leaf = (nodes // LEAF_NODES).reshape(layout.pp, layout.dp)
    model = load_model(MODEL)
    sent = 2.0 * layout.micro_batch * SEQ_TOKENS * model.hidden * layout.num_microbatches
    inner = (leaf[1:] != leaf[:-1]).sum() * layout.vpp
    wraps = (leaf[0] != leaf[-1]).sum() * (layout.vpp - 1)
    shard = (4.0 + 2.0) * count_parameters(model).total / layout.pp
    rings = (leaf != np.roll(leaf, -1, axis=1)).sum()
    return 2 * sent * (inner + wraps) + rings * shard * (layout.dp - 1) / layout.dp


def gains(gpus: int) -> None:
    """Print what each way to order ranks takes, on five fabrics, healthy and with 5 % down."""
    print(f"{MODEL}, {gpus:,} GPUs, tp 8, pp 16, vpp 7, {MICROBATCHES} micro-batches a step\n")
    print("| fabric | down | order | splits | GB between leafs | step | over the fastest |")
    print("|--------|-----:|-------|-------:|-----------------:|-----:|-----------------:|")
    for name, fabric in FABRICS.items():
        for down in DOWN:
            cluster = cluster_of(gpus // GPUS, **fabric)
            out = down_nodes(cluster, down)
            usable = np.setdiff1d(np.arange(cluster.nodes), out)
            layout = layout_of(16, len(usable) // 16, vpp=7)
            clock = clock_of(cluster, layout)
            maps = orders(cluster, layout, usable)
            index = {cluster.host(n): n for n in range(cluster.nodes)}
            for rule in ("under-leaf", "fastest"):
                found = place(
                    cluster,
                    layout,
                    unhealthy=[cluster.host(n) for n in out],
                    clock=clock,
                    pipelines=rule,
                )
                maps[f"meshwright --pipelines {rule}"] = np.array([index[h] for h in found.hosts])
            rows = scored(clock, Tree.of(cluster), GPUS, maps, None)
            least = rows[-1].seconds
            for row in rows:
                moved = crossing_bytes(cluster, layout, row.nodes) / 1e9
                print(
                    f"| {name} | {down:.0%} | {row.words} | {row.splits:,} | {moved:,.0f} "
                    f"| {seconds(row.seconds)} | {row.seconds / least - 1:+.2%} |"
                )
            bound = found.step_time_bound_s
            print(f"| {name} | {down:.0%} | (no contention at all) | | | {seconds(bound)} "
                  f"| {bound / least - 1:+.2%} |", flush=True)  # fmt: skip


def main() -> None:
    if len(sys.argv) == 5:
        gpus, pp, down, rule = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
        print(json.dumps(measure(gpus, pp, down, rule)))
        return
    if sys.argv[1:2] == ["gains"]:
        gains(int(sys.argv[2]) if len(sys.argv) > 2 else 16_384)
        return
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    print(
        "|   GPUs | down | pp |  dp | rule       | splits |  gap  | by name | status   | CPU s "
        "| wall s |  MiB |"
    )
    print(
        "|-------:|-----:|---:|----:|------------|-------:|------:|--------:|----------|------:"
        "|-------:|-----:|"
    )
    for gpus in (size for size in SIZES if size <= largest):
        for pp in STAGES:
            for down in DOWN:
                for rule in ("under-leaf", "fastest"):
                    call = [sys.executable, __file__, str(gpus), str(pp), str(down), rule]
                    row = json.loads(subprocess.run(call, check=True, capture_output=True).stdout)
                    print(
                        f"|{gpus:>7,} |{down:>5.0%} |{pp:>3} |{row['dp']:>4} | {rule:<10} "
                        f"|{row['splits']:>7} |{row['gap']:>6.2%} |{row['by_name']:>8} "
                        f"| {row['status']:<8} "
                        f"|{row['cpu_s']:>6.2f} |{row['wall_s']:>7.2f} |{row['peak_mib']:>5.0f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

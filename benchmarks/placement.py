"""How long `place` takes, and how many pipelines it splits: 512 to 100,096 GPUs.

    python benchmarks/placement.py [LARGEST_GPUS]

Each row is a process of its own, so that peak memory and the import of ortools are its own too.
Seconds are of the whole call: solving (with the import of ortools, about 0.3 s, where a pipeline
has to be split), expanding, one record a rank, checking.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time

from planner.place import place
from planner.plan import Layout
from planner.specs.cluster import ClusterSpec

GPUS, LEAF_NODES = 8, 32
SIZES = (512, 2_048, 16_384, 100_096)
STAGES = (12, 16, 20, 24)
DOWN = (0.0, 0.05)


def cluster_of(nodes: int) -> ClusterSpec:
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
            "fabric": {"kind": "rail", "nodes_per_leaf": LEAF_NODES, "leafs_per_pod": 12},
            "nodes": nodes,
        }
    )


def layout_of(pp: int, dp: int) -> Layout:
    """Return tp 8 and the degrees given."""
    return Layout(
        tp=8, sp=True, pp=pp, vpp=1, cp=1, ep=1, etp=8, dp=dp, dp_replicate=1, zero=1,
        micro_batch=1, num_microbatches=2 * pp, recompute="none", schedule="1f1b",
    )  # fmt: skip


def measure(gpus: int, pp: int, down: float) -> dict[str, float | str]:
    """Place once, on as many pipelines as the healthy nodes hold."""
    cluster = cluster_of(gpus // GPUS)
    picked = random.Random(1).sample(range(cluster.nodes), round(down * cluster.nodes))
    layout = layout_of(pp, (cluster.nodes - len(picked)) // pp)
    wall, cpu = time.perf_counter(), time.process_time()
    found = place(cluster, layout, unhealthy=[cluster.host(n) for n in picked])
    return {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "splits": found.splits,
        "bound": found.bound,
        "by_name": found.baseline["splits"],
        "status": found.status,
        "dp": layout.dp,
    }


def main() -> None:
    if len(sys.argv) == 4:
        gpus, pp, down = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
        print(json.dumps(measure(gpus, pp, down)))
        return
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1]
    print(
        "|   GPUs | down | pp |  dp | splits | bound | by name | status   | CPU s | wall s |  MiB |"
    )
    print(
        "|-------:|-----:|---:|----:|-------:|------:|--------:|----------|------:|-------:|-----:|"
    )
    for gpus in (size for size in SIZES if size <= largest):
        for pp in STAGES:
            for down in DOWN:
                call = [sys.executable, __file__, str(gpus), str(pp), str(down)]
                row = json.loads(subprocess.run(call, check=True, capture_output=True).stdout)
                print(
                    f"|{gpus:>7,} |{down:>5.0%} |{pp:>3} |{row['dp']:>4} |{row['splits']:>7} "
                    f"|{row['bound']:>6g} |{row['by_name']:>8} | {row['status']:<8} "
                    f"|{row['cpu_s']:>6.2f} |{row['wall_s']:>7.2f} |{row['peak_mib']:>5.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

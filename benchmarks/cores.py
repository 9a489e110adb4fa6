"""What scoring one space takes on one core and on two: wall and CPU seconds, children included.

    python benchmarks/cores.py [MODEL CLUSTER]

CPU seconds say what sharing the work costs, on a busy machine too; the wall gain only shows where
both cores are free, so the load stands beside it.
"""

from __future__ import annotations

import os
import resource
import sys
import time

from planner.estimate.scoring import score
from planner.layouts.ranges import Fix
from planner.layouts.rules import Context
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

REPEATS = 3


def cpu_s() -> float:
    """Return the CPU seconds of this process and of those that it has waited for."""
    each = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in each)


def main() -> None:
    """Print one line for each number of cores."""
    model, cluster = (sys.argv[1:] + ["llama-3.1-405b", "dgx-h100:2048"][len(sys.argv) - 1 :])[:2]
    work = Workload(seq_tokens=8192, global_batch=2048)
    context = Context(load_model(model), load_cluster(cluster), work)
    for cores in (1, 2):
        took = []
        for _ in range(REPEATS):
            wall, used = time.perf_counter(), cpu_s()
            score(context, context.cluster.gpus, Fix(), cores=cores)
            took.append((time.perf_counter() - wall, cpu_s() - used))
        wall, used = (min(part) for part in zip(*took, strict=True))
        load = os.getloadavg()[0]
        print(f"{cores} cores: {wall:.2f} s wall, {used:.2f} s CPU (load {load:.1f})", flush=True)


if __name__ == "__main__":
    main()

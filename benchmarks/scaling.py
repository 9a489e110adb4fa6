"""What a search costs when the cluster, or the space that is searched, doubles.

    python benchmarks/scaling.py

Each search runs in a process of its own. The cost of a row of the table over the row before stands
beside how much larger its space is: both should be alike, and twice the GPUs cost about twice.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from planner.estimate.scoring import score
from planner.layouts.ranges import parse_fix
from planner.layouts.rules import Context
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
GPUS = [("llama-3.1-405b", f"dgx-h100:{nodes}", "") for nodes in (256, 512, 1024, 2048, 4096)]
EXPERTS = [("deepseek-v3", f"gb200-nvl72:{nodes}", "") for nodes in (16, 32, 64, 128)]
SPACE = [
    ("llama-3.1-405b", "dgx-h100:1024", f"micro_batch={'|'.join(map(str, range(1, most + 1)))}")
    for most in (2, 4, 8, 16)
]
REPEATS = 3


def one(model: str, cluster: str, fix: str) -> dict[str, float]:
    """Return what a search took in this process."""
    choices = dict(part.split("=") for part in fix.split(",") if part)
    around = load_cluster(cluster)
    workload = Workload(seq_tokens=8192, global_batch=8192)
    context = Context(load_model(model), around, workload)
    took = []
    for _ in range(REPEATS):
        started = time.process_time()
        found = score(context, around.gpus, parse_fix(choices), cores=1)
        took.append(time.process_time() - started)
    return {
        "enumerated": found.tally.enumerated,
        "legal": found.tally.legal,
        "cpu_s": min(took),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def rows(cases: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return one line a case, each compared with the one before."""
    lines, before = [], None
    for case in cases:
        words = [sys.executable, __file__, *case]
        told = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        now = json.loads(told.stdout)
        larger = "", ""
        if before is not None:
            larger = tuple(f"{now[key] / before[key]:.2f} x" for key in ("legal", "cpu_s"))
        lines.append(
            f"| {' '.join(case).strip()} | {now['legal']:,} | {larger[0]} | {now['cpu_s']:.3f} s | "
            f"{larger[1]} | {now['legal'] / now['cpu_s']:,.0f} | {now['peak_mib']:.0f} MiB |"
        )
        before = now
    return lines


def main(argv: Sequence[str]) -> int:
    """Print the table; with a case as arguments, what that one took."""
    if len(argv) == 3:
        print(json.dumps(one(*argv)))
        return 0
    if argv:
        print(__doc__)
        return 2
    print("| search | legal | over the last | CPU | over the last | legal a second | peak |")
    print("|---|---|---|---|---|---|---|")
    for cases in (GPUS, EXPERTS, SPACE):
        print("\n".join(rows(cases)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How long `plan` and `--help` take, and how many layouts are scored a second.

    python benchmarks/plan.py [--write-readme]

Plans and help run as processes of their own, as a user starts them. Help is compared with
importing typer alone, in turn, so that a busy machine slows both. `--write-readme` puts the table
into README.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.estimate.scoring import score
from planner.layouts.ranges import Fix
from planner.layouts.rules import Context
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- measured: benchmarks/plan.py -->\n).*?(<!-- end -->)", re.DOTALL)
MODEL, CLUSTER = "llama-3.1-405b", "dgx-h100:2048"
SEQ_TOKENS, GLOBAL_BATCH = 8192, 2048
PLAN = ["plan", MODEL, CLUSTER, "--seq", str(SEQ_TOKENS), "--global-batch", str(GLOBAL_BATCH)]
REPEATS = 5


@dataclass(frozen=True)
class Run:
    """One process: wall and CPU seconds, and its peak of resident memory."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def process(words: Sequence[str]) -> Run:
    """Run this interpreter with `words`, output dropped, and return what it took."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {child.returncode}")
    return Run(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def median(runs: Sequence[Run], figure: Callable[[Run], float]) -> float:
    """Return the median of one figure over several runs."""
    return statistics.median(figure(run) for run in runs)


def scored() -> tuple[int, int, float]:
    """Return (layouts enumerated, legal, seconds of CPU on one core) of one search, all scored."""
    workload = Workload(seq_tokens=SEQ_TOKENS, global_batch=GLOBAL_BATCH)
    cluster = load_cluster(CLUSTER)
    context = Context(load_model(MODEL), cluster, workload)
    started = time.process_time()
    found = score(context, cluster.gpus, Fix(), cores=1)
    took = time.process_time() - started
    return found.tally.enumerated, found.tally.legal, took


def table() -> str:
    """Return all figures as Markdown."""
    plans = [process(["cli.py", *PLAN]) for _ in range(REPEATS)]
    helps = [[process(["cli.py", "--help"]), process(["-c", "import typer"])] for _ in plans]
    ratio = statistics.median(ours.cpu_s / bare.cpu_s for ours, bare in helps)
    searches = [scored() for _ in range(3)]
    enumerated, legal, _ = searches[0]
    took = statistics.median(s for _, _, s in searches)
    rows = [
        (
            f"`meshwright {' '.join(PLAN)}`, ranked and placed",
            f"{median(plans, lambda r: r.wall_s):.1f} s, "
            f"{median(plans, lambda r: r.cpu_s):.1f} s CPU, "
            f"{max(r.peak_mib for r in plans):.0f} MiB",
        ),
        (
            f"layouts of that plan: {enumerated:,} enumerated",
            f"{enumerated / took:,.0f} a second of one core",
        ),
        (
            f"of these {legal:,} legal: memory of all, time of those that fit",
            f"{legal / took:,.0f} a second of one core",
        ),
        (
            "`meshwright --help`",
            f"{median([ours for ours, _ in helps], lambda r: r.cpu_s):.2f} s CPU, {ratio:.1f} x "
            "`import typer` alone",
        ),
    ]
    lines = ["| what | takes |", "|---|---|", *(f"| {what} | {takes} |" for what, takes in rows)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = f"Medians on {cores} cores ({platform.machine()}, Python {platform.python_version()})."
    return "\n".join([*lines, "", where])


def main(argv: Sequence[str]) -> int:
    """Print the figures, and write them into README if asked."""
    if list(argv) not in ([], ["--write-readme"]):
        print(__doc__)
        return 2
    text = table()
    print(text)
    if argv:
        page = ROOT / "README.md"
        old = page.read_text(encoding="utf-8")
        page.write_text(BLOCK.sub(lambda m: f"{m[1]}{text}\n{m[2]}", old), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

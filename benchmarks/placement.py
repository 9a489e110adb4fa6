"""How long `place` takes, how many pipelines it splits, and what its maps gain over others.

    python benchmarks/placement.py times [LARGEST_GPUS]
    python benchmarks/placement.py gains [GPUS]
    python benchmarks/placement.py network
    python benchmarks/placement.py --write-docs     all three, into docs/placement.md

`times` goes from 512 to 100,096 GPUs: healthy, 1 % and 5 % of the nodes down, and 30 to 60 % of
every leaf held by others. Each row is a process of its own, so peak memory is its own too; ortools
is imported before the clock starts. `proof` is the search for the fewest splits with its proof;
`place` is the whole call by either rule: solving, expanding, one record a rank, checking, every
order scored in seconds.

`gains` compares maps on five fabrics: splits, bytes that leave leafs in a step (activations and
their gradients, gradients and parameters of the replicas), and the estimate's step time. `network`
is examples/network.yaml. Both are a model's answers, not measurements on hardware.
"""

from __future__ import annotations

import json
import platform
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from planner.layouts.rules import Context
from planner.place import RULES, Clock, Tree, free_nodes, place
from planner.place.arranging import arranged, job_of
from planner.place.fastest import scored
from planner.plan import Layout
from planner.specs.catalog import load_model
from planner.specs.cluster import ClusterSpec
from planner.specs.parameters import count_parameters
from planner.specs.workload import Workload
from planner.sweep.evaluate import evaluate
from planner.sweep.points import points_of
from planner.sweep.study import read_study
from planner.units import seconds

GPUS, LEAF_NODES = 8, 32
SIZES = (512, 2_048, 16_384, 100_096)
STAGES = (12, 16, 20, 24)
SCENES = {"healthy": 0.0, "1 % down": 0.01, "5 % down": 0.05, "fragmented": None}
"""Share of the nodes that are down; fragmented: others hold 30 to 60 % of every leaf."""
TARGETS = {16_384: (0.2, 0.8, 300), 100_096: (0.5, 3.0, 300)}
"""GPUs -> CPU seconds of the proof and of one `place`, MiB without the import of ortools."""
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "placement.md"
STUDY = ROOT / "examples" / "network.yaml"
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


def out_nodes(cluster: ClusterSpec, scene: str) -> list[int]:
    """Return the nodes that cannot be used, the same for everyone who asks."""
    chance, share = random.Random(1), SCENES[scene]
    if share is not None:
        return chance.sample(range(cluster.nodes), round(share * cluster.nodes))
    leafs = [
        list(range(at, min(at + LEAF_NODES, cluster.nodes)))
        for at in range(0, cluster.nodes, LEAF_NODES)
    ]
    return [
        n
        for leaf in leafs
        for n in chance.sample(leaf, round(chance.uniform(0.3, 0.6) * len(leaf)))
    ]


def measure(gpus: int, pp: int, scene: str) -> dict[str, float | str]:
    """Place once by each rule, on as many pipelines as the usable nodes hold."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import ortools.sat.python.cp_model  # noqa: F401, PLC0415  its import is not ours to time

    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cluster = cluster_of(gpus // GPUS, leaf_oversubscription=4.0)
    picked = out_nodes(cluster, scene)
    layout = layout_of(pp, (cluster.nodes - len(picked)) // pp)
    unhealthy = [cluster.host(n) for n in picked]
    free, tree = free_nodes(cluster, unhealthy), Tree.of(cluster)
    started = time.process_time()
    fewest = arranged(job_of(cluster, layout, free, tree=tree), keep=True)
    row: dict[str, float | str] = {"proof_s": time.process_time() - started, "fewest": fewest.bound}
    for rule in RULES:
        clock = clock_of(cluster, layout)
        wall, cpu = time.perf_counter(), time.process_time()
        found = place(cluster, layout, unhealthy=unhealthy, clock=clock, pipelines=rule)
        row[f"{rule} cpu_s"] = time.process_time() - cpu
        row[f"{rule} wall_s"] = time.perf_counter() - wall
        row[f"{rule} gap"] = found.gap
        row[f"{rule} splits"] = found.splits
        row["by_name"] = found.baseline["splits"]
        del found  # or its records would count twice in the peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return row | {"peak_mib": (peak - (loaded - before)) / 1024, "dp": layout.dp}


def by_slurm(usable: np.ndarray, needed: int) -> np.ndarray:
    """Return the nodes that Slurm's tree selection takes (best fit by leaf), in order of names.

    The tightest leaf that holds what is left, else the one with most free nodes.
    """
    free = {k: usable[usable // LEAF_NODES == k].tolist() for k in np.unique(usable // LEAF_NODES)}
    taken: list[int] = []
    while (left := needed - len(taken)) > 0:
        fitting = [k for k, nodes in free.items() if len(nodes) >= left]
        leaf = (
            min(fitting, key=lambda k: (len(free[k]), k))
            if fitting
            else max(free, key=lambda k: (len(free[k]), -k))
        )
        taken += free.pop(leaf)[:left]
    return np.sort(np.array(taken, dtype=np.int64))


def orders(layout: Layout, usable: np.ndarray) -> dict[str, np.ndarray]:
    """Return nodes in rank order for people's usual ways.

    Megatron numbers replicas inside stages unless it is told otherwise
    (--use-tp-pp-dp-mapping: stages inside replicas).
    """
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
    slurm = by_slurm(usable, needed)
    maps = (
        usable[:needed], by_pipeline(usable), slurm, by_pipeline(slurm), shuffled[:needed],
        by_pipeline(shuffled), by_pipeline(greedy),
    )  # fmt: skip
    return dict(zip(WAYS, maps, strict=False))


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


WAYS = (
    "hostnames, replicas inner",
    "hostnames, stages inner",
    "Slurm's best fit, replicas inner",
    "Slurm's best fit, stages inner",
    "random, replicas inner",
    "random, stages inner",
    "greedy, whole pipelines first",
    "`under-leaf`",
    "`fastest`",
)


def gains(gpus: int) -> Iterator[str]:
    """Yield what each way to order ranks takes, on five fabrics, whole, broken and shared."""
    yield (
        f"{MODEL}, {gpus:,} GPUs under leafs of {LEAF_NODES} nodes, tp 8, pp 16, vpp 7, "
        f"{MICROBATCHES} micro-batches a step; on fragmented nodes the job takes 70 % of what is "
        "free.\n"
    )
    yield "A cell: step time over the fastest, split pipeline edges, TB between leafs in a step.\n"
    yield f"| fabric | nodes | fastest step | bound | {' | '.join(WAYS)} |"
    yield "|---|---|---:|---:|" + "---|" * len(WAYS)
    for name, fabric in FABRICS.items():
        for scene in ("healthy", "5 % down", "fragmented"):
            yield _gains(cluster_of(gpus // GPUS, **fabric), name, scene)


def _gains(cluster: ClusterSpec, fabric: str, scene: str) -> str:
    out = out_nodes(cluster, scene)
    usable = np.setdiff1d(np.arange(cluster.nodes), out)
    share = 0.7 if scene == "fragmented" else 1.0
    layout = layout_of(16, int(share * len(usable)) // 16, vpp=7)
    clock, maps = clock_of(cluster, layout), orders(layout, usable)
    index = {cluster.host(n): n for n in range(cluster.nodes)}
    unhealthy = [cluster.host(n) for n in out]
    for rule in RULES:
        found = place(cluster, layout, unhealthy=unhealthy, clock=clock, pipelines=rule)
        maps[f"`{rule}`"] = np.array([index[h] for h in found.hosts])
    rows = scored(clock, Tree.of(cluster), GPUS, maps, None)
    least = rows[-1].seconds
    cells = [
        f"{row.seconds / least - 1:+.1%}, {row.splits:,}, "
        f"{crossing_bytes(cluster, layout, row.nodes) / 1e12:.1f}"
        for row in rows
    ]
    bound = f"{(found.step_time_bound_s or 0.0) / least - 1:+.1%}"
    return f"| {' | '.join([fabric, scene, seconds(least), bound, *cells])} |"


def times(largest: int) -> Iterator[str]:
    """Yield CPU seconds, memory and splits of every size, number of stages and scene."""
    yield (
        "| GPUs | nodes | pp | dp | fewest splits | by name | proof | place under-leaf | place "
        "fastest | its gap | MiB |"
    )
    yield "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    worst: dict[int, list[float]] = {}
    for gpus in (size for size in SIZES if size <= largest):
        for pp in STAGES:
            for scene in SCENES:
                call = [sys.executable, __file__, "one", str(gpus), str(pp), scene]
                row = json.loads(subprocess.run(call, check=True, capture_output=True).stdout)
                placed_s = [row[f"{rule} cpu_s"] for rule in RULES]
                took = [row["proof_s"], max(placed_s), row["peak_mib"]]
                worst[gpus] = [max(pair) for pair in zip(took, worst.get(gpus, took), strict=True)]
                yield (
                    f"| {gpus:,} | {scene} | {pp} | {row['dp']} | {row['fewest']} "
                    f"| {row['by_name']} | {row['proof_s']:.3f} s | {placed_s[0]:.2f} s "
                    f"| {placed_s[1]:.2f} s | {row['fastest gap']:.2%} | {row['peak_mib']:.0f} |"
                )
    yield f"\nCPU seconds ({platform.machine()}, Python {platform.python_version()}), one core."
    for gpus, (proof, whole, mib) in worst.items():
        if gpus in TARGETS:
            wanted = TARGETS[gpus]
            yield (
                f"\nWorst at {gpus:,} GPUs: proof {proof:.2f} s (aim: {wanted[0]}), "
                f"place {whole:.2f} s (aim: {wanted[1]}), {mib:.0f} MiB without ortools "
                f"(aim: {wanted[2]})."
            )


def network() -> Iterator[str]:
    """Yield the step time on every network of the study, and over the best of them."""
    points = points_of(read_study(STUDY), STUDY)
    rows = [{**point.inputs, **evaluate(point.request)} for point in points if point.request]
    least = min(float(row["step_time_s"]) for row in rows)
    axis = "cluster.fabric.leaf_oversubscription"
    ways = list(dict.fromkeys(row[axis] for row in rows))
    yield f"| leafs | NICs a node | `--pipelines` | {' | '.join(f'{w}:1' for w in ways)} |"
    yield "|---|---:|---|" + "---:|" * len(ways)
    by_line: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        kind, nodes = row["cluster.fabric.kind"], row["cluster.fabric.nodes_per_leaf"]
        what = f"{nodes} nodes, {'rails' if kind == 'rail' else 'top of rack'}"
        line = (what, str(row["cluster.node.nics"]), f"`{row['pipelines']}`")
        took = float(row["step_time_s"])
        by_line.setdefault(line, []).append(f"{seconds(took)} ({took / least - 1:+.1%})")
    for line, cells in by_line.items():
        yield f"| {' | '.join((*line, *cells))} |"


def write_docs() -> None:
    """Write all three tables between their marks in docs/placement.md."""
    text = PAGE.read_text(encoding="utf-8")
    for name, made in {
        "times": times(SIZES[-1]), "gains": gains(16_384), "network": network(),
    }.items():  # fmt: skip
        block = re.compile(
            rf"(<!-- measured: benchmarks/placement.py {name} -->\n).*?(<!-- end -->)", re.DOTALL
        )
        lines = "\n".join(made)
        text = block.sub(lambda m, lines=lines: f"{m[1]}{lines}\n{m[2]}", text)
    PAGE.write_text(text, encoding="utf-8")


def main(words: list[str]) -> int:
    """Print one of the tables, or write all of them."""
    if words == ["--write-docs"]:
        write_docs()
    elif words[:1] == ["one"]:
        print(json.dumps(measure(int(words[1]), int(words[2]), words[3])))
    elif words[:1] == ["network"]:
        print("\n".join(network()))
    elif words[:1] in (["times"], ["gains"]):
        size = int(words[1]) if len(words) > 1 else SIZES[-1] if words[0] == "times" else 16_384
        for line in (times if words[0] == "times" else gains)(size):
            print(line, flush=True)
    else:
        print(__doc__)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How long the pipeline simulator takes, part by part, from a small pipeline to a huge one.

    python benchmarks/simulate.py [LARGEST_ACTIONS]

Processor seconds of one thread: making the order, its graph, and running it with both loops
(one by one, and in lockstep; `simulate` takes the second from `LOCKSTEP_RANKS` ranks on). The last
column is all of it where a plan needs the makespan only and a few micro-batches show a period.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from planner.pipeline.actions import Shape
from planner.pipeline.graph import graph_of
from planner.pipeline.registry import schedule_named
from planner.pipeline.simulate import Costs, lockstep, one_by_one
from planner.pipeline.steady import extended, laps_of, rounds_of, shorter
from planner.pipeline.timing import Links, StageTimes

SIZES = (
    ("1f1b", Shape(8, 1, 128)),
    ("interleaved", Shape(16, 8, 128)),
    ("1f1b", Shape(24, 1, 1200)),
    ("zbv", Shape(32, 2, 1024)),
    ("interleaved", Shape(64, 4, 1024)),
    ("1f1b", Shape(1024, 1, 1024)),
    ("interleaved", Shape(128, 8, 1024)),
    ("zb-h1", Shape(1024, 1, 1024)),
    ("1f1b", Shape(1024, 1, 4096)),
    ("interleaved", Shape(128, 8, 4096)),
)
LARGEST = 10_000_000
SLOW = 600_000
"""Actions above which the plain loop is not timed."""


def timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def row(name: str, shape: Shape) -> str:
    made_s, order = timed(lambda: schedule_named(name).order(shape))
    graph_s, graph = timed(lambda: graph_of(order))
    times = StageTimes.of(shape.stages, 1e-3, 1e-3, 1e-3)
    links = Links.of(shape.stages, latency_s=1e-5, sent_bytes=1e6, bytes_per_s=1e10, exposed=0.5)
    costs_s, costs = timed(lambda: Costs(graph.durations(times), *graph.messages(links)))
    together_s, _ = timed(lambda: lockstep(graph, costs))
    actions = len(graph.what)
    single = f"{timed(lambda: one_by_one(graph, costs))[0]:9.3f}" if actions <= SLOW else " " * 9
    sizes = f"{name:<12}{shape.ranks:>6}{shape.chunks:>4}{shape.microbatches:>6}{actions:>11,}"
    short_s, told = timed(lambda: until_it_repeats(name, shape, times, links))
    short = f"{short_s:9.3f}" if told else ""
    return f"{sizes}{made_s:9.3f}{graph_s + costs_s:9.3f}{single}{together_s:9.3f}{short}"


def until_it_repeats(name: str, shape: Shape, times: StageTimes, links: Links) -> object:
    if (less := shorter(name, shape, laps_of(name)[0])) is None:
        return None
    graph, turn = graph_of(schedule_named(name).order(less)), rounds_of(name, shape)
    return extended(graph, times, links, turn=turn, microbatches=shape.microbatches)


def main() -> None:
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else LARGEST
    print(
        "schedule     ranks chunks  m   actions    order    graph  one-by-1 lockstep  repeats (s)"
    )
    for name, shape in SIZES:
        if 2 * shape.stages * shape.microbatches <= largest:
            print(row(name, shape), flush=True)


if __name__ == "__main__":
    main()

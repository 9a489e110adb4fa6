"""A simulated pipeline as a trace file: the Trace Event format that Perfetto and Chrome read.

One process, one thread a rank: an event for every action (times in microseconds), and a counter of
the chunks of activations in flight.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from planner.errors import InfeasibleError
from planner.pipeline.actions import LETTERS, TOGETHER
from planner.pipeline.timeline import Timeline
from planner.simulation import Simulated

MOST_EVENTS = 1_000_000
"""About 150 MB of text; viewers give up on more."""
COLOURS = {"F": "thread_state_running", "B": "rail_response"}
COLOURS |= {"I": "rail_animation", "W": "thread_state_iowait"}
"""Names out of the viewers' own palette; one that does not know them takes its own."""


def trace_text(found: Simulated) -> str:
    """Return the trace as JSON text; raises InfeasibleError when it would be too long to open."""
    count = len(found.timeline.start_s)
    if count > MOST_EVENTS:
        raise InfeasibleError(
            f"a trace of {count:,} actions is too long to open (at most {MOST_EVENTS:,})",
            hint="--microbatches 100 runs fewer; the steady phase only repeats",
        )
    lines = ",\n".join(json.dumps(e, separators=(",", ":")) for e in _events(found))
    record = found.record
    about = {"schedule": record.schedule, "layout": record.layout.short()}
    head = json.dumps({"displayTimeUnit": "ms", "otherData": about}, separators=(",", ":"))
    return f'{head[:-1]},"traceEvents":[\n{lines}\n]}}\n'


def _events(found: Simulated) -> Iterator[dict[str, Any]]:
    name = f"pipeline, {found.record.schedule}"
    yield {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": name}}
    for rank in range(found.timeline.order.shape.ranks):
        where = {"ph": "M", "pid": 0, "tid": rank}
        yield where | {"name": "thread_name", "args": {"name": f"stage {rank}"}}
        yield where | {"name": "thread_sort_index", "args": {"sort_index": rank}}
        yield from _actions(found.timeline, rank)
        yield from _in_flight(found.timeline, rank)


def _actions(line: Timeline, rank: int) -> Iterator[dict[str, Any]]:
    """Yield one event for every action of a rank, named 'F12' (forward of micro-batch 12)."""
    span, shape = line.of(rank), line.order.shape
    starts, ends = line.start_s[span].tolist(), line.end_s[span].tolist()
    for (kind, stage, microbatch), start, end in zip(
        line.order.actions[rank].tolist(), starts, ends, strict=True
    ):
        letter = LETTERS[kind % TOGETHER]
        yield {
            "ph": "X",
            "pid": 0,
            "tid": rank,
            "name": f"{letter}{microbatch}",
            "cat": letter,
            "cname": COLOURS[letter],
            "ts": _microseconds(start),
            "dur": _microseconds(end - start),
            "args": {"chunk": stage // shape.ranks, "microbatch": microbatch},
        }


def _in_flight(line: Timeline, rank: int) -> Iterator[dict[str, Any]]:
    when, held = line.in_flight(rank)
    name = f"in flight, stage {rank}"
    for at, chunks in zip(when.tolist(), held.tolist(), strict=True):
        yield {
            "ph": "C",
            "pid": 0,
            "name": name,
            "ts": _microseconds(at),
            "args": {"chunks": chunks},
        }


def _microseconds(amount_s: float) -> float:
    return round(amount_s * 1e6, 3)

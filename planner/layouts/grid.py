"""Every layout of the declared ranges, in three steps, each rule applied as soon as it can be.

What a rule rejects at an early step stands for all the combinations that would have followed, and
is counted as such: `enumerated` is the size of the whole product, and rejected + legal equals it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from planner.layouts.factored import OPTION, SHAPE, TURN, Columns, Factored, Space
from planner.layouts.ranges import MAX_CP, MAX_ETP, MAX_VPP, MICRO_BATCHES, Fix
from planner.layouts.rules import Context, Rule, rules_of, searched_schedules
from planner.layouts.table import COLUMNS, NAMES, IntArray, Layouts
from planner.pipeline.registry import SCHEDULES

CHUNK_ROWS = 1 << 16


@dataclass
class Tally:
    """How many layouts were enumerated, and how many each rule rejected."""

    enumerated: int = 0
    legal: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Count what another tally has counted."""
        self.enumerated += other.enumerated
        self.legal += other.legal
        for name, count in other.rejected.items():
            self.rejected[name] += count


@dataclass(frozen=True)
class Grid:
    """The turns that are legal so far, the options of each, and the rules left to apply.

    `listed[first[turn]:][:count[turn]]` are the options of a turn. `edges` part the turns so that
    each part has about CHUNK_ROWS rows.
    """

    context: Context
    space: Space
    listed: IntArray
    first: IntArray
    count: IntArray
    edges: IntArray
    rules: tuple[Rule, ...]

    @property
    def rows(self) -> int:
        """Return the rows of all parts, before the last rules."""
        return int(self.count.sum())

    def __len__(self) -> int:
        return len(self.edges) - 1

    def part(self, at: int) -> tuple[Factored, Tally]:
        """Return the legal layouts of one part, and its count of rejects."""
        base: IntArray = np.arange(self.edges[at], self.edges[at + 1])
        each = self.count[base]
        turn = np.repeat(np.arange(len(base)), each)
        nth = np.arange(len(turn)) - np.repeat(np.cumsum(each) - each, each)
        option = self.listed[self.first[base][turn] + nth]
        return self._sieve(Factored(self.space, base, turn, option))

    def _sieve(self, rows: Factored) -> tuple[Factored, Tally]:
        tally, alive = Tally(), np.ones(len(rows), dtype=np.bool_)
        for rule in self.rules:
            every, code = rows.distinct(rule.on)
            breaks = rule.broken(every, self.context)
            if not breaks.any():
                continue
            broken = breaks[code] & alive
            if count := int(np.count_nonzero(broken)):
                tally.rejected[rule.name] += count
                alive &= ~broken
        tally.legal = int(np.count_nonzero(alive))
        return (rows if tally.legal == len(rows) else rows.only(np.flatnonzero(alive))), tally


def legal_layouts(context: Context, gpus: int, fix: Fix, tally: Tally) -> Iterator[Factored]:
    """Yield all legal layouts of exactly `gpus` GPUs, in chunks; `tally` is filled on the way."""
    grid = grid_of(context, gpus, fix, tally)
    if grid is None:
        return
    for at in range(len(grid)):
        rows, more = grid.part(at)
        tally.add(more)
        if len(rows):
            yield rows


def grid_of(context: Context, gpus: int, fix: Fix, tally: Tally) -> Grid | None:
    """Return all turns of exactly `gpus` GPUs that break no rule so far; None if there is none."""
    rules = rules_of(context.workload.stack)
    shapes = _shapes(context, gpus, fix)
    if not len(shapes["tp"]):
        return None
    inner = _turn_count(shapes, context, fix) * _state_count(shapes, fix)
    tally.enumerated += int(inner.sum())
    shapes, inner = _sieve(shapes, inner, _bound_by(rules, SHAPE), context, tally)
    if not len(inner):
        return None
    turns = _turns(shapes, context, fix)
    turn_rules = [rule for rule in _bound_by(rules, TURN) if not set(rule.on) <= {*SHAPE}]
    turns, _ = _sieve(turns, _state_count(turns, fix), turn_rules, context, tally)
    if not len(turns["tp"]):
        return None
    left = tuple(rule for rule in rules if not set(rule.on) <= {*TURN})
    options, listed, first, count = _options(turns, fix)
    ends = np.cumsum(count)
    edges = np.unique(np.searchsorted(ends, np.arange(0, ends[-1], CHUNK_ROWS), side="left"))
    return Grid(
        context=context,
        space=Space(turns, options),
        listed=listed,
        first=first,
        count=count,
        edges=np.append(edges, len(count)),
        rules=left,
    )


def _bound_by(rules: Iterable[Rule], columns: tuple[str, ...]) -> list[Rule]:
    return [rule for rule in rules if set(rule.on) <= {*columns}]


def _blank(columns: Columns) -> Layouts:
    """Return layouts whose columns that are not expanded yet hold one."""
    ones = np.ones(len(columns["tp"]), dtype=np.int64)
    return Layouts(**{name: columns.get(name, ones) for name in COLUMNS})


def _sieve(
    columns: Columns, inner: IntArray, rules: list[Rule], context: Context, tally: Tally
) -> tuple[Columns, IntArray]:
    """Drop the rows that break a rule; each counts `inner` layouts under the first it breaks."""
    layouts = _blank(columns)
    alive = np.ones(len(inner), dtype=bool)
    for rule in rules:
        broken = rule.broken(layouts, context) & alive
        if broken.any():
            tally.rejected[rule.name] += int(inner[broken].sum())
            alive &= ~broken
    return {name: column[alive] for name, column in columns.items()}, inner[alive]


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    low = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})


def _shapes(context: Context, gpus: int, fix: Fix) -> Columns:
    """Return every (tp, cp, pp, ep, etp) with tp * cp * pp * dp = gpus."""
    model, cluster = context.model, context.cluster
    rows = []
    experts = model.experts.count if model.experts else 1
    expert_degrees = fix.pick("ep", divisors(experts))
    top_tp = max(16, cluster.domain_gpus)
    for tp in fix.pick("tp", [d for d in divisors(gpus) if d <= top_tp], ceiling=gpus):
        if gpus % tp:
            continue
        widths = [d for d in divisors(tp) if d <= MAX_ETP] if model.experts else [1]
        etps = fix.pick("etp", widths)
        for cp in fix.pick("cp", [d for d in divisors(gpus // tp) if d <= MAX_CP], ceiling=gpus):
            if gpus % (tp * cp):
                continue
            stages = [d for d in divisors(gpus // (tp * cp)) if d <= model.layers + 2]
            for pp in fix.pick("pp", stages, ceiling=gpus):
                dp = gpus // (tp * cp * pp)
                if tp * cp * pp * dp == gpus and fix.allows("dp", dp):
                    rows += [(tp, cp, pp, dp, ep, etp) for ep in expert_degrees for etp in etps]
    table = np.array(rows, dtype=np.int64).reshape(-1, len(SHAPE))
    return {name: table[:, i] for i, name in enumerate(SHAPE)}


@cache
def _schedules(vpp: int, searched: tuple[str, ...]) -> list[int]:
    """Return the codes of the schedules searched that run so many virtual chunks a stage."""
    named = enumerate(SCHEDULES.values(), start=1)
    return [code for code, s in named if s.name in searched and s.takes(vpp)]


def _turn_options(pp: int, context: Context, fix: Fix) -> list[tuple[int, int]]:
    """Return the (vpp, schedule) pairs that a pipeline of `pp` stages may run."""
    top = 1 if pp == 1 else max(1, min(MAX_VPP, (context.model.layers + 2) // pp))
    options = []
    for vpp in fix.pick("vpp", range(1, top + 1)):
        natural = [0] if pp == 1 else _schedules(vpp, searched_schedules(context))
        options += [(vpp, schedule) for schedule in fix.pick("schedule", natural)]
    return options


def _turn_count(shapes: Columns, context: Context, fix: Fix) -> IntArray:
    per_pp = {int(pp): len(_turn_options(int(pp), context, fix)) for pp in np.unique(shapes["pp"])}
    batches = len(fix.pick("micro_batch", MICRO_BATCHES))
    return np.array([per_pp[int(pp)] * batches for pp in shapes["pp"]], dtype=np.int64)


def _turns(shapes: Columns, context: Context, fix: Fix) -> Columns:
    """Expand each shape by (vpp, schedule) and micro_batch."""
    batches = np.array(fix.pick("micro_batch", MICRO_BATCHES), dtype=np.int64)
    parts: list[Columns] = []
    for pp in np.unique(shapes["pp"]):
        rows = {name: column[shapes["pp"] == pp] for name, column in shapes.items()}
        options = np.array(_turn_options(int(pp), context, fix), dtype=np.int64).reshape(-1, 2)
        n, k, b = len(rows["tp"]), len(options), len(batches)
        out = {name: np.repeat(column, k * b) for name, column in rows.items()}
        out["vpp"] = np.tile(np.repeat(options[:, 0], b), n)
        out["schedule"] = np.tile(np.repeat(options[:, 1], b), n)
        out["micro_batch"] = np.tile(batches, n * k)
        parts.append(out)
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    per_step = context.workload.global_batch // (joined["dp"] * joined["micro_batch"])
    joined["num_microbatches"] = np.maximum(per_step, 1)
    return joined


def _state_options(tp: int, dp: int, plain: bool, fix: Fix) -> list[tuple[int, ...]]:
    """Return the options (columns as in OPTION) of a (tp, dp)."""
    options: list[tuple[int, ...]] = []
    for sp in fix.pick("sp", (0, 1) if tp > 1 else (0,)):
        for zero in fix.pick("zero", range(4)):
            groups = divisors(dp) if zero == 3 else [1]  # all of dp: sharded over cp alone
            syncs = range(2) if plain and zero == 0 else range(1)
            options += [
                (sp, zero, replicate, recompute, offload, sync)
                for offload in fix.pick("offload", (0,))  # to the host only where it is asked for
                for replicate in fix.pick("dp_replicate", groups)
                for recompute in fix.pick("recompute", range(len(NAMES["recompute"])))
                for sync in fix.pick("dp_sync", syncs)
            ]
    return options


def _kind_of_state(columns: Columns) -> tuple[IntArray, IntArray]:
    """Return the distinct (tp > 1, dp, plain) keys and, for each row, the index of its key."""
    plain = columns["tp"] * columns["cp"] * columns["pp"] * columns["ep"] == 1
    key = (columns["dp"] << 2) | ((columns["tp"] > 1).astype(np.int64) << 1) | plain
    keys, inverse = np.unique(key, return_inverse=True)
    return keys, inverse.astype(np.int64)


def _options_of(key: int, fix: Fix) -> list[tuple[int, ...]]:
    return _state_options(2 if key & 2 else 1, key >> 2, bool(key & 1), fix)


def _state_count(columns: Columns, fix: Fix) -> IntArray:
    keys, inverse = _kind_of_state(columns)
    return np.array([len(_options_of(int(k), fix)) for k in keys], dtype=np.int64)[inverse]


def _options(turns: Columns, fix: Fix) -> tuple[Columns, IntArray, IntArray, IntArray]:
    """Return the distinct options, lists of them end to end, and each turn's (first, count)."""
    keys, inverse = _kind_of_state(turns)
    lists = [_options_of(int(key), fix) for key in keys]
    number: dict[tuple[int, ...], int] = {}
    for option in (option for listed in lists for option in listed):
        number.setdefault(option, len(number))
    listed = np.array([number[o] for options in lists for o in options], dtype=np.int64)
    count = np.array([len(options) for options in lists], dtype=np.int64)
    table = np.array(list(number), dtype=np.int64).reshape(-1, len(OPTION))
    columns = {name: np.ascontiguousarray(table[:, c]) for c, name in enumerate(OPTION)}
    return columns, listed, (np.cumsum(count) - count)[inverse], count[inverse]

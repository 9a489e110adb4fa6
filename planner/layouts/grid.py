"""Every layout of the declared ranges, in three steps, each rule applied as soon as it can be.

What a rule rejects at an early step stands for all the combinations that would have followed, and
is counted as such: `enumerated` is the size of the whole product, and rejected + legal equals it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from planner.layouts.factored import OPTION, SHAPE, TURN, Columns, Factored, Space
from planner.layouts.ranges import UNITS, Fix, most_cp
from planner.layouts.rules import Context, Rule, rules_of, searched_schedules
from planner.layouts.table import COLUMNS, NAMES, IntArray, Layouts
from planner.layouts.units import FULL, RECOMPUTE_AT, most_units, with_units
from planner.pipeline.registry import SCHEDULES

CHUNK_ROWS = 1 << 16
SIZED = (*SHAPE, "micro_batch", "num_microbatches")


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
            breaks = rule.broken(rows.every(rule.on), self.context)
            if not breaks.any():
                continue
            broken = breaks[rows.of_every(rule.on)] & alive
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


def grid_of(
    context: Context, gpus: int, fix: Fix, tally: Tally, rules: Sequence[Rule] | None = None
) -> Grid | None:
    """Return all turns of exactly `gpus` GPUs that break no rule so far; None if there is none.

    `rules` are those of the workload's stack, unless they are given.
    """
    rules = rules_of(context.workload.stack) if rules is None else rules
    shapes = _shapes(context, gpus, fix)
    if not len(shapes["tp"]):
        return None
    inner = _inner(shapes, context, fix) * len(_micro_batches(context, fix))
    tally.enumerated += int(inner.sum())
    shapes, inner = _sieve(shapes, inner, _bound_by(rules, SHAPE), context, tally)
    if not len(inner):
        return None
    turns = _turns(shapes, rules, context, fix, tally)
    if not len(turns["tp"]):
        return None
    if UNITS in fix.opened:  # turns with as many choices of units together: see `Factored.every`
        order = np.argsort(_units(turns, context, fix), kind="stable")
        turns = {name: column[order] for name, column in turns.items()}
    alone = _bound_by(rules, OPTION)
    options, listed, first, count = _options(turns, alone, context, fix, tally)
    ends = np.cumsum(count)
    edges = np.unique(np.searchsorted(ends, np.arange(0, ends[-1], CHUNK_ROWS), side="left"))
    return Grid(
        context=context,
        space=Space(turns, options),
        listed=listed,
        first=first,
        count=count,
        edges=np.append(edges, len(count)),
        rules=tuple(r for r in rules if not ({*r.on} <= {*TURN} or {*r.on} <= {*OPTION})),
    )


def _bound_by(
    rules: Sequence[Rule], columns: tuple[str, ...], but: tuple[str, ...] = ()
) -> list[Rule]:
    """Return the rules that look at `columns` only, without those that need no more than `but`."""
    bound = [rule for rule in rules if set(rule.on) <= {*columns}]
    return [rule for rule in bound if not (but and set(rule.on) <= {*but})]


def _blank(columns: Columns) -> Layouts:
    """Return layouts whose columns that are not expanded yet hold one."""
    ones = np.ones(len(columns["tp"]), dtype=np.int64)
    return Layouts(**{name: columns.get(name, ones) for name in COLUMNS})


def _sieve(
    columns: Columns, inner: IntArray, rules: Sequence[Rule], context: Context, tally: Tally
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
        etps = fix.pick("etp", divisors(tp) if model.experts else [1])
        cps = [d for d in divisors(gpus // tp) if d <= most_cp(context.workload.seq_tokens)]
        for cp in fix.pick("cp", cps, ceiling=gpus):
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
    top = 1 if pp == 1 else max(1, (context.model.layers + 2) // pp)
    options = []
    for vpp in fix.pick("vpp", range(1, top + 1)):
        searched = searched_schedules(context, every="schedule" in fix.opened)
        natural = [0] if pp == 1 else _schedules(vpp, searched)
        options += [(vpp, schedule) for schedule in fix.pick("schedule", natural)]
    return options


def _inner(columns: Columns, context: Context, fix: Fix) -> IntArray:
    """Return how many turns with options follow from each row, before any rule."""
    numbers = {}
    for pp in np.unique(columns["pp"]).tolist():
        turns = _turn_options(pp, context, fix)
        more = sum(most_units(context, fix, pp, *turn) - 1 for turn in turns)
        numbers[pp] = len(turns), more
    each = [numbers[pp] for pp in columns["pp"].tolist()]
    turns_of, more_of = np.array(each, dtype=np.int64).reshape(-1, 2).T
    inner: IntArray = turns_of * _state_count(columns, fix)
    return inner + more_of * _recomputed_count(columns, fix)


def _micro_batches(context: Context, fix: Fix) -> IntArray:
    """Return the micro-batches that are tried: all divisors of the global batch."""
    declared = divisors(context.workload.global_batch)
    return np.array(fix.pick("micro_batch", declared), dtype=np.int64)


def _turns(
    shapes: Columns, rules: Sequence[Rule], context: Context, fix: Fix, tally: Tally
) -> Columns:
    """Expand each shape by micro_batch, then by (vpp, schedule); sieve as soon as a rule can."""
    batches = _micro_batches(context, fix)
    sized = {name: np.repeat(column, len(batches)) for name, column in shapes.items()}
    sized["micro_batch"] = np.tile(batches, len(shapes["tp"]))
    per_step = context.workload.global_batch // (sized["dp"] * sized["micro_batch"])
    sized["num_microbatches"] = np.maximum(per_step, 1)
    inner = _inner(sized, context, fix)
    early = _bound_by(rules, SIZED, but=SHAPE)
    sized, _ = _sieve(sized, inner, early, context, tally)
    late = _bound_by(rules, TURN, but=SIZED)
    parts = []
    for pp in np.unique(sized["pp"]):
        rows = {name: column[sized["pp"] == pp] for name, column in sized.items()}
        options = np.array(_turn_options(int(pp), context, fix), dtype=np.int64).reshape(-1, 2)
        out = {name: np.repeat(column, len(options)) for name, column in rows.items()}
        out["vpp"] = np.tile(options[:, 0], len(rows["tp"]))
        out["schedule"] = np.tile(options[:, 1], len(rows["tp"]))
        follow = _state_count(out, fix)
        if UNITS in fix.opened:
            more = _units(out, context, fix) - 1
            follow = follow + more * _recomputed_count(out, fix)
        parts.append(_sieve(out, follow, late, context, tally)[0])
    none = {name: np.zeros(0, dtype=np.int64) for name in TURN}
    return {name: np.concatenate([part[name] for part in [none, *parts]]) for name in TURN}


def _state_options(key: int, fix: Fix) -> list[tuple[int, ...]]:
    """Return the options (columns as in OPTION) of a kind of state, with no choice of units."""
    tp_splits, dp, plain = bool(key & 2), key >> 2, bool(key & 1)
    options: list[tuple[int, ...]] = []
    away = range(len(NAMES["offload"]) if "offload" in fix.opened else 1)
    for sp in fix.pick("sp", (0, 1) if tp_splits else (0,)):
        for zero in fix.pick("zero", range(4)):
            groups = divisors(dp) if zero == 3 else [1]  # all of dp: sharded over cp alone
            syncs = range(2) if plain and zero == 0 else range(1)
            options += [
                (sp, zero, replicate, recompute, 0, offload, sync)
                for offload in fix.pick("offload", away)  # to the host only where it is asked for
                for replicate in fix.pick("dp_replicate", groups)
                for recompute in fix.pick("recompute", range(len(NAMES["recompute"])))
                for sync in fix.pick("dp_sync", syncs)
            ]
    return options


def _kind_of_state(columns: Columns) -> IntArray:
    """Return the key of (tp > 1, dp, plain) of each row."""
    plain = columns["tp"] * columns["cp"] * columns["pp"] * columns["ep"] == 1
    key: IntArray = (columns["dp"] << 2) | ((columns["tp"] > 1).astype(np.int64) << 1) | plain
    return key


def _state_count(columns: Columns, fix: Fix) -> IntArray:
    keys, inverse = np.unique(_kind_of_state(columns), return_inverse=True)
    counts = [len(_state_options(int(key), fix)) for key in keys]
    return np.array(counts, dtype=np.int64)[inverse]


def _recomputed_count(columns: Columns, fix: Fix) -> IntArray:
    """Return how many options of each row recompute whole layers, and so have units to choose."""
    keys, inverse = np.unique(_kind_of_state(columns), return_inverse=True)
    counts = [
        sum(option[RECOMPUTE_AT] == FULL for option in _state_options(int(key), fix))
        for key in keys
    ]
    return np.array(counts, dtype=np.int64)[inverse]


def _units(columns: Columns, context: Context, fix: Fix) -> IntArray:
    """Return how many choices of units each turn has."""
    keys = (columns["pp"] << 32) | (columns["vpp"] << 8) | columns["schedule"]
    distinct, inverse = np.unique(keys, return_inverse=True)
    found = [
        most_units(context, fix, key >> 32, (key >> 8) & 0xFFFFFF, key & 0xFF)
        for key in distinct.tolist()
    ]
    return np.array(found, dtype=np.int64)[inverse]


def _options(
    turns: Columns, rules: Sequence[Rule], context: Context, fix: Fix, tally: Tally
) -> tuple[Columns, IntArray, IntArray, IntArray]:
    """Return the distinct options, lists of them end to end, and each turn's (first, count).

    Options that `rules` refuse by themselves are in no list, and counted for every turn.
    """
    units = _units(turns, context, fix)
    states, state_of = np.unique(_kind_of_state(turns), return_inverse=True)
    every = [
        with_units(_state_options(int(key), fix), int(units[state_of == at].max()))
        for at, key in enumerate(states)
    ]
    table, number = np.unique(np.concatenate(every), axis=0, return_inverse=True)
    ends = np.cumsum([len(options) for options in every])
    columns = {name: np.ascontiguousarray(table[:, c]) for c, name in enumerate(OPTION)}
    kinds, inverse = np.unique(state_of * (units.max() + 1) + units, return_inverse=True)
    lists = []
    for kind in kinds.tolist():
        state, most = divmod(kind, int(units.max()) + 1)
        listed = number[ends[state] - len(every[state]) : ends[state]]
        lists.append(listed[columns["recompute_units"][listed] < most])
    turns_of = np.zeros(len(table), dtype=np.int64)
    for often, listed in zip(np.bincount(inverse, minlength=len(kinds)), lists, strict=True):
        turns_of[listed] += often
    blank = {name: np.ones(len(table), dtype=np.int64) for name in TURN}
    numbers = {"number": np.arange(len(table))}
    kept, _ = _sieve({**blank, **columns, **numbers}, turns_of, rules, context, tally)
    allowed = np.zeros(len(table), dtype=np.bool_)
    allowed[kept["number"]] = True
    chosen = [listed[allowed[listed]] for listed in lists]
    count = np.array([len(listed) for listed in chosen], dtype=np.int64)
    return columns, np.concatenate(chosen), (np.cumsum(count) - count)[inverse], count[inverse]

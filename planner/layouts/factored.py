"""Factored layouts: many rows, each a way to run (a turn) with a way to keep states (an option).

A million rows repeat a few thousand turns and a few dozen options. So a row is two small numbers,
its columns are gathered when a formula asks for them, and what depends on a few columns only is
told apart on turns and options, not on rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from planner.layouts.table import EVERY_COLUMN, IntArray, Layouts

SHAPE = ("tp", "cp", "pp", "dp", "ep", "etp")
TURN = (*SHAPE, "vpp", "schedule", "micro_batch", "num_microbatches")
OPTION = ("sp", "zero", "dp_replicate", "recompute", "recompute_units", "offload", "dp_sync")
Columns = dict[str, IntArray]
Index = NDArray[np.integer[Any]]


class Codes(NamedTuple):
    """Each row's number among the distinct combinations of some columns, and how many there are."""

    code: Index
    size: int

    def first(self) -> IntArray:
        """Return one row of each combination."""
        rows = np.zeros(self.size, dtype=np.int64)
        rows[self.code] = np.arange(len(self.code))
        return rows


def ranks_of(values: Index, bound: int | None = None) -> Codes:
    """Return each value's rank among the distinct values, and how many there are.

    Small non-negative integers (below `bound`, default: the largest + 1) are ranked through a table
    of the values present, without a sort.
    """
    if not len(values):
        return Codes(values, 0)
    bound = int(values.max()) + 1 if bound is None else bound
    if bound > 16 * len(values) + (1 << 12):
        distinct, ranks = np.unique(values, return_inverse=True)
        return Codes(ranks.astype(np.int64), len(distinct))
    present = np.zeros(bound, dtype=np.bool_)
    present[values] = True
    table = np.cumsum(present)
    return Codes((table - 1)[values], int(table[-1]))


def codes_of(columns: Mapping[str, IntArray], on: tuple[str, ...], rows: int) -> Codes:
    """Return the distinct combinations of the columns `on` over so many rows."""
    found = Codes(np.zeros(rows, dtype=np.int64), min(rows, 1))
    for name in on:
        column = ranks_of(columns[name])
        if column.size > 1:
            bound = found.size * column.size
            found = ranks_of(found.code * column.size + column.code, bound)
    return found


def blocks_in(units: IntArray) -> bool:
    """Return whether any choice of `recompute_units` is the first layers of each chunk."""
    return bool(((units > 0) & (units % 2 == 0)).any())


@dataclass(frozen=True)
class Space:
    """All turns and all options that the rows of one search are made of."""

    turns: Columns
    options: Columns
    known: dict[tuple[str, ...], Codes] = field(default_factory=dict)

    @cached_property
    def schedules(self) -> IntArray:
        """Return the codes of the schedules that there are."""
        return np.unique(self.turns["schedule"])

    @cached_property
    def has_blocks(self) -> bool:
        """Return whether any option recomputes the first layers of each chunk only."""
        return blocks_in(self.options["recompute_units"])

    @cached_property
    def has_units(self) -> bool:
        """Return whether any option recomputes by other layers than the workload says."""
        return bool(self.options["recompute_units"].any())

    def codes(self, on: tuple[str, ...]) -> Codes:
        """Return the combinations of some columns, all of turns or all of options; kept."""
        if on not in self.known:
            of = self.turns if on and on[0] in TURN else self.options
            found = codes_of(of, on, len(next(iter(of.values()))))
            self.known[on] = Codes(found.code.astype(np.int32), found.size)
        return self.known[on]


def split(on: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which of some columns belong to turns and which to options, each in one order."""
    return tuple(n for n in TURN if n in on), tuple(n for n in OPTION if n in on)


def in_order(on: tuple[str, ...]) -> tuple[str, ...]:
    """Return some columns in the one order that they are kept under."""
    turn_on, option_on = split(on)
    return (*turn_on, *option_on)


class Factored(Layouts):
    """Layouts as (turn, option) pairs of a space. `base` lists turns, `turn` points into it."""

    space: Space
    base: IntArray
    turn: Index
    option: Index

    near: dict[tuple[str, ...], Codes]

    def __init__(
        self,
        space: Space,
        base: IntArray,
        turn: Index,
        option: Index,
        near: dict[tuple[str, ...], Codes] | None = None,
    ) -> None:
        """Take the pairs; columns come when they are asked for. `near` is what is known of base."""
        near = {} if near is None else near
        self.__dict__.update(space=space, base=base, turn=turn, option=option, near=near)

    def __len__(self) -> int:
        return len(self.turn)

    def __getattr__(self, name: str) -> IntArray:
        if name not in EVERY_COLUMN:
            raise AttributeError(name)
        column = self.column(name)
        self.__dict__[name] = column
        return column

    def column(self, name: str) -> IntArray:
        """Return one column, which is not kept."""
        if name in TURN:
            return self.space.turns[name][self.base][self.turn]
        return self.space.options[name][self.option]

    def take(self, rows: Any) -> Layouts:  # type: ignore[override]
        """Return some rows as plain layouts."""
        turns, options = self.base[self.turn[rows]], self.option[rows]
        columns = {name: column[turns] for name, column in self.space.turns.items()}
        columns |= {name: column[options] for name, column in self.space.options.items()}
        return Layouts(**columns)

    def only(self, rows: Any) -> Self:
        """Return some rows, factored still."""
        some = type(self)(self.space, self.base, self.turn[rows], self.option[rows], self.near)
        some.__dict__["listed"] = self.present  # what is known of all of them goes by these
        return some

    def combinations(self, on: tuple[str, ...]) -> int:
        """Return how many combinations of `on` the turns in `base` have with the rows' options."""
        turn_on, option_on = split(on)
        return self._turns(turn_on).size * self._options(option_on).size

    def every(self, on: tuple[str, ...]) -> Factored:
        """Return one row of each of these combinations."""
        turn_on, option_on = split(on)
        first = self.base[self._turns(turn_on).first()]
        options = self._options(option_on)
        first_option = np.zeros(options.size, dtype=np.int64)
        first_option[options.code[self.present]] = self.present
        return product(self.space, first, first_option)

    def of_every(self, on: tuple[str, ...]) -> Index:
        """Return each row's number among these combinations."""
        turn_on, option_on = split(on)
        turns = self._turns(turn_on).code[self.turn]
        return paired(turns, self._options(option_on), self.option)

    @property
    def present(self) -> IntArray:
        """Return the options that any row has."""
        if "listed" not in self.__dict__:
            some = np.zeros(len(self.space.options["sp"]), dtype=np.bool_)
            some[self.option] = True
            self.__dict__["listed"] = np.flatnonzero(some)
        listed: IntArray = self.__dict__["listed"]
        return listed

    def _options(self, on: tuple[str, ...]) -> Codes:
        """Return the combinations of an option's columns that the rows have, for every option.

        Of options that no row has the code means nothing.
        """
        key = ("option", *on)
        if key not in self.near:
            every = self.space.codes(on)
            some = np.zeros(every.size, dtype=np.bool_)
            some[every.code[self.present]] = True
            rank = np.cumsum(some) - 1
            self.near[key] = Codes(rank.astype(np.int32)[every.code], int(rank[-1]) + 1)
        return self.near[key]

    def _turns(self, on: tuple[str, ...]) -> Codes:
        """Return the combinations of a turn's columns that occur in `base`."""
        if on not in self.near:
            known = self.space.codes(on).code[self.base] if on else 0 * self.base
            self.near[on] = ranks_of(known)
        return self.near[on]

    def everywhere(self, on: tuple[str, ...]) -> int:
        """Return how many combinations of `on` the whole space has."""
        turn_on, option_on = split(on)
        turns = self.space.codes(turn_on).size if turn_on else 1
        return turns * self.space.codes(option_on).size

    def of_space(self, on: tuple[str, ...]) -> Index:
        """Return each row's number among all combinations of the space (see `all_of`)."""
        turn_on, option_on = split(on)
        if not turn_on:
            return self.space.codes(option_on).code[self.option]
        turns = self.space.codes(turn_on).code[self.base]
        return paired(turns[self.turn], self.space.codes(option_on), self.option)


def paired(turn_code: Index, options: Codes, option: Index) -> Index:
    """Return the number of (turn code, option's code) in a product of both."""
    if options.size == 1:
        return turn_code
    code: Index = turn_code * options.size + options.code[option]
    return code


def product(space: Space, turns: IntArray, options: IntArray) -> Factored:
    """Return every turn with every option, options fastest."""
    n, k = len(turns), len(options)
    return Factored(space, turns, np.repeat(np.arange(n), k), np.tile(options, n))


def all_of(space: Space, on: tuple[str, ...]) -> Factored:
    """Return one row of each combination of `on` in a space, in the order of `of_space`."""
    turn_on, option_on = split(on)
    turns = space.codes(turn_on).first() if turn_on else np.zeros(1, dtype=np.int64)
    return product(space, turns, space.codes(option_on).first())

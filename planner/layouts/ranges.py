"""The declared range of every degree, and how a user narrows it (`--fix tp=8,pp=4..16`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from planner.errors import SpecError, did_you_mean
from planner.layouts.table import COLUMNS, NAMES

MOST_CP = 64
TILE_TOKENS = 128
"""Rows of scores that a tile of an attention kernel works on."""
OPENED = ("offload", "schedule")
"""Fields whose whole range is searched only where that is asked for."""
UNITS = "recompute-layers"
"""The axis of `Layouts.recompute_units`, searched only where that is asked for, too."""
FIXABLE = tuple(c for c in COLUMNS if c != "num_microbatches")


@dataclass(frozen=True)
class Choice:
    """The values that one field may take: a set of values, or a closed interval."""

    text: str
    values: frozenset[int] | None = None
    low: int = 0
    high: int = 0

    def allows(self, value: int) -> bool:
        """Return whether `value` is among the choices."""
        return value in self.values if self.values is not None else self.low <= value <= self.high

    @property
    def only(self) -> int | None:
        """Return the value where there is one choice, None where there are several."""
        if self.values is not None:
            return next(iter(self.values)) if len(self.values) == 1 else None
        return self.low if self.low == self.high else None

    def listed(self) -> tuple[int, ...]:
        """Return the values in order; an interval is written out."""
        found = self.values if self.values is not None else range(self.low, self.high + 1)
        return tuple(sorted(found))


@dataclass(frozen=True)
class Fix:
    """What the user has fixed, by field; a field that is absent is free."""

    choices: Mapping[str, Choice] = field(default_factory=dict)
    opened: frozenset[str] = frozenset()
    """Of `OPENED` and `UNITS`, those that are searched whole."""

    def allows(self, name: str, value: int) -> bool:
        """Return whether `name` may take `value`."""
        choice = self.choices.get(name)
        return choice is None or choice.allows(value)

    def pick(self, name: str, declared: Iterable[int], *, ceiling: int = 1 << 20) -> list[int]:
        """Return the declared values that are allowed, or the user's own where he named them.

        A user's value outside of the declared range counts (the rules decide), up to `ceiling`.
        """
        choice = self.choices.get(name)
        if choice is None:
            return list(declared)
        if choice.values is not None or choice.high - choice.low < 4096:
            return [v for v in choice.listed() if v <= ceiling]
        return [v for v in declared if choice.allows(v)]


def most_cp(seq_tokens: int) -> int:
    """Return the largest cp that is tried: 64, or more where each rank keeps a whole tile."""
    return max(MOST_CP, seq_tokens // TILE_TOKENS)


def parse_fix(raw: Mapping[str, str], opened: Iterable[str] = ()) -> Fix:
    """Return the choices of `{'tp': '8', 'pp': '4..16', 'recompute': 'none|full'}`.

    Raises SpecError naming the field and what it allows.
    """
    choices = {name: _choice(name, text) for name, text in raw.items()}
    return Fix(choices, frozenset(opened) & {*OPENED, UNITS})


def _choice(name: str, text: str) -> Choice:
    if name not in FIXABLE:
        raise SpecError(
            f"layout field {name!r} is not known; allowed: {', '.join(FIXABLE)}",
            hint=did_you_mean(name, FIXABLE),
        )
    if ".." in text and name not in NAMES and name != "sp":
        low, _, high = text.partition("..")
        first, last = _value(name, low, text), _value(name, high, text)
        if first > last:
            raise SpecError(f"{name}={text}: the range is empty ({first} is more than {last})")
        return Choice(text, low=first, high=last)
    return Choice(text, frozenset(_value(name, part, text) for part in text.split("|")))


def _value(name: str, part: str, text: str) -> int:
    word = part.strip().lower()
    if name in NAMES:
        if word in NAMES[name]:
            return NAMES[name].index(word)
        raise SpecError(
            f"{name}={text}: {part!r} is not allowed; allowed: {', '.join(NAMES[name])}",
            hint=did_you_mean(word, NAMES[name]),
        )
    if name == "sp":
        truth = {"true": 1, "1": 1, "yes": 1, "on": 1, "false": 0, "0": 0, "no": 0, "off": 0}
        if word in truth:
            return truth[word]
        raise SpecError(f"sp={text}: {part!r} is not allowed; allowed: true, false")
    if not word.isascii() or not word.isdigit() or len(word) > 9:
        raise SpecError(f"{name}={text}: {part!r} is not a whole number (or a range such as 2..8)")
    low = 0 if name == "zero" else 1
    if int(word) < low or (name == "zero" and int(word) > 3):
        allowed = "0, 1, 2, 3" if name == "zero" else "1 or more"
        raise SpecError(f"{name}={text}: {word} is not allowed; allowed: {allowed}")
    return int(word)

"""What varies in a sweep: the axes of its charts, found in the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

ANY = "any"
Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
INPUTS = (
    *("model", "cluster", "gpus", "nodes", "seq_tokens", "global_batch", "precision", "stack"),
    *("optimizer", "max_memory", "risk_memory", "expert_imbalance", "capacity_factor", "fix"),
)
"""Columns that say what was asked, in the order in which they make good axes."""


def inputs_of(rows: Sequence[Row]) -> list[str]:
    """Return the input columns that the rows have, also those of dotted paths."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    dotted = [n for n in names if "." in n and not n.startswith("time_s.")]
    return [*(n for n in INPUTS if n in names), *dotted]


def varying(rows: Sequence[Row]) -> list[str]:
    """Return the input columns with more than one value.

    Of two that say the same (nodes go with GPUs on one kind of node) the first stays.
    """
    found: list[str] = []
    for name in inputs_of(rows):
        several = len({_key(row.get(name)) for row in rows}) > 1
        if several and not any(_same(rows, other, name) for other in found):
            found.append(name)
    return found


def _same(rows: Sequence[Row], a: str, b: str) -> bool:
    return _decides(rows, a, b) and _decides(rows, b, a)


def _decides(rows: Sequence[Row], a: str, b: str) -> bool:
    """Return whether rows with one value of `a` have one value of `b`."""
    seen: dict[str, str] = {}
    return all(
        seen.setdefault(_key(row.get(a)), _key(row.get(b))) == _key(row.get(b)) for row in rows
    )


def series(rows: Sequence[Row], axis: str, names: Sequence[str]) -> dict[str, list[Row]]:
    """Return the rows by what varies beside `axis`, each series in the order of the axis.

    What the axis decides (a batch that grows with the nodes) tells no series apart.
    """
    beside = apart(rows, axis, names)
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(described(row, beside), []).append(row)
    return {name: sorted(some, key=lambda r: _order(r.get(axis))) for name, some in out.items()}


def apart(rows: Sequence[Row], axis: str, names: Sequence[str]) -> list[str]:
    """Return the columns that tell the series along an axis apart."""
    return [n for n in names if n != axis and not _decides(rows, axis, n)]


def merged(
    rows: Sequence[Row], axis: str, names: Sequence[str], column: str
) -> dict[str, list[Row]]:
    """Return the series as in `series`, those with the same layouts and figures as one.

    A name holds the values of `apart`; of a column at whose every value the figures are the same,
    `whatever`.
    """
    beside = apart(rows, axis, names)
    alike: dict[object, list[list[Row]]] = {}
    for some in series(rows, axis, names).values():
        same = tuple((_key(r.get(axis)), r.get(column), r.get("layout")) for r in some)
        alike.setdefault(same, []).append(some)
    every = {n: {shown(row.get(n)) for row in rows} for n in beside}
    out: dict[str, list[Row]] = {}
    for group in alike.values():
        held = {n: list(dict.fromkeys(shown(s[0].get(n)) for s in group)) for n in beside}
        if prod(len(values) for values in held.values()) == len(group):
            out[_values(held, every)] = group[0]
        else:  # no product of values: each by its own name
            out |= {", ".join(shown(s[0].get(n)) for n in beside): s for s in group}
    return out


def _values(held: Mapping[str, Sequence[str]], every: Mapping[str, set[str]]) -> str:
    """Return the values of each column that a series stands for."""
    return ", ".join(
        whatever(name)
        if len(values) > 1 and len(values) == len(every[name])
        else " | ".join(values)
        for name, values in held.items()
    )


def whatever(name: str) -> str:
    """Return 'any leaf oversubscription'."""
    return f"{ANY} {short(name)}"


def flat(rows: Sequence[Row], axis: str, names: Sequence[str]) -> bool:
    """Return whether every series along an axis has several points, all of one step time."""
    return all(
        len(some) > 1 and len({_key(row.get("step_time_s")) for row in some}) == 1
        for some in series(rows, axis, names).values()
    )


def described(row: Row, names: Sequence[str]) -> str:
    """Return 'model llama, leaf_oversubscription 4' for the columns named."""
    return ", ".join(f"{short(name)} {shown(row.get(name))}" for name in names)


def short(name: str) -> str:
    """Return the last part of a dotted path, which is how people call it."""
    return name.rpartition(".")[2].replace("_", " ")


def shown(value: Cell) -> str:
    """Return a value as it reads; a missing one and an empty text as a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_number(value: Cell) -> bool:
    """Return whether a value can stand on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Cell) -> str:
    return f"{value:g}" if is_number(value) else f"{type(value).__name__} {value}"


def _order(value: Cell) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)

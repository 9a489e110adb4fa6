"""Every edit that a hand can make to one value of a file: changed, taken out, or moved.

Yields (what was edited, the text after it). Files are edited as text, or as the data they hold;
nothing here knows which values are the plan's.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

Edits = Iterator[tuple[str, str]]
RANKS_TRIED = (0, 3)
"""Of the ranks of a rank map or a placement, which all look alike."""


def of(name: str, text: str) -> Edits:
    """Return the edits of a file by its name."""
    if name.endswith((".json", ".yaml")):
        data = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return ((label, json.dumps(edited)) for label, edited in of_data(data))
    if name.endswith((".sh", ".sbatch")):
        return _of_script(text.splitlines())
    if name in ("hosts.txt", "hostfile", "commands.txt"):
        return _of_rows(text.splitlines())
    return _of_options(text.splitlines())


def of_data(data: Any) -> Iterator[tuple[str, Any]]:
    """Yield data with one leaf changed or gone, and where that is."""
    for path in _paths(data):
        label = ".".join(map(str, path))
        for edit in (_changed, _gone):
            copied = copy.deepcopy(data)
            holder = copied
            for key in path[:-1]:
                holder = holder[key]
            edit(holder, path[-1])
            yield label, copied


def _paths(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if at and at[-1] == "ranks" and key not in RANKS_TRIED:
            continue
        if isinstance(value, dict | list):
            yield from _paths(value, (*at, key))
        elif value is not None:
            yield (*at, key)


def _changed(holder: Any, key: Any) -> None:
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    else:
        holder[key] = f"{value}x" if isinstance(value, str) else value + 1


def _gone(holder: Any, key: Any) -> None:
    del holder[key]


def _of_options(lines: list[str]) -> Edits:
    """Yield edits of `--flag value`, `--flag=value` and `key=value` lines."""
    for i, line in enumerate(lines):
        if not line or line.startswith("#"):
            continue
        name = re.split(r"[ =]", line)[0]
        yield name, _with(lines, i)
        yield name, _with(lines, i, line + "1" if line != name else f"{name} 1")


def _of_rows(lines: list[str]) -> Edits:
    for i, line in enumerate(lines):
        yield f"line {i + 1}", _with(lines, i, re.sub(r"(\d)(?=[ \n]|$)", r"\g<1>1", line))
        yield f"line {i + 1}", _with(lines, i)
    if len(lines) > 1:
        yield "order", "\n".join([*lines[1::-1], *lines[2:]])
    yield "one more", "\n".join([*lines, lines[0].replace("0", "7")])


def _of_script(lines: list[str]) -> Edits:
    """Yield edits of variables, of the options of what is started and of what is sourced."""
    for i, whole in enumerate(lines):
        line = re.sub(r"(?<=\S)\s+# .*", "", whole)
        code = line.strip()
        if code.startswith("#") and not code.startswith("#SBATCH"):
            continue
        if found := re.match(r"(?:export )?(\w+)(\+?=)", code):
            yield found[1], _with(lines, i)
            yield found[1], _with(lines, i, line.replace(found[2], found[2] + "7", 1))
            yield found[1], "\n".join([*lines, f"export {found[1]}=7"])
        elif found := re.match(r"(#SBATCH --[a-z-]+)(=?)", code):
            yield found[1], _with(lines, i)
            if found[2]:
                yield found[1], _with(lines, i, line.replace("=", "=7", 1))
        elif code.startswith(("source ", "unset ")):
            yield code.replace('"', ""), _with(lines, i)
        else:
            for option in re.finditer(r'(?<=\s)(--[a-z_-]+)([ =]"?\$?\w+"?)?', line):
                gone = line.replace(option[0], "", 1)
                yield option[1], _with(lines, i, gone)
                if option[2]:
                    yield option[1], _with(lines, i, line.replace(option[0], f"{option[1]} 7", 1))


def _with(lines: list[str], at: int, new: str | None = None) -> str:
    return "\n".join([*lines[:at], *([] if new is None else [new]), *lines[at + 1 :]]) + "\n"

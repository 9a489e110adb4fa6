"""What a file of a bundle says about the plan, as flat facts: edits elsewhere are the user's own.

A bundle is made to be edited: learning rates, data, images. So files are not compared as text.
Each kind is read into (key, value) pairs. Those that we wrote are the plan's, but for the few that
`planner.emit.kinds` leaves to the user; those that the user adds are the user's, but for a few.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import yaml

Facts = Mapping[str, str]
SHOWN = 5
"""So many disagreements of one file are told; the others are counted."""
LONGEST = 80
"""So many characters of a value are told."""


OFF = ("false", "null")
"""What an option says that is switched off, which is as good as not added."""


class Kind(NamedTuple):
    """How a file is read, and whose its keys are, by patterns."""

    read: Callable[[str], Facts]
    yours: tuple[str, ...] = ()
    """Of the keys that we write, those that are the user's to change."""
    ours: tuple[str, ...] = ()
    """Of the keys that we do not write, those that the user may not add."""

    def differ(self, key: str, wanted: str | None, seen: str | None) -> bool:
        """Return whether a key leaves the plan."""
        if wanted is None:
            return seen not in (None, *OFF) and _matches(key, self.ours)
        return wanted != seen and not _matches(key, self.yours)


def disagreements(name: str, kind: Kind, expected: str, found: str) -> list[str]:
    """Return one sentence for each fact of the file `name` that is not as the plan has it.

    A file that cannot be read gives one sentence.
    """
    try:
        seen = kind.read(found)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        return [f"{name}: cannot be read ({' '.join(str(error).split())[:120]})"]
    wanted = kind.read(expected)
    wrong = [
        key
        for key in (*wanted, *(k for k in seen if k not in wanted))
        if kind.differ(key, wanted.get(key), seen.get(key))
    ]
    out = [
        f"{name}: {_tail(key)} is {_short(seen.get(key, 'missing'))}, "
        f"the plan has {_short(wanted.get(key, 'none'))}"
        for key in wrong[:SHOWN]
    ]
    more = len(wrong) - SHOWN
    return [*out, f"{name}: {more} more such"] if more > 0 else out


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _tail(key: str) -> str:
    return key if len(key) <= LONGEST else "..." + key[3 - LONGEST :]


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def json_facts(text: str) -> Facts:
    """Return the leaves of a JSON object by their path, dots between."""
    return _leaves(json.loads(text, object_pairs_hook=_no_duplicates))


def yaml_facts(text: str) -> Facts:
    """Return the leaves of a YAML mapping by their path."""
    return _leaves(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return out


def _leaves(data: Any) -> Facts:
    if not isinstance(data, dict):
        raise ValueError("holds no mapping")
    out: dict[str, str] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else _numbered(path, value)
            for key, inner in items:
                visit(f"{path}.{key}" if path else str(key), inner)
        elif value is not None:  # nothing is the same as left out
            out[path] = json.dumps(value, default=str)

    visit("", data)
    return out


def _numbered(path: str, values: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a list by their numbers, environment variables by their names."""
    for number, value in enumerate(values):
        named = path.endswith(".env") and isinstance(value, dict) and value.get("name")
        yield str(named or number), value


def megatron_facts(text: str) -> Facts:
    """Return the flags of `megatron.args` with their values."""
    rows = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return _once((row[0], " ".join(row[1:]) or "set") for row in rows if row)


def override_facts(text: str) -> Facts:
    """Return the keys of a list of Hydra overrides, with or without quotes around the value."""
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    if wrong := next((key for key, mark, _ in pairs if not mark), None):
        raise ValueError(f"{wrong} has no value")
    return _once((key.strip().lstrip("+"), value.strip().strip("'\"")) for key, _, value in pairs)


def titan_facts(text: str) -> Facts:
    """Return the keys of `torchtitan.args`; hyphens and underscores mean the same to it."""
    lines = [line.strip() for line in text.splitlines()]
    words = [line for line in lines if line and not line.startswith("#")]
    pairs = [word.removeprefix("--").partition("=") for word in words]
    out = _once(
        (name.replace("-", "_") if value or "." in name else name, value or "set")
        for name, _, value in pairs
    )
    return {**out, "the last word": words[-1] if words else ""}


def line_facts(text: str) -> Facts:
    """Return lines by number, from 1; empty ones at the end do not count."""
    return {f"line {i}": line.strip() for i, line in enumerate(text.rstrip().splitlines(), 1)}


ASSIGNED = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)(\+?)=(.*)")
OPTION = re.compile(r"(?<!\S)(--[a-z][a-z_-]*)(?:[ =]([^\s\\-]\S*))?")


def script_facts(text: str) -> Facts:
    """Return what a script sets: its variables, its #SBATCH options and those of what it starts.

    Comments do not count, nor does how a value is quoted. What is set twice has both values.
    """
    out: dict[str, str] = {}
    for key, value in _settings(text):
        out[key] = f"{out[key]}; {value}" if key in out else value
    return out


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for line in map(str.strip, text.splitlines()):
        if option := re.fullmatch(
            r"#SBATCH (--[a-z-]+)(?:=([^@]*)(?:@.*)?)?", line
        ):  # @: for how long
            yield f"#SBATCH {option[1]}", option[2] or "set"
        elif line.startswith("#"):
            continue
        elif found := ASSIGNED.fullmatch(code := re.sub(r"\s+#.*$", "", line)):
            yield found[1], found[2] + found[3].replace('"', "")
        elif code.startswith(("unset ", "source ", ". ")):
            verb, _, rest = code.partition(" ")
            rest = rest.replace('"', "")
            yield (rest, "unset") if verb == "unset" else (f"source {rest}", "set")
        else:
            yield from ((name, value.strip('"()') or "set") for name, value in OPTION.findall(code))


def command_facts(text: str) -> Facts:
    """Return the node rank of each line of `commands.txt`; the address is the user's to fill in."""
    lines = text.rstrip().splitlines()
    ranks = ((i, re.search(r"\bNODE_RANK=(\S+)", line)) for i, line in enumerate(lines, 1))
    return {f"line {i}": f"NODE_RANK={found[1]}" if found else "no rank" for i, found in ranks}


def _once(pairs: Any) -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"{key} stands twice")
        out[key] = value
    return out

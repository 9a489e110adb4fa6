"""Words of a shell script or an argument file, without running any of it.

Assignments are followed (`TP=8`, `TP=${TP:-8}`, `$((TP * 2))`), branches and loops are not: every
option in the text counts, and of two values the last.
"""

from __future__ import annotations

import ast
import contextlib
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from planner.importing.facts import spelt
from planner.specs.parse import shown

ASSIGNMENT = re.compile(r"(?:export\s+|local\s+)?([A-Za-z_][A-Za-z0-9_]*)\+?=(.*)", re.DOTALL)
DEFAULTED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*|[0-9]):?[-=]([^{}]*)\}")
REFERENCE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
ARITHMETIC = re.compile(r"\$\(\(([^()$]{1,80})\)\)|\$\[([^\]$]{1,80})\]")
SPACED = re.compile(r"\$\(\([^()\n]{1,80}\)\)")
OVERRIDE = re.compile(
    r"\+{0,2}([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)+)=(.*)", re.DOTALL
)
SUBCOMMAND = re.compile(r"(activation[-_]checkpoint):([A-Za-z_-]+)")
OPTION = re.compile(r"--?[A-Za-z][A-Za-z0-9_.-]*(?:=.*)?", re.DOTALL)
LONGEST_WORD = 32_768
LONGEST_LINE = 65_536
"""Characters of a line that shlex is given: it takes time with the square of a word's length."""
DEEPEST = 8
MOST_AT_ONCE = 512
MOST_VALUES = 64
MOST_EXPANDED = 4_000_000
"""Characters that expansion may make of one script, all words together."""
OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass
class _Shell:
    """The variables of a script; `given` ones stay as they are, and expansion has an end."""

    given: Mapping[str, str]
    variables: dict[str, str]
    left: int = MOST_EXPANDED

    def assign(self, name: str, value: str) -> None:
        """Keep what a script sets, unless the caller knows better."""
        if name not in self.given:
            self.variables[name] = value

    def expanded(self, text: str) -> str:
        """Return `text` with known variables, their defaults and plain arithmetic put in.

        A script whose variables multiply is left as it stands from some size on.
        """
        known = self.variables
        for _ in range(DEEPEST):
            if "$" not in text or self.left <= 0:
                break
            before = text
            text = DEFAULTED.sub(lambda m: known.get(m[1]) or m[2], text, MOST_AT_ONCE)
            text = REFERENCE.sub(lambda m: known.get(m[1] or m[2], m[0]), text, MOST_AT_ONCE)
            text = ARITHMETIC.sub(lambda m: _arithmetic(m[1] or m[2], m[0], known), text)
            self.left -= len(text)
            text = text[:LONGEST_WORD]
            if text == before:
                break
        return text


def settings_of(text: str, given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options of a text by name, and the variables that it sets.

    Options may be `--name value...`, `--name=value` or an override `section.name=value`; one
    without a value is 'set'. `given` holds variables that the caller knows better.
    """
    shell = _Shell(given, dict(given))
    options: dict[str, Any] = {}
    values: list[str] = []
    name = ""
    for word in _words(text, shell):
        if match := SUBCOMMAND.fullmatch(word):
            options[spelt(match[1])] = match[2]
        elif match := OVERRIDE.fullmatch(word):
            options[spelt(match[1])], name = match[2], ""
        elif OPTION.fullmatch(word):
            left, equals, value = word.partition("=")
            name, values = "" if equals else spelt(left), []
            options[spelt(left)] = value if equals else "set"
        elif not word:  # the end of a line
            name = ""
        elif name and len(values) < MOST_VALUES:
            values.append(word)
            options[name] = " ".join(values)
    return options, shell.variables


def _words(text: str, shell: _Shell) -> Iterator[str]:
    """Yield the words line by line, variables put in; '#SBATCH' lines are options too."""
    joined = SPACED.sub(lambda m: re.sub(r"\s", "", m[0]), re.sub(r"\\\r?\n", " ", text))
    for line in joined.splitlines():
        bare = line.strip()
        bare = bare.removeprefix("#SBATCH") if bare.startswith("#SBATCH") else bare
        if bare.startswith("#"):
            continue
        yield ""  # an option's values end with its line
        for word in _split(bare):
            yield from _word(word, shell, 0)


def _split(line: str) -> list[str]:
    """Return the words of a line as a shell splits it, or at blanks where that cannot be done."""
    with contextlib.suppress(ValueError):  # a quotation over several lines
        if len(line) <= LONGEST_LINE:
            return list(_commands(shlex.split(line, comments=True)))
    return line.replace('"', " ").replace("'", " ").split()


def _commands(words: list[str]) -> Iterator[str]:
    """Yield words without the semicolons that end commands: `TP=8; PP=4` are two assignments."""
    for word in words:
        if ";" in word and ASSIGNMENT.fullmatch(word):
            yield from filter(None, word.split(";"))
        else:
            yield word.removesuffix(";")


def _word(word: str, shell: _Shell, depth: int) -> Iterator[str]:
    """Yield a word with its variables put in, or the words inside it; keep assignments."""
    word = word[:LONGEST_WORD]
    if (match := ASSIGNMENT.fullmatch(word)) and not word.startswith("-"):
        value = shell.expanded(match[2].lstrip("("))
        shell.assign(match[1], value.rstrip(")") if match[2].startswith("(") else value)
        word = value if "-" in value else ""
    else:
        word = shell.expanded(word)
    if len(word.split()) > 1 and depth < DEEPEST:
        for inner in _split(word):
            yield from _word(inner, shell, depth + 1)
        return
    if not word:
        return
    word = word.removeprefix("(") if "(" in word and ")" not in word else word
    yield word.rstrip(")") if ")" in word and "(" not in word else word


def _arithmetic(inside: str, whole: str, variables: Mapping[str, str]) -> str:
    names = re.compile(r"\b[A-Za-z_]\w*\b")
    filled = names.sub(lambda m: variables.get(m[0], m[0]), inside)
    try:
        return str(_value(ast.parse(filled.strip(), mode="eval").body))
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError):
        return whole


def _value(node: ast.AST) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(shown(ast.dump(node), 60))

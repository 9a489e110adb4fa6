"""Words of a shell script or an argument file, without running any of it.

Assignments are followed (`TP=8`, `TP=${TP:-8}`, `$((TP * 2))`), branches and loops are not: every
option in the text counts, and of two values the last.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
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
LONGEST_WORD = 4096
DEEPEST = 8
OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def settings_of(text: str, given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options of a text by name, and the variables that it sets.

    Options may be `--name value...`, `--name=value` or an override `section.name=value`; one
    without a value is 'set'. `given` holds variables that the caller knows better.
    """
    variables: dict[str, str] = dict(given)
    options: dict[str, Any] = {}
    name = ""
    for word in _words(text, variables, given):
        if not word:  # the end of a line
            name = ""
        elif match := SUBCOMMAND.fullmatch(word):
            options[spelt(match[1])] = match[2]
        elif match := OVERRIDE.fullmatch(word):
            options[spelt(match[1])], name = match[2], ""
        elif OPTION.fullmatch(word):
            left, equals, value = word.partition("=")
            name = spelt(left)
            options[name] = value if equals else "set"
            name = "" if equals else name
        elif name:
            options[name] = word if options[name] == "set" else f"{options[name]} {word}"
    return options, variables


def _words(text: str, variables: dict[str, str], given: Mapping[str, str]) -> Iterator[str]:
    """Yield the words line by line, variables put in; '#SBATCH' lines are options too."""
    joined = SPACED.sub(lambda m: re.sub(r"\s", "", m[0]), re.sub(r"\\\r?\n", " ", text))
    for line in joined.splitlines():
        bare = line.strip()
        bare = bare.removeprefix("#SBATCH") if bare.startswith("#SBATCH") else bare
        if bare.startswith("#"):
            continue
        yield ""  # an option's values end with its line
        for word in _split(bare):
            yield from _word(word, variables, given, 0)


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a quotation over several lines
        return line.replace('"', " ").replace("'", " ").split()


def _word(
    word: str, variables: dict[str, str], given: Mapping[str, str], depth: int
) -> Iterator[str]:
    """Yield a word with its variables put in, or the words inside it; keep assignments."""
    word = word[:LONGEST_WORD]
    if (match := ASSIGNMENT.fullmatch(word)) and not word.startswith("-"):
        value = expanded(match[2].lstrip("("), variables)
        if match[1] not in given:
            variables[match[1]] = value.rstrip(")") if match[2].startswith("(") else value
        word = value if "-" in value else ""
    else:
        word = expanded(word, variables)
    if len(word.split()) > 1 and depth < DEEPEST:
        for inner in _split(word):
            yield from _word(inner, variables, given, depth + 1)
        return
    word = word.removeprefix("(") if "(" in word and ")" not in word else word
    yield word.rstrip(")") if ")" in word and "(" not in word else word


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Return `text` with known variables, their defaults and plain arithmetic put in."""
    for _ in range(DEEPEST):
        before = text
        text = DEFAULTED.sub(lambda m: variables.get(m[1]) or m[2], text)
        text = REFERENCE.sub(lambda m: variables.get(m[1] or m[2], m[0]), text)
        text = ARITHMETIC.sub(lambda m: _arithmetic(m[1] or m[2], m[0], variables), text)
        text = text[:LONGEST_WORD]
        if text == before:
            break
    return text


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

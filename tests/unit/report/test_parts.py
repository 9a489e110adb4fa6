"""Pieces of reports keep names readable where there is little room."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from planner.report.parts import Named


def shown(name: str, width: int) -> list[str]:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("what", overflow="fold")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_row(Named(name), "70.28 ms")
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()[1:]]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("h100-llama1b-b2-s4096-full", ["h100-llama1b-  70.28 ms", "b2-s4096-full"]),
        ("my_cluster/run_007,fsdp", ["my_cluster/    70.28 ms", "run_007,fsdp"]),
        ("llama-3.1-8b, 1 node, any", ["llama-3.1-8b,  70.28 ms", "1 node, any"]),
        ("short-name", ["short-name  70.28 ms"]),
    ],
)
def test_a_long_name_wraps_between_its_parts(name, lines):
    assert shown(name, 25) == lines
    assert shown(name, 60) == [f"{name}  70.28 ms"]


def test_a_name_without_parts_is_cut_nowhere_but_at_the_edge():
    name = "averylongnamewithoutanyseparator"
    assert "".join(line.split()[0] for line in shown(name, 25)) == name


def test_control_characters_of_a_name_do_not_reach_the_terminal():
    assert "\x1b" not in Named("run\x1b[31m-1").text

"""Columns of a table of runs: each is read, or said not to be."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping

import pytest

from planner.errors import SpecError
from planner.validate import PUBLISHED, columns_told, read_table
from planner.validate.predict import _scored, measured_step_s
from planner.validate.runs import _run
from planner.validate.table import NEEDED, PREDICTS, REMARKS, SCORES, Table

HEAD = ",".join(NEEDED)


class Watched(Mapping[str, str]):
    """A row that notes which of its columns were looked at."""

    def __init__(self, row: Mapping[str, str]) -> None:
        self.row, self.looked = row, set[str]()

    def __getitem__(self, name: str) -> str:
        self.looked.add(name)
        return self.row[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)


def test_the_columns_said_to_be_read_are_those_that_are_read():
    looked: set[str] = set()
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        for plain in csv.DictReader(file):
            for row in (Watched(plain), Watched(plain | {"step_time_s": ""})):
                run = _run(row, None, "")
                if run.context is not None:
                    _scored([run])
                    measured_step_s(row, run.context)
                looked |= row.looked
    assert looked == {*PREDICTS, *SCORES}


def test_every_column_of_the_shipped_table_has_a_meaning():
    table = read_table(PUBLISHED)
    assert columns_told(table) == []
    assert set(table.names) == {*PREDICTS, *SCORES, *REMARKS}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("zero", "zero_stage"),
        ("ZeRO Stage", "zero_stage"),
        ("microbatch", "micro_batch"),
        ("step_time", "step_time_s"),
        ("precision", "dtype"),
        ("recompute_", "recompute"),
        ("wallclock", ""),
    ],
)
def test_an_unknown_column_is_named_with_the_one_that_may_be_meant(name, near):
    (said,) = columns_told(Table((*NEEDED, name), []))
    assert repr(name) in said
    assert ("did you mean" in said) == bool(near)
    assert repr(near) in said or not near


def test_a_column_that_is_there_already_is_not_proposed():
    (said,) = columns_told(Table((*NEEDED, "zero_stage", "zero"), []))
    assert "zero_stage" not in said


def test_a_needed_column_under_another_name_is_recognised(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(HEAD.replace("seq", "seq_len") + "\n")
    with pytest.raises(SpecError, match="columns missing: seq") as refused:
        read_table(path)
    assert "'seq_len': did you mean 'seq'?" in refused.value.hint


def test_a_column_given_twice_is_said(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(HEAD + ",tp,tp\n")
    assert columns_told(read_table(path)) == [
        "column 'tp' is there more than once; the last is read"
    ]

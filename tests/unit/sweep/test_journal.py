"""The journal survives a kill at any byte, and is never taken for another study's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.errors import SpecError
from planner.sweep.journal import journal, journal_of

OUTCOME = {"status": "ok", "step_time_s": 0.1 + 0.2, "reason": "ü\ud800"}


def write(out: Path, points: int) -> bytes:
    with journal(out, "s", force=False) as book:
        for number in range(points):
            book.append(f"p{number}", OUTCOME, 0.5)
    return journal_of(out).read_bytes()


def test_what_was_appended_is_read_again_exactly(tmp_path):
    out = tmp_path / "out.csv"
    write(out, 3)
    with journal(out, "s", force=False) as book:
        assert book.done == {f"p{n}": OUTCOME for n in range(3)}


def test_a_journal_cut_at_any_byte_goes_on_with_its_whole_lines(tmp_path):
    out = tmp_path / "out.csv"
    whole = write(out, 2)
    for size in range(len(whole)):
        journal_of(out).write_bytes(whole[:size])
        with journal(out, "s", force=False) as book:
            assert len(book.done) == max(0, whole[:size].count(b"\n") - 1)
            for number in range(2):
                if f"p{number}" not in book.done:
                    book.append(f"p{number}", OUTCOME, 0.5)
        assert journal_of(out).read_bytes() == whole


def test_a_tail_of_zeros_after_a_power_cut_is_cut_off(tmp_path):
    out = tmp_path / "out.csv"
    whole = write(out, 2)
    journal_of(out).write_bytes(whole + bytes(4096))
    with journal(out, "s", force=False) as book:
        assert len(book.done) == 2
    assert journal_of(out).read_bytes() == whole


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "before",
    [
        b'{"schema":"other"}\n{"id":"a","outcome":{"status":"ok"}}\n',
        b"not json\nat all\n",
        b'{"schema":"meshwright.sweep-journal/1","version":"0.0.0","study":"s"}\n',
    ],
)
def test_what_is_not_this_study_s_journal_is_replaced_only_by_force(tmp_path, before, force):
    out = tmp_path / "out.csv"
    journal_of(out).write_bytes(before)
    if not force:
        with pytest.raises(SpecError, match="--force"), journal(out, "s", force=False):
            pass
        assert journal_of(out).read_bytes() == before
        return
    with journal(out, "s", force=True) as book:
        assert book.done == {}
    assert json.loads(journal_of(out).read_text())["study"] == "s"


def test_another_study_is_refused_and_force_starts_over(tmp_path):
    out = tmp_path / "out.csv"
    write(out, 2)
    with pytest.raises(SpecError, match="another study"), journal(out, "t", force=False):
        pass
    with journal(out, "t", force=True) as book:
        assert book.done == {}


def test_force_keeps_the_points_of_the_same_study(tmp_path):
    out = tmp_path / "out.csv"
    write(out, 2)
    with journal(out, "s", force=True) as book:
        assert len(book.done) == 2


def test_a_damaged_line_in_the_middle_is_said_not_skipped(tmp_path):
    out = tmp_path / "out.csv"
    lines = write(out, 3).splitlines(keepends=True)
    journal_of(out).write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(SpecError, match="line 2"), journal(out, "s", force=False):
        pass


def test_two_runs_at_once_are_refused(tmp_path):
    out = tmp_path / "out.csv"
    refused = pytest.raises(SpecError, match="another sweep is writing")
    with journal(out, "s", force=False), refused, journal(out, "s", force=True):
        pass


def test_a_file_of_somebody_else_is_not_replaced(tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(SpecError, match="there already"), journal(out, "s", force=False):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("kind", ["folder", "device", "missing folder"])
def test_a_journal_that_cannot_be_one_is_refused(tmp_path, kind):
    out = tmp_path / "out.csv"
    if kind == "folder":
        journal_of(out).mkdir()
    elif kind == "device":
        journal_of(out).symlink_to("/dev/full")
    else:
        out = tmp_path / "none" / "out.csv"
    with pytest.raises(SpecError, match=r"journal\.jsonl"), journal(out, "s", force=False):
        pass

"""Measurement files from anyone: mutated real ones end in an answer or in one message."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibrate.gemm import read_multiplies
from planner.calibrate.links import fit_links
from planner.calibrate.multiplies import fit_multiplies
from planner.calibrate.nccl import read_logs
from planner.calibrate.profiled import fit_profiles
from planner.calibrate.steps import fit_steps
from planner.calibrate.trace import read_profile
from planner.errors import PlannerError
from planner.specs.catalog import load_cluster
from planner.validate import read_runs

MEASURED = Path(__file__).resolve().parents[1] / "measured" / "calibrate"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "calibrate"
LOGS = (EXAMPLES / "h100_all_reduce.log", *sorted(MEASURED.glob("*.log")))
CLUSTER = load_cluster("dgx-h100")
SLOWEST_S = 5.0
WORDS = ("nan", "inf", "-1", "1e308", "N/A", "0", "", "9" * 40, "\0", "é", "Rank", "=", "float")


def mutated(text: str, data: st.DataObject) -> str:
    """Return the text with a few cuts, swaps, doublings and strange words."""
    lines = text.splitlines()
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(lines) - 1))
        kind = data.draw(st.sampled_from(("cut", "drop", "double", "word", "swap", "tear", "join")))
        gap = "," if lines[at].count(",") > 2 else " "
        words = lines[at].split(gap)
        if kind == "cut":
            lines = lines[: at + 1]
        elif kind == "drop" and len(lines) > 1:
            del lines[at]
        elif kind == "double":
            lines.insert(at, lines[at] * data.draw(st.integers(1, 30)))
        elif kind == "word":
            words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from(WORDS))
            lines[at] = gap.join(words)
        elif kind == "swap":
            other = data.draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "tear":
            lines[at] = lines[at][: data.draw(st.integers(0, len(lines[at])))]
        elif at + 1 < len(lines):
            lines[at : at + 2] = [lines[at] + lines[at + 1]]
    return "\n".join(lines)


def answered(work, *, slowest_s=SLOWEST_S) -> None:
    """Run the work: it may refuse in one message, and ends soon."""
    began, refused = time.process_time(), None
    try:
        work()
    except PlannerError as error:
        refused = error
    assert time.process_time() - began < slowest_s
    if refused is not None:
        assert refused.exit_code in (1, 2)
        assert 0 < len(refused.message) < 1000
        assert "\n" not in refused.message


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
@given(data=st.data())
@settings(max_examples=60)
def test_a_mutated_log_is_fitted_or_refused(path, data, tmp_path_factory):
    odd = tmp_path_factory.getbasetemp() / "odd.log"
    odd.write_text(mutated(path.read_text(), data))
    answered(lambda: fit_links(CLUSTER, read_logs(odd)))


@given(data=st.data())
@settings(max_examples=60)
def test_a_mutated_table_of_multiplies_is_fitted_or_refused(data, tmp_path_factory):
    odd = tmp_path_factory.getbasetemp() / "odd.csv"
    odd.write_text(mutated((EXAMPLES / "h100_gemm.csv").read_text(), data))
    answered(lambda: fit_multiplies(CLUSTER, read_multiplies(odd).rows, "odd.csv"))


@given(data=st.data())
@settings(max_examples=4)
def test_a_mutated_table_of_steps_is_fitted_or_refused(data, tmp_path_factory):
    odd = tmp_path_factory.getbasetemp() / "odd_steps.csv"
    odd.write_text(mutated((EXAMPLES / "h100_steps.csv").read_text(), data))
    fit = lambda: fit_steps(CLUSTER, read_runs(odd, CLUSTER), "odd_steps.csv")  # noqa: E731
    answered(fit, slowest_s=60.0)  # a fit from two starts takes seconds, whatever is in the table


@given(data=st.data())
@settings(max_examples=40)
def test_a_mutated_trace_is_fitted_or_refused(data, tmp_path_factory):
    odd = tmp_path_factory.getbasetemp() / "odd.json"
    text = (MEASURED / "h100_step_trace.json").read_text()
    if data.draw(st.booleans()):
        odd.write_text(mutated(text, data))
    else:  # still JSON, with odd values in it
        for _ in range(data.draw(st.integers(1, 5))):
            old = data.draw(st.sampled_from(('"dur":', '"ts":', '"External id":', '"Input Dims":')))
            new = data.draw(st.sampled_from(('null,"x":', '"a","x":', '[[]],"x":', '-1e9,"x":')))
            text = text.replace(old, old + new, data.draw(st.integers(1, 4)))
        odd.write_text(text)
    answered(lambda: fit_profiles(CLUSTER, [read_profile(odd)], "torchtitan"))


@given(raw=st.binary(max_size=400), head=st.sampled_from((b"", b"\x1f\x8b", b"SQLite format 3\0")))
@settings(max_examples=80)
def test_bytes_of_any_kind_are_refused_by_every_reader(raw, head, tmp_path_factory):
    odd = tmp_path_factory.getbasetemp() / "odd.bin"
    odd.write_bytes(head + raw)
    for read in (read_logs, read_multiplies, read_profile):
        answered(lambda read=read: read(odd))


def test_a_small_file_that_unpacks_into_a_large_one_is_refused(tmp_path):
    bomb = tmp_path / "trace.json.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        for _ in range(80):
            file.write(b"0" * 2**20)
    for read in (read_logs, read_multiplies):
        with pytest.raises(PlannerError, match="larger than 64 MiB"):
            read(bomb)


def test_a_log_of_long_lines_and_many_rows_ends_soon(tmp_path):
    path = tmp_path / "long.log"
    row = "1048576 524288 half sum -1 27.85 37.65 65.89 0 27.85 37.65 65.89 0\n"
    path.write_text("# Rank " * 300_000 + "\n" + "[1,0]<stdout>: " * 100_000 + "\n" + row * 100_000)
    answered(lambda: fit_links(CLUSTER, read_logs(path, op="all_reduce", ranks=8)))

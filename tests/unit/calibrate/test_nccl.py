"""Logs of nccl-tests: what is read of them, and what drops out."""

from __future__ import annotations

import pytest
from logs import MEASURED, header, log_text, table_line

from planner.calibrate.nccl import read_logs
from planner.errors import SpecError

TIMINGS = [(2**p, 20 + 2**p / 3e5) for p in range(10, 31)]


def written(tmp_path, text):
    path = tmp_path / "run.log"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("op", "ours"),
    [
        ("all_reduce", "all_reduce"),
        ("all_gather", "all_gather"),
        ("reduce_scatter", "reduce_scatter"),
        ("alltoall", "all_to_all"),
        ("sendrecv", "send_recv"),
    ],
)
def test_a_log_says_its_collective_its_ranks_and_its_hosts(tmp_path, op, ours):
    (log,) = read_logs(written(tmp_path, log_text(op, 32, 4, TIMINGS)))
    assert (log.op, log.ranks, log.nodes) == (ours, 32, 4)
    assert [t.bytes for t in log.timings] == [size for size, _ in TIMINGS]
    assert log.timings[-1].time_s == pytest.approx(TIMINGS[-1][1] * 1e-6, rel=1e-3)
    assert not log.warnings


@pytest.mark.parametrize("op", ["all_reduce", "reduce_scatter"])
def test_reductions_of_old_logs_are_told_apart_by_their_bus_bandwidth(tmp_path, op):
    (log,) = read_logs(written(tmp_path, log_text(op, 8, 1, TIMINGS, says_op=False)))
    assert log.op == op


def test_an_old_log_that_could_be_two_collectives_asks_which(tmp_path):
    path = written(tmp_path, log_text("all_gather", 8, 1, TIMINGS, says_op=False))
    with pytest.raises(SpecError, match="cannot be told apart") as refused:
        read_logs(path)
    assert "all_gather=" in refused.value.hint
    (log,) = read_logs(path, op="all_gather")
    assert log.op == "all_gather"


def test_ranks_come_from_the_counts_or_from_the_user(tmp_path):
    gather = written(tmp_path, log_text("all_gather", 16, 2, TIMINGS, says_ranks=False))
    (log,) = read_logs(gather, nodes=2)
    assert (log.ranks, log.nodes) == (16, 2)
    reduce = written(tmp_path, log_text("all_reduce", 16, 2, TIMINGS, says_ranks=False))
    with pytest.raises(SpecError, match="number of ranks is not in the log") as refused:
        read_logs(reduce)
    assert "--ranks" in refused.value.hint
    (log,) = read_logs(reduce, ranks=16, nodes=2)
    assert (log.ranks, log.nodes) == (16, 2)


@pytest.mark.parametrize("prefix", ["[1,0]<stdout>:", "[1,0]<stdout>", "0: ", " 12: "])
def test_prefixes_of_launchers_are_looked_through(tmp_path, prefix):
    text = log_text("all_reduce", 8, 1, TIMINGS)
    (plain,) = read_logs(written(tmp_path, text))
    (same,) = read_logs(written(tmp_path, "\n".join(prefix + line for line in text.splitlines())))
    assert same.timings == plain.timings
    assert (same.op, same.ranks, same.nodes) == ("all_reduce", 8, 1)


def test_torn_lines_drop_out_and_are_counted(tmp_path):
    lines = log_text("all_reduce", 8, 1, TIMINGS).splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == ["1048576"])
    lines[at] = lines[at][:40] + lines[at + 1]  # two lines that ran into each other
    lines[at + 2] = lines[at + 2].replace(" half ", " halfNCCL WARN ")
    (log,) = read_logs(written(tmp_path, "\n".join(lines)))
    assert len(log.timings) == len(TIMINGS) - 2
    assert "torn" in log.warnings[0]


def test_a_time_that_its_bandwidth_belies_drops_out(tmp_path):
    lines = header("all_reduce", 8, 1)
    lines += [table_line("all_reduce", 8, size, time_us) for size, time_us in TIMINGS]
    lines[-1] = lines[-1].replace(f"{TIMINGS[-1][1]:8.2f}", f"{TIMINGS[-1][1] / 10:8.2f}")
    (log,) = read_logs(written(tmp_path, "\n".join(lines)))
    assert len(log.timings) == len(TIMINGS) - 1


def test_wrong_results_are_no_timings(tmp_path):
    lines = log_text("all_reduce", 8, 1, TIMINGS).splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == ["1048576"])
    words = lines[at].split()
    words[8] = "12"
    lines[at] = " ".join(words)
    (log,) = read_logs(written(tmp_path, "\n".join(lines)))
    assert 2**20 not in {t.bytes for t in log.timings}
    assert "wrong" in log.warnings[0]


def test_several_tests_in_one_file_are_several_logs(tmp_path):
    text = log_text("all_reduce", 8, 1, TIMINGS) + log_text("all_gather", 16, 2, TIMINGS)
    first, second = read_logs(written(tmp_path, text))
    assert (first.op, first.ranks, first.nodes) == ("all_reduce", 8, 1)
    assert (second.op, second.ranks, second.nodes) == ("all_gather", 16, 2)


@pytest.mark.parametrize(
    "text", ["", "hello\n", "# Rank  0 Pid 1 on a device 0 [0x1] X\n", "\0\xff"]
)
def test_a_file_without_timings_is_refused_with_file_and_line(tmp_path, text):
    with pytest.raises(SpecError, match=r"run\.log, line 1: no timing"):
        read_logs(written(tmp_path, text))


def test_published_logs_are_read_whole():
    (log,) = read_logs(MEASURED / "a100_all_reduce_4_nodes.log")
    assert (log.op, log.ranks, log.nodes, len(log.timings)) == ("all_reduce", 32, 4, 20)
    assert log.timings[-1].bytes / log.timings[-1].time_s * 2 * 31 / 32 == pytest.approx(
        91.69e9, rel=0.001
    )

"""Sweeps as people run them: killed, interrupted, short of disk, two at once, on a Dask cluster."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from warm import Warm

from planner.cli import app as cli

ROOT = Path(__file__).resolve().parents[2]
MODEL = (ROOT / "examples" / "sweep" / "small.yaml").read_text(encoding="utf-8")
STUDY = (ROOT / "examples" / "sweep" / "study.yaml").read_text(encoding="utf-8")
POINTS = 36
KILLS = 12
PATIENCE_S = 300
"""More than anything here takes on a machine that does much else."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_study(tmp_path)


def with_study(folder: Path) -> Path:
    (folder / "small.yaml").write_text(MODEL)
    (folder / "study.yaml").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def quick(warm: Warm) -> str:
    """Return an interpreter that has the package imported; for `--jobs 1`, it starts no other."""
    return str(warm.tools("planner") / "python")


class Whole(NamedTuple):
    """An uninterrupted run of the study: its tables, and what it says in the end."""

    jsonl: bytes
    csv: bytes
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def whole(quick: str, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder, said = with_study(tmp_path_factory.mktemp("whole")), []
    for name in ("out.jsonl", "out.csv"):
        done = finished(folder, "-o", name, "--json", "--jobs", "1", python=quick)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout))
    return Whole((folder / "out.jsonl").read_bytes(), (folder / "out.csv").read_bytes(), said[0])


def command(*words: str, python: str = sys.executable) -> list[str]:
    return [python, str(ROOT / "cli.py"), "sweep", "study.yaml", *words]


def started(
    folder: Path, *words: str, python: str = sys.executable, **env: str
) -> subprocess.Popen[str]:
    """Start a sweep in its own process group, as a shell does."""
    return subprocess.Popen(
        command(*words, python=python),
        cwd=folder,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(
    folder: Path, *words: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    line = command(*words, python=python)
    return subprocess.run(
        line, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(process: subprocess.Popen[str], path: Path, wanted: int) -> None:
    """Wait until a journal has so many lines, or the process ended."""
    until = time.monotonic() + PATIENCE_S
    while lines(path) < wanted and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    assert lines(path) >= wanted or process.poll() is not None


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def processes_with(mark: str) -> list[str]:
    """Return the processes that have `mark` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def test_one_row_a_point_and_reasons_where_there_is_no_answer(whole):
    summary = whole.summary
    rows = [json.loads(line) for line in whole.jsonl.splitlines()]
    assert [row["point"] for row in rows] == list(range(POINTS))
    assert summary["points"] == POINTS
    assert summary["ok"] + summary["infeasible"] + summary["refused"] == POINTS
    for row in rows:
        over = row["cluster.fabric.leaf_oversubscription"]
        expected = "refused" if over == 0.5 else "infeasible" if row["fix"] == "tp=3" else "ok"
        assert row["status"] == expected
        assert bool(row["reason"]) == (expected != "ok")
        if expected == "ok":
            parts = sum(v for k, v in row.items() if k.startswith("time_s.") and v)
            assert parts == pytest.approx(row["step_time_s"])
            assert row["gpus_used"] == row["tp"] * row["pp"] * row["cp"] * row["dp"]
            assert row["memory_peak_bytes"] <= row["memory_limit_bytes"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_at_random_moments_it_ends_with_the_bytes_of_an_uninterrupted_run(
    folder, jobs, whole, quick
):
    moments, journal = random.Random(int(jobs)), folder / "out.jsonl.journal.jsonl"
    mark, kills = uuid.uuid4().hex, 0
    for _ in range(KILLS if jobs == "1" else KILLS // 3):
        process = started(folder, "-o", "out.jsonl", "--jobs", jobs, MARK=mark)
        wait_for_lines(process, journal, lines(journal) + moments.randint(0, 3))
        time.sleep(moments.random() * 0.02)
        process.kill()
        kills += ended(process)[0] == -signal.SIGKILL
        assert not (folder / "out.jsonl").exists() or lines(folder / "out.jsonl") == POINTS
    assert kills >= (6 if jobs == "1" else 2)
    last = finished(folder, "-o", "out.jsonl", "--jobs", "1", "--json", python=quick)
    assert last.returncode == 0, last.stderr
    assert json.loads(last.stdout)["resumed"] > 0
    assert (folder / "out.jsonl").read_bytes() == whole.jsonl
    until = time.monotonic() + PATIENCE_S
    while processes_with(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_with(mark) == []  # workers of a killed run do not linger


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(folder, jobs, quick):
    process = started(folder, "-o", "out.csv", "--jobs", jobs)
    wait_for_lines(process, folder / "out.csv.journal.jsonl", 3)
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = ended(process)
    assert code == 130
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err
    done = finished(folder, "-o", "out.csv", "--json", "--jobs", "1", python=quick)
    assert json.loads(done.stdout)["resumed"] >= 2


def test_a_second_run_on_one_out_is_refused_while_the_first_works(folder, quick):
    process = started(folder, "-o", "out.csv", "--jobs", "1")
    wait_for_lines(process, folder / "out.csv.journal.jsonl", 2)
    os.kill(process.pid, signal.SIGSTOP)
    second = finished(folder, "-o", "out.csv", "--force", "--jobs", "1", python=quick)
    os.kill(process.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert "another sweep is writing out.csv" in second.stderr
    assert ended(process)[0] == 0


LIMITED = """\
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (7000, 7000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_disk_that_fills_up_is_said_and_nothing_is_lost(folder, whole, quick):
    """The limit on the size of a file fails writes half-way, as a full disk does."""
    python, *words = command("-o", "out.csv", "--jobs", "1", python=quick)
    done = subprocess.run(
        [python, "-c", LIMITED, *words],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert {p.name for p in folder.iterdir()} == {
        *("small.yaml", "study.yaml", "out.csv.journal.jsonl")
    }
    again = finished(folder, "-o", "out.csv", "--json", "--jobs", "1", python=quick)
    assert json.loads(again.stdout)["resumed"] > 0
    assert (folder / "out.csv").read_bytes() == whole.csv


def test_a_folder_that_may_not_be_written_to_is_refused_before_any_work(folder, quick):
    done = finished(folder, "-o", "/proc/out.csv", python=quick)
    assert done.returncode == 2
    assert "/proc/out.csv" in done.stderr
    assert "hint:" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "out.txt"), "ends in none of .jsonl, .csv, .parquet"),
        (("-o", "none/out.csv"), "none is no folder"),
        (("-o", "out.csv", "--jobs", "0"), "--jobs"),
        (("-o", "out.csv", "--jobs", "2", "--dask", "tcp://127.0.0.1:1"), "--jobs"),
    ],
)
def test_bad_usage_is_refused_and_leaves_nothing(folder, words, said, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert cli.main(["sweep", "study.yaml", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert {p.name for p in folder.iterdir()} == {"small.yaml", "study.yaml"}


def test_a_sweep_without_any_answer_exits_1_and_still_writes_why(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "study.yaml").write_text(STUDY.replace('["", "tp=2", "tp=3", "zero=3"]', '["tp=3"]'))
    assert cli.main(["sweep", "study.yaml", "-o", "out.csv", "--jobs", "1"]) == 1
    assert "none of the 9 points has an answer" in capsys.readouterr().err
    assert (folder / "out.csv").read_text().count("infeasible") == 6


def test_the_same_study_again_is_answered_from_its_journal(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert cli.main(["sweep", "study.yaml", "-o", "out.csv", "--jobs", "1"]) == 0
    first = (folder / "out.csv").read_bytes()
    monkeypatch.setattr(
        "planner.sweep.runners.evaluate", lambda request: pytest.fail("asked again")
    )
    assert cli.main(["sweep", "study.yaml", "-o", "out.csv", "--jobs", "1"]) == 0
    assert "24 were done before" in capsys.readouterr().out
    assert (folder / "out.csv").read_bytes() == first


def test_names_in_any_script_survive(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "modèle-模型.yaml").write_text(MODEL.replace("name: small", "name: 模型 🚀"))
    text = STUDY.replace("small.yaml", "modèle-模型.yaml").replace("[1, 2, 4]", "[1]")
    (folder / "study.yaml").write_text(text)
    assert cli.main(["sweep", "study.yaml", "-o", "täglich.csv", "--jobs", "1"]) == 0
    assert "模型 🚀" in (folder / "täglich.csv").read_text(encoding="utf-8")


CLUSTER = """\
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1",
        protocol="tcp://", dashboard_address=None,
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[str]:
    """Start a real scheduler and two worker processes over TCP; give the scheduler's address."""
    pytest.importorskip("distributed")
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(PATIENCE_S)


def test_a_dask_cluster_gives_the_bytes_of_this_machine_also_after_a_kill(folder, dask, whole):
    assert dask.startswith("tcp://127.0.0.1:")
    process = started(folder, "-o", "out.csv", "--dask", dask)
    wait_for_lines(process, folder / "out.csv.journal.jsonl", 5)
    process.kill()
    ended(process)
    done = finished(folder, "-o", "out.csv", "--dask", dask, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"] >= 3
    assert (folder / "out.csv").read_bytes() == whole.csv

"""Interrupted at any moment, short of disk, side by side, in any script: nothing half-written."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planner.cli import app as cli

ROOT = Path(__file__).resolve().parents[2]
MODEL = (ROOT / "examples" / "sweep" / "small.yaml").read_text(encoding="utf-8")
WORK = ["--seq", "2048", "--global-batch", "64"]
PLAN = ["plan", "small.yaml", "dgx-h100:2", *WORK, "--top", "3"]
JOB = "--tensor-model-parallel-size 2\n--num-layers 4\n--hidden-size 512\n"
JOB += "--num-attention-heads 4\n--seq-length 2048\n--global-batch-size 64\n"
WRITES = {
    "plan": [*PLAN, "-o", "out", "--target", "megatron,torchrun"],
    "emit": ["emit", "plan.json", "--target", "megatron,slurm", "-o", "out"],
    "report": ["report", "plan.json", "-o", "out.html"],
    "simulate": ["simulate", "plan.json", "-o", "out.json"],
    "import": ["import", "job.args", "--cluster", "dgx-h100:2", "-o", "out.json"],
}
INTERRUPTS = 5
LIMITED = """\
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return a folder with a model, a plan of it and a job's arguments."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "small.yaml").write_text(MODEL)
    (folder / "job.args").write_text(JOB)
    words = [*PLAN, "--stack", "megatron", "--fix", "pp=2", "--json"]
    made = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *words],
        cwd=folder, capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    (folder / "plan.json").write_bytes(made.stdout)
    return folder


@pytest.fixture
def folder(inputs, tmp_path):
    for file in inputs.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def python(warm):
    """Return an interpreter that has the package imported: what it does begins at once."""
    return str(warm.tools("planner") / "python")


def started(folder, words, python=sys.executable, options=(), **more):
    return subprocess.Popen(
        [python, *options, str(ROOT / "cli.py"), *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def done(folder, words, **more) -> int:
    """Return the exit code of a command that runs to its end."""
    process = started(folder, words, **more)
    process.communicate(timeout=240)
    return process.returncode


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def whole(folder: Path) -> bool:
    """Return whether what stands in `folder` under the name `out` is complete, or not there."""
    if (folder / "out").exists():
        return cli.main(["emit", "--check", str(folder / "out")]) == 0
    if (folder / "out.json").exists():
        return isinstance(json.loads((folder / "out.json").read_text()), dict | list)
    if (folder / "out.html").exists():
        return (folder / "out.html").read_text().rstrip().endswith("</html>")
    return True


def clear(folder: Path) -> None:
    """Remove what a command has written."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    for name in ("out.json", "out.html"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize("command", WRITES)
def test_ctrl_c_at_any_moment_leaves_nothing_half_written(command, folder):
    before, moments = names(folder), random.Random(command)
    began = time.monotonic()
    assert done(folder, WRITES[command]) == 0
    took = time.monotonic() - began
    assert whole(folder)
    for _ in range(INTERRUPTS):
        clear(folder)
        process = started(folder, WRITES[command])
        time.sleep(0.05 + moments.random() * took)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=240)
        # before our first line ran, Python ends as it likes
        at_start = "planner" not in err and ("Traceback" in err or process.returncode == -2)
        assert at_start or "Traceback" not in err, err
        assert at_start or process.returncode in (0, 130), (process.returncode, err)
        assert whole(folder)
        assert names(folder) - before <= {"out", "out.json", "out.html"}


@pytest.mark.parametrize("command", WRITES)
def test_a_disk_that_fills_up_is_said_and_leaves_nothing(command, folder, python):
    """The limit on the size of a file fails writes half-way, as a full disk does."""
    before = names(folder)
    process = started(folder, WRITES[command], python, ["-c", LIMITED])
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert out == ""
    assert names(folder) == before


@pytest.mark.parametrize("command", WRITES)
def test_a_place_that_may_not_be_written_to_is_said(command, folder, python):
    words = [
        w.replace("out", "/proc/out", 1) if w.startswith("out") else w for w in WRITES[command]
    ]
    before = names(folder)
    process = started(folder, words, python)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2, err
    assert err.count("error:") == 1
    assert "/proc" in err
    assert "Traceback" not in err
    assert out == ""
    assert names(folder) == before


def test_runs_side_by_side_into_one_folder_leave_one_whole_bundle(folder, python):
    before = names(folder)
    words = ["emit", "plan.json", "-o", "out", "--force", "--target"]
    targets = ["megatron", "torchrun", "slurm", "megatron,slurm"]
    running = [started(folder, [*words, target], python) for target in targets]
    for process in running:
        _, err = process.communicate(timeout=240)
        assert process.returncode in (0, 2), err
        assert "Traceback" not in err
    assert any(process.returncode == 0 for process in running)
    assert names(folder) - before == {"out"}
    assert whole(folder)


@pytest.mark.parametrize(
    "words",
    [
        [*PLAN, "--json"],
        ["explain", *PLAN[1:7], "--layout", "tp=2,pp=2", "--json"],
        ["place", *PLAN[1:7], "--layout", "tp=2,pp=2", "--json"],
        ["import", "job.args", "--cluster", "dgx-h100:2", "--json"],
        ["simulate", "plan.json", "--json"],
    ],
    ids=lambda words: words[0],
)
def test_the_same_bytes_in_every_process_and_under_every_hash_seed(words, folder):
    seen = set()
    for seed in ("0", "4242"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        out, err = started(folder, words, env=env).communicate(timeout=240)
        document = json.loads(out)
        document.pop("timing", None)
        seen.add(json.dumps(document) + err)
    assert len(seen) == 1


def test_bundles_and_pages_are_the_same_bytes_under_every_hash_seed(folder):
    seen = set()
    for seed in ("0", "7"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        assert done(folder, [*WRITES["emit"], "--force"], env=env) == 0
        assert done(folder, WRITES["report"], env=env) == 0
        files = sorted(p for p in (folder / "out").rglob("*") if p.is_file())
        seen.add(tuple((p.name, p.read_bytes()) for p in (*files, folder / "out.html")))
    assert len(seen) == 1


@pytest.mark.parametrize(
    "odd", ["ünïcode 漢字", "a b", "quote'\"s", "semi;colon", "$(id)", "-dash"]
)
def test_names_in_any_script_survive_from_model_to_bundle(odd, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / odd).mkdir()
    (folder / odd / f"{odd}.yaml").write_text(MODEL.replace("name: small\n", ""))
    words = ["plan", f"./{odd}/{odd}.yaml", "dgx-h100:1", *WORK, "--fix", "tp=2", "--json"]
    assert cli.main([*words, "-o", f"./{odd}/out", "--target", "torchrun"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["model"]["name"] == odd
    assert cli.main(["emit", "--check", f"./{odd}/out"]) == 0
    assert cli.main(["report", f"./{odd}/out/plan.json", "-o", f"./{odd}/r.html"]) == 0
    run = folder / odd / "out" / "torchrun" / "run.sh"
    assert subprocess.run(["bash", "-n", str(run)], check=False).returncode == 0


SIZES = """\
import re, sys
from pathlib import Path
from planner.cli.app import main
code = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())  # not its parent's
print(int(peak[1]) // 1024, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("cluster", "most_mib"), [("dgx-h100:1", 400), ("dgx-h100:4096", 600), ("dgx-h100:16384", 800)]
)
def test_memory_stays_bounded_as_the_cluster_grows(cluster, most_mib, folder):
    words = ["plan", "small.yaml", cluster, "--seq", "2048", "--global-batch", "131072"]
    done = subprocess.run(
        [sys.executable, "-c", SIZES, *words, "--fix", "tp=1|8,pp=1|2,cp=1", "--top", "1"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < most_mib

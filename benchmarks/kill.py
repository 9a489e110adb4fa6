"""Sweeps killed for real at random moments, dozens of times: the table ends as if nothing happened.

    python benchmarks/kill.py [--kills 60] [--jobs 2] [--seed 0]

Starts a sweep, kills it with SIGKILL after a random time, and starts the same command again until
the table is there; then compares it, byte for byte, with that of an uninterrupted run, and
begins anew until so many kills hit. The exit code is 1 if one table differs or a file is left.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = (ROOT / "examples" / "sweep" / "small.yaml").read_text(encoding="utf-8")
STUDY = (ROOT / "examples" / "sweep" / "study.yaml").read_text(encoding="utf-8")
POINTS = 36


def started(folder: Path, out: str, jobs: int) -> subprocess.Popen[bytes]:
    words = ["sweep", "study.yaml", "-o", out, "--jobs", str(jobs)]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *words],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def one_life(folder: Path, jobs: int, rng: random.Random, took_s: float) -> tuple[int, list[int]]:
    """Kill and start again until the table is there; return kills, and points kept at each."""
    journal, kept = folder / "out.csv.journal.jsonl", []
    while True:
        process = started(folder, "out.csv", jobs)
        try:
            process.wait(0.1 + rng.random() * took_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if process.returncode == 0:
            return len(kept), kept
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"ended by itself with {process.returncode}")
        kept.append(max(0, lines(journal) - 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, kills, lives, wrong = random.Random(asked.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "small.yaml").write_text(MODEL)
        (folder / "study.yaml").write_text(STUDY)
        began = time.monotonic()
        assert started(folder, "whole.csv", asked.jobs).wait() == 0
        took_s = time.monotonic() - began
        whole = (folder / "whole.csv").read_bytes()
        while kills < asked.kills:
            hit, kept = one_life(folder, asked.jobs, rng, took_s)
            kills, lives = kills + hit, lives + 1
            same = (folder / "out.csv").read_bytes() == whole
            grows = kept == sorted(kept)
            left = {p.name for p in folder.iterdir()} - {
                *("small.yaml", "study.yaml", "whole.csv", "whole.csv.journal.jsonl"),
                *("out.csv", "out.csv.journal.jsonl"),
            }
            wrong += not (same and grows and not left)
            print(
                f"table {lives}: {hit} kills with {kept} of {POINTS} points kept; "
                f"{'the same bytes' if same else 'ANOTHER TABLE'}"
                f"{'' if grows else ', POINTS LOST'}{f', LEFT {sorted(left)}' if left else ''}",
                flush=True,
            )
            (folder / "out.csv").unlink()
            (folder / "out.csv.journal.jsonl").unlink()
    print(f"{kills} kills, {lives} tables, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

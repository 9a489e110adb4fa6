"""Damaged inputs by the thousand: no traceback, no hang, no half-written file, bounded memory.

    python benchmarks/fuzz.py [--cases 12000] [--seed 0] [--seconds 3600] [--keep DIR]

Every case runs a whole command in this process, in a folder of its own. What breaks a promise is
printed, and with --keep its files are written there. The exit code is 1 if any did.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]

from cases import Case, cases  # noqa: E402 - found by the line above
from harness import broken  # noqa: E402

EVERY = 200


def kept(folder: Path, number: int, case: Case) -> None:
    where = folder / f"{number:05}"
    for name, data in case.files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(data)
    (where / "command").write_text(repr(case.words) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="Stop after so long.")
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    counted: collections.Counter[str] = collections.Counter()
    slowest: dict[str, float] = {}
    wrong, started = 0, time.perf_counter()
    for number, case in enumerate(cases(asked.seed, asked.cases)):
        if time.perf_counter() - started > asked.seconds:
            break
        before = time.process_time()
        for promise in broken(case.words, case.files):
            wrong += 1
            print(
                f"#{number} {case.kind}: {' '.join(map(repr, case.words))}\n  {promise}", flush=True
            )
            if asked.keep:
                kept(asked.keep, number, case)
        counted[case.kind] += 1
        took = time.process_time() - before
        slowest[case.kind] = max(took, slowest.get(case.kind, 0.0))
        if (number + 1) % EVERY == 0:
            with contextlib.suppress(BrokenPipeError):
                print(
                    f"{number + 1:,} cases, {time.perf_counter() - started:.0f} s", file=sys.stderr
                )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for kind, count in sorted(counted.items()):
        print(f"{kind:<14}{count:>7,} cases, slowest {slowest[kind]:.2f} s of CPU")
    print(f"{sum(counted.values()):,} cases, {wrong} broken promises, peak memory {peak:,.0f} MiB")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

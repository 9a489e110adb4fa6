"""How many layouts a second we score, and how many Calculon does, on the same model and cluster.

    python benchmarks/calculon.py CHECKOUT [--seconds N] [--model gpt-3-175b] [--write-readme]

CHECKOUT is a clone of github.com/calculon-ai/calculon (Apache-2.0), which needs numpy, pandas and
psutil. Its own search command is asked for its list of tasks at 4,096 GPUs; a random sample of them
is evaluated by its own search function in a process of its own, as shipped and again with logging
switched off, for N seconds of CPU time each. Its rate counts every candidate, those that it finds
invalid too. Ours is of the same model, GPUs and batch on one core: every legal layout gets its
memory, and every one that fits its step time. What our rules reject counts for nothing in the rate
that is compared, though it is enumerated.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from planner.estimate.scoring import score
from planner.layouts.ranges import parse_fix
from planner.layouts.rules import Context
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- measured: benchmarks/calculon.py -->\n).*?(<!-- end -->)", re.DOTALL)
THEIR_MODEL = {"gpt-3-175b": "gpt3-175B", "gpt-1t": "megatron-1T"}
GPUS, GLOBAL_BATCH = 4096, 4096
NODES = GPUS // 8
REPEATS = 3

DRIVER = """
import argparse, importlib, json, logging, random, sys, time

search = importlib.import_module("calculon.llm.optimal_execution")

model, system, seconds, quiet = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "1"
gpus, batch = int(sys.argv[5]), int(sys.argv[6])
if quiet:
    logging.disable(logging.CRITICAL)
done = {"tasks": 0, "candidates": 0, "valid": 0, "cpu_s": 0.0}


class OneByOne:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def starmap(self, function, tasks):
        done["of_tasks"] = len(tasks)
        random.Random(1).shuffle(tasks)
        for task in tasks:
            started = time.process_time()
            best, candidates, valid, *_ = function(*task)
            done["cpu_s"] += time.process_time() - started
            done["tasks"] += 1
            done["candidates"] += candidates
            done["valid"] += valid
            if done["cpu_s"] >= seconds:
                break
        return []


search.mp.Pool = lambda workers: OneByOne()
parser = argparse.ArgumentParser()
search.OptimalExecution.create_parser(parser.add_subparsers())
words = ["llm-optimal-execution", model, str(gpus), str(batch), "float16", system, "none.json"]
args = parser.parse_args([*words, "-n", "-c", "1", *(["-d"] if seconds == 0 else [])])
if seconds == 0:
    seconds = float("inf")
root = logging.getLogger("sample")
search.OptimalExecution.run_command(root, args)
print(json.dumps(done))
"""


class Theirs(NamedTuple):
    """What a sample of Calculon's candidates took."""

    candidates: int
    valid: int
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.candidates / self.cpu_s


class Ours(NamedTuple):
    """One search: its counts, and its CPU seconds on one core."""

    enumerated: int
    legal: int
    fit: int
    cpu_s: float


def theirs(checkout: Path, model: str, seconds: float, *, quiet: bool) -> Theirs:
    """Return a sample of Calculon's own search; 0 seconds: count its candidates only."""
    where = [checkout / "models" / f"{THEIR_MODEL[model]}.json", checkout / "systems/a100_80g.json"]
    figures = [seconds, int(quiet), GPUS, GLOBAL_BATCH]
    told = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, (*where, *figures))],
        cwd=checkout,
        env={"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    done = json.loads(told.stdout.splitlines()[-1])
    return Theirs(done["candidates"], done["valid"], done["cpu_s"])


def ours(model: str) -> Ours:
    """Return our search of the same model, GPUs and batch, states in host memory included."""
    workload = Workload(seq_tokens=2048, global_batch=GLOBAL_BATCH, precision="fp16")
    cluster = load_cluster(f"dgx-a100:{NODES}")
    context = Context(load_model(model), cluster, workload)
    fix = parse_fix({"offload": "none|optimizer|optimizer+params"})
    took = []
    for _ in range(REPEATS):
        started = time.process_time()
        found = score(context, cluster.gpus, fix, cores=1)
        took.append(time.process_time() - started)
    return Ours(found.tally.enumerated, found.tally.legal, found.fitted, min(took))


def table(checkout: Path, models: Sequence[str], seconds: float) -> str:
    """Return both sides' figures as Markdown."""
    lines = ["| | Calculon, a second of CPU | this, a second of CPU | ratio |", "|---|---|---|---|"]
    notes = []
    for model in models:
        shipped = theirs(checkout, model, seconds, quiet=False)
        quiet = theirs(checkout, model, seconds, quiet=True)
        whole = theirs(checkout, model, 0, quiet=True)
        mine = ours(model)
        rate = mine.legal / mine.cpu_s
        for how, one in (("as shipped", shipped), ("logging off", quiet)):
            lines.append(
                f"| {model}, {GPUS:,} A100, {how} | {one.rate:,.0f} candidates, "
                f"{one.valid / one.candidates:.0%} valid | {rate:,.0f} legal layouts | "
                f"{rate / one.rate:,.0f} x |"
            )
        notes.append(
            f"{model}: Calculon has {whole.candidates:,} candidates, at these rates "
            f"{whole.candidates / quiet.rate / 3600:.1f} CPU hours with logging off "
            f"({quiet.candidates:,} sampled). This search has {mine.enumerated:,}, of which "
            f"{mine.legal:,} are legal and {mine.fit:,} fit: {mine.cpu_s:.1f} s on one core; as "
            f"many legal layouts as it has candidates would take {whole.candidates / rate:.1f} s."
        )
    return "\n".join([*lines, *("\n" + textwrap.fill(note, 104) for note in notes)])


def main(argv: Sequence[str]) -> int:
    """Print the figures, and write them into README if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a clone of github.com/calculon-ai/calculon")
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU seconds of each sample")
    parser.add_argument("--model", choices=sorted(THEIR_MODEL), help="one of both only")
    parser.add_argument("--write-readme", action="store_true", help="put the table into README")
    args = parser.parse_args(argv)
    if not (args.checkout / "calculon").is_dir():
        parser.error(f"{args.checkout} is no checkout of Calculon: it has no folder 'calculon'")
    models = [args.model] if args.model else list(THEIR_MODEL)
    text = table(args.checkout.resolve(), models, args.seconds)
    print(text)
    if args.write_readme:
        page = ROOT / "README.md"
        old = page.read_text(encoding="utf-8")
        page.write_text(BLOCK.sub(lambda m: f"{m[1]}{text}\n{m[2]}", old), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

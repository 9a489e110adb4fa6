"""Peaks under FSDP2 against torch's own memory tracker, run here and now at 8 and 64 ranks."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from estimate_cases import inputs, spec

from planner.estimate import memory
from planner.estimate.fsdp import POINTS, peak_point

pytestmark = pytest.mark.frameworks

SMALL = {"hidden": 2048, "heads": 32, "kv_heads": 8, "ffn": 8192, "vocab": 128256, "layers": 4}
SEVEN = {"hidden": 4096, "heads": 32, "kv_heads": 32, "ffn": 11008, "vocab": 32000, "layers": 4}
WIDE = {"hidden": 8192, "heads": 64, "kv_heads": 8, "ffn": 28672, "vocab": 32000, "layers": 4}
RUNS = {
    "70b-like, full recompute": {"model": WIDE, "seq": 1024, "batch": 1, "recompute": "full"},
    "7b-like, short": {"model": {**SEVEN, "layers": 8}, "seq": 128, "batch": 1},
    "small vocabulary of 128k": {"model": SMALL, "seq": 2048, "batch": 1},
    "small, zero 2": {"model": SMALL, "seq": 1024, "batch": 2, "zero": 2},
    "7b-like": {"model": SEVEN, "seq": 2048, "batch": 1},
    "7b-like, full recompute": {"model": SEVEN, "seq": 4096, "batch": 1, "recompute": "full"},
}
WORLDS = (8, 64)
CASES = [(world, name) for world in WORLDS for name in RUNS]


def filled(name: str) -> dict[str, Any]:
    return {"recompute": "none", "zero": 3, **RUNS[name]}


@pytest.fixture(scope="module")
def tracked(warm) -> Callable[[int], dict[str, dict[str, int]]]:
    """What torch's tracker sees in every run, in a process of its own for its process group."""
    pytest.importorskip("torch")
    script = str(Path(__file__).with_name("fsdp_run.py"))
    runs = [filled(name) for name in RUNS]

    @functools.cache
    def by_name(world: int) -> dict[str, dict[str, int]]:
        command = ["python", script, str(world), json.dumps(runs)]
        done = subprocess.run(
            command, env=warm.env("torch"), capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(zip(RUNS, json.loads(done.stdout.splitlines()[-1]), strict=True))

    return by_name


def told(world: int, name: str):
    run = filled(name)
    shape = dict(run["model"])
    model = spec(**shape, head_dim=shape["hidden"] // shape["heads"])
    row = {"dp": world, "zero": run["zero"], "micro_batch": run["batch"]}
    return inputs(
        model,
        row | {"recompute": run["recompute"]},
        cluster=f"dgx-h100:{world // 8}",
        seq_tokens=run["seq"],
        stack="torchtitan",
    )


@pytest.mark.parametrize(("world", "name"), CASES)
def test_the_peak_is_what_torch_tracks_in_this_very_run(world, name, tracked):
    x, peak = told(world, name), tracked(world)[name]
    allocated = memory.peak_bytes(x)[0] - memory.overhead_bytes(x)[0, 0]
    assert allocated == pytest.approx(peak["Total"], rel=1e-3)
    assert memory.optimizer_bytes(x)[0, 0] == pytest.approx(peak["OptState"], rel=1e-4)


@pytest.mark.parametrize(("world", "name"), CASES)
def test_the_peak_is_at_the_point_that_its_parts_show(world, name, tracked):
    """No gradient yet: the loss. No activation any more: the embedding, or the optimizer step."""
    point, peak = peak_point(told(world, name), 0), tracked(world)[name]
    if peak["Activation"] < 100:
        assert point in POINTS[4:]
        assert (point == POINTS[5]) == (peak["Reduce Scatter"] + peak["Unsharded Grad"] == 0)
    elif peak["Sharded Grad"] + peak["Unsharded Grad"] == 0:
        assert point == POINTS[0]
    else:
        assert point in POINTS[1:4]


def test_these_runs_peak_at_several_points():
    assert len({peak_point(told(world, name), 0) for world, name in CASES}) >= 2

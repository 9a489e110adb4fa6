"""Megatron's groups are compared with the rank map as soon as Megatron-Core has made them."""

from __future__ import annotations

import json
import subprocess

import megatron_harness
import pytest
from plan_grid import MODELS, plan

from planner.emit.base import write_bundle
from planner.emit.megatron import EMITTER

pytestmark = pytest.mark.frameworks

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore
import os

world, order = int(os.environ["WORLD_SIZE"]), sys.argv[1]
dist.init_process_group("fake", rank=int(os.environ["RANK"]), world_size=world, store=FakeStore())
parallel_state.initialize_model_parallel(
    tensor_model_parallel_size=2, pipeline_model_parallel_size=2, expert_model_parallel_size=2,
    expert_tensor_parallel_size=1, order=order, create_gloo_process_groups=False,
)
print("trained")
"""


@pytest.mark.parametrize(
    ("rank", "order", "goes"),
    [(5, "tp-cp-ep-dp-pp", True), (5, "tp-cp-ep-pp-dp", False), (0, "tp-cp-ep-pp-dp", True)],
)
def test_groups_of_another_order_stop_the_job(rank, order, goes, tmp_path, warm):
    megatron_harness.load()
    answer = plan(MODELS["moe"], tp=2, pp=2, dp=2, ep=2, etp=1)
    assert EMITTER.unsupported(answer) == []
    bundle = tmp_path / "bundle"
    write_bundle(bundle, EMITTER.emit(answer), force=False)
    row = json.loads((bundle / "rank_map.json").read_text("utf-8"))["ranks"][rank]
    (tmp_path / "pretrain.py").write_text(SCRIPT)
    env = {k: v for k, v in warm.env("megatron").items() if not k.startswith("MASTER_")}
    env |= {"RANK": str(rank), "LOCAL_RANK": str(row["gpu"]), "WORLD_SIZE": "8"}
    done = subprocess.run(
        ["python", str(bundle / "checked.py"), "pretrain.py", order],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if goes:
        assert (done.returncode, done.stdout.split()) == (0, ["trained"]), done.stderr
    else:
        assert done.returncode == 3, done.stderr
        assert "trained" not in done.stdout
        assert "rank 5 expected coordinates" in done.stderr

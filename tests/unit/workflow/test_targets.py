"""Which stack the files of a target are planned for."""

from __future__ import annotations

import pytest

from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.workflow import PlanRequest
from planner.workflow.targets import plan_for_target


@pytest.mark.parametrize(
    ("asked", "target", "planned"),
    [
        ("any", "torchtitan", "torchtitan+chunked-loss"),
        ("megatron", "torchtitan", "torchtitan+chunked-loss"),
        ("torchtitan+pure-bf16", "torchtitan", "torchtitan+pure-bf16+chunked-loss"),
        ("torchtitan+chunked-loss", "torchtitan", "torchtitan+chunked-loss"),
        ("transformers", "accelerate", "transformers"),
        ("megatron-bridge", "megatron", "megatron-bridge"),
    ],
)
def test_the_stack_asked_for_is_kept_where_the_target_runs_it(asked, target, planned):
    workload = Workload(seq_tokens=1024, global_batch=16, stack=asked)
    request = PlanRequest(load_model("qwen3-0.6b"), load_cluster("dgx-h100:1"), workload)
    assert plan_for_target(request, target).request.workload.stack == planned

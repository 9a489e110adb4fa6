"""Where nothing is legal, the rules that decide are named, and the smallest change that helps."""

from __future__ import annotations

import pytest

from planner import workflow
from planner.errors import InfeasibleError
from planner.layouts.grid import Tally, grid_of
from planner.layouts.ranges import parse_fix
from planner.layouts.rules import rules_broken
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.workflow import PlanRequest
from planner.workflow.rejecting import nearest


def request(stack="any", batch=64, cluster="dgx-h100:2", **fix):
    work = Workload(seq_tokens=4096, global_batch=batch, stack=stack)
    return PlanRequest(load_model("llama-3.1-8b"), load_cluster(cluster), work, fix=fix)


@pytest.mark.parametrize(
    ("asked", "rule", "hint"),
    [
        (
            request("deepspeed", offload="optimizer-nvme"),
            "breaks one rule: offload=optimizer-nvme needs the rate of a node's NVMe drives: "
            "node.nvme_gb_per_s in the cluster file",
            "offload=none",
        ),
        (
            request("megatron", schedule="zbv"),
            "--stack megatron+primus-pipeline",
            "without schedule=zbv there are: schedule=none|1f1b|interleaved",
        ),
        (
            request("megatron+offload-layers=32"),
            "the last of the 32 layers keeps its activations on the GPU",
            "offload-layers=31 or fewer",
        ),
        (request(tp="16"), "does not fit the node of 8 GPUs", "tp=1|2|4|8"),
        (request(batch=7, dp="2", tp="8"), "global batch", "without dp=2 there are: dp=1"),
        (request(tp="16", zero="3", dp="1"), "breaks 2 rules:", ""),
    ],
)
def test_the_decisive_rule_and_a_way_out_are_named(asked, rule, hint):
    with pytest.raises(InfeasibleError) as refused:
        workflow.plan(asked)
    assert rule in refused.value.message
    assert hint in refused.value.hint


def test_the_way_out_is_one():
    """What the hint says without the fixed field has a plan, and with it none."""
    with pytest.raises(InfeasibleError) as refused:
        workflow.plan(request("megatron", schedule="zbv"))
    for value in refused.value.hint.rpartition("=")[2].split("|"):
        assert workflow.plan(request("megatron", schedule=value)).plans


def test_no_layout_breaks_fewer_rules_than_the_nearest():
    asked = request("megatron", batch=6, schedule="zbv", tp="2")
    fix = parse_fix(asked.fix)
    near = nearest(asked.context, 16, fix)
    few = len(rules_broken(near, 0, asked.context))
    grid = grid_of(asked.context, 16, fix, Tally(), rules=())
    rows, _ = grid.part(0)
    some = range(0, len(rows), max(1, len(rows) // 300))
    assert all(len(rules_broken(rows.take(slice(None)), i, asked.context)) >= few for i in some)

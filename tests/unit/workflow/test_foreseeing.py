"""What is refused before a search is what no layout could mend, and nothing else."""

from __future__ import annotations

import pytest

from planner.emit import EMITTER_NAMES
from planner.errors import InfeasibleError, PlannerError
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.workflow import PlanRequest, plan_for_target, refuse_foreseen


def request(model: str = "llama-3.2-1b", stack: str = "any", **fix: str) -> PlanRequest:
    work = Workload(seq_tokens=2048, global_batch=64, stack=stack)
    return PlanRequest(load_model(model), load_cluster("dgx-h100:1"), work, fix=fix)


@pytest.mark.parametrize(
    ("target", "fix", "says"),
    [
        ("accelerate", {"pp": "2|4"}, "pp=2|4: Accelerate has no pipeline parallelism"),
        ("deepspeed", {"cp": "2..8"}, "it takes cp=1"),
        ("nanotron", {"schedule": "interleaved", "zero": "3"}, "--fix without zero, schedule"),
        ("megatron", {"recompute": "none", "offload": "optimizer+params"}, "offload=optimizer+par"),
        ("dataparallel", {"sp": "false", "dp_sync": "all-reduce"}, "is a parameter server"),
        ("slurm", {"offload": "optimizer"}, "keeps states on the GPUs"),
    ],
)
def test_a_fixed_field_that_the_target_lacks_is_foreseen(target, fix, says):
    with pytest.raises(InfeasibleError) as refused:
        refuse_foreseen(request(**fix), target)
    assert says in str(refused.value)
    with pytest.raises(PlannerError):  # as the search would have found
        plan_for_target(request(**fix), target)


@pytest.mark.parametrize("target", EMITTER_NAMES)
def test_one_value_left_that_the_target_has_is_enough(target):
    plenty = {"tp": "1|2", "pp": "1..4", "zero": "0..3", "recompute": "none|full", "sp": "false"}
    refuse_foreseen(request(**plenty), target)


def test_a_model_that_no_layout_mends_is_refused_without_a_hint():
    with pytest.raises(InfeasibleError, match="neither experts nor latent attention") as refused:
        refuse_foreseen(request("deepseek-v3"), "nanotron")
    assert not refused.value.hint
    refuse_foreseen(request("deepseek-v3"), "megatron")

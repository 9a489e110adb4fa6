"""Stack profiles: names, flags, and what each flag must do to a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import SpecError
from planner.estimate.communication import gradient_sync_s
from planner.estimate.inputs import Inputs
from planner.estimate.params import stage_dense_parameters
from planner.estimate.step import pressure_slowdown, step_s, time_parts
from planner.layouts.rules import rules_of
from planner.layouts.table import Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.stack import EP_OVERLAP, FLAG_RULES, FLAGS, STACKS, stack_named
from planner.specs.workload import Workload

ROW = {
    "tp": 1, "sp": 0, "pp": 1, "vpp": 1, "cp": 1, "ep": 16, "etp": 1, "dp": 16, "dp_replicate": 1,
    "zero": 1, "micro_batch": 1, "num_microbatches": 4, "recompute": "none", "schedule": "none",
    "offload": "none", "dp_sync": "all-reduce",
}  # fmt: skip


def inputs(
    stack: str, model: str = "qwen3-30b-a3b", *, seq: int = 4096, **changes: object
) -> Inputs:
    row = ROW | changes
    batch = int(row["dp"]) * int(row["micro_batch"]) * int(row["num_microbatches"])
    work = Workload(seq_tokens=seq, global_batch=batch, stack=stack)
    nodes = int(row["tp"]) * int(row["pp"]) * int(row["cp"]) * int(row["dp"]) // 8 or 1
    return Inputs(load_model(model), load_cluster(f"dgx-h100:{nodes}"), work, Layouts.of([row]))


def seconds(stack: str, seq: int = 4096) -> float:
    return float(step_s(inputs(stack, seq=seq))[0])


@pytest.mark.parametrize("name", STACKS)
def test_every_profile_names_its_runs_and_obeys_known_rules(name):
    stack = stack_named(name)
    assert stack.source
    assert 0.5 < stack.gemm < 1.5
    assert rules_of(name) == rules_of(stack.rules)


def test_unknown_names_and_flags_are_refused_with_the_nearest_known():
    with pytest.raises(SpecError, match="megatron-bridge") as error:
        stack_named("megatron-brige")
    assert "did you mean 'megatron-bridge'" in error.value.hint
    with pytest.raises(SpecError, match="deepep") as error:
        stack_named("megatron+deepp")
    assert "did you mean 'deepep'" in error.value.hint


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_keep_the_rules_of_their_profile(flag):
    profile = "megatron" if "megatron" in FLAG_RULES.get(flag, ("megatron",)) else "torchtitan"
    name = f"{profile}+{flag}"
    assert stack_named(name).name == name
    assert rules_of(name) == rules_of(profile)


@pytest.mark.parametrize(
    "name", ["megatron+pure-bf16", "torchtitan+fp8-moments", "deepspeed+bf16-moments"]
)
def test_a_flag_that_a_framework_has_not_is_refused_with_those_that_have_it(name):
    with pytest.raises(SpecError, match="has no") as error:
        stack_named(name)
    assert ("torchtitan" if name.startswith("megatron") else "megatron") in error.value.hint


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ("megatron+alltoall", "megatron+deepep"),
        ("megatron+no-ep-overlap", "megatron+ep-overlap"),
        ("megatron", "megatron+fused-moe"),
    ],
)
def test_what_a_run_switches_on_makes_it_faster(slower, faster):
    assert seconds(faster) < seconds(slower)


def test_graphs_shorten_a_step_that_waits_for_the_host():
    none, partial, full = (seconds(f"megatron+{g}-graphs", 512) for g in ("no", "partial", "full"))
    assert none > partial > full


def test_one_copy_a_rank_sends_what_the_expectation_says():
    """Qwen3's 8 of 128 experts over 16 ranks on 2 nodes: 2(1-2^-8) copies to nodes, not 8."""
    plain = time_parts(inputs("megatron+alltoall"))["ep"][0]
    once = time_parts(inputs("megatron+deepep"))["ep"][0]
    assert once / plain == pytest.approx(2 * (1 - 2**-8) / 8, rel=0.1)


def test_overlapped_all_to_all_keeps_its_share_exposed():
    parts = [time_parts(inputs(f"megatron+{f}"))["ep"][0] for f in ("ep-overlap", "no-ep-overlap")]
    assert parts[0] / parts[1] == pytest.approx(EP_OVERLAP)


DENSE = {"ep": 1, "dp": 8, "zero": 3}


@pytest.mark.parametrize(
    ("slower", "faster", "changes"),
    [
        ("torchtitan+eager", "torchtitan", DENSE),
        ("torchtitan", "torchtitan+cudnn", DENSE),
        ("torchtitan", "torchtitan+async-tp", DENSE | {"tp": 8, "sp": 1, "micro_batch": 8}),
    ],
)
def test_flags_of_a_dense_run_change_its_time(slower, faster, changes):
    times = [step_s(inputs(s, "llama3-8b", **changes))[0] for s in (slower, faster)]
    assert times[0] > 1.005 * times[1]


def test_finer_scales_cost_fp8_runs_time_and_16_bit_runs_none():
    def took(flag: str, precision: str) -> float:
        x = inputs(f"torchtitan{flag}", "llama3-8b", **DENSE)
        work = x.workload.model_copy(update={"precision": precision})
        return step_s(Inputs(x.model, x.cluster, work, x.layouts))[0]

    fine = [took(f, "fp8") for f in ("", "+fp8-current", "+mxfp8", "+fp8-rowwise")]
    assert fine == sorted(fine)
    assert took("+fp8-rowwise", "bf16") == took("", "bf16")


def test_a_collective_for_each_bucket_pays_its_latency_each_time():
    took = []
    for size in (1e12, 1e8, 1e7):
        x = inputs("megatron", "llama3-8b", ep=1, dp=512)
        x.stack = replace(x.stack, bucket_bytes=size)
        took.append(gradient_sync_s(x)[0])
    gradients = 4 * stage_dense_parameters(x)[0, 0]
    latency = x.cluster.fabric.latency_us * 1e-6 + 511 * x.cluster.fabric.step_latency_us * 1e-6
    assert took[1] - took[0] == pytest.approx((gradients / 1e8 - 1) * latency, rel=1e-6)
    assert took[2] - took[0] == pytest.approx((gradients / 1e7 - 1) * latency, rel=1e-6)


def test_a_stack_whose_allocator_retries_slows_down_near_the_limit_only():
    roomy = inputs("nanotron", "llama3-8b", ep=1, dp=8, tp=8, sp=1, recompute="full")
    tight = inputs("nanotron", "llama3-8b", ep=1, dp=8, seq=8192, micro_batch=4)
    assert pressure_slowdown(roomy)[0] == 1.0
    assert pressure_slowdown(tight)[0] == 1.0 + tight.stack.pressure
    assert sum(part[0] for part in time_parts(tight).values()) == pytest.approx(step_s(tight)[0])
    assert pressure_slowdown(inputs("megatron", "llama3-8b", ep=1, dp=8, micro_batch=4))[0] == 1.0


def test_unfused_attention_grows_with_the_square_and_costs_more():
    def attention(stack: str, seq: int) -> float:
        work = Workload(seq_tokens=seq, global_batch=16, stack=stack)
        row = ROW | {"ep": 1, "num_microbatches": 1}
        x = Inputs(load_model("gpt-3-1.3b"), load_cluster("dgx-a100:2"), work, Layouts.of([row]))
        return float(time_parts(x)["compute"][0])

    short, long = (attention("megatron-2021", s) for s in (2048, 4096))
    fused = [attention("megatron-2021+flash", s) for s in (2048, 4096)]
    assert long > 2 * short  # linear work doubles; the square adds
    assert short > fused[0]
    assert long - fused[1] > 3 * (short - fused[0])


def test_softmax_falls_back_where_heads_do_not_come_in_fours():
    """12 heads over tp 2 and micro-batch 1 leave 6 a rank; micro-batch 2 leaves 12."""
    from planner.estimate.kernels import softmax_falls_back

    odd = inputs("megatron-2021", "gpt-3-1.3b", tp=8, ep=1, dp=2)
    heads = odd.model.heads
    assert bool(softmax_falls_back(odd)[0]) == (heads // 8 % 4 != 0)
    even = inputs("megatron-2021", "gpt-3-1.3b", tp=8, ep=1, dp=2, micro_batch=4)
    assert not softmax_falls_back(even)[0]
    assert np.isfinite(step_s(odd)).all()

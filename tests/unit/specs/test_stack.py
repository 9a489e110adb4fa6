"""Stack profiles: names, flags, and what each flag must do to a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import SpecError
from planner.estimate.communication import (
    TP_BACKWARD,
    embedding_sharding_s,
    gradient_sync_s,
    parameter_gather_s,
)
from planner.estimate.compute import head_s
from planner.estimate.inputs import Inputs
from planner.estimate.kernels import gemm_s, uses_fp8
from planner.estimate.params import stage_dense_parameters
from planner.estimate.step import pressure_slowdown, step_s, time_parts
from planner.layouts.rules import rules_of
from planner.layouts.table import Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.stack import (
    AMOUNTS,
    EP_OVERLAP,
    FLAG_RULES,
    FLAGS,
    STACKS,
    stack_named,
    stack_with,
)
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


@pytest.mark.parametrize("flag", AMOUNTS)
def test_a_flag_with_a_number_sets_it_and_refuses_what_is_none(flag):
    amount = AMOUNTS[flag]
    name = f"megatron+{flag}=1"
    assert stack_named(name).name == name
    assert getattr(stack_named(name), amount.field) == 1
    assert stack_with(f"megatron+{flag}=1", {}).rules == "megatron"
    bad = ["", "=", "=0", "=-1", "=x", "=1e-2", "=nan", f"={amount.most * 2:g}", "=1=1"]
    for wrong in [*bad, "=0.5"] if amount.whole else bad:
        with pytest.raises(SpecError, match=flag):
            stack_named(f"megatron+{flag}{wrong}")
    with pytest.raises(SpecError, match="takes no number"):
        stack_named("megatron+deepep=1")


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


def test_a_scale_up_domain_wider_than_a_node_keeps_the_all_to_all_off_the_nics():
    """GB200: 16 expert ranks on four trays of one NVLink domain, and on four that share none."""
    x = inputs("megatron-bridge")
    wide = load_cluster("gb200-nvl72:4")
    link = wide.scale_up.model_copy(update={"domain_gpus": None})
    narrow = wide.model_copy(update={"scale_up": link})
    across, within = (
        time_parts(Inputs(x.model, c, x.workload, x.layouts))["ep"][0] for c in (narrow, wide)
    )
    assert across > 4 * within


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


def test_attention_over_short_documents_costs_less_the_longer_the_sequence():
    gains = []
    for seq in (256, 4096, 16384):
        whole, packed = (
            step_s(inputs(f"megatron{flag}", "llama3-8b", seq=seq, **DENSE))[0]
            for flag in ("", "+packed")
        )
        gains.append(whole / packed)
    assert gains[0] == 1.0  # no longer than a document
    assert 1.0 < gains[1] < gains[2]


def test_fp4_multiplies_are_faster_where_the_gpu_has_them():
    def took(cluster: str, flag: str, precision: str = "fp8") -> float:
        x = inputs(f"megatron-bridge{flag}", "llama3-8b", micro_batch=4, **DENSE)
        work = x.workload.model_copy(update={"precision": precision})
        return step_s(Inputs(x.model, load_cluster(cluster), work, x.layouts))[0]

    assert took("gb300-nvl72:2", "+nvfp4") < took("gb300-nvl72:2", "+mxfp8")
    assert took("dgx-h100:1", "+nvfp4") >= took("dgx-h100:1", "")
    assert took("gb300-nvl72:2", "+nvfp4", "bf16") == took("gb300-nvl72:2", "", "bf16")


def with_fields(stack: str, row: dict, model: str = "llama3-8b", seq: int = 4096, **fields: object):
    x = inputs(stack, model, seq=seq, **row)
    x.stack = replace(x.stack, **fields)
    return x


def test_a_sharded_optimizer_summed_after_backward_hides_nothing():
    """nanotron has no hooks for it: an all-reduce, 4/3 of ZeRO-1's traffic, all of it exposed."""
    row = {"ep": 1, "dp": 32, "zero": 1, "num_microbatches": 8}
    hooked = with_fields("nanotron", row, zero1="reduce-scatter", dp_exposed=1.0)
    after = with_fields("nanotron", row, zero1="all-reduce", dp_exposed=1.0)
    assert time_parts(hooked)["dp"][0] < 0.5 * time_parts(after)["dp"][0]
    whole = gradient_sync_s(after) + parameter_gather_s(after)
    assert time_parts(after)["dp"][0] == pytest.approx(whole[0])
    plain = with_fields("nanotron", row | {"zero": 0}, zero1="all-reduce")
    other = with_fields("nanotron", row | {"zero": 0}, zero1="reduce-scatter")
    assert step_s(plain) == step_s(other)


def test_a_vocabulary_that_is_not_padded_leaves_the_tensor_cores_if_odd():
    """GPT-2's 50,257 tokens: multiplies of the head take four times as long on one rank."""
    row = {"ep": 1, "dp": 8, "micro_batch": 8}
    model = "gpt2-xl"
    padded, odd = (
        head_s(with_fields("megatron-deepspeed", row, model, 1024, pads_vocab=p))[0]
        for p in (True, False)
    )
    assert 2.0 < odd / padded < 4.5
    row = row | {"tp": 2, "dp": 4}  # the split over ranks is always even
    split = [
        with_fields("megatron-deepspeed", row, model, 1024, pads_vocab=p) for p in (True, False)
    ]
    assert head_s(split[0])[0] == head_s(split[1])[0]


def test_ranks_that_wait_for_each_other_cost_the_more_the_more_they_are():
    def wait(tp: int) -> float:
        row = {"ep": 1, "tp": tp, "dp": 8 // tp, "sp": 0, "zero": 0}
        none, some = (with_fields("megatron-2021", row, tp_wait_s=s) for s in (0.0, 1e-3))
        return float(time_parts(some)["tp"][0] - time_parts(none)["tp"][0])

    calls = 4 * 32 * (2 + 2 * TP_BACKWARD)  # micro-batches, layers, forward and backward
    assert [wait(tp) for tp in (1, 2, 8)] == pytest.approx([0.0, calls * 1e-3, 3 * calls * 1e-3])


def test_kernels_have_a_least_time_that_full_recompute_pays_again():
    row = {"ep": 1, "dp": 8, "zero": 0, "num_microbatches": 1}

    def more(recompute: str) -> float:
        asked = row | {"recompute": recompute}
        none, some = (with_fields("megatron+full-graphs", asked, kernel_s=s) for s in (0.0, 1e-3))
        return float(time_parts(some)["compute"][0] - time_parts(none)["compute"][0])

    assert [more(r) for r in ("none", "full")] == pytest.approx([3 * 32e-3, 4 * 32e-3])


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
        x.stack = replace(x.stack, bucket_bytes=size, bucket_rank_bytes=0.0)
        took.append(gradient_sync_s(x)[0])
    gradients = 4 * stage_dense_parameters(x)[0, 0]
    latency = x.cluster.fabric.latency_us * 1e-6 + 511 * x.cluster.fabric.step_latency_us * 1e-6
    assert took[1] - took[0] == pytest.approx((gradients / 1e8 - 1) * latency, rel=1e-6)
    assert took[2] - took[0] == pytest.approx((gradients / 1e7 - 1) * latency, rel=1e-6)


def test_buckets_that_grow_with_the_group_keep_what_latency_costs_within_bounds():
    """Megatron-Core's hold max(40M, 1M * dp) gradients: fewer, the more steps a ring takes."""

    def waits(dp: int, **changes: float) -> float:
        x = inputs("megatron", "llama3-8b", ep=1, dp=dp)
        x.stack = replace(x.stack, **changes)
        whole = inputs("megatron", "llama3-8b", ep=1, dp=dp)
        whole.stack = replace(x.stack, bucket_bytes=1e12)
        return float(gradient_sync_s(x)[0] - gradient_sync_s(whole)[0])

    assert waits(8) == waits(8, bucket_rank_bytes=0.0)
    assert waits(512) < waits(512, bucket_rank_bytes=0.0) / 8


@pytest.mark.parametrize("stack", sorted(STACKS))
@pytest.mark.parametrize("cluster", ["dgx-a100", "dgx-h100", "dgx-b200"])
def test_no_multiply_outruns_the_best_that_kernels_reach(stack, cluster):
    """However a stack's rate was fitted to narrow models; MAMF is 0.87 of an A100's peak."""
    one = inputs(stack, "llama3-8b", dp=8, ep=1)
    x = Inputs(one.model, load_cluster(cluster), one.workload, one.layouts)
    for size in (1024.0, 4096.0, 65536.0):
        for precision in ("bf16", "fp8"):
            work = x.workload.model_copy(update={"precision": precision})
            y = Inputs(x.model, x.cluster, work, x.layouts)
            peak = x.cluster.accelerator.peak_flops_per_s("fp8" if uses_fp8(y) else "bf16")
            assert 2 * size**3 / gemm_s(y, size, size, size) <= 0.87 * peak


def test_zero_3_gathers_the_token_table_before_anything_can_hide_it():
    alone, pair = (inputs("torchtitan", "llama3-8b", zero=3, dp=dp, ep=1) for dp in (1, 8))
    assert embedding_sharding_s(alone)[0] == 0.0
    table = 128256 * 4096 * (2 + 4) * 7 / 8  # gathered in 16 bit, reduced in fp32
    slowest = table / embedding_sharding_s(pair)[0]
    assert 0.5 * 450e9 < slowest < 450e9
    assert embedding_sharding_s(inputs("torchtitan", "llama3-8b", zero=2, dp=8, ep=1))[0] == 0.0


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

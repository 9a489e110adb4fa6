"""What Megatron-LM can run."""

from __future__ import annotations

from planner.layouts.rules.rule import Context, Rule, always, never
from planner.specs.stack import stack_named
from planner.specs.workload import Optimizer, Precision


def _only_adam(c: Context) -> bool:
    """Return whether the optimizer is one that the precision-aware optimizer does not have."""
    return c.workload.optimizer is not Optimizer.ADAMW


def _precision_aware(c: Context) -> bool:
    return stack_named(c.workload.stack).low_precision_states


def _no_fp8_params(c: Context) -> bool:
    """Return whether parameters cannot be in FP8: it is not FP8, or masters lack the 16 bits."""
    nvfp4 = stack_named(c.workload.stack).fp4_rate > 1
    return c.workload.precision is not Precision.FP8 or _precision_aware(c) or nvfp4


MEGATRON: tuple[Rule, ...] = (
    Rule(
        "megatron: experts with tp need sp",
        "Megatron-LM needs sp with experts and tp={tp}",
        (
            "tp",
            "sp",
        ),
        lambda x, c: (x.tp > 1) & (x.sp == 0) if c.model.experts else never(x),
        stacks=("megatron",),
        where="megatron/core/transformer/transformer_config.py",
    ),
    Rule(
        "megatron: zero 2 and 3 without a pipeline only",
        "Megatron-FSDP (zero={zero}) does not go with pp={pp}",
        (
            "zero",
            "pp",
        ),
        lambda x, c: (x.zero >= 2) & (x.pp > 1),
        stacks=("megatron",),
        where="megatron/core/distributed/fsdp",
    ),
    Rule(
        "megatron: no hybrid sharding",
        "dp_replicate={dp_replicate} with zero=3 is not expressible in Megatron-LM",
        ("dp_replicate",),
        lambda x, c: x.dp_replicate > 1,
        stacks=("megatron",),
    ),
    Rule(
        "megatron: no 8-bit AdamW",
        "Megatron-LM has adam, sgd and muon, not {optimizer}",
        ("tp",),
        lambda x, c: always(x, c.workload.optimizer is Optimizer.ADAMW_8BIT),
        stacks=("megatron",),
        where="megatron/training/arguments.py, --optimizer",
    ),
    Rule(
        "megatron: muon without Megatron-FSDP",
        "Megatron-FSDP (zero={zero}) does not run {optimizer}",
        ("zero",),
        lambda x, c: (x.zero >= 2) if c.workload.optimizer is Optimizer.MUON else never(x),
        stacks=("megatron",),
        where="megatron/training/arguments.py:1685",
    ),
    Rule(
        "megatron: precision-aware optimizer",
        "the precision-aware optimizer of {stack} needs zero >= 1 and adamw, not zero={zero} with "
        "{optimizer}",
        ("zero",),
        lambda x, c: (x.zero == 0) | _only_adam(c) if _precision_aware(c) else never(x),
        stacks=("megatron",),
        where="megatron/core/optimizer/optimizer_config.py:430",
    ),
    Rule(
        "megatron: parameters in FP8",
        "--fp8-param-gather ({stack}) needs precision fp8, zero >= 1, states on the GPUs, and no "
        "precision-aware optimizer, not zero={zero}, offload={offload}",
        ("zero", "offload"),
        lambda x, c: (
            (x.zero == 0) | (x.offload > 0) | _no_fp8_params(c)
            if stack_named(c.workload.stack).fp8_params
            else never(x)
        ),
        stacks=("megatron",),
        where="megatron/training/arguments.py:1060, 1808",
    ),
    Rule(
        "megatron: offload of the optimizer",
        "Megatron-LM offloads the optimizer's state only, with zero=1 and adamw; not "
        "offload={offload} with zero={zero} and {optimizer}",
        ("zero", "offload"),
        lambda x, c: (x.offload > 1) | ((x.offload == 1) & ((x.zero != 1) | _only_adam(c))),
        stacks=("megatron",),
        where="megatron/training/arguments.py:1803",
    ),
)

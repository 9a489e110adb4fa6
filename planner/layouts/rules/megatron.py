"""What Megatron-LM can run."""

from __future__ import annotations

from planner.layouts.rules.rule import Rule, never

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
        "megatron: no GPipe",
        "Megatron-LM has no GPipe schedule (1f1b or interleaved)",
        ("schedule",),
        lambda x, c: x.schedule == 1,
        stacks=("megatron",),
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
)

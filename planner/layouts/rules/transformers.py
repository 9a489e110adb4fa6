"""What Hugging Face's Trainer can run with Accelerate: DDP, or FSDP2 with context parallelism."""

from __future__ import annotations

from planner.layouts.rules.rule import Rule

TRANSFORMERS: tuple[Rule, ...] = (
    Rule(
        "transformers: no model parallelism",
        "the Trainer splits data and sequences (dp, cp), not tp={tp}, pp={pp}, ep={ep}",
        ("tp", "pp", "ep"),
        lambda x, c: x.tp * x.pp * x.ep > 1,
        stacks=("transformers",),
        where="accelerate/parallelism_config.py",
    ),
    Rule(
        "transformers: no zero 1",
        "Accelerate has DDP (zero 0) and FSDP2 (2, 3); zero={zero} is DeepSpeed's",
        ("zero",),
        lambda x, c: x.zero == 1,
        stacks=("transformers",),
        where="accelerate/utils/dataclasses.py, FullyShardedDataParallelPlugin",
    ),
    Rule(
        "transformers: context parallelism needs FSDP2",
        "cp={cp} needs FSDP2 (zero 2 or 3), not zero={zero}",
        ("cp", "zero"),
        lambda x, c: (x.cp > 1) & (x.zero < 2),
        stacks=("transformers",),
        where="accelerate/parallelism_config.py",
    ),
    Rule(
        "transformers: no selective recompute",
        "transformers checkpoints whole layers (recompute none or full)",
        ("recompute",),
        lambda x, c: x.recompute == 1,
        stacks=("transformers",),
        where="transformers/modeling_layers.py, GradientCheckpointingLayer",
    ),
    Rule(
        "transformers: offload takes parameters too",
        "FSDP2's CPUOffloadPolicy moves parameters, gradients and optimizer of shards: "
        "offload=optimizer+params with zero >= 2, not offload={offload}, zero={zero}",
        ("zero", "offload"),
        lambda x, c: (x.offload == 1) | (x.offload > 2) | ((x.offload == 2) & (x.zero < 2)),
        stacks=("transformers",),
        where="accelerate/utils/dataclasses.py, fsdp_offload_params",
    ),
)

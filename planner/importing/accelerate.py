"""Accelerate's YAML, with a DeepSpeed JSON or the Trainer's arguments beside it, to a Job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from planner.errors import SpecError
from planner.importing.deepspeed import deepspeed_job
from planner.importing.facts import Facts
from planner.importing.job import Job
from planner.importing.trainer import Trainer

STRATEGIES = {
    "full_shard": 3, "shard_grad_op": 2, "no_shard": 0, "hybrid_shard": 3, "hybrid_shard_zero2": 2,
    "1": 3, "2": 2, "3": 0, "4": 3, "5": 2,
}  # fmt: skip
"""FSDP1's words and numbers -> ZeRO stage."""
HYBRID = ("hybrid_shard", "hybrid_shard_zero2", "4", "5")
INLINE = {
    "zero_stage": "zero_optimization.stage",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
}
"""Keys of deepspeed_config -> where DeepSpeed's own JSON has them."""
BESIDE = (
    *("compute_environment", "machine_rank", "main_", "same_network", "rdzv_backend", "debug"),
    *("use_cpu", "downcast_bf16", "tpu_", "enable_cpu_affinity", "dynamo_config", "gpu_ids"),
    *("fsdp_config.fsdp_state", "fsdp_config.fsdp_cpu_ram", "fsdp_config.fsdp_sync"),
    *("fsdp_config.fsdp_use_orig", "fsdp_config.fsdp_auto_wrap", "fsdp_config.fsdp_transformer"),
    *("fsdp_config.fsdp_backward", "fsdp_config.fsdp_forward"),
    "fsdp_config.fsdp_version",
)


def is_accelerate(data: Mapping[str, Any]) -> bool:
    """Return whether a mapping is Accelerate's configuration."""
    return bool({"compute_environment", "distributed_type", "num_machines"} & set(data))


def accelerate_job(facts: Facts, gpus: int | None, trainer: Trainer, beside: Facts | None) -> Job:
    """Return what Accelerate's configuration says; `beside` is the JSON that it points to.

    Raises SpecError for a value that is none, or a size that does not fit the processes.
    """
    facts.leave(*BESIDE)
    kind = facts.text("distributed_type", default="NO").upper()
    processes = facts.integer("num_processes")
    world = gpus or processes
    mixed = facts.text("mixed_precision", default="no").lower()
    named = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}.get(mixed)
    told = () if named or trainer.precision else (f"bf16: mixed_precision is {mixed[:20]!r}",)
    trainer = replace(trainer, precision=trainer.precision or named)
    if kind == "DEEPSPEED":
        inline = {INLINE[n]: facts.raw(f"deepspeed_config.{n}") for n in INLINE}
        own = {k: v for k, v in inline.items() if v is not None}
        known = beside or Facts({}, facts.origin)
        merged = Facts({**own, **known.values}, facts.origin, asked=known.asked, idle=known.idle)
        job = deepspeed_job(merged, world, trainer)
        name = "Accelerate with DeepSpeed"
        return replace(job, framework=name, assumed=(*told, *job.assumed))
    layout = _sizes(facts, kind, world)
    micro, steps = trainer.micro_batch, trainer.steps or 1
    dp = layout.get("dp")
    batch = micro * steps * int(dp) if micro and dp else None
    if micro:
        layout["micro_batch"] = str(micro)
    recompute = dict(trainer.recompute)
    name = "fsdp_config.fsdp_activation_checkpointing"
    if facts.has(name):
        on = facts.flag(name) or recompute.get("recompute") == "full"
        recompute = {"recompute": "full" if on else "none"}
    return Job(
        framework="Accelerate",
        stack="fsdp1" if kind == "FSDP" and _version(facts) == 1 else "torchtitan+eager",
        layout=layout | recompute,
        gpus=world,
        seq_tokens=trainer.seq_tokens,
        global_batch=batch,
        precision=named or trainer.precision or "bf16",
        optimizer=trainer.optimizer,
        assumed=told,
    )


def _version(facts: Facts) -> int:
    return facts.integer("fsdp_config.fsdp_version") or 1


def _sizes(facts: Facts, kind: str, world: int | None) -> dict[str, str]:
    """Return degrees, ZeRO stage and replicas."""
    prefix = "parallelism_config.parallelism_config"
    replicas, shards, tp, cp = (
        facts.integer(f"{prefix}_{n}_size") for n in ("dp_replicate", "dp_shard", "tp", "cp")
    )
    facts.leave(f"{prefix}_cp_comm_strategy")
    tp, cp = tp or 1, cp or 1
    if world and world % (tp * cp):
        raise SpecError(
            f"{facts.origin}: {world:,} processes are not a multiple of tp*cp = {tp * cp:,}"
        )
    dp = world // (tp * cp) if world else None
    if replicas and shards:
        if dp and replicas * shards != dp:
            raise SpecError(
                f"{facts.origin}: dp_replicate_size x dp_shard_size = {replicas * shards:,}, but "
                f"{dp:,} processes are left for them"
            )
        dp = replicas * shards
    zero, hybrid = _zero(facts, kind)
    if hybrid and dp and not replicas:
        machines = facts.integer("num_machines") or 1
        replicas = machines if dp % machines == 0 else 1
    facts.integer("num_machines")
    sharded = zero >= 2 and (dp is None or dp * cp > 1)
    out = {"tp": tp, "pp": 1, "vpp": 1, "cp": cp, "ep": 1, "sp": 0}
    out |= {"dp": dp} if dp else {}
    out |= {"zero": zero if sharded else 0, "dp_replicate": (replicas or 1) if sharded else 1}
    away = facts.flag("fsdp_config.fsdp_offload_params") and zero >= 2
    words = {name: str(value) for name, value in out.items()}
    return words | {"schedule": "none", "offload": "optimizer+params" if away else "none"}


def _zero(facts: Facts, kind: str) -> tuple[int, bool]:
    """Return the ZeRO stage, and whether shards stay within a machine (FSDP1's hybrid)."""
    if kind != "FSDP":
        return 0, False
    strategy = facts.text("fsdp_config.fsdp_sharding_strategy").lower()
    if strategy and strategy not in STRATEGIES:
        allowed = ", ".join(n for n in STRATEGIES if not n.isdigit())
        raise facts.wrong(("fsdp_config.fsdp_sharding_strategy",), strategy, f"one of {allowed}")
    policy = facts.text("fsdp_config.fsdp_reshard_after_forward").lower()
    if policy in ("false", "shard_grad_op") and not strategy:
        return 2, False
    return STRATEGIES[strategy] if strategy else 3, strategy in HYBRID

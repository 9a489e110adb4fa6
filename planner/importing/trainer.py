"""What the Hugging Face Trainer's arguments say, as words or as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.importing.facts import Facts

TELLING = "per_device_train_batch_size"
FSDP = ("full_shard", "shard_grad_op", "no_shard", "hybrid_shard", "hybrid_shard_zero2")
RECOMPUTE = ("gradient_checkpointing", "activation_checkpointing")


@dataclass(frozen=True)
class Trainer:
    """Batch, precision, recompute and optimizer; None and empty where nothing says them."""

    micro_batch: int | None = None
    steps: int | None = None
    seq_tokens: int | None = None
    precision: str | None = None
    optimizer: str = "adamw"
    recompute: Mapping[str, str] = field(default_factory=dict)
    sharding: str = ""
    """FSDP's strategy, as in `--fsdp full_shard`."""


def trainer_of(facts: Facts) -> Trainer:
    """Return what the Trainer's arguments say. Raises SpecError for a value that is none."""
    names = ("max_seq_length", "max_length", "model_max_length", "block_size", "cutoff_len")
    given = [name for name in RECOMPUTE if facts.has(name)]
    on = any(facts.flag(name) for name in given)
    fp16, bf16 = facts.flag("fp16"), facts.flag("bf16")
    optim = facts.text("optim", default="adamw_torch").lower()
    eight = "8bit" in optim or "bnb" in optim
    kind = "sgd" if "sgd" in optim else "adamw-8bit" if eight else "adamw"
    batch = facts.integer(TELLING, "train_batch_size_per_device")
    return Trainer(
        micro_batch=batch,
        steps=facts.integer("gradient_accumulation_steps") or (1 if batch else None),
        seq_tokens=facts.integer(*names),
        precision="fp16" if fp16 else "bf16" if bf16 else None,
        optimizer=kind,
        recompute={"recompute": "full" if on else "none"} if given else {},
        sharding=next((w for w in facts.words("fsdp") if w.lower() in FSDP), "").lower(),
    )

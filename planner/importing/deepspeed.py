"""DeepSpeed's JSON, alone or beside the Hugging Face Trainer's arguments, to a Job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from planner.errors import SpecError
from planner.importing.facts import Facts
from planner.importing.job import Job
from planner.importing.trainer import Trainer

RATIO = "zero_optimization.offload_optimizer.ratio"
TELLING = frozenset(
    [
        *("train_batch_size", "train_micro_batch_size_per_gpu", "zero_optimization"),
        *("gradient_accumulation_steps", "zero_allow_untested_optimizer"),
    ]
)
BESIDE = (
    *("steps_per_print", "wall_clock_breakdown", "optimizer.params.", "fp16.", "bf16.", "amp."),
    *("pipeline.activation_checkpoint_interval", "zero_allow_untested_optimizer"),
    *(
        f"zero_optimization.{name}"
        for name in (
            *("overlap_comm", "contiguous_gradients", "reduce_bucket_size", "reduce_scatter"),
            *("allgather_", "stage3_", "sub_group_size", "round_robin_gradients"),
            *("offload_optimizer.pin_memory", "offload_param.pin_memory", "ignore_unused"),
        )
    ),
)


def is_deepspeed(data: Mapping[str, Any]) -> bool:
    """Return whether a mapping is a DeepSpeed configuration."""
    return bool(TELLING & set(data)) and "per_device_train_batch_size" not in data


def deepspeed_job(facts: Facts, gpus: int | None, trainer: Trainer) -> Job:
    """Return what DeepSpeed's configuration says; 'auto' is what the Trainer has.

    Raises SpecError for batch sizes that contradict each other, and for a value that is none.
    """
    told: list[str] = []
    stage = facts.integer("zero_optimization.stage", least=0) or 0
    if stage > 3:
        raise facts.wrong(("zero_optimization.stage",), stage, "0, 1, 2 or 3")
    tp, pp, cp = (_auto(facts, name) or 1 for name in DEGREES)
    if cp > 1:
        told.append(f"cp={cp} stands for DeepSpeed's sequence parallelism (Ulysses)")
    layout = {"tp": tp, "pp": pp, "cp": cp, "sp": 0, "vpp": 1}
    micro = _auto(facts, "train_micro_batch_size_per_gpu") or trainer.micro_batch
    steps = _auto(facts, "gradient_accumulation_steps") or trainer.steps
    batch = _auto(facts, "train_batch_size")
    dp = _replicas(facts, gpus, tp * pp * cp, (batch, micro, steps))
    counted = gpus_told(facts, (batch, micro, steps), dp * tp * pp * cp) if dp and not gpus else ""
    if batch is None and micro and dp:
        batch = micro * (steps or 1) * dp
    if micro is None and batch and dp and steps:
        micro = max(1, batch // (dp * steps))
    shards = _auto(facts, "zero_optimization.zero_hpz_partition_size") or 1
    replicas = dp // shards if dp and stage == 3 and 1 < shards < dp and dp % shards == 0 else 1
    known = {"dp": dp, "micro_batch": micro}
    words = {name: str(value) for name, value in (layout | known).items() if value is not None}
    words |= {
        "zero": str(0 if dp == 1 and cp == 1 else stage),
        "dp_replicate": str(replicas),
        "schedule": "1f1b" if pp > 1 else "none",
        "offload": _offload(facts),
        **trainer.recompute,
    }
    fp16, bf16 = (_enabled(facts, name) for name in ("fp16", "bf16"))
    if not (fp16 or bf16 or trainer.precision):
        told.append("bf16: no 16-bit format is enabled")
    flags = _flags(facts, stage, told)
    facts.leave(*BESIDE)
    return Job(
        framework="DeepSpeed",
        stack="+".join(["deepspeed", *flags]),
        layout=words,
        gpus=gpus or (dp * tp * pp * cp if dp else None),
        gpus_from=counted,
        seq_tokens=trainer.seq_tokens,
        global_batch=batch,
        precision="fp16" if fp16 else trainer.precision or "bf16",
        optimizer=_optimizer(facts) or trainer.optimizer,
        assumed=tuple(told),
    )


def _flags(facts: Facts, stage: int, told: list[str]) -> Iterator[str]:
    """Yield the flags of the stack that the settings of ZeRO switch on.

    `overlap_comm` is off by default below stage 3 (deepspeed/runtime/zero/config.py).
    """
    in_fp32 = facts.text("data_types.grad_accum_dtype").lower() in ("fp32", "float32", "float")
    if stage and not in_fp32:
        yield "bf16-gradients"
    if _offload(facts) == "optimizer" and (part := facts.part(RATIO)) is not None:
        yield f"offload-fraction={part}"
    overlapped = "zero_optimization.overlap_comm"
    if stage in (1, 2) and not facts.flag(overlapped):
        yield "no-dp-overlap"
    elif stage == 3 and facts.values.get(overlapped) is False:
        told.append("ZeRO 3 gathers ahead of the layers, as with overlap_comm, which is off")


DEGREES = ("tensor_parallel.autotp_size", "pipeline.stages", "sequence_parallel_size")


def _auto(facts: Facts, name: str) -> int | None:
    """Return a number, or None where it is left to the Trainer ('auto')."""
    return None if facts.text(name) in ("auto", "False", "false") else facts.integer(name, least=0)


def _enabled(facts: Facts, name: str) -> bool:
    """Return whether a number format is on; 'auto' is the Trainer's business."""
    value = facts.text(f"{name}.enabled")
    return False if value == "auto" else facts.flag(f"{name}.enabled")


def _replicas(
    facts: Facts, gpus: int | None, others: int, batch: tuple[int | None, ...]
) -> int | None:
    """Return the data-parallel size, from the GPUs or from the three sizes of a batch."""
    by_batch = _by_batch(facts, batch)
    if gpus is None:
        return by_batch
    dp, rest = divmod(gpus, others)
    if rest:
        raise SpecError(
            f"{facts.origin}: {gpus:,} GPUs are not a multiple of {_degrees_told(facts)} = "
            f"{others:,}",
            hint="give the number that the job runs on: --gpus N",
        )
    if by_batch and by_batch != dp:
        raise SpecError(
            f"{facts.origin}: {gpus_told(facts, batch, by_batch * others)}, and it is to run on "
            f"{gpus:,} GPUs",
            hint=f"--gpus {by_batch * others}, or mend one of these keys in {facts.origin}",
        )
    return dp


def _by_batch(facts: Facts, batch: tuple[int | None, ...]) -> int | None:
    """Return train_batch_size / (micro-batch x accumulation), where all three are given."""
    whole, micro, steps = batch
    if not (whole and micro and steps):
        return None
    dp, rest = divmod(whole, micro * steps)
    if rest or not dp:
        raise SpecError(
            f"{facts.origin}: train_batch_size {whole} is not a multiple of "
            f"train_micro_batch_size_per_gpu {micro} x gradient_accumulation_steps {steps} = "
            f"{micro * steps}"
        )
    return dp


def gpus_told(facts: Facts, batch: tuple[int | None, ...], gpus: int) -> str:
    """Return by which keys DeepSpeed's configuration says its number of GPUs."""
    whole, micro, steps = batch
    degrees = _degrees_told(facts)
    return (
        f"train_batch_size {whole} / (train_micro_batch_size_per_gpu {micro} x "
        f"gradient_accumulation_steps {steps}){f' x {degrees}' if degrees else ''} = {gpus:,} GPUs"
    )


def _degrees_told(facts: Facts) -> str:
    """Return the degrees that the configuration states, by their keys."""
    return " x ".join(f"{name} {n}" for name in DEGREES if (n := _auto(facts, name) or 1) > 1)


def _offload(facts: Facts) -> str:
    """Return what ZeRO keeps away from the GPUs."""
    devices = [
        facts.text(f"zero_optimization.offload_{what}.device", default="none").lower()
        for what in ("optimizer", "param")
    ]
    old = [facts.text(f"zero_optimization.cpu_offload{what}").lower() for what in ("", "_params")]
    optimizer, param = (d != "none" or o == "true" for d, o in zip(devices, old, strict=True))
    drives = "-nvme" if "nvme" in devices else ""
    return f"optimizer+params{drives}" if param else f"optimizer{drives}" if optimizer else "none"


def _optimizer(facts: Facts) -> str | None:
    name = facts.text("optimizer.type").lower()
    for known in ("sgd", "muon"):
        if known in name:
            return known
    return "adamw" if name else None

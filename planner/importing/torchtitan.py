"""torchtitan's settings, of its command line (0.3.0) or of the TOML files before it, to a Job."""

from __future__ import annotations

from planner.errors import SpecError
from planner.importing.facts import Facts
from planner.importing.job import Job

SCHEDULES = {"1f1b": "1f1b", "gpipe": "gpipe", "interleaved1f1b": "interleaved"}
CHUNKS = 2
"""Stages a rank where nothing says otherwise (torchtitan/distributed/pipeline_parallel.py)."""
MODELS = {
    ("llama3", "8b"): "llama-3.1-8b",
    ("llama3", "70b"): "llama-3.1-70b",
    ("llama3", "405b"): "llama-3.1-405b",
    ("deepseek_v3", "16b"): "deepseek-v2-lite",
    ("deepseek_v3", "671b"): "deepseek-v3",
    ("qwen3", "0.6b"): "qwen3-0.6b",
    ("qwen3", "1.7b"): "qwen3-1.7b",
    ("qwen3", "14b"): "qwen3-14b",
    ("qwen3", "32b"): "qwen3-32b",
    ("qwen3", "30b_a3b"): "qwen3-30b-a3b",
    ("qwen3", "235b_a22b"): "qwen3-235b-a22b",
    ("gpt_oss", "20b"): "gpt-oss-20b",
    ("gpt_oss", "120b"): "gpt-oss-120b",
}
"""(model, flavour) of torchtitan's registry -> shipped spec."""
MODES = {"none": "none", "full": "full", "selective": "selective", "memory_budget": "selective"}


def is_torchtitan(names: set[str]) -> bool:
    """Return whether settings by these names are torchtitan's."""
    telling = ("parallelism.", "experimental.", "activation_checkpoint.")
    return any(n.startswith(telling) for n in names) or (
        "training.seq_len" in names and bool({"model.flavor", "module", "model.name"} & names)
    )


def torchtitan_job(facts: Facts, gpus: int | None) -> Job:
    """Return what torchtitan's settings say; `gpus` is the size of the job where it is known.

    Raises SpecError for a value that is none, or degrees that do not fit the number of GPUs.
    """
    told: list[str] = []
    layout = _degrees(facts, gpus, told)
    local, pp = _one(facts, "training.local_batch_size", "training.batch_size"), int(layout["pp"])
    micro = _one(facts, "parallelism.pipeline_parallel_microbatch_size") if pp > 1 else local
    layout["micro_batch"] = str(micro)
    batch = _global_batch(facts, local, layout, told)
    precision, flags = _precision(facts)
    name = _model_name(facts)
    facts.leave("training.disable_cuda_graphs", "compile.components", "config", "module")
    facts.leave("parallelism.fsdp_reshard_after_forward")
    return Job(
        framework="torchtitan",
        stack="+".join(["torchtitan", *flags]),
        layout={**layout, **_recompute(facts)},
        gpus=gpus,
        seq_tokens=facts.integer("training.seq_len"),
        global_batch=batch,
        precision=precision,
        optimizer=_optimizer(facts),
        model_name=name,
        assumed=tuple(told),
    )


def _one(facts: Facts, *names: str) -> int:
    return facts.integer(*names) or 1


def _degrees(facts: Facts, gpus: int | None, told: list[str]) -> dict[str, str]:
    """Return the degrees of parallelism, sharding and the pipeline's schedule."""
    sections = ("parallelism", "experimental", "training")
    tp = _one(facts, *(f"{s}.tensor_parallel_degree" for s in sections))
    pp = _one(facts, *(f"{s}.pipeline_parallel_degree" for s in sections))
    cp = _one(facts, *(f"{s}.context_parallel_degree" for s in sections))
    ep = _one(facts, *(f"{s}.expert_parallel_degree" for s in sections))
    etp = facts.integer("parallelism.expert_tensor_parallel_degree")
    replicas = _one(facts, *(f"{s}.data_parallel_replicate_degree" for s in sections))
    shards = _shards(facts, replicas * tp * pp * cp, gpus)
    out = {"tp": str(tp), "pp": str(pp), "cp": str(cp), "ep": str(ep)}
    out["etp"] = str(etp or (tp if ep == 1 else 1))
    sequence = facts.flag("parallelism.enable_sequence_parallel", default=True)
    if facts.flag("parallelism.no_enable_sequence_parallel"):
        sequence = False
    out["sp"] = str(int(sequence and tp > 1))
    if shards is not None:
        out["dp"] = str(replicas * shards)
    sharded = shards is None or shards > 1 or cp > 1
    out["zero"] = str(_zero(facts, pp)) if sharded else "0"
    out["dp_replicate"] = str(replicas) if sharded else "1"
    out["offload"] = "optimizer+params" if _offloads(facts) else "none"
    return out | _pipeline(facts, pp, told)


def _offloads(facts: Facts) -> bool:
    return facts.flag("training.enable_cpu_offload", "experimental.enable_cpu_offload")


def _shards(facts: Facts, others: int, gpus: int | None) -> int | None:
    """Return the ranks that a replica is sharded over; -1, the default, is whatever is left."""
    sections = ("parallelism", "experimental", "training")
    stated = facts.integer(*(f"{s}.data_parallel_shard_degree" for s in sections), least=-1)
    if stated == 0:
        raise facts.wrong(("parallelism.data_parallel_shard_degree",), stated, "-1 or from 1")
    if stated is not None and stated > 0:
        return stated
    if gpus is None:
        return None
    if gpus % others:
        raise SpecError(
            f"{facts.origin}: {gpus:,} GPUs are not a multiple of the other degrees, {others:,}",
            hint="give the number that the job runs on: --gpus N",
        )
    return gpus // others


def _zero(facts: Facts, pp: int) -> int:
    """Return 3 where parameters are resharded after the forward pass, 2 where they are not."""
    policy = facts.text("parallelism.fsdp_reshard_after_forward", default="default").lower()
    if policy not in ("default", "always", "never"):
        raise facts.wrong(
            ("parallelism.fsdp_reshard_after_forward",), policy, "default, always or never"
        )
    return 2 if policy == "never" or (policy == "default" and pp > 1) else 3


def _pipeline(facts: Facts, pp: int, told: list[str]) -> dict[str, str]:
    """Return schedule and chunks a stage."""
    sections = ("parallelism", "experimental")
    name = facts.text(*(f"{s}.pipeline_parallel_schedule" for s in sections), default="1F1B")
    each = facts.integer("parallelism.pipeline_parallel_layers_per_stage")
    facts.asked.update(
        f"parallelism.pipeline_parallel_{n}_stage_less_layers" for n in ("first", "last")
    )
    if pp == 1:
        return {"schedule": "none", "vpp": "1"}
    kind = SCHEDULES.get(name.lower())
    if kind is None:
        told.append(f"schedule {name[:40]!r} is taken for interleaved 1F1B of {CHUNKS} chunks")
        kind = "interleaved"
    if kind == "interleaved" and facts.text("config") == "planned":
        return {"schedule": kind}  # a bundle of ours: its chunks stand in plan.json
    if kind == "interleaved" and each:
        told.append(f"{CHUNKS} chunks a stage; layers per stage are the planner's, not {each}")
    return {"schedule": kind, "vpp": str(CHUNKS) if kind == "interleaved" else "1"}


def _global_batch(facts: Facts, local: int, layout: dict[str, str], told: list[str]) -> int | None:
    stated = facts.integer("training.global_batch_size", least=-1)
    if stated is not None and stated > 0:
        return stated
    steps = facts.integer("training.gradient_accumulation_steps", "optimizer.grad_accum_steps") or 1
    if "dp" not in layout:
        return None
    batch = local * steps * int(layout["dp"])
    told.append(f"no global batch size: {batch}, the local batch of every replica")
    return batch


def _recompute(facts: Facts) -> dict[str, str]:
    """Return the recompute of the subcommand at the end, or of the TOML section."""
    mode = facts.text("activation_checkpoint.mode", "activation_checkpoint").lower()
    mode = mode.replace("-", "_")
    if mode in ("", "set"):
        return {}
    if mode not in MODES:
        raise facts.wrong(("activation_checkpoint.mode",), mode, f"one of {', '.join(MODES)}")
    return {"recompute": MODES[mode]}


def _precision(facts: Facts) -> tuple[str, list[str]]:
    """Return the precision, and the flags of the stack that the settings switch on."""
    flags = []
    switches = ("compile.enable", "training.compile")
    if not facts.flag(*switches):
        flags.append("eager")
    if facts.flag(
        *(f"{s}.enable_async_tensor_parallel" for s in ("compile", "parallelism", "experimental"))
    ):
        flags.append("async-tp")
    if facts.text("training.dtype").lower() in ("bfloat16", "bf16"):
        flags.append("pure-bf16")
    facts.leave("training.mixed_precision_param")
    made = " ".join((*facts.words("model.converters"), facts.text("config"))).lower()
    fp8 = facts.flag("float8.enable_float8_linear", "quantize.linear.float8.enable_float8_linear")
    if fp8 or "float8" in made or "mxfp8" in made:
        recipe = facts.text("float8.recipe_name", "quantize.linear.float8.recipe_name").lower()
        scales = {"rowwise": ["fp8-rowwise"]}.get(recipe, [])
        return "fp8", flags + (["mxfp8"] if "mx" in made else scales)
    return "" if facts.text("config") == "planned" else "bf16", flags


def _optimizer(facts: Facts) -> str:
    name = facts.text("optimizer.name", default="AdamW").lower()
    if "adam" in name:
        return "adamw"
    if name in ("sgd", "muon"):
        return name
    raise facts.wrong(("optimizer.name",), name, "Adam, AdamW, SGD or Muon")


def _model_name(facts: Facts) -> str | None:
    """Return the shipped model of the registry's name and flavour, if it is one of these."""
    kind = facts.text("model.name", "module").lower().rpartition(".")[2]
    flavour = facts.text("model.flavor").lower()
    config = facts.text("config").lower()
    flavour = flavour or config.removeprefix(f"{kind}_").removesuffix("_float8").removesuffix(
        "_mxfp8"
    )
    return MODELS.get((kind, flavour.replace("-", "_")))

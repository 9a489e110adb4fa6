"""Files of one job, each recognised by what it holds, put together into a Job.

A job's settings lie in several files: arguments, a DeepSpeed JSON, a launch script that says how
many GPUs there are. The most telling one decides whose job it is; the others fill in.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from planner.errors import SpecError
from planner.importing.accelerate import accelerate_job, is_accelerate
from planner.importing.deepspeed import deepspeed_job, is_deepspeed
from planner.importing.facts import Facts, leaves, spelt
from planner.importing.job import STATED, Job
from planner.importing.megatron import TELLING, megatron_job
from planner.importing.nanotron import is_nanotron, nanotron_job
from planner.importing.torchtitan import is_torchtitan, torchtitan_job
from planner.importing.trainer import TELLING as TRAINER
from planner.importing.trainer import Trainer, trainer_of
from planner.importing.words import settings_of
from planner.plan import PLAN_SCHEMA, Plan
from planner.specs.catalog import load_model
from planner.specs.huggingface import is_config
from planner.specs.model import ModelSpec
from planner.specs.parse import parse_json, parse_yaml, shown
from planner.specs.read import read_text

Kind = Literal[
    "megatron", "torchtitan", "nanotron", "accelerate", "deepspeed", "trainer", "machines"
]
IN_BUNDLES = (
    *("megatron.args", "torchtitan.args", "nanotron.yaml", "accelerate.yaml", "ds_config.json"),
    *("trainer_args.json", "model.overrides", "plan.overrides", "run.sh"),
)
"""Files of a bundle that say how it is laid out, beside plan.json."""
PLAN_START_BYTES = 200
NODES = ("nnodes", "nodes", "num_nodes", "n", "trainer.num_nodes", "num_machines")
PER_NODE = (
    *("nproc_per_node", "gpus_per_node", "num_gpus", "ntasks_per_node", "num_accelerators"),
    *("trainer.devices", "num_gpus_per_node"),
)
COUNTED = (*map(spelt, (*NODES, *PER_NODE)), "deepspeed", "deepspeed_config", "config_file")
"""What a start line says of the machines, and the other files that it names."""


@dataclass(frozen=True)
class Part:
    """One file: what kind of settings it holds."""

    kind: Kind
    facts: Facts
    stack: str = "megatron"


@dataclass(frozen=True)
class Parts:
    """All files of a job."""

    settings: tuple[Part, ...] = ()
    plan: Plan | None = None
    model: ModelSpec | None = None
    world: int | None = None


def read_job(
    paths: Sequence[Path],
    *,
    gpus: int | None = None,
    otherwise: int | None = None,
    given: Mapping[str, str] | None = None,
) -> Job:
    """Return the job that `paths` describe: files, or the folder of a launch bundle.

    `gpus` is the size of the job; where neither that nor the files say it, it is `otherwise`.
    `given` holds values for variables of scripts. Raises SpecError, naming file and setting, for
    anything that cannot be read, is of no known kind, or contradicts itself.
    """
    parts = _parts(list(_files(paths)), dict(given or {}))
    if not parts.settings and parts.plan is None:
        raise SpecError(
            f"{shown(paths[0])}: holds no job's settings",
            hint="name Megatron arguments or a script with them, a DeepSpeed JSON, a torchtitan "
            "TOML or its arguments, an Accelerate or nanotron YAML, or a launch bundle",
        )
    known = gpus or parts.world
    job = _whole(_job(parts, known), known)
    if job.gpus is None and otherwise:
        told = f"{otherwise:,} GPUs, all of the cluster: no file says how many it runs on"
        job = _whole(_job(parts, otherwise), otherwise)
        job = replace(job, assumed=(told, *job.assumed))
    return _with_plan(job, parts.plan)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files; of a bundle's folder, those that say how it is laid out."""
    for path in paths:
        try:
            folder = path.is_dir()
            held = [f for name in IN_BUNDLES if (f := path / name).is_file()] if folder else []
            plan = path / "plan.json"
            if not folder:
                yield path
            elif held or ((path / "rank_map.json").is_file() and plan.is_file()):
                yield from [plan] * plan.is_file() + held
            elif (path / "config.json").is_file():
                yield path / "config.json"
            else:
                raise SpecError(
                    f"{shown(path)}: is a folder, but no launch bundle",
                    hint="name the files of the job, or the folder of one framework in it",
                )
        except (OSError, ValueError) as error:
            raise SpecError(f"{shown(path)}: cannot be read ({error})") from error


def _parts(files: Sequence[Path], given: Mapping[str, str]) -> Parts:
    settings: list[Part] = []
    plan, model = None, None
    worlds: list[int] = []
    for path in files:
        if _is_plan(path):
            plan = Plan.read(path)
            if not plan.plans:
                raise SpecError(f"{shown(path)}: holds no plans")
            continue
        origin = shown(path)
        text = read_text(path, origin)
        suffix = path.suffix.lower()
        if suffix in (".json", ".yaml", ".yml", ".toml"):
            data = _mapping(text, suffix, origin)
            if is_config(data) or {"layers", "hidden"} <= set(data):
                model = load_model(str(path if path.is_absolute() else Path() / path))
                continue
            part, world = _of_mapping(data, origin, suffix)
        else:
            part, world = _of_words(text, origin, given)
        settings.append(part)
        worlds += [world] if world else []
    return Parts(tuple(settings), plan, model, worlds[-1] if worlds else None)


def _is_plan(path: Path) -> bool:
    """Return whether a file starts as a plan does; plans may be larger than settings."""
    try:
        if path.suffix.lower() != ".json" or not path.is_file():
            return False
        with path.open("rb") as file:
            return PLAN_SCHEMA.encode() in file.read(PLAN_START_BYTES)
    except (OSError, ValueError):
        return False


def _mapping(text: str, suffix: str, origin: str) -> dict[str, Any]:
    try:
        if suffix == ".toml":
            data: Any = tomllib.loads(text)
        else:
            data = (parse_json if suffix == ".json" else parse_yaml)(text, origin)
    except RecursionError:
        raise SpecError(f"{origin}: nested too deeply") from None
    except ValueError as error:  # tomllib's
        raise SpecError(f"{origin} is not valid TOML: {shown(error, 120)}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{origin}: holds no mapping of settings")
    return data


def _of_mapping(data: dict[str, Any], origin: str, suffix: str) -> tuple[Part, int | None]:
    """Return the settings of a structured file, and the GPUs that it runs on if it says so."""
    flat = leaves(data)
    facts = Facts(flat, origin)
    if is_nanotron(data):
        return Part("nanotron", facts), None
    if suffix == ".toml" or is_torchtitan(set(flat)):
        return Part("torchtitan", facts), None
    if is_accelerate(data):
        return Part("accelerate", facts), None
    if TRAINER in data:
        return Part("trainer", facts), None
    if is_deepspeed(data):
        return Part("deepspeed", facts), None
    dashed = {name.rpartition(".")[2] if "." in name else name: v for name, v in flat.items()}
    names = set(dashed)
    if not _is_megatron(names):
        raise SpecError(
            f"{origin}: is of no kind that is known" if names else f"{origin}: holds no settings",
            hint=f"{_found(names)}known are the settings of Megatron, torchtitan, DeepSpeed, "
            "Accelerate, nanotron and the Hugging Face Trainer",
        )
    world = _world(flat, {})
    as_options = any(str(name).startswith("--") for name in _names(data))
    nested = any(isinstance(value, Mapping) for value in data.values())
    stack = "megatron-bridge" if nested and not as_options else "megatron"
    return Part("megatron", Facts(dashed, origin, words_follow=as_options), stack), world


def _found(names: set[str]) -> str:
    """Return some of the settings that a file holds, for a hint; nothing where it has none."""
    return f"found {', '.join(sorted(names)[:5])}; " if names else ""


def _names(data: Mapping[str, Any]) -> Iterator[str]:
    for name, value in data.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from _names(value)


def _is_megatron(names: set[str]) -> bool:
    found = names & set(TELLING)
    return "tensor_model_parallel_size" in found or len(found) > 1


def _of_words(text: str, origin: str, given: Mapping[str, str]) -> tuple[Part, int | None]:
    """Return the settings of a script or an argument file, and the GPUs that it starts."""
    options, variables = settings_of(text, given)
    world = _world(options, variables)
    facts = Facts(options, origin, words_follow=True, asked=set(COUNTED))
    if is_torchtitan(set(options)):
        return Part("torchtitan", facts), world
    last = {name.rpartition(".")[2] or name: value for name, value in options.items()}
    overridden = any(name.startswith(("model.", "train.", "ddp.")) for name in options)
    if _is_megatron(set(last)) or overridden:
        stack = "megatron" if last.keys() == options.keys() else "megatron-bridge"
        if recipe := variables.get("mixed_precision"):  # an override without a section
            last["mixed_precision"] = recipe
        facts = Facts(last, origin, words_follow=True)
        facts.asked.update(COUNTED)
        return Part("megatron", facts, stack), world
    if TRAINER in options:
        return Part("trainer", facts), world
    return Part("machines", facts), world


def _world(options: Mapping[str, Any], variables: Mapping[str, str]) -> int | None:
    """Return nodes times GPUs a node, where both are plain numbers."""
    named = {spelt(name): value for name, value in variables.items()}
    whole = _number(named.get("world_size"))
    nodes, each = (
        next((n for name in names if (n := _number(options.get(name, named.get(name))))), None)
        for names in (NODES, PER_NODE)
    )
    if nodes is None and "nproc_per_node" in options and not set(NODES) & set(options):
        nodes = 1  # torchrun's default
    return nodes * each if nodes and each else whole


def _number(value: object) -> int | None:
    text = str(value).partition(" ")[0]
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) < 7 else None


def _by_kind(settings: Sequence[Part]) -> dict[Kind, Part]:
    """Return the settings of each kind; of two files the later wins, value by value."""
    found: dict[Kind, Part] = {}
    for part in settings:
        before = found.get(part.kind)
        if before is None:
            found[part.kind] = part
            continue
        facts = Facts(
            {**before.facts.values, **part.facts.values},
            part.facts.origin,
            words_follow=part.facts.words_follow,
            asked=before.facts.asked | part.facts.asked,
            idle=before.facts.idle | part.facts.idle,
        )
        found[part.kind] = replace(part, facts=facts)
    return found


def _job(parts: Parts, gpus: int | None) -> Job:
    """Return the job of the most telling file."""
    found = _by_kind(parts.settings)
    trainer = trainer_of(found["trainer"].facts) if "trainer" in found else Trainer()
    if part := found.get("torchtitan"):
        job = torchtitan_job(part.facts, gpus)
    elif part := found.get("nanotron"):
        job = nanotron_job(part.facts, gpus)
    elif part := found.get("megatron"):
        job = megatron_job(part.facts, gpus, stack=part.stack)
    elif part := found.get("accelerate"):
        beside = found["deepspeed"].facts if "deepspeed" in found else None
        job = accelerate_job(part.facts, gpus, trainer, beside)
    elif part := found.get("deepspeed"):
        job = deepspeed_job(part.facts, gpus, trainer)
    elif "trainer" in found:
        kind = "FSDP" if trainer.sharding else "MULTI_GPU"
        values = {
            "distributed_type": kind,
            "fsdp_config.fsdp_sharding_strategy": trainer.sharding or None,
        }
        origin = found["trainer"].facts.origin
        job = accelerate_job(Facts(values, origin), gpus, trainer, None)
        job = replace(job, framework="Hugging Face Trainer")
    elif parts.plan:
        job = Job(framework="meshwright", stack="any")
    else:
        raise SpecError(
            f"{found['machines'].facts.origin}: holds no settings that are known",
            hint="an argument such as --tensor-model-parallel-size 8 or --parallelism.* is looked "
            "for",
        )
    left, idle = _left_aside([part.facts for part in found.values()])
    return replace(job, model=parts.model or job.model, ignored=left, without_effect=idle)


def _left_aside(every: Sequence[Facts]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the settings of all files that nobody asked for, and those without effect."""
    left: set[str] = set()
    idle: set[str] = set()
    for facts in every:
        some, harmless = facts.left_aside()
        left |= some
        idle |= harmless
    return tuple(sorted(left)), tuple(sorted(idle))


def _whole(job: Job, world: int | None) -> Job:
    """Return the job with its GPUs counted; raise SpecError where they are not those it runs on."""
    if not all(name in job.layout for name in STATED):
        return job
    used = prod(int(job.layout[name]) for name in STATED)
    if world and used != world:
        raise SpecError(
            f"tp*pp*cp*dp = {used:,} of the job's settings is not the {world:,} GPUs it runs on",
            hint="give the number that the job runs on: --gpus N",
        )
    return replace(job, gpus=used)


def _with_plan(job: Job, plan: Plan | None) -> Job:
    """Return the job with what a bundle's own plan says and its files do not.

    Where neither says how experts are split (DeepSpeed's JSON does not, its model's code does) they
    are taken to be whole on every rank, as models of Hugging Face have them.
    """
    if plan is None:
        whole = {} if job.framework == "meshwright" else {"ep": "1"}
        return replace(job, layout={**whole, **job.layout})
    request, lay = plan.request, plan.best.layout
    fields = lay.model_dump(mode="json", exclude={"num_microbatches"})
    planned = {name: str(int(v) if isinstance(v, bool) else v) for name, v in fields.items()}
    work, alone = request.workload, job.framework == "meshwright"
    same = job.model is None or _shapes(job.model) == _shapes(request.model)
    return replace(
        job,
        layout={**planned, **job.layout},
        stack=work.stack if alone or work.stack != "any" else job.stack,
        gpus=job.gpus or lay.gpus,
        seq_tokens=job.seq_tokens or work.seq_tokens,
        global_batch=job.global_batch or work.global_batch,
        precision=work.precision.value if alone else job.precision or work.precision.value,
        optimizer=work.optimizer.value if alone else job.optimizer,
        capacity_factor=job.capacity_factor or work.capacity_factor,
        recompute_modules=work.recompute_modules if alone else job.recompute_modules,
        recompute_method=work.recompute_method if alone else job.recompute_method,
        recompute_layers=work.recompute_layers if alone else job.recompute_layers,
        model=request.model if same else job.model,
        cluster=request.cluster,
    )


def _shapes(model: ModelSpec) -> tuple[int, ...]:
    return (model.layers, model.hidden, model.heads, model.ffn)

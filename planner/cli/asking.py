"""From what was typed to a PlanRequest: files read, defaults chosen and said."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.cli import options
from planner.cli.aiming import Wanted, aim_of
from planner.cli.amounts import counts
from planner.cli.machines import real_cluster
from planner.cli.talk import say
from planner.errors import SpecError
from planner.units import count, many

if TYPE_CHECKING:
    from planner.specs.cluster import ClusterSpec
    from planner.specs.model import ModelSpec
    from planner.specs.workload import Workload
    from planner.workflow import PlanRequest

DEFAULT_SEQ_TOKENS = 8192
DEFAULT_STEP_TOKENS = 4 * 1024**2
"""The middle of what published runs of 7B to 175B parameters use (1M to 16M tokens a step)."""
DEFAULT_STEP_TOKENS_PER_GPU = 1024
"""Llama 3 405B trains 16M tokens a step on 16,384 GPUs (arXiv:2407.21783 table 4)."""
MOST_MICRO_BATCH = 64
"""Sequences of a micro-batch that the default batch is still chosen to suit."""
LONGEST = 9
"""Digits of a degree that is read before the layout is checked."""
FIELD_OPTIONS = {"seq_tokens": "--seq", "global_batch": "--global-batch"}


@dataclass(frozen=True)
class Asked:
    """What was typed, word for word."""

    model: str | ModelSpec
    """A spec as it is where a program asks, not a person."""
    cluster: str | ClusterSpec
    seq: int | None = None
    global_batch: int | None = None
    precision: str | None = None
    """None: bf16, or fp16 where a GPU has no bf16."""
    optimizer: str = "adamw"
    stack: str = "any"
    expert_imbalance: float | None = None
    capacity_factor: float | None = None
    max_memory: float | None = None
    risk_memory: float | None = None
    expert_load: Path | None = None
    recompute_modules: str | None = None
    recompute_layers: str | None = None
    fix: str = ""
    top: int = 10
    unhealthy: str | None = None
    slow: str | None = None
    gpus: int | None = None
    nodes_file: Path | None = None
    slurm_topology: Path | None = None
    node_state: Path | None = None
    pipelines: str = "under-leaf"
    wanted: Wanted | None = None
    nodes: str | None = None
    batches: str | None = None
    """`--global-batch` where it may be several; `global_batch` is None then."""
    sensitivity: bool = False
    search: str | None = None
    mixed: bool = False
    layout: Mapping[str, str] | None = None
    """The fields of `--layout`."""


def request_of(asked: Asked, tell: Callable[[str], None] = say) -> PlanRequest:
    """Return the request: specs loaded, defaults filled in and told (a person: on stderr).

    Raises SpecError for anything that cannot be read or contradicts itself.
    """
    fix = options.fields_of(asked.fix, option="--fix")
    unhealthy = options.hosts_of(asked.unhealthy, option="--unhealthy")
    slow = options.hosts_of(asked.slow, option="--slow")
    from planner.specs.catalog import load_cluster, load_model

    model = load_model(asked.model) if isinstance(asked.model, str) else asked.model
    typed = asked.cluster if isinstance(asked.cluster, str) else ""
    cluster = load_cluster(typed) if isinstance(asked.cluster, str) else asked.cluster
    real = real_cluster(
        cluster,
        typed,
        nodes_file=asked.nodes_file,
        slurm_topology=asked.slurm_topology,
        node_state=asked.node_state,
    )
    cluster = real.cluster
    if slow:
        from planner.place import free_nodes

        free_nodes(cluster, slow, option="--slow")
    there = max(part.gpus for part in (cluster, *cluster.mix))
    if asked.gpus is not None and not 0 < asked.gpus <= there:
        raise SpecError(
            f"--gpus: {asked.gpus} is not between 1 and the {there} GPUs of {cluster.name}",
            hint="a cluster grows with ':N' behind its name",
        )
    wanted = asked.wanted or Wanted()
    nodes = _nodes(asked, cluster)
    cluster = _with_nodes(asked, cluster, max(nodes, default=0))
    batches: tuple[int, ...] = ()
    if asked.batches is not None:
        batches = counts(asked.batches, option="--global-batch", doubling=True)
        asked = replace(asked, global_batch=batches[-1])
    avoid = () if asked.global_batch is not None else (*unhealthy, *slow, *real.avoid)
    most = _most_gpus(cluster, nodes, avoid)
    asked = replace(asked, precision=asked.precision or _usual_precision(cluster, tell))
    workload = workload_of(asked, model, asked.gpus or _laid_out(asked, most), tell)
    from planner.workflow import PlanRequest
    from planner.workflow.formats import refuse_format
    from planner.workflow.variants import axes_named, refuse_twice

    refuse_format(workload, cluster)
    request = PlanRequest(
        model=model,
        cluster=cluster,
        workload=workload,
        fix=fix,
        top=asked.top,
        unhealthy=(*unhealthy, *slow, *real.avoid),
        gpus=asked.gpus,
        busy=real.busy,
        down=real.down,
        slow=tuple(slow),
        pipelines=options.rule_of(asked.pipelines),
        notes=(*real.notes, *_batch_note(asked, workload)),
        aim=aim_of(wanted, cluster.accelerator),
        nodes=nodes,
        batches=batches if len(batches) > 1 else (),
        sensitivity=asked.sensitivity,
        search=axes_named(options.words_of(asked.search, option="--search")),
        mixed=_mixed(asked, cluster),
        type_aims=tuple(aim_of(wanted, part.accelerator) for part in cluster.mix),
    )
    refuse_twice(request)
    return request


def options_typed(chosen: Mapping[str, Any]) -> list[str]:
    """Return what --search chose as it is typed where nothing is searched."""
    words = [f"--{name} {chosen[name]}" for name in ("precision", "stack") if name in chosen]
    if modules := chosen.get("recompute_modules"):
        words.append(f"--recompute-modules {','.join(modules)}")
    layers = chosen.get("recompute_method", "uniform"), chosen.get("recompute_layers", 1)
    if layers != ("uniform", 1):
        words.append(f"--recompute-layers {layers[0]}:{layers[1]}")
    return words


def _batch_note(asked: Asked, workload: Workload) -> tuple[str, ...]:
    """Return which batch was assumed, where the answer to a question about GPUs hangs on it."""
    wanted = asked.wanted or Wanted()
    about = wanted.objective.lower() == "gpus" or asked.nodes is not None
    if not about or asked.batches is not None or asked.global_batch is not None:
        return ()
    batch, tokens = workload.global_batch, count(workload.tokens)
    return (
        f"no --global-batch was given: {batch:,} sequences ({tokens} tokens) a step are assumed, "
        f"and the answer depends on them; --global-batch {max(1, batch // 2)}..{2 * batch} would "
        "choose among several",
    )


def _most_gpus(cluster: ClusterSpec, nodes: tuple[int, ...], avoid: tuple[str, ...]) -> int:
    """Return the GPUs that a job may have: of whole nodes, those to avoid left out."""
    if nodes or not avoid or cluster.mix:
        return max(nodes, default=cluster.nodes) * cluster.node.gpus
    from planner.place import free_nodes

    gpus = cluster.node.gpus
    return max(1, len(free_nodes(cluster, avoid).with_gpus(gpus))) * gpus


def _laid_out(asked: Asked, most: int) -> int:
    """Return the GPUs of a layout that says how many, else `most`: the default batch suits its dp.

    A layout of 24 nodes runs on a cluster of 40 with the batch that it has on 24.
    """
    given = asked.layout or {}
    degrees = [given.get(name, "1" if name == "cp" else "") for name in ("tp", "pp", "cp", "dp")]
    if not all(text.isascii() and text.isdecimal() and len(text) <= LONGEST for text in degrees):
        return most
    used = math.prod(map(int, degrees))
    return used if 0 < used < most else most


def _usual_precision(cluster: ClusterSpec, tell: Callable[[str], None]) -> str:
    """Return the format that is taken where none is asked for; what is not bf16 is told."""
    from planner.workflow.formats import usual_precision, without_bf16

    if gpu := without_bf16(cluster):
        tell(f"default taken: --precision {usual_precision(cluster)} ({gpu} has no bf16)")
    return usual_precision(cluster)


def _mixed(asked: Asked, cluster: ClusterSpec) -> bool:
    """Return whether one job is to span node types; SpecError where there is one type."""
    if asked.mixed and not cluster.mix:
        raise SpecError(
            f"--mixed: {cluster.name} has nodes of one type",
            hint="join several: dgx-h100:4+dgx-a100:8",
        )
    return asked.mixed


def _nodes(asked: Asked, cluster: ClusterSpec) -> tuple[int, ...]:
    """Return the node counts to choose from; SpecError where the cluster has not as many."""
    if asked.nodes is None:
        return ()
    if asked.gpus is not None:
        raise SpecError("--nodes: does not go with --gpus", hint="leave one of them out")
    nodes = counts(asked.nodes, option="--nodes")
    typed = asked.cluster if isinstance(asked.cluster, str) else ""
    given = cluster.names_hosts or not typed or re.search(r":\d+$", typed)
    if given and nodes[-1] > cluster.nodes:
        raise SpecError(
            f"--nodes: {nodes[-1]} is more than the {many(cluster.nodes, 'node')} of "
            f"{typed or cluster.name}",
            hint="" if cluster.names_hosts else "leave ':N' out: --nodes says how many",
        )
    return nodes


def _with_nodes(asked: Asked, cluster: ClusterSpec, nodes: int) -> ClusterSpec:
    """Return the cluster with as many nodes as --nodes names at most, where it is not given."""
    if nodes <= cluster.nodes or not nodes:
        return cluster
    from planner.workflow.sizing import resized

    return resized(cluster, nodes)


def workload_of(
    asked: Asked, model: ModelSpec, gpus: int, tell: Callable[[str], None] = say
) -> Workload:
    """Return the workload; a sequence length or batch left out is chosen and told.

    Raises SpecError naming the option whose value is refused.
    """
    from pydantic import ValidationError

    from planner.specs.stack import stack_named
    from planner.specs.workload import Workload

    stack_named(asked.stack)
    chosen = []
    seq, batch = asked.seq, asked.global_batch
    if seq is None:
        seq = min(model.max_seq_tokens, DEFAULT_SEQ_TOKENS)
        chosen.append(f"--seq {seq}")
    if batch is None:
        batch = default_batch(seq, gpus, _micro_batch(asked))
        chosen.append(f"--global-batch {batch} ({count(batch * seq)} tokens a step)")
    load = asked.expert_load and options.shares_of(asked.expert_load, option="--expert-load")
    given: dict[str, Any] = {
        "precision": (asked.precision or "bf16").lower(),
        "optimizer": asked.optimizer.lower(),
        "stack": asked.stack,
        "expert_imbalance": asked.expert_imbalance,
        "capacity_factor": asked.capacity_factor,
        "max_memory": asked.max_memory,
        "risk_memory": asked.risk_memory,
        "expert_load": load,
    }
    given |= options.recompute_of(asked.recompute_modules, asked.recompute_layers)
    given = {name: value for name, value in given.items() if value is not None}
    try:
        workload = Workload(seq_tokens=seq, global_batch=batch, **given)
    except ValidationError as error:
        raise _refused(error) from error
    _refuse_expert_options(asked, model)
    _refuse_modules(workload, model)
    _refuse_layers(workload, model)
    if chosen:
        tell(f"defaults taken: {', '.join(chosen)}")
    return workload


def _refuse_expert_options(asked: Asked, model: ModelSpec) -> None:
    """Raise SpecError where an option about experts is given for a model that has none."""
    about = {
        "--expert-imbalance": asked.expert_imbalance,
        "--capacity-factor": asked.capacity_factor,
        "--expert-load": asked.expert_load,
    }
    given = [name for name, value in about.items() if value is not None]
    if given and model.experts is None:
        raise SpecError(f"{given[0]}: {model.name} has no experts", hint="leave the option out")


def _refuse_modules(workload: Workload, model: ModelSpec) -> None:
    """Raise SpecError where a module is to be recomputed that the model does not have."""
    if workload.recompute_modules is None:
        return
    from planner.workflow.variants import modules_of

    strange = [m for m in workload.recompute_modules if m not in modules_of(model)]
    if strange:
        raise SpecError(
            f"--recompute-modules: {model.name} has no {', '.join(strange)}",
            hint="core_attn and layernorm are in every model",
        )


def _refuse_layers(workload: Workload, model: ModelSpec) -> None:
    """Raise SpecError where more layers are to be recomputed than the model has."""
    if workload.recompute_layers > model.layers:
        raise SpecError(
            f"--recompute-layers: {workload.recompute_layers} is more than the {model.layers} "
            f"layers of {model.name}"
        )


def _micro_batch(asked: Asked) -> int:
    """Return the micro-batch of a layout, or 1 where it has none that can be."""
    text = (asked.layout or {}).get("micro_batch", "")
    known = text.isascii() and text.isdecimal() and len(text) <= LONGEST
    return int(text) if known and 0 < int(text) <= MOST_MICRO_BATCH else 1


def default_batch(seq_tokens: int, gpus: int, micro_batch: int = 1) -> int:
    """Return sequences a step: about 4M tokens, or 1024 tokens a GPU if that is more.

    The batch is a power of two times the odd part of the GPUs and of the micro-batch, so that data
    parallel sizes of any factor of the GPUs divide it, in whole micro-batches.
    """
    tokens = max(DEFAULT_STEP_TOKENS, DEFAULT_STEP_TOKENS_PER_GPU * gpus)
    target = max(1.0, tokens / max(1, seq_tokens))
    whole = gpus * micro_batch
    odd = whole // (whole & -whole)
    return odd << max(0, round(math.log2(target / odd)))


def _refused(error: Any) -> SpecError:
    """Return pydantic's first complaint in the words of the command line."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else "workload"
    option = FIELD_OPTIONS.get(field, f"--{field.replace('_', '-')}")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return SpecError(f"workload: {message}")
    allowed = message.partition(" should ")[2] or message
    return SpecError(f"{option}: {first['input']} is not allowed, must {allowed}")

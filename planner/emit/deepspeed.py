"""DeepSpeed: `ds_config.json`, a host file, and a training script that starts with both.

The JSON says how state is sharded and how the batch is made up; which rank holds which layers is
code (a PipelineModule), so the bundle carries a script that cuts its pipeline as planned. All
three batch fields are written: DeepSpeed then checks that they agree, instead of deriving one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from planner.emit.base import Artifact, hosts_are_placeholders, placed
from planner.emit.capabilities import ALL, job_refusals, only, refusals, usual
from planner.emit.deepspeed_config import config
from planner.emit.fabric import fabric_text
from planner.emit.nodes import ADDRESS, at_address, start_lines
from planner.emit.shared import example, shared_artifacts
from planner.emit.states import offload_fraction
from planner.emit.threads import threads
from planner.layouts.table import NAMES
from planner.plan import Plan
from planner.specs.model import ModelSpec
from planner.specs.workload import Optimizer, Workload

MOST_TP = 16
"""Heads of the stand-in, examples/train_deepspeed.py."""
CAN = usual(
    "DeepSpeed",
    sp=only(False, why="DeepSpeed's AutoTP has no sequence parallelism"),
    cp=only(1, why="DeepSpeed has no ring context parallelism"),
    capacity_factor=ALL,
    etp=only(1, why="DeepSpeed's experts are not split in this bundle"),
    vpp=only(1, why="DeepSpeed runs pipelines as plain 1F1B, without virtual chunks"),
    schedule=only("none", "1f1b", why="DeepSpeed runs pipelines as plain 1F1B"),
    recompute=only("none", "full", why="DeepSpeed recomputes whole layers (full) or none"),
    optimizer=only(
        *(Optimizer.ADAMW, Optimizer.SGD, Optimizer.MUON),
        why="DeepSpeed's engine has adamw, sgd, muon; give it another from your script",
    ),
    offload=only(*NAMES["offload"], why="DeepSpeed has no such offload"),
    formats=only("offload-fraction", why="DeepSpeed keeps states in the usual formats"),
)


class DeepSpeed:
    """ZeRO 0 to 3, AutoTP beside it, 1F1B pipelines up to ZeRO 1, experts up to ZeRO 2."""

    name = "deepspeed"
    stack = "deepspeed"
    tested_with = "deepspeed 0.19.8"
    can = CAN

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return one sentence for each thing of the job that no layout mends."""
        return list(job_refusals(work, CAN))

    def unsupported(self, plan: Plan) -> list[str]:
        """Return one sentence for each thing that DeepSpeed, or this bundle's script, cannot do."""
        return list(problems(plan))

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return the configuration, the host file, the script and what every bundle carries."""
        shared = shared_artifacts(
            plan,
            target=self.name,
            framework=f"DeepSpeed ({self.tested_with})",
            start=start_text(plan),
        )
        return [
            *shared,
            Artifact("ds_config.json", json.dumps(config(plan), indent=2, allow_nan=False) + "\n"),
            Artifact("hostfile", hostfile(plan)),
            Artifact("env.sh", environment(plan)),
            Artifact("train_deepspeed.py", example("train_deepspeed.py")),
            Artifact("run.sh", run_text(plan), executable=True),
        ]


def problems(plan: Plan) -> Iterator[str]:
    """Yield what DeepSpeed 0.19.8 cannot run, or this bundle does not ask of it."""
    yield from refusals(plan, CAN)
    yield from kept_problems(plan)
    yield from pipeline_problems(plan)
    yield from hybrid_problems(plan)
    yield from expert_problems(plan)
    yield from tensor_problems(plan)


def tensor_problems(plan: Plan) -> Iterator[str]:
    """Yield what AutoTP cannot split, or was not tried with (runtime/engine.py:940)."""
    lay, model = plan.best.layout, plan.request.model
    if lay.tp == 1:
        return
    if model.mla or model.experts or plan.request.workload.optimizer is Optimizer.MUON:
        yield f"DeepSpeed's AutoTP (tp={lay.tp}) is not tried with experts, latents or Muon."
    elif model.kv_heads % lay.tp or model.ffn % lay.tp:
        yield f"tp={lay.tp} does not divide {model.kv_heads} kv heads and ffn={model.ffn}."
    if lay.tp > MOST_TP:
        yield f"This bundle's stand-in has {MOST_TP} heads to split, not {lay.tp}."
    if lay.pp > 1 or lay.dp_replicate > 1 or lay.offload != "none":
        yield f"DeepSpeed's AutoTP (tp={lay.tp}) is not tried with pipelines, hpZ or offload."


def expert_problems(plan: Plan) -> Iterator[str]:
    """Yield what its layer of experts, moe.layer.MoE, cannot do (runtime/engine.py, zero/)."""
    lay, kind = plan.best.layout, plan.request.workload.optimizer
    routed = plan.request.model.experts
    if lay.ep == 1:
        if routed and plan.request.workload.capacity_factor is not None:
            yield "DeepSpeed drops tokens in its layer of experts, which ep=1 does not use here."
        return
    if routed is None or routed.count % lay.ep:
        yield f"ep={lay.ep} needs a number of experts that it divides."
    if lay.dp % lay.ep:
        yield f"DeepSpeed's expert groups lie within dp={lay.dp}, which ep={lay.ep} must divide."
    if lay.zero == 3:
        yield f"DeepSpeed's layer of experts (ep={lay.ep}) needs zero <= 2, not zero=3."
    if lay.offload != "none":
        yield f"This bundle keeps the states of experts (ep={lay.ep}) on the GPUs."
    if kind is Optimizer.MUON:
        yield f"DeepSpeed's Muon needs whole gradients, its experts (ep={lay.ep}) scattered ones."


def kept_problems(plan: Plan) -> Iterator[str]:
    """Yield optimizers and offload that a configuration alone does not give (runtime/engine.py)."""
    lay, kind = plan.best.layout, plan.request.workload.optimizer
    if kind is Optimizer.MUON and (lay.zero == 0 or lay.pp > 1):
        yield f"DeepSpeed's Muon needs zero >= 1 and no pipeline, not zero={lay.zero}, pp={lay.pp}."
    if lay.offload == "none":
        return
    if lay.zero == 0 or lay.pp > 1:
        yield f"offload={lay.offload} needs zero >= 1 and no pipeline under DeepSpeed."
    if lay.zero < 3 and offload_fraction(plan) < 1:
        yield f"DeepSpeed leaves a part of the optimizer here under zero=3 only, not {lay.zero}."
    if lay.offload not in ("none", "optimizer") and lay.zero != 3:
        yield f"DeepSpeed needs zero=3 for offload={lay.offload}, not zero={lay.zero}."
    if kind is not Optimizer.ADAMW:
        yield f"DeepSpeed steps on the host with its CPU Adam, not {kind.value}."


def pipeline_problems(plan: Plan) -> Iterator[str]:
    """Yield what DeepSpeed's PipelineEngine cannot run (runtime/pipe/engine.py)."""
    lay = plan.best.layout
    if lay.pp > 1 and lay.zero > 1:
        yield f"DeepSpeed's pipelines need zero <= 1, not zero={lay.zero}."
    if lay.pp > 1 and not stages_fit(plan):
        yield "stage_layers does not give every stage the layers that it holds."


def hybrid_problems(plan: Plan) -> Iterator[str]:
    """Yield what hpZ, DeepSpeed's form of sharding within a node, cannot do."""
    lay = plan.best.layout
    if lay.dp_replicate == 1:
        return
    if lay.zero != 3 or lay.pp > 1:
        yield f"dp_replicate={lay.dp_replicate} needs zero=3 and pp=1 under DeepSpeed (hpZ)."
    elif lay.dp % lay.dp_replicate:
        yield f"dp_replicate={lay.dp_replicate} does not divide dp={lay.dp}."


def stages_fit(plan: Plan) -> bool:
    """Return whether the plan names the layers of every stage, all of them together."""
    rows = plan.best.stage_layers
    held = [sum(row) for row in rows]
    return len(rows) == plan.best.layout.pp and sum(held) == plan.request.model.layers


def hostfile(plan: Plan) -> str:
    """Return `host slots=G` a line; the order is the node rank."""
    place = placed(plan)
    return "".join(f"{host} slots={place.gpus_per_node}\n" for host in place.hosts)


def environment(plan: Plan) -> str:
    """Return `env.sh`: the threads of a rank, its allocator, and the fabric."""
    return f"""\
# shellcheck shell=bash
# Environment of every rank; what is already set wins.

{threads(plan)}# segments that grow keep the memory in one piece
export PYTORCH_ALLOC_CONF="${{PYTORCH_ALLOC_CONF:-expandable_segments:True}}"
{fabric_text(plan)}"""


def sent(plan: Plan) -> str:
    """Return the shell lines that have the launcher give the environment to all nodes by ssh."""
    names = re.findall(r"^export (\w+)", environment(plan), re.MULTILINE)
    return f"""\
  # by ssh the launcher sends what DS_ENV_FILE holds, in plain NAME=value lines; yours come last
  mine="${{DS_ENV_FILE:-${{HOME:-.}}/.deepspeed_env}}"
  DS_ENV_FILE="$(mktemp)"
  export DS_ENV_FILE
  for name in {" ".join(names)}; do printf '%s=%s\\n' "$name" "${{!name}}"; done >"$DS_ENV_FILE"
  if [[ -f "$mine" ]]; then cat "$mine" >>"$DS_ENV_FILE"; fi
"""


def run_text(plan: Plan) -> str:
    """Return `run.sh`: all nodes over ssh, or this node alone when NODE_RANK says which it is."""
    place = placed(plan)
    if len(place.hosts) == 1:
        launch = f"""\
exec deepspeed --num_gpus {place.gpus_per_node} --master_port "$MASTER_PORT" \\
  "${{TRAIN[@]}}" "$@\""""
    else:
        unknown = ":?set it to the address of node 0; the names in hostfile are placeholders"
        address = unknown if hosts_are_placeholders(plan) else f":-{place.hosts[0]}"
        launch = f"""\
MASTER_ADDR="${{MASTER_ADDR{address}}}"
WHERE=(--hostfile hostfile --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
if [[ -n "${{NODE_RANK:-}}" ]]; then
  WHERE+=(--no_ssh --node_rank "$NODE_RANK")  # NODE_RANK: the line in hostfile, counted from 0
else
{sent(plan)}fi
exec deepspeed "${{WHERE[@]}}" "${{TRAIN[@]}}" "$@\""""
    return f"""\
#!/usr/bin/env bash
# Starts the job. With several nodes: once, from any of them (ssh and pdsh), or on every node
# with NODE_RANK set.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
source ./env.sh

# Yours to set: your own script instead of the stand-in, and a free port on the first host.
TRAIN=("${{TRAIN_SCRIPT:-train_deepspeed.py}}" --deepspeed_config ds_config.json)
MASTER_PORT="${{MASTER_PORT:-29500}}"

{launch}
"""


def start_text(plan: Plan) -> str:
    """Return the README's section on how to start."""
    lay, nodes = plan.best.layout, len(placed(plan).hosts)
    where = f"On the node:\n\n{start_lines(plan)}"
    if nodes > 1:
        where = (
            "From one node, with this folder at the same path on all of them (ssh and pdsh):\n\n"
            f"```\n{at_address(plan)}./run.sh\n```\n\n"
            f"Without ssh, on every node its own line:\n\n{start_lines(plan, numbered=True)}"
        )
    parts = [
        where,
        "`train_deepspeed.py` trains a small stand-in of the model with the plan's ranks, batch,\n"
        "ZeRO stage, pipeline split and recompute, so that you see it start. Then put your own\n"
        "model into it, or your own script into `TRAIN_SCRIPT`; `ds_config.json` stays as it is.",
    ]
    if hosts_are_placeholders(plan) and nodes > 1:
        parts.append(
            "The cluster lists no hosts: write the real names into `hostfile`, in the same order, "
            f"and the first\nfor {ADDRESS}. Planned with `--nodes-file FILE` (or `hosts:` in the "
            "cluster\nfile), both are known."
        )
    if lay.recompute == "full":
        parts.append(
            "The plan recomputes every layer: your model must do so too (as `Block` does)."
        )
    if lay.ep > 1:
        parts.append(
            f"The experts are `deepspeed.moe.layer.MoE(..., ep_size={lay.ep})`: your model is "
            "written with it (as\n`Block` is), adds its `l_aux` to the loss, and DeepSpeed makes "
            "the groups and the optimizer's\nparameter groups for it."
        )
    if lay.tp > 1:
        parts.append(
            f"Layers are split over {lay.tp} ranks by DeepSpeed's AutoTP. `partition_config` in "
            "`ds_config.json` names\nthose of the stand-in: name yours, or leave it out for a "
            "model of Hugging Face whose plan\nAutoTP knows. Groups are made before the engine "
            "(`groups._init_tp_mesh_device`, `mpu=groups`), as\nthe script does: DeepSpeed would "
            "count the batch over all ranks otherwise. Ranks of one group get\nthe same batch. No "
            "published run of AutoTP training is known: take the expected time as a guess."
        )
    if lay.zero == 0:
        parts.append("Without ZeRO, DeepSpeed adds up gradients in 16 bit.")
    if lay.dp_replicate > 1:
        parts.append(
            f"The plan shards over {lay.dp // lay.dp_replicate} ranks and replicates "
            f"{lay.dp_replicate} times. DeepSpeed's nearest form is\nhpZ: weights are gathered "
            "within those groups, but gradients and optimizer state stay sharded over\nall ranks, "
            "so memory is lower than planned and gradients travel differently."
        )
    return "\n\n".join(parts)


EMITTER = DeepSpeed()

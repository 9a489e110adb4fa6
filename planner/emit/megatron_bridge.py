"""Megatron-Bridge (NeMo): a recipe, and the plan as Hydra overrides on top of it.

Recipes are functions that return a ConfigContainer; what a plan changes in one is a list of
`section.field=value` words, which Bridge refuses when it has no such field. They come as two
files: the shapes of the model, which a recipe of the model's own has already, and the plan's part.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.emit.base import Artifact, placed
from planner.emit.bridge_overrides import Override, model_overrides, plan_overrides
from planner.emit.capabilities import only
from planner.emit.fabric import fabric_text
from planner.emit.megatron_rules import CAN as MEGATRON
from planner.emit.megatron_rules import never, problems, queue_text
from planner.emit.nodes import node_text, start_lines, start_notes
from planner.emit.shared import example, shared_artifacts
from planner.emit.threads import threads
from planner.plan import Plan
from planner.specs.model import ModelSpec
from planner.specs.workload import Optimizer, Workload

CAN = {
    **MEGATRON,
    "optimizer": only(
        Optimizer.ADAMW, Optimizer.SGD, why="Bridge's recipe for any GPT has adamw, sgd"
    ),
}


class MegatronBridge:
    """The layouts of Megatron-LM, on a recipe of Megatron-Bridge."""

    name = "megatron-bridge"
    stack = "megatron"
    tested_with = "megatron-bridge 0.6.2"
    can = CAN

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return one sentence for each thing of the model or the job that no layout mends."""
        return [*never(model, work, CAN), *own_problems(model, work)]

    def unsupported(self, plan: Plan) -> list[str]:
        """Return one sentence for each thing that Megatron-Bridge cannot express."""
        return [*problems(plan, CAN), *own_problems(plan.request.model, plan.request.workload)]

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return the overrides, the script that applies them, and what every bundle carries."""
        shared = shared_artifacts(
            plan,
            target=self.name,
            framework=f"Megatron-Bridge ({self.tested_with})",
            start=start_text(plan),
        )
        return [
            *shared,
            Artifact("model.overrides", overrides_text([(MODEL_HEAD, model_overrides(plan))])),
            Artifact("plan.overrides", overrides_text(plan_overrides(plan))),
            Artifact("train_bridge.py", example("train_bridge.py"), executable=True),
            Artifact("env.sh", env_text(plan)),
            Artifact("run.sh", run_text(plan), executable=True),
        ]


EMITTER = MegatronBridge()
MODEL_HEAD = "shapes of the model, for the recipe of any GPT; RECIPE leaves this file out"


def own_problems(model: ModelSpec, work: Workload) -> Iterator[str]:
    """Yield what Bridge has no field for, or leaves to its model's own recipe."""
    if model.learned_positions and model.learned_positions != work.seq_tokens:
        yield (
            f"Bridge makes as many learned positions as tokens in a sequence ({work.seq_tokens}), "
            f"the model has {model.learned_positions}."
        )


def overrides_text(groups: list[tuple[str, list[Override]]]) -> str:
    """Return an override a line; '#' starts a comment line."""
    lines = [f"# Overrides of a recipe, checked with {MegatronBridge.tested_with}."]
    for heading, rows in groups:
        lines += [f"# {heading}", *(f"{key}={value}" for key, value in rows)]
    return "\n".join(lines) + "\n"


def env_text(plan: Plan) -> str:
    """Return `env.sh`: what is set here wins over the environment of a recipe."""
    return f"""\
# shellcheck shell=bash
# Sourced by run.sh; wins over the environment that a recipe brings.
{queue_text(plan.best.layout)}

# Activations come and go in many sizes; segments that grow keep the memory in one piece.
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

{threads(plan)}
{fabric_text(plan)}"""


def run_text(plan: Plan) -> str:
    """Return `run.sh`: starts the ranks of one node."""
    place = placed(plan)
    return f"""\
#!/usr/bin/env bash
# Starts this node's ranks. Run it once on every node; the order does not matter.
set -euo pipefail

# Yours to set, here or in the environment:
export RECIPE="${{RECIPE:-}}"            # module:function of a recipe of yours; empty: any GPT
MASTER_PORT="${{MASTER_PORT:-29500}}"    # free on the first host
# Random tokens, so that it starts without data. Yours instead, for example:
#   DATA=(dataset.data_path=/data/corpus_text_document
#         tokenizer.tokenizer_type=HuggingFaceTokenizer tokenizer.tokenizer_model=/path/to/it)
DATA=()

NODES={len(place.hosts)}
GPUS_PER_NODE={place.gpus_per_node}
HERE="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"

{node_text(plan)}
# shellcheck source=/dev/null
source "$HERE/env.sh"
export MESHWRIGHT_BUNDLE="$HERE"
# static rendezvous keeps the node ranks given; the script checks them before it starts
exec "${{TORCHRUN:-torchrun}}" --nnodes "$NODES" --nproc-per-node "$GPUS_PER_NODE" \\
  --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \\
  "$HERE/train_bridge.py" ${{DATA[@]+"${{DATA[@]}}"}} "$@"
"""


def start_text(plan: Plan) -> str:
    """Return the README's section on how to start."""
    nodes = len(placed(plan).hosts)
    where = "On every node (ssh, pdsh or srun, in any order)" if nodes > 1 else "On the node"
    parts = [
        f"{where}, with this folder at the same path and Megatron-Bridge installed (NeMo's "
        f"container\nhas it):\n\n{start_lines(plan)}",
        *start_notes(plan),
        "It trains on random tokens until `DATA` at the top of `run.sh` names your data. Words "
        "after\n`./run.sh` are further overrides: `./run.sh train.train_iters=10`.",
        "`plan.overrides` is the plan, an override a line, fit for any recipe, also with Bridge's "
        "own\n`run_recipe.py`; read it with `mapfile -t WORDS < <(grep -v '^#' plan.overrides)`.\n"
        "`model.overrides` gives Bridge's recipe for any GPT the shapes of the model. Where Bridge "
        "has a\nrecipe of the model's own, name it: "
        "`RECIPE=megatron.bridge.recipes.llama:llama3_8b_pretrain_config\n./run.sh`.",
        "A plan knows shapes only: the learning rate and what changes no shape (rotary base, "
        "scoring of the\nrouter) are the recipe's, yours to set.",
    ]
    return "\n\n".join(parts)

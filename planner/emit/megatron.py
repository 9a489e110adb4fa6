"""Megatron-LM: the flags of `pretrain_gpt.py`, one a line, and a launcher that reads them.

The environment is part of the plan: tensor and context parallelism need one hardware queue
(CUDA_DEVICE_MAX_CONNECTIONS=1) so that communication starts in the order it was asked for, and
Megatron-FSDP must not have that.
"""

from __future__ import annotations

from planner.emit.base import Artifact, placed
from planner.emit.fabric import fabric_text
from planner.emit.megatron_flags import flags
from planner.emit.megatron_rules import CAN, never, problems, queue_text
from planner.emit.nodes import node_text, start_lines, start_notes
from planner.emit.shared import example, shared_artifacts
from planner.emit.threads import threads
from planner.plan import Plan
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload


class Megatron:
    """One flag a line, in a fixed order, so that two plans diff well."""

    name = "megatron"
    stack = "megatron"
    tested_with = "megatron-core 0.19.2"
    can = CAN

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return one sentence for each thing of the model or the job that no layout mends."""
        return never(model, work)

    def unsupported(self, plan: Plan) -> list[str]:
        """Return one sentence for each thing that Megatron-LM cannot express."""
        return problems(plan)

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return `megatron.args`, `env.sh`, `run.sh` and what every bundle carries."""
        shared = shared_artifacts(
            plan,
            target=self.name,
            framework=f"Megatron-LM ({self.tested_with})",
            start=start_text(plan),
        )
        return [
            *shared,
            Artifact("megatron.args", args_text(plan, self.tested_with)),
            Artifact("env.sh", env_text(plan)),
            Artifact("checked.py", example("checked.py")),
            Artifact("run.sh", run_text(plan), executable=True),
        ]


def args_text(plan: Plan, tested_with: str) -> str:
    """Return `megatron.args`: a flag and its values a line, `#` starts a comment line."""
    lines = [f"# Flags of pretrain_gpt.py, checked with the parser of {tested_with}."]
    for heading, rows in flags(plan):
        lines += [f"# {heading}", *(" ".join((name, *values)) for name, values in rows)]
    return "\n".join(lines) + "\n"


def env_text(plan: Plan) -> str:
    """Return `env.sh`, sourced by `run.sh`: every variable with its reason."""
    return f"""\
# shellcheck shell=bash
# Sourced by run.sh.
{queue_text(plan.best.layout)}

# Activations come and go in many sizes; segments that grow keep the memory in one piece.
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

{threads(plan)}
{fabric_text(plan)}# Transformer Engine chooses the attention kernel; this says which and why:
# export NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=1
"""


def run_text(plan: Plan) -> str:
    """Return `run.sh`: starts the ranks of one node, whose number is its line in `hosts.txt`."""
    place = placed(plan)
    return f"""\
#!/usr/bin/env bash
# Starts this node's ranks. Run it once on every node; the order does not matter.
set -euo pipefail

# Yours to set, here or in the environment:
MEGATRON_PATH="${{MEGATRON_PATH:-}}"     # a checkout of Megatron-LM (holds pretrain_gpt.py)
MASTER_PORT="${{MASTER_PORT:-29500}}"    # free on the first host, the next one too
# Random tokens, so that it starts without data. Yours instead, for example:
#   DATA_ARGS=(--data-path corpus_text_document --split 99,1,0
#              --tokenizer-type HuggingFaceTokenizer --tokenizer-model path/to/tokenizer)
DATA_ARGS=(--mock-data --tokenizer-type NullTokenizer --vocab-size {plan.request.model.vocab})

NODES={len(place.hosts)}
GPUS_PER_NODE={place.gpus_per_node}
HERE="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"

if [[ ! -f "$MEGATRON_PATH/pretrain_gpt.py" ]]; then
  echo "run.sh: set MEGATRON_PATH to a checkout of Megatron-LM ('$MEGATRON_PATH' is none)" >&2
  exit 2
fi

{node_text(plan)}
# One flag and its values a line. read splits at spaces and expands nothing, so that the
# brackets, stars and bars of layouts reach Megatron as they stand.
ARGS=()
while read -r -a words; do
  [[ ${{#words[@]}} -eq 0 || "${{words[0]}}" == "#"* ]] || ARGS+=("${{words[@]}}")
done < "$HERE/megatron.args"

source "$HERE/env.sh"
export PYTHONPATH="$MEGATRON_PATH${{PYTHONPATH:+:$PYTHONPATH}}"
start() {{ # a port, a script and its options
  local port="$1"
  shift
  torchrun --nnodes "$NODES" --nproc-per-node "$GPUS_PER_NODE" --node-rank "$NODE_RANK" \\
    --master-addr "$MASTER_ADDR" --master-port "$port" "$@"
}}

# Every rank where the plan has it? SKIP_PREFLIGHT=1 leaves the question out.
[[ -n "${{SKIP_PREFLIGHT:-}}" ]] || start "$((MASTER_PORT + 1))" "$HERE/preflight.py"
# checked.py runs the script, and compares its groups with the plan's once it has made them
start "$MASTER_PORT" "$HERE/checked.py" "$MEGATRON_PATH/pretrain_gpt.py" \\
  "${{ARGS[@]}}" "${{DATA_ARGS[@]}}" "$@"
"""


def start_text(plan: Plan) -> str:
    """Return the README's section on how to start."""
    nodes = len(placed(plan).hosts)
    where = "On every node (ssh, pdsh or srun, in any order)" if nodes > 1 else "On the node"
    notes = "".join(f"\n{note}\n" for note in start_notes(plan))
    return f"""\
{where}, with this folder and a checkout of Megatron-LM at the same path:

{start_lines(plan, "MEGATRON_PATH=/path/to/Megatron-LM ./run.sh")}
{notes}
It trains on random tokens until `DATA_ARGS` at the top of `run.sh` names your data. Words after
`./run.sh` are passed on to `pretrain_gpt.py`: `./run.sh --train-iters 10` is a short trial.

`megatron.args` holds the plan, one flag a line. A plan knows shapes only: the learning rate, the
logging and what changes no shape (rotary base, scoring of the router) are Megatron's defaults or a
start, yours to set. Where you start `pretrain_gpt.py` another way, source `env.sh` too: it belongs
to the flags.

`run.sh` first checks on every rank that it stands where the plan has it (SKIP_PREFLIGHT=1 leaves
that out), and `checked.py` that Megatron's groups are the plan's. MASTER_ADDR, MASTER_PORT and
NODE_RANK override what it finds."""


EMITTER = Megatron()

"""torchtitan: command-line keys and a configuration function; its TOML files are gone.

Keys are `--section.key=value`. The model's shapes and the split of the pipeline, which no key can
say, come from a small module that reads `plan.json`. torchtitan captures CUDA graphs unless told
not to, and refuses pipelines while it does; and it shards per its own default unless told when.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.emit.base import Artifact, placed
from planner.emit.capabilities import job_refusals, only, refusals, usual
from planner.emit.fabric import fabric_text
from planner.emit.nodes import node_text, start_lines, start_notes
from planner.emit.shared import example, shared_artifacts
from planner.emit.states import formats_of
from planner.emit.threads import threads
from planner.pipeline.registry import schedule_named
from planner.plan import Layout, Plan
from planner.specs.model import ModelSpec, Norm, QkNorm
from planner.specs.workload import Precision, Workload

SCHEDULES = {
    "1f1b": "1F1B",
    "gpipe": "GPipe",
    "interleaved": "Interleaved1F1B",
    "looped-bfs": "LoopedBFS",
    "interleaved-zb": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble",
    "dualpipev": "DualPipeV",
}
"""torchtitan takes any name and fails when the model is built; these are torch 2.13.0's."""
CAN = usual(
    "torchtitan",
    zero=only(0, 2, 3, why="FSDP2 shards gradients and optimizer state together: zero 2 or 3"),
    precision=only(Precision.BF16, Precision.FP8, why="This bundle trains torchtitan in bf16"),
    offload=only("none", "optimizer+params", why="FSDP2 offloads whole shards: optimizer+params"),
    formats=only("pure-bf16", why="torchtitan has pure-bf16 alone"),
)


class Torchtitan:
    """FSDP2, HSDP, tensor, pipeline, context and expert parallelism."""

    name = "torchtitan"
    stack = "torchtitan+chunked-loss"
    tested_with = "torchtitan 0.3.0"
    can = CAN

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return one sentence for each thing of the model or the job that no layout mends."""
        return [
            *shape_problems(model),
            *length_problems(model, work),
            *job_refusals(work, CAN),
        ]

    def unsupported(self, plan: Plan) -> list[str]:
        """Return one sentence for each thing that torchtitan, or this bundle, cannot express."""
        return list(problems(plan))

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return torchtitan.args, titan_plan.py, env.sh, run.sh and what every bundle carries."""
        shared = shared_artifacts(
            plan, target=self.name, framework=self.tested_with, start=start_text(plan)
        )
        return [
            *shared,
            Artifact("torchtitan.args", args_text(plan, self.tested_with)),
            Artifact("titan_plan.py", example("titan_plan.py")),
            Artifact("env.sh", env_text(plan)),
            Artifact("run.sh", run_text(plan), executable=True),
        ]


def problems(plan: Plan) -> Iterator[str]:
    """Yield what torchtitan 0.3.0 cannot run; the parser accepts much of it."""
    model, work, lay = plan.request.model, plan.request.workload, plan.best.layout
    yield from shape_problems(model)
    yield from width_problems(model, lay)
    yield from pipeline_problems(plan)
    yield from sharding_problems(lay)
    yield from refusals(plan, CAN)
    yield from length_problems(model, work)
    slices = (lay.tp if lay.sp else 1) * (2 * lay.cp if lay.cp > 1 else 1)
    if work.seq_tokens % slices:
        yield f"{work.seq_tokens} tokens do not divide into {slices} slices of the sequence."


def shape_problems(model: ModelSpec) -> Iterator[str]:
    """Yield what the blocks that titan_plan.py builds do not have."""
    if model.norm is not Norm.RMSNORM or not model.gated_mlp or model.norms_per_layer != 2:
        yield "titan_plan.py builds layers with 2 RMSNorms and a gated feed-forward only."
    if model.mla:
        yield "titan_plan.py has no multi-head latent attention."
    if model.qkv_bias or model.attention_output_bias or model.mlp_bias:
        yield "titan_plan.py builds projections without biases only."
    if model.experts and (model.experts.router_bias or model.experts.expert_bias):
        yield "titan_plan.py builds experts without biases only."
    if model.experts and model.experts.shared_gate:
        yield "titan_plan.py adds up the shared experts' output without a gate."
    if model.sliding_window_tokens or model.attention_sinks:
        yield "titan_plan.py has full causal attention only: no windows, no sinks."
    if model.qk_norm is QkNorm.FULL or model.embedding_norm or not model.final_norm:
        yield "titan_plan.py normalises q and k head by head, and ends with a norm."
    if model.learned_positions or model.dropout or model.mtp_layers:
        yield "titan_plan.py has rotary positions, no dropout and no multi-token prediction."


def length_problems(model: ModelSpec, work: Workload) -> Iterator[str]:
    """Yield sequences that the model is not made for, which torchtitan refuses."""
    if work.seq_tokens > model.max_seq_tokens:
        yield f"{work.seq_tokens} tokens are more than the model's {model.max_seq_tokens}."


def width_problems(model: ModelSpec, lay: Layout) -> Iterator[str]:
    """Yield what tensor and expert parallelism cannot divide (models/common/decoder.py)."""
    if model.heads % lay.tp or model.kv_heads % lay.tp:
        yield f"tp={lay.tp} does not divide {model.heads} heads and {model.kv_heads} kv heads."
    if not all(model.moe_layers) and model.ffn % lay.tp:
        yield f"ffn={model.ffn} is not divisible by tp={lay.tp}."
    if model.experts is None:
        if lay.ep > 1:
            yield f"ep={lay.ep} needs a model with experts."
        return
    if lay.etp != (held := lay.tp if lay.ep == 1 else 1):  # models/common/moe_sharding.py
        yield f"torchtitan splits one expert over etp={held} with ep={lay.ep}, not etp={lay.etp}."
    if model.experts.ffn % lay.etp or model.experts.shared_ffn % lay.tp:
        yield f"the experts' widths are not divisible by etp={lay.etp} and tp={lay.tp}."
    if model.experts.count % lay.ep:
        yield f"{model.experts.count} experts are not divisible by ep={lay.ep}."
    if (lay.dp // lay.dp_replicate * lay.cp * lay.tp) % lay.ep:
        yield f"ep={lay.ep} does not divide the ranks that shard a stage."


def pipeline_problems(plan: Plan) -> Iterator[str]:
    """Yield what its pipelines refuse (torch/distributed/pipelining/schedules.py)."""
    lay, rows = plan.best.layout, plan.best.stage_layers
    if lay.pp == 1:
        return
    if plan.request.model.tied_embeddings:
        yield f"torchtitan refuses tied embeddings with pp={lay.pp}."
    shape_fits = len(rows) == lay.pp and all(len(row) == lay.vpp for row in rows)
    if not shape_fits or sum(map(sum, rows)) != plan.request.model.layers:
        yield "stage_layers does not give every stage the layers that it holds."
    elif min(map(min, rows)) == 0:
        yield "torchtitan needs a layer in every pipeline chunk."
    yield from schedule_problems(lay)


def schedule_problems(lay: Layout) -> Iterator[str]:
    """Yield what torch's schedule of that name refuses."""
    if lay.schedule not in SCHEDULES:
        yield f"torchtitan has no schedule={lay.schedule}."
        return
    schedule = schedule_named(lay.schedule)
    if not schedule.takes(lay.vpp):
        yield f"schedule={lay.schedule} does not run vpp={lay.vpp} chunks a stage."
    elif lay.schedule == "1f1b" and lay.num_microbatches < lay.pp:
        yield f"1F1B in torch needs a micro-batch a stage; pp={lay.pp} > {lay.num_microbatches}."
    elif schedule.name in ("interleaved", "interleaved-zb") and lay.num_microbatches % max(
        1, lay.num_microbatches // lay.pp
    ):
        rounds = lay.num_microbatches // lay.pp
        yield f"{lay.num_microbatches} micro-batches are not a multiple of {rounds} rounds."
    elif why := schedule.refuses(schedule.shape(lay.pp, lay.vpp, lay.num_microbatches)):
        yield f"{SCHEDULES[lay.schedule]} {why}."
    if schedule.splits_backward and lay.cp > 1:
        yield f"{SCHEDULES[lay.schedule]} runs uncompiled, and this bundle's cp needs a compiler."


def sharding_problems(lay: Layout) -> Iterator[str]:
    """Yield what FSDP2 has no form for."""
    if lay.zero == 0 and lay.dp * lay.cp > 1 and lay.tp * lay.cp * lay.pp > 1:
        yield "Replicated weights (zero=0) go with plain data parallelism only."
    if lay.offload != "none" and (lay.zero < 2 or lay.dp * lay.cp == 1):
        yield f"FSDP2 offloads shards: zero 2 or 3 over several ranks, not zero={lay.zero}."
    if lay.dp_replicate > 1 and (lay.zero < 2 or lay.dp % lay.dp_replicate):
        yield f"dp_replicate={lay.dp_replicate} needs zero 2 or 3 and must divide dp={lay.dp}."


def keys(plan: Plan) -> list[tuple[str, str]]:
    """Return (key, value) for every key of `torchtitan.args`, but the subcommand at its end."""
    lay, work = plan.best.layout, plan.request.workload
    replicas = lay.dp if lay.zero == 0 else lay.dp_replicate
    step = lay.num_microbatches if lay.pp > 1 else 1  # a pipeline takes all of them at once
    out = {
        "parallelism.data_parallel_replicate_degree": replicas,
        "parallelism.data_parallel_shard_degree": lay.dp // replicas,
        "parallelism.tensor_parallel_degree": lay.tp,
        "parallelism.context_parallel_degree": lay.cp,
        "parallelism.pipeline_parallel_degree": lay.pp,
        "parallelism.expert_parallel_degree": lay.ep,
        "parallelism.fsdp_reshard_after_forward": "always" if lay.zero == 3 else "never",
        "training.local_batch_size": lay.micro_batch * step,
        "training.global_batch_size": work.global_batch,
        "training.seq_len": work.seq_tokens,
        "training.steps": 10,
        "training.mixed_precision_param": "bfloat16",
        "metrics.log_freq": 1,
    }
    if "pure-bf16" in formats_of(
        work, offload=False
    ):  # weights, and with them gradients and moments, in 16 bit
        out["training.dtype"] = "bfloat16"
    if lay.pp > 1:
        out["parallelism.pipeline_parallel_schedule"] = SCHEDULES[lay.schedule]
        out["parallelism.pipeline_parallel_microbatch_size"] = lay.micro_batch
    return [(key, str(value)) for key, value in out.items()]


def switches(lay: Layout) -> list[str]:
    """Return the keys without a value; torch's schedules that split backward refuse compilers."""
    split = lay.pp > 1 and schedule_named(lay.schedule).splits_backward
    out = [] if split else ["compile.enable"]
    if lay.pp > 1 or lay.ep > 1:  # refused while CUDA graphs are captured, the default
        out.append("training.disable_cuda_graphs")
    if lay.offload != "none":
        out.append("training.enable_cpu_offload")
    name = "enable_sequence_parallel"
    if lay.tp > 1:
        out.append(f"parallelism.{name}" if lay.sp else f"parallelism.no-{name}")
    return out


def args_text(plan: Plan, tested_with: str) -> str:
    """Return `torchtitan.args`, an argument a line, `#` starts a comment line."""
    lay = plan.best.layout
    lines = [
        f"# Arguments of torchtitan.train, checked with the config manager of {tested_with}.",
        "--module=titan_plan",
        "--config=planned",
        *(f"--{key}={value}" for key, value in keys(plan)),
        *(f"--{name}" for name in switches(lay)),
        "# a subcommand, so it stays the last",
        f"activation-checkpoint:{lay.recompute}",
    ]
    return "\n".join(lines) + "\n"


ENVIRONMENT = """\
# shellcheck shell=bash
# Sourced by run.sh.

# FSDP gathers weights while it computes, which one hardware queue would forbid.
unset CUDA_DEVICE_MAX_CONNECTIONS

# Segments that grow keep the memory in one piece.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"

THREADS

FABRIC
"""


def env_text(plan: Plan) -> str:
    """Return `env.sh`, sourced by `run.sh`."""
    return ENVIRONMENT.replace("THREADS\n", threads(plan)).replace("FABRIC\n", fabric_text(plan))


def run_text(plan: Plan) -> str:
    """Return `run.sh`: starts the ranks of one node."""
    place = placed(plan)
    return f"""\
#!/usr/bin/env bash
# Starts this node's ranks. Run it once on every node; the order does not matter.
set -euo pipefail

# Yours to set, here or in the environment:
export HF_ASSETS_PATH="${{HF_ASSETS_PATH:-}}"  # a folder with the tokenizer.json of the model
export DATASET="${{DATASET:-c4}}"              # a text data set that torchtitan knows by name
export DATASET_PATH="${{DATASET_PATH:-}}"      # where it lies; empty: its place on the Hub
MASTER_PORT="${{MASTER_PORT:-29500}}"          # free on the first host, the next one too

NODES={len(place.hosts)}
GPUS_PER_NODE={place.gpus_per_node}
HERE="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"

if [[ ! -f "$HF_ASSETS_PATH/tokenizer.json" ]]; then
  echo "run.sh: set HF_ASSETS_PATH to a folder with tokenizer.json ('$HF_ASSETS_PATH' is none)" >&2
  exit 2
fi

{node_text(plan)}
# One argument a line; read expands nothing in them.
ARGS=()
while read -r line; do
  [[ -z "$line" || "$line" == "#"* ]] || ARGS+=("$line")
done < "$HERE/torchtitan.args"

# shellcheck source=/dev/null
source "$HERE/env.sh"
export MESHWRIGHT_BUNDLE="$HERE"
export PYTHONPATH="$HERE${{PYTHONPATH:+:$PYTHONPATH}}"  # where --module finds titan_plan
start() {{ # a port, then what to run; static rendezvous keeps the node ranks given
  local port="$1"
  shift
  "${{TORCHRUN:-torchrun}}" --nnodes "$NODES" --nproc-per-node "$GPUS_PER_NODE" \\
    --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$port" "$@"
}}

# Every rank where the plan has it? SKIP_PREFLIGHT=1 leaves the question out.
[[ -n "${{SKIP_PREFLIGHT:-}}" ]] || start "$((MASTER_PORT + 1))" "$HERE/preflight.py"
# words after ./run.sh come before the last argument, a subcommand
last="${{ARGS[-1]}}"
unset 'ARGS[-1]'
start "$MASTER_PORT" -m torchtitan.train "${{ARGS[@]}}" "$@" "$last"
"""


def start_text(plan: Plan) -> str:
    """Return the README's section on how to start."""
    nodes = len(placed(plan).hosts)
    where = "On every node (ssh, pdsh or srun, in any order)" if nodes > 1 else "On the node"
    parts = [
        f"{where}, with this folder at the same path and torchtitan 0.3.0 installed:\n\n"
        + start_lines(plan, "HF_ASSETS_PATH=/path/to/tokenizer ./run.sh"),
        *start_notes(plan),
        "`torchtitan.args` holds the parallelism, one key a line; `titan_plan.py` builds the model "
        "of\n`plan.json` and cuts its pipeline. Words after `./run.sh` are passed on: "
        "`./run.sh --training.steps=100`.\nA plan knows shapes only: rotary base, router scoring "
        "and the optimizer in `titan_plan.py` are a\nstart, yours to set.",
    ]
    if plan.request.workload.precision is Precision.FP8:
        parts.append(
            "FP8 is torchao's: `pip install torchao` beside torchtitan. Projections and experts "
            "multiply in FP8\nwith a scale a row, what travels stays in bf16."
        )
    return "\n\n".join(parts)


EMITTER = Torchtitan()

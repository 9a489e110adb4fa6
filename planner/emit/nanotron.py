"""nanotron: one YAML file for `run_train.py` of a checkout; its reader refuses unknown keys.

PyPI holds only a version of 2024, so the keys are those of one commit, read in its source.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.emit.base import Artifact, placed
from planner.emit.capabilities import ALL, job_refusals, only, refusals, usual
from planner.emit.fabric import fabric_text
from planner.emit.nodes import node_text, start_lines, start_notes
from planner.emit.shared import example, shared_artifacts
from planner.emit.threads import threads
from planner.emit.yaml_text import yaml_text
from planner.plan import Layout, Plan
from planner.specs.model import ModelSpec, Norm, QkNorm
from planner.specs.workload import Precision, Workload

ENGINES = {"none": "1f1b", "1f1b": "1f1b", "gpipe": "afab"}
"""Its words for schedules; 'afab' is all forward, all backward."""
CAN = usual(
    "nanotron",
    vpp=only(1, why="nanotron has no virtual pipeline chunks"),
    cp=only(1, why="nanotron's Llama does not split sequences"),
    ep=only(1, why="nanotron's Llama has no experts"),
    etp=ALL,
    dp_replicate=only(1, why="nanotron shards the optimizer over all replicas"),
    zero=only(0, 1, why="nanotron shards the optimizer only (zero <= 1)"),
    schedule=only(*ENGINES, why="nanotron has no virtual pipeline chunks"),
    recompute=only("none", "full", why="nanotron recomputes whole layers (full) or none"),
    precision=only(Precision.BF16, why="This bundle trains nanotron in bf16"),
)


class Nanotron:
    """ZeRO-0 and 1 with tensor and pipeline parallelism, for models of Llama's shape."""

    name = "nanotron"
    stack = "nanotron"
    tested_with = "huggingface/nanotron@2411b022"
    can = CAN

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return one sentence for each thing of the model or the job that no layout mends."""
        return [*shape_problems(model), *job_refusals(work, CAN)]

    def unsupported(self, plan: Plan) -> list[str]:
        """Return one sentence for each thing that nanotron, or its Llama, cannot express."""
        return list(problems(plan))

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return nanotron.yaml, run.sh, what checks its groups, and what every bundle carries."""
        shared = shared_artifacts(
            plan,
            target=self.name,
            framework=f"nanotron ({self.tested_with})",
            start=start_text(plan),
        )
        head = (
            f"# Read by run_train.py of {self.tested_with}, which refuses keys it does not know.\n"
        )
        return [
            *shared,
            Artifact("nanotron.yaml", head + yaml_text(config(plan))),
            Artifact("checked_nanotron.py", example("checked_nanotron.py")),
            Artifact("run.sh", run_text(plan), executable=True),
        ]


def problems(plan: Plan) -> Iterator[str]:
    """Yield what nanotron cannot run (config/config.py, models/llama.py, parallel/context.py)."""
    model, work, lay = plan.request.model, plan.request.workload, plan.best.layout
    yield from shape_problems(model)
    yield from width_problems(model, lay)
    yield from refusals(plan, CAN)
    if lay.sp and work.seq_tokens % lay.tp:
        yield f"{work.seq_tokens} tokens are not divisible by tp={lay.tp}."


def width_problems(model: ModelSpec, lay: Layout) -> Iterator[str]:
    """Yield what tensor parallelism cannot divide."""
    if model.heads % lay.tp or model.kv_heads % lay.tp:
        yield f"tp={lay.tp} does not divide {model.heads} heads and {model.kv_heads} kv heads."
    if model.ffn % lay.tp or model.vocab % lay.tp:
        yield f"tp={lay.tp} does not divide ffn={model.ffn} and vocab={model.vocab}."


def shape_problems(model: ModelSpec) -> Iterator[str]:
    """Yield what nanotron's LlamaConfig has no field for."""
    if model.experts or model.mla:
        yield "nanotron's Llama has neither experts nor latent attention."
    if model.norm is not Norm.RMSNORM or not model.gated_mlp or model.norms_per_layer != 2:
        yield "nanotron's Llama has 2 RMSNorms and a gated feed-forward in a layer."
    if model.head_dim * model.heads != model.hidden:
        yield f"nanotron's heads are hidden/heads wide, not {model.head_dim}."
    if model.qkv_bias or model.attention_output_bias or model.mlp_bias:
        yield "This bundle trains nanotron's Llama without biases."
    plain = model.qk_norm is QkNorm.NONE and model.final_norm and not model.embedding_norm
    if not plain:
        yield "nanotron's Llama normalises neither queries and keys nor the embedding."
    if model.sliding_window_tokens or model.attention_sinks:
        yield "nanotron's Llama has full causal attention only."
    if model.learned_positions or model.mtp_layers or model.dropout:
        yield "nanotron's Llama has rotary positions, no dropout, no multi-token prediction."


def config(plan: Plan) -> dict[str, Any]:
    """Return what `nanotron.yaml` holds; `data.dataset: null` trains on made-up tokens."""
    model, work, lay = plan.request.model, plan.request.workload, plan.best.layout
    steps = 100
    return {
        "general": {"project": "meshwright", "run": "plan", "seed": 42},
        "parallelism": {
            "dp": lay.dp,
            "pp": lay.pp,
            "tp": lay.tp,
            "pp_engine": ENGINES[lay.schedule],
            "tp_mode": "REDUCE_SCATTER" if lay.sp else "ALL_REDUCE",
            "tp_linear_async_communication": lay.sp,
            "recompute_layer": lay.recompute == "full",
            "context_parallel_size": 1,
            "expert_parallel_size": 1,
        },
        "tokens": {
            "sequence_length": work.seq_tokens,
            "train_steps": steps,
            "micro_batch_size": lay.micro_batch,
            "batch_accumulation_per_replica": lay.num_microbatches,
        },
        "model": {
            "dtype": "bfloat16",
            "init_method": {"std": 0.02},
            "make_vocab_size_divisible_by": 1,
            "model_config": {
                "is_llama_config": True,
                "hidden_size": model.hidden,
                "intermediate_size": model.ffn,
                "num_hidden_layers": model.layers,
                "num_attention_heads": model.heads,
                "num_key_value_heads": model.kv_heads,
                "max_position_embeddings": max(model.max_seq_tokens, work.seq_tokens),
                "tie_word_embeddings": model.tied_embeddings,
                "vocab_size": model.vocab,
            },
        },
        "optimizer": {
            "zero_stage": lay.zero,
            "weight_decay": 0.1,
            "clip_grad": 1.0,
            "accumulate_grad_in_fp32": True,
            "optimizer_factory": {
                "name": "adamW",
                "adam_beta1": 0.9,
                "adam_beta2": 0.95,
                "adam_eps": 1e-8,
                "torch_adam_is_fused": True,
            },
            "learning_rate_scheduler": {
                "learning_rate": 3e-4,
                "lr_warmup_steps": 2,
                "lr_warmup_style": "linear",
                "lr_decay_style": "cosine",
                "min_decay_lr": 3e-5,
            },
        },
        "checkpoints": {"checkpoints_path": "checkpoints", "checkpoint_interval": steps},
        "data_stages": [
            {
                "name": "only",
                "start_training_step": 1,
                "data": {"dataset": None, "seed": 42, "num_loading_workers": 1},
            }
        ],
        "logging": {
            "log_level": "info",
            "log_level_replica": "info",
            "iteration_step_info_interval": 1,
        },
    }


def run_text(plan: Plan) -> str:
    """Return `run.sh`: starts the ranks of one node."""
    place = placed(plan)
    return f"""\
#!/usr/bin/env bash
# Starts this node's ranks. Run it once on every node; the order does not matter.
set -euo pipefail

# Yours to set, here or in the environment:
NANOTRON_PATH="${{NANOTRON_PATH:-}}"     # a checkout of nanotron (holds run_train.py)
MASTER_PORT="${{MASTER_PORT:-29500}}"    # free on the first host, the next one too

NODES={len(place.hosts)}
GPUS_PER_NODE={place.gpus_per_node}
HERE="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"

if [[ ! -f "$NANOTRON_PATH/run_train.py" ]]; then
  echo "run.sh: set NANOTRON_PATH to a checkout of nanotron ('$NANOTRON_PATH' is none)" >&2
  exit 2
fi

{node_text(plan)}
# One hardware queue: tensor parallelism's communication starts in the order it was asked for.
export CUDA_DEVICE_MAX_CONNECTIONS=1
{threads(plan)}{fabric_text(plan)}export MESHWRIGHT_BUNDLE="$HERE"
start() {{ # a port, a script and its options; static rendezvous keeps the node ranks given
  local port="$1"
  shift
  "${{TORCHRUN:-torchrun}}" --nnodes "$NODES" --nproc-per-node "$GPUS_PER_NODE" \\
    --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$port" "$@"
}}

# Every rank where the plan has it? SKIP_PREFLIGHT=1 leaves the question out.
[[ -n "${{SKIP_PREFLIGHT:-}}" ]] || start "$((MASTER_PORT + 1))" "$HERE/preflight.py"
# checked_nanotron.py runs the script, and compares its groups with the plan's once it has made them
start "$MASTER_PORT" "$HERE/checked_nanotron.py" "$NANOTRON_PATH/run_train.py" \\
  --config-file "$HERE/nanotron.yaml" "$@"
"""


def start_text(plan: Plan) -> str:
    """Return the README's section on how to start."""
    nodes = len(placed(plan).hosts)
    where = "On every node (ssh, pdsh or srun, in any order)" if nodes > 1 else "On the node"
    parts = [
        f"{where}, with this folder and a checkout of nanotron at the same path:\n\n"
        + start_lines(plan, "NANOTRON_PATH=/path/to/nanotron ./run.sh"),
        *start_notes(plan),
        "`run.sh` first checks on every rank that it stands where the plan has it "
        "(SKIP_PREFLIGHT=1 leaves\nthat out), and `checked_nanotron.py` that nanotron's groups are "
        "the plan's.",
        "It trains on made-up tokens until `data_stages` in `nanotron.yaml` names a data set (and "
        "`tokenizer`\nits tokenizer).",
    ]
    if plan.best.layout.pp > 1:
        parts.append(
            "nanotron cuts pipelines by its own count of what layers cost: check that its stages "
            "hold about\nthe layers in `stage_layers` of `plan.json`."
        )
    return "\n\n".join(parts)


EMITTER = Nanotron()

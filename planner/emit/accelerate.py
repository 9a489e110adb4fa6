"""Accelerate: one YAML file that `accelerate launch` reads, and arguments for the HF Trainer.

Accelerate ignores keys it does not know inside `fsdp_config` and `parallelism_config`, and never
compares the YAML with the Trainer's arguments; so both come from here, and the tests compare the
environment that its launcher makes of the file with the plan. Static rendezvous keeps node ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from planner.emit.base import Artifact, placed
from planner.emit.capabilities import ALL, job_refusals, only, refusals, usual
from planner.emit.deepspeed_config import config as deepspeed_config
from planner.emit.fabric import fabric_text
from planner.emit.nodes import node_text, start_lines, start_notes
from planner.emit.shared import example, shared_artifacts
from planner.emit.threads import threads
from planner.emit.yaml_text import yaml_text
from planner.plan import Layout, Plan
from planner.specs.model import ModelSpec
from planner.specs.workload import Optimizer, Precision, Workload

CAN = usual(
    "Accelerate",
    tp=only(1, why="Accelerate leaves tensor parallelism to the model's own loader"),
    pp=only(1, why="Accelerate has no pipeline parallelism"),
    vpp=only(1, why="Accelerate has no pipeline parallelism"),
    ep=only(1, why="Accelerate has no expert parallelism"),
    etp=only(1, why="Accelerate has no expert parallelism"),
    schedule=only("none", why="Accelerate has no pipeline parallelism"),
    recompute=only("none", "full", why="Accelerate recomputes whole layers (full) or none"),
    optimizer=only(
        *(Optimizer.ADAMW, Optimizer.SGD, Optimizer.ADAMW_8BIT),
        why="the Trainer has adamw, sgd, adamw-8bit here",
    ),
    offload=only("none", "optimizer", "optimizer+params", why="Accelerate has no such offload"),
    precision=ALL,
)


class Accelerate:
    """DDP, FSDP2 with hybrid sharding and context parallelism, and ZeRO-1 by DeepSpeed."""

    name = "accelerate"
    stack = "transformers"
    tested_with = "accelerate 1.15.0, transformers 5.23.0"
    can = CAN

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return one sentence for each thing of the job that no layout mends."""
        return list(job_refusals(work, CAN))

    def unsupported(self, plan: Plan) -> list[str]:
        """Return one sentence for each thing that Accelerate, or this bundle, cannot express."""
        return list(problems(plan))

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return accelerate.yaml, trainer_args.json, run.sh, the script and what bundles share."""
        shared = shared_artifacts(
            plan,
            target=self.name,
            framework=f"Accelerate ({self.tested_with})",
            start=start_text(plan),
        )
        out = [
            *shared,
            Artifact("accelerate.yaml", config_text(plan, self.tested_with)),
            Artifact("trainer_args.json", json.dumps(trainer_args(plan), indent=2) + "\n"),
            Artifact("train_accelerate.py", example("train_accelerate.py")),
            Artifact("run.sh", run_text(plan), executable=True),
        ]
        if plan.best.layout.zero == 1:
            text = json.dumps(deepspeed_config(plan), indent=2, allow_nan=False) + "\n"
            out.append(Artifact("ds_config.json", text))
        return out


def problems(plan: Plan) -> Iterator[str]:
    """Yield what accelerate 1.15.0 cannot run, or this bundle does not ask of it."""
    lay, work = plan.best.layout, plan.request.workload
    yield from refusals(plan, CAN)
    yield from sharding_problems(lay)
    yield from kept_problems(plan)
    if lay.cp > 1 and work.seq_tokens % (2 * lay.cp):
        yield f"{work.seq_tokens} tokens are not divisible by 2*cp={2 * lay.cp}."


def sharding_problems(lay: Layout) -> Iterator[str]:
    """Yield what its ParallelismConfig refuses (accelerate/parallelism_config.py)."""
    if lay.cp > 1 and lay.zero < 2:
        yield f"Context parallelism (cp={lay.cp}) needs FSDP2, that is, zero 2 or 3."
    if lay.dp_replicate == 1:
        if lay.zero >= 2 and lay.dp * lay.cp == 1:
            yield f"zero={lay.zero} has nothing to shard over on one rank."
    elif lay.zero < 2:
        yield f"dp_replicate={lay.dp_replicate} needs FSDP2, that is, zero 2 or 3."
    elif lay.dp % lay.dp_replicate:
        yield f"dp_replicate={lay.dp_replicate} does not divide dp={lay.dp}."
    elif lay.dp == lay.dp_replicate:
        yield f"dp_replicate={lay.dp_replicate} leaves nothing of dp={lay.dp} to shard over."


def kept_problems(plan: Plan) -> Iterator[str]:
    """Yield optimizers and offload that the Trainer, FSDP2 or (zero=1) DeepSpeed does not have."""
    lay, kind = plan.best.layout, plan.request.workload.optimizer
    if lay.zero == 1 and kind is Optimizer.ADAMW_8BIT:
        yield f"DeepSpeed, which shards for Accelerate under zero=1, has no optimizer={kind.value}."
    if lay.offload != "none" and lay.offload != {1: "optimizer"}.get(lay.zero, "optimizer+params"):
        yield f"Accelerate has no offload={lay.offload} under zero={lay.zero}."
    if lay.zero == 1 and plan.request.workload.precision is Precision.FP8:
        yield "DeepSpeed, which shards for Accelerate under zero=1, has no FP8 training."
    if lay.offload != "none" and lay.zero == 0:
        yield f"Accelerate offloads what is sharded, so offload={lay.offload} needs zero > 0."


def config_text(plan: Plan, tested_with: str) -> str:
    """Return `accelerate.yaml`. run.sh adds this node's rank and the first node's address."""
    head = f"# Read by `accelerate launch --config_file`; checked with {tested_with}.\n"
    return head + yaml_text(config(plan))


def config(plan: Plan) -> dict[str, Any]:
    """Return what `accelerate.yaml` holds; `num_processes` counts all nodes."""
    lay, place = plan.best.layout, placed(plan)
    out: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": distributed_type(lay),
        "mixed_precision": plan.request.workload.precision.value,
        "num_machines": len(place.hosts),
        "num_processes": lay.gpus,
        "machine_rank": 0,
        "main_training_function": "main",
        "rdzv_backend": "static",
        "use_cpu": False,
        "debug": False,
    }
    if plan.request.workload.precision is Precision.FP8:
        out["fp8_config"] = FP8
    if lay.zero >= 2:
        out["fsdp_config"] = fsdp(lay)
        out["parallelism_config"] = {
            f"parallelism_config_{name}": value for name, value in sizes(lay).items()
        }
    elif lay.zero == 1:
        out["deepspeed_config"] = {
            "deepspeed_config_file": "ds_config.json",
            "deepspeed_multinode_launcher": "standard",
            "zero3_init_flag": False,
        }
    return out


FP8 = {
    "fp8_backend": "AO",  # torchao, which FSDP2 can shard; what travels stays in bf16
    "fp8_enable_fsdp_float8_all_gather": False,
    "fp8_pad_inner_dim": True,
}


def distributed_type(lay: Layout) -> str:
    """Return Accelerate's word for how data parallelism is done."""
    if lay.gpus == 1 and lay.zero == 0:
        return "NO"
    return {0: "MULTI_GPU", 1: "DEEPSPEED"}.get(lay.zero, "FSDP")


def fsdp(lay: Layout) -> dict[str, Any]:
    """Return FSDP2's part: ZeRO-3 reshards after the forward pass, ZeRO-2 does not.

    Rank 0 does not load for all (cpu_ram_efficient_loading): that saves host memory where a
    checkpoint is read (from_pretrained), and nothing where a model is made from its configuration,
    as the stand-in is, on every rank alike. It is paid with a broadcast and a scatter of every
    parameter before the first step, which hung in 6 of 8 starts on an H100 (accelerate 1.15.0,
    torch 2.11.0, one rank; on the CPU with gloo none did); it ends with an AttributeError for
    models that keep a buffer in their state (the router's bias of DeepSeek-V3 and GLM-4.5), and
    torchao's FP8 refuses it. The README says when to turn it on.
    """
    return {
        "fsdp_version": 2,
        # the model says itself which of its classes are layers (_no_split_modules)
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": lay.zero == 3,
        "fsdp_activation_checkpointing": lay.recompute == "full",
        "fsdp_offload_params": lay.offload == "optimizer+params",
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    }


def sizes(lay: Layout) -> dict[str, Any]:
    """Return the device mesh, slowest axis first; its product is the number of ranks."""
    out: dict[str, Any] = {
        "dp_replicate_size": lay.dp_replicate,
        "dp_shard_size": lay.dp // lay.dp_replicate,
        "cp_size": lay.cp,
        "tp_size": 1,
    }
    if lay.cp > 1:
        out["cp_comm_strategy"] = "alltoall"  # a ring; 'allgather' holds all keys at once
    return out


def optim(kind: Optimizer) -> dict[str, Any]:
    """Return the optimizer as the Trainer calls it; 8-bit is torchao's, which FSDP2 can shard."""
    if kind is Optimizer.SGD:
        return {"optim": "sgd", "optim_args": "momentum=0.9"}
    return {"optim": "adamw_torch_8bit" if kind is Optimizer.ADAMW_8BIT else "adamw_torch_fused"}


def trainer_args(plan: Plan) -> dict[str, Any]:
    """Return `trainer_args.json`: TrainingArguments that agree with accelerate.yaml."""
    lay, work = plan.best.layout, plan.request.workload
    return {
        "output_dir": "output",
        "per_device_train_batch_size": lay.micro_batch,
        "gradient_accumulation_steps": lay.num_microbatches,
        "bf16": work.precision is Precision.BF16,
        "fp16": work.precision is Precision.FP16,
        # under FSDP2 the layers are recomputed by fsdp_activation_checkpointing instead
        "activation_checkpointing": lay.recompute == "full" and lay.zero < 2,
        "max_steps": 10,
        **optim(work.optimizer),
        "ddp_find_unused_parameters": False,
        "learning_rate": 0.0003,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_drop_last": True,
        "remove_unused_columns": False,
        "seed": 1234,
    }


def run_text(plan: Plan) -> str:
    """Return `run.sh`: starts the ranks of one node under `accelerate launch`."""
    return f"""\
#!/usr/bin/env bash
# Starts this node's ranks. Run it once on every node; the order does not matter.
set -euo pipefail

# Yours to set, here or in the environment:
TRAIN_SCRIPT="${{TRAIN_SCRIPT:-}}"       # your own script instead of the stand-in
MASTER_PORT="${{MASTER_PORT:-29500}}"    # free on the first host, the next one too

HERE="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
{node_text(plan)}
{threads(plan)}# Segments that grow keep the memory in one piece.
export PYTORCH_ALLOC_CONF="${{PYTORCH_ALLOC_CONF:-expandable_segments:True}}"
{fabric_text(plan)}export MESHWRIGHT_BUNDLE="$HERE"
export PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}$HERE"  # for scripts that import preflight

start() {{ # a port, a script and its options; --machine_rank keeps the node ranks given
  local port="$1"
  shift
  "${{ACCELERATE:-accelerate}}" launch --config_file "$HERE/accelerate.yaml" \\
    --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR" --main_process_port "$port" \\
    --same_network "$@"  # which in accelerate.yaml would be ignored
}}

cd "$HERE"  # accelerate.yaml names files beside it
if [[ -n "$TRAIN_SCRIPT" && -z "${{SKIP_PREFLIGHT:-}}" ]]; then
  start "$((MASTER_PORT + 1))" "$HERE/preflight.py"
fi
start "$MASTER_PORT" "${{TRAIN_SCRIPT:-$HERE/train_accelerate.py}}" "$@"
"""


def start_text(plan: Plan) -> str:
    """Return the README's section on how to start."""
    lay, nodes = plan.best.layout, len(placed(plan).hosts)
    where = "On every node (ssh, pdsh or srun, in any order)" if nodes > 1 else "On the node"
    parts = [
        f"{where}, with this folder at the same path:\n\n{start_lines(plan)}",
        *start_notes(plan),
        "`train_accelerate.py` trains a small stand-in with the Hugging Face Trainer, to see that\n"
        "the job starts; `./run.sh --model PATH` trains the model in that folder instead, on the\n"
        "same made-up tokens. Your own script goes into TRAIN_SCRIPT (an absolute path): it reads\n"
        "`trainer_args.json`, and the preflight runs by itself first.",
    ]
    if plan.request.workload.optimizer is Optimizer.ADAMW_8BIT:
        parts.append("8-bit AdamW is torchao's: `pip install torchao` beside Accelerate.")
    if plan.request.workload.precision is Precision.FP8:
        parts.append(
            "FP8 is torchao's: `pip install torchao` beside Accelerate. `trainer_args.json` says "
            "neither bf16\nnor fp16, because the Trainer would put either over it."
        )
    if lay.zero >= 2:
        parts.append(
            "Every rank reads a checkpoint into its own host memory before it keeps its shard. "
            "Where a node's\nmemory does not hold that many copies, set "
            "`fsdp_cpu_ram_efficient_loading: true` in `accelerate.yaml`:\nrank 0 then reads it "
            "for all (not under FP8, and not for models that keep a buffer in their state)."
        )
    if lay.zero == 1:
        parts.append("ZeRO-1 is DeepSpeed's: `pip install deepspeed==0.19.8` beside Accelerate.")
    parts.append(
        "Change the batch, the precision or recompute in all files at once: Accelerate compares\n"
        "none of them, `meshwright emit --check .` does."
    )
    return "\n\n".join(parts)


EMITTER = Accelerate()

"""What a file of a bundle says about the plan, as flat facts: edits elsewhere are the user's own.

A bundle is made to be edited: learning rates, data, images. So files are not compared as text.
Each kind is read into (key, value) pairs, and a few keys per kind are the plan's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import yaml

Facts = Mapping[str, str]
SHOWN = 5
"""So many disagreements of one file are told; the others are counted."""
LONGEST = 80
"""So many characters of a value are told."""


class Kind(NamedTuple):
    """How a file is read, and the patterns of keys that are the plan's."""

    read: Callable[[str], Facts]
    owned: tuple[str, ...]


def disagreements(name: str, expected: str, found: str) -> list[str]:
    """Return one sentence for each fact of the file `name` that is not as the plan has it.

    A file that cannot be read gives one sentence; a file of no known kind gives none.
    """
    if (kind := KINDS.get(name)) is None:
        return []
    try:
        seen = kind.read(found)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        return [f"{name}: cannot be read ({' '.join(str(error).split())[:120]})"]
    wanted = kind.read(expected)
    wrong = [
        key
        for key in (*wanted, *(k for k in seen if k not in wanted))
        if wanted.get(key) != seen.get(key) and _is_owned(kind, key)
    ]
    out = [
        f"{name}: {_tail(key)} is {_short(seen.get(key, 'missing'))}, "
        f"the plan has {_short(wanted.get(key, 'none'))}"
        for key in wrong[:SHOWN]
    ]
    more = len(wrong) - SHOWN
    return [*out, f"{name}: {more} more such"] if more > 0 else out


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _tail(key: str) -> str:
    return key if len(key) <= LONGEST else "..." + key[3 - LONGEST :]


def _is_owned(kind: Kind, key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in kind.owned)


def json_facts(text: str) -> Facts:
    """Return the leaves of a JSON object by their path, dots between; what is off is left out."""
    return _leaves(json.loads(text, object_pairs_hook=_no_duplicates))


def yaml_facts(text: str) -> Facts:
    """Return the leaves of a YAML mapping by their path."""
    return _leaves(yaml.safe_load(text))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return out


def _leaves(data: Any) -> Facts:
    if not isinstance(data, dict):
        raise ValueError("holds no mapping")
    out: dict[str, str] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in items:
                visit(f"{path}.{key}" if path else str(key), inner)
        elif value is not None and value is not False:  # off is the same as left out
            out[path] = json.dumps(value, default=str)

    visit("", data)
    return out


def megatron_facts(text: str) -> Facts:
    """Return the flags of `megatron.args` with their values."""
    rows = [line.split() for line in text.splitlines() if not line.lstrip().startswith("#")]
    return _once((row[0], " ".join(row[1:]) or "set") for row in rows if row)


def override_facts(text: str) -> Facts:
    """Return the keys of a list of Hydra overrides, with or without quotes around the value."""
    lines = [line.strip() for line in text.splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    if wrong := next((key for key, mark, _ in pairs if not mark), None):
        raise ValueError(f"{wrong} has no value")
    return _once((key.strip().lstrip("+"), value.strip().strip("'\"")) for key, _, value in pairs)


def titan_facts(text: str) -> Facts:
    """Return the keys of `torchtitan.args`; hyphens and underscores mean the same to it."""
    lines = [line.strip() for line in text.splitlines()]
    words = [line for line in lines if line and not line.startswith("#")]
    pairs = [word.removeprefix("--").partition("=") for word in words]
    out = _once(
        (name.replace("-", "_") if value or "." in name else name, value or "set")
        for name, _, value in pairs
    )
    return {**out, "the last word": words[-1] if words else ""}


def line_facts(text: str) -> Facts:
    """Return lines by number, from 1; empty ones at the end do not count."""
    return {f"line {i}": line.strip() for i, line in enumerate(text.rstrip().splitlines(), 1)}


def script_facts(text: str) -> Facts:
    """Return the sizes that a script sets, and its #SBATCH options."""
    options = re.findall(r"^#SBATCH (--[a-z-]+)(?:=(.*))?$", text, re.MULTILINE)
    sizes = re.findall(
        r"^(NODES|GPUS_PER_NODE|nodes|gpus_per_node|BY_LEAF)=(\S.*)$", text, re.MULTILINE
    )
    return {name: value or "set" for name, value in (*options, *sizes)}


def _once(pairs: Any) -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"{key} stands twice")
        out[key] = value
    return out


SIZES = ("NODES", "GPUS_PER_NODE", "nodes", "gpus_per_node", "BY_LEAF")
KINDS: Mapping[str, Kind] = {
    "rank_map.json": Kind(json_facts, ("*",)),
    "hosts.txt": Kind(line_facts, ("*",)),
    "hostfile": Kind(line_facts, ("*",)),
    "run.sh": Kind(script_facts, SIZES),
    "node.sh": Kind(script_facts, SIZES),
    "job.sbatch": Kind(
        script_facts, (*SIZES, "--nodes", "--ntasks-per-node", "--gpus-per-node", "--nodelist")
    ),
    "ds_config.json": Kind(
        json_facts,
        (
            *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
            *("zero_optimization.stage", "zero_optimization.zero_hpz_partition_size"),
            *("zero_optimization.offload_*", "zero_optimization.zero_quantized_*"),
            *("bf16.enabled", "fp16.enabled", "pipeline.stages", "sequence_parallel_size"),
            *("tensor_parallel.*", "optimizer.type", "zero_allow_untested_optimizer"),
        ),
    ),
    "accelerate.yaml": Kind(
        yaml_facts,
        (
            *("distributed_type", "mixed_precision", "num_machines", "num_processes"),
            *("parallelism_config.*", "fsdp_config.fsdp_version", "rdzv_backend"),
            *("fsdp_config.fsdp_reshard_after_forward", "fsdp_config.fsdp_offload_params"),
            *("fsdp_config.fsdp_activation_checkpointing", "deepspeed_config.*"),
        ),
    ),
    "trainer_args.json": Kind(
        json_facts,
        (
            *("per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16"),
            *("activation_checkpointing", "gradient_checkpointing", "optim", "optim_args"),
        ),
    ),
    "torchtitan.args": Kind(
        titan_facts,
        (
            *("module", "config", "parallelism.*", "training.local_batch_size"),
            *("training.global_batch_size", "training.seq_len", "training.mixed_precision_param"),
            "training.dtype",
            *("training.disable_cuda_graphs", "training.enable_cpu_offload", "the last word"),
        ),
    ),
    "megatron.args": Kind(
        megatron_facts,
        (
            *("--*-parallel-size", "--sequence-parallel", "--num-virtual-stages-*"),
            *("--pipeline-model-parallel-layout", "--account-for-*", "--decoder-*-num-layers"),
            *("--num-layers*", "--hidden-size", "--ffn-hidden-size", "--num-attention-heads"),
            *("--num-query-groups", "--group-query-attention", "--kv-channels", "--swiglu"),
            *("--normalization", "--untie-embeddings-and-output-weights", "--seq-length"),
            *("--micro-batch-size", "--global-batch-size", "--num-experts", "--moe-router-topk"),
            *("--moe-ffn-hidden-size", "--moe-shared-expert-*", "--moe-layer-freq"),
            *("--use-distributed-optimizer", "--use-megatron-fsdp", "--use-torch-fsdp2"),
            *("--data-parallel-sharding-strategy", "--num-distributed-optimizer-instances"),
            *("--recompute-*", "--bf16", "--fp16", "--fp8-*", "--optimizer-cpu-offload"),
            *("--optimizer", "--optimizer-offload-fraction", "--use-precision-aware-optimizer"),
            *("--exp-avg-*", "--main-grads-dtype"),
            *("--use-tp-pp-dp-mapping", "--multi-latent-attention", "--*-lora-rank"),
        ),
    ),
    "model.overrides": Kind(override_facts, ("model.*",)),
    "plan.overrides": Kind(
        override_facts,
        (
            *("model.*", "ddp.*", "dist.*", "mixed_precision*", "dataset.seq_length"),
            *("train.*_batch_size", "optimizer.optimizer", "optimizer.*_dtype"),
            *("optimizer.use_*", "optimizer.*offload*", "checkpoint.ckpt_format"),
        ),
    ),
    "nanotron.yaml": Kind(
        yaml_facts,
        (
            *("parallelism.*", "tokens.sequence_length", "tokens.micro_batch_size"),
            *("tokens.batch_accumulation_per_replica", "optimizer.zero_stage", "model.dtype"),
            "optimizer.optimizer_factory.name",
            *("model.model_config.hidden_size", "model.model_config.*_layers"),
            *("model.model_config.*_heads", "model.model_config.intermediate_size"),
        ),
    ),
    "jobset.yaml": Kind(
        yaml_facts,
        ("*.completions", "*.parallelism", "*.completionMode", "*/gpu", "*/efa", "*.values.*"),
    ),
    "trainjob.yaml": Kind(yaml_facts, ("*.numNodes", "*.numProcPerNode", "*/gpu", "*/efa")),
}
"""By file name: no two targets use one name for different things."""

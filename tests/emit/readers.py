"""Bundles read back by the real frameworks' readers, as pairs (planned, read) by what was asked.

One function a target, for whoever has bundles to be read: hundreds of layouts, or every model.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed_harness
import megatron_harness
import pytest
import test_accelerate_loader
import test_k8s_schemas
import test_megatron_parser
import test_nanotron
import titan_harness
import yaml

from planner.plan import Plan

Pairs = Mapping[str, tuple[Any, Any]]
Reader = Callable[[Path, Plan], Pairs]
MOCK_DATA = ("--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size")
RECOMPUTED = {"none": "NoneType", "selective": "SelectiveAC", "full": "FullAC"}


def deepspeed(bundle: Path, answer: Plan) -> Pairs:
    """Read `ds_config.json` with the configuration class of DeepSpeed."""
    lay, work = answer.best.layout, answer.request.workload
    made = deepspeed_harness.read(bundle / "ds_config.json", world=lay.gpus, dp=lay.dp)
    zero = made.zero_config
    parts = (zero.offload_optimizer, zero.offload_param)
    found = [getattr(part, "device", None) or "none" for part in parts]
    devices = [str(getattr(device, "value", device)) for device in found]
    away = {"none": 0, "optimizer": 1, "optimizer+params": 2}[lay.offload]
    return {
        "batch": (work.global_batch, made.train_batch_size),
        "micro": (lay.micro_batch, made.train_micro_batch_size_per_gpu),
        "accumulate": (lay.num_microbatches, made.gradient_accumulation_steps),
        "zero": (lay.zero, made.zero_optimization_stage),
        "hpz": (
            lay.dp // lay.dp_replicate if lay.dp_replicate > 1 else 1,
            zero.zero_hpz_partition_size,
        ),
        "stages": (lay.pp if lay.pp > 1 else "auto", made.pipeline["stages"]),
        "bf16": (work.precision == "bf16", made.bfloat16_config.enabled),
        "fp16": (work.precision == "fp16", made.float16_config.enabled),
        "optimizer": (work.optimizer.value, made.optimizer_name.lower()),
        "offload": (["cpu"] * away + ["none"] * (2 - away), devices),
    }


def megatron(bundle: Path, answer: Plan) -> Pairs:
    """Read `megatron.args` with the parser and configuration classes of Megatron-LM."""
    lines = (bundle / "megatron.args").read_text("utf-8").splitlines()
    words = [w for line in lines if not line.startswith("#") for w in line.split()]
    rows = (bundle / "env.sh").read_text("utf-8").splitlines()
    name = "export CUDA_DEVICE_MAX_CONNECTIONS="
    env = {name[7:-1]: row.removeprefix(name) for row in rows if row.startswith(name)}
    vocab = str(answer.request.model.vocab)
    args, config = megatron_harness.parse([*words, *MOCK_DATA, vocab], answer.best.layout.gpus, env)
    want = test_megatron_parser.expected(answer)
    read_back = {k: (want[k], getattr(args, k)) for k in want}
    stages = megatron_harness.stage_layers(config)
    return read_back | {"stage_layers": (answer.best.stage_layers, stages)}


def torchtitan(bundle: Path, answer: Plan) -> Pairs:
    """Read `torchtitan.args` and `titan_plan.py` with the config manager of torchtitan."""
    titan_harness.load()
    from torchtitan.distributed import ParallelDims

    lay, work = answer.best.layout, answer.request.workload
    with titan_harness.on_hopper():
        made = titan_harness.read(bundle, titan_harness.arguments(bundle))
    dims = ParallelDims.from_config(made.parallelism, lay.gpus)
    replicas = lay.dp if lay.zero == 0 else lay.dp_replicate
    parts = made.parallelism.module_fqns_per_model_part or [
        [f"layers.{i}" for i in range(answer.request.model.layers)]
    ]
    held = [sum("layers" in name for name in part) for part in parts]
    planned = [answer.best.stage_layers[s][v] for v in range(lay.vpp) for s in range(lay.pp)]
    steps = made.training.local_batch_size // lay.micro_batch
    return {
        "tp": (lay.tp, dims.tp),
        "cp": (lay.cp, dims.cp),
        "pp": (lay.pp, dims.pp),
        "ep": (lay.ep, dims.ep),
        "replicas": (replicas, dims.dp_replicate),
        "shards": (lay.dp // replicas, dims.dp_shard),
        "micro-batches": (
            lay.num_microbatches,
            steps * work.global_batch // (made.training.local_batch_size * lay.dp),
        ),
        "tokens": (work.seq_tokens, made.training.seq_len),
        "recompute": (
            RECOMPUTED[lay.recompute],
            type(made.activation_checkpoint).__qualname__.split(".")[0],
        ),
        "offload": (lay.offload != "none", made.training.enable_cpu_offload),
        "layers": (planned, held),
    }


def accelerate(bundle: Path, answer: Plan) -> Pairs:
    """Read `accelerate.yaml` with Accelerate's launcher, the rest as TrainingArguments."""
    lay, work = answer.best.layout, answer.request.workload
    args, env = test_accelerate_loader.environment(bundle)
    told = json.loads((bundle / "trainer_args.json").read_text("utf-8"))
    told |= {"use_cpu": True, "output_dir": str(bundle / "output")}
    with warnings.catch_warnings(), mock.patch.dict("os.environ"):
        warnings.simplefilter("ignore")
        (trainer,) = _arguments().parse_dict(told)
    lost = test_accelerate_loader.disagreements(lay, env)
    if lay.offload == "optimizer+params":
        lost = [name for name in lost if name != "FSDP_OFFLOAD_PARAMS"]
        lost += [] if env.get("FSDP_OFFLOAD_PARAMS") == "true" else ["offload"]
    return {
        "environment": ([], lost),
        "ranks": (lay.gpus, args.num_processes),
        "micro-batch": (lay.micro_batch, trainer.per_device_train_batch_size),
        "accumulate": (lay.num_microbatches, trainer.gradient_accumulation_steps),
        "bf16": (work.precision == "bf16", trainer.bf16),
        "fp16": (work.precision == "fp16", trainer.fp16),
        "fp8": (work.precision == "fp8", env.get("ACCELERATE_FP8_BACKEND") == "AO"),
        "zero 1": (lay.zero == 1, env.get("ACCELERATE_USE_DEEPSPEED") == "true"),
    }


@functools.cache
def _arguments() -> Any:
    from transformers import HfArgumentParser, TrainingArguments

    return HfArgumentParser(TrainingArguments)


def read_yaml(file: Path) -> Any:
    """Return what the file holds, by the reader written in C where there is one."""
    return yaml.load(file.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def k8s(bundle: Path, answer: Plan) -> Pairs:
    """Read the manifests with the schemas of Kubernetes and Kubeflow."""
    assert answer.placement
    job_set = read_yaml(bundle / "jobset.yaml")
    job = test_k8s_schemas.as_job(job_set)
    test_k8s_schemas.validate(job)
    out = {
        "JobSet": ([], test_k8s_schemas.changed("JobSet", job_set)),
        "pods": (len(answer.placement.hosts), job["spec"]["completions"]),
    }
    if (file := bundle / "trainjob.yaml").exists():
        train_job = read_yaml(file)
        out["TrainJob"] = ([], test_k8s_schemas.changed("TrainJob", train_job))
    return out


def nanotron(bundle: Path, answer: Plan) -> Pairs:
    """Read `nanotron.yaml` as its strict reader does: no key but those of its dataclasses."""
    made, lay, unknown = read_yaml(bundle / "nanotron.yaml"), answer.best.layout, []
    for path, known in test_nanotron.KEYS.items():
        part = made
        for name in path.split("."):
            part = part[name]
        unknown += sorted(part.keys() - set(known.split()))
    split, tokens = made["parallelism"], made["tokens"]
    return {
        "unknown": ([], unknown),
        "degrees": ((lay.tp, lay.pp, lay.dp), (split["tp"], split["pp"], split["dp"])),
        "zero": (lay.zero, made["optimizer"]["zero_stage"]),
        "micro-batch": (lay.micro_batch, tokens["micro_batch_size"]),
        "accumulate": (lay.num_microbatches, tokens["batch_accumulation_per_replica"]),
        "tokens": (answer.request.workload.seq_tokens, tokens["sequence_length"]),
    }


def needs(target: str) -> None:
    """Load what reads the bundles of a target, or skip the test where it is not installed."""
    match target:
        case "deepspeed":
            deepspeed_harness.load()
        case "megatron":
            megatron_harness.load()
        case "torchtitan":
            titan_harness.load()
        case "accelerate":
            pytest.importorskip("accelerate")
            pytest.importorskip("transformers")
        case "k8s":
            pytest.importorskip("kubeflow_trainer_api")
            pytest.importorskip("kubernetes_validate")


READERS: Mapping[str, Reader] = {
    "deepspeed": deepspeed,
    "megatron": megatron,
    "torchtitan": torchtitan,
    "accelerate": accelerate,
    "k8s": k8s,
    "nanotron": nanotron,
}


def wrong(target: str, bundle: Path, answer: Plan) -> dict[str, tuple[Any, Any]]:
    """Return what a reader takes for something else than planned, and its own refusal."""
    try:
        return {k: v for k, v in READERS[target](bundle, answer).items() if v[0] != v[1]}
    except (Exception, SystemExit) as error:  # a reader's own refusal, whatever it raises
        return {"refused": (type(error).__name__, str(error)[:300])}

"""Accelerate's own launcher reads the YAML, the Trainer its arguments, and a bundle trains."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from plan_grid import MODELS, model, plan
from ports import free_port

from planner.emit.accelerate import EMITTER
from planner.emit.base import write_bundle
from planner.plan import Layout, Plan

pytestmark = pytest.mark.frameworks

LAYOUTS: list[dict[str, Any]] = [
    *({"dp": dp, "zero": z} for dp, z in itertools.product((2, 8, 16), range(4))),
    *({"dp": 4, "zero": z, "micro_batch": 2, "num_microbatches": 5} for z in range(4)),
    *({"dp": 16, "zero": z, "dp_replicate": r} for z in (2, 3) for r in (2, 4, 8)),
    *({"dp": dp, "cp": cp, "zero": 3} for dp in (1, 2, 4) for cp in (2, 4)),
    {"dp": 8, "cp": 2, "zero": 3, "dp_replicate": 2},
    {"dp": 32, "zero": 3, "dp_replicate": 4, "recompute": "full"},
    {"dp": 8, "zero": 0, "recompute": "full"},
]
CASES = [
    (name, row | {"precision": kind})
    for name, kind in (("dense", "bf16"), ("many-heads", "fp16"), ("moe", "bf16"))
    for row in LAYOUTS
]


def written(folder: Path, answer: Plan) -> Path:
    assert EMITTER.unsupported(answer) == []
    write_bundle(folder / "bundle", EMITTER.emit(answer), force=False)
    return folder / "bundle"


def environment(bundle: Path, *, rank: int = 0) -> tuple[Any, dict[str, str]]:
    """Return the launcher's arguments and the environment that it gives to every rank."""
    pytest.importorskip("accelerate")
    from accelerate.commands import launch
    from accelerate.utils import launch as env

    port = str(free_port())
    node = ["--machine_rank", str(rank), "--main_process_ip", "h0", "--main_process_port", port]
    node.append("--same_network")
    words = ["--config_file", bundle / "accelerate.yaml", *node, bundle / "train_accelerate.py"]
    with mock.patch.dict(os.environ), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = _parser(launch.launch_command_parser).parse_args([str(w) for w in words])
        args, defaults, _ = launch._validate_launch_command(args)
        if args.use_deepspeed:
            args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
            return args, env.prepare_deepspeed_cmd_env(args)[1]
        return args, env.prepare_multi_gpu_env(args)


@functools.cache
def _parser(build: Callable[[], Any]) -> Any:
    return build()


def disagreements(lay: Layout, env: dict[str, str]) -> list[str]:
    """Return what of the plan the environment does not say, so that a silent loss shows."""
    if lay.zero < 2:
        return [k for k in env if k == "ACCELERATE_USE_FSDP" or k.startswith("PARALLELISM_CONFIG")]
    wanted = {
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": str(lay.zero == 3).lower(),
        "FSDP_ACTIVATION_CHECKPOINTING": str(lay.recompute == "full").lower(),
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_OFFLOAD_PARAMS": "false",
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": str(lay.dp_replicate),
        "PARALLELISM_CONFIG_DP_SHARD_SIZE": str(lay.dp // lay.dp_replicate),
        "PARALLELISM_CONFIG_CP_SIZE": str(lay.cp),
        "PARALLELISM_CONFIG_TP_SIZE": "1",
    }
    if lay.cp > 1:
        wanted["PARALLELISM_CONFIG_CP_COMM_STRATEGY"] = "alltoall"
    return [name for name, value in wanted.items() if env.get(name) != value]


@pytest.mark.parametrize(("name", "row"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_the_launcher_hands_every_rank_what_the_plan_says(name, row, tmp_path):
    answer = plan(MODELS[name], **row)
    lay = answer.best.layout
    assert answer.placement
    nodes = len(answer.placement.hosts)
    args, env = environment(written(tmp_path, answer), rank=nodes - 1)
    assert disagreements(lay, env) == []
    assert args.num_processes == lay.gpus
    assert env.get("ACCELERATE_MIXED_PRECISION", row["precision"]) == row["precision"]
    if nodes > 1:
        assert (args.nnodes, args.node_rank, args.master_addr) == (str(nodes), nodes - 1, "h0")
        assert args.rdzv_backend == "static"
    if lay.zero == 1:
        assert env["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert env["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == "ds_config.json"


@pytest.mark.parametrize("row", [r for r in LAYOUTS if r["zero"] >= 2], ids=str)
def test_its_device_mesh_puts_every_rank_where_the_rank_map_does(row, tmp_path):
    import numpy as np

    answer = plan(MODELS["dense"], **row)
    lay = answer.best.layout
    bundle = written(tmp_path, answer)
    _, env = environment(bundle)
    from accelerate import ParallelismConfig

    with mock.patch.dict(os.environ, env, clear=True):
        made = ParallelismConfig()
    assert made.total_size == lay.gpus
    names, shape = made._get_mesh()
    shards = lay.dp // lay.dp_replicate
    for entry in json.loads((bundle / "rank_map.json").read_text("utf-8"))["ranks"]:
        at = dict(zip(names, np.unravel_index(entry["rank"], shape), strict=True))
        assert at.get("cp", 0) == entry["cp"]
        assert at.get("dp_replicate", 0) * shards + at.get("dp_shard", 0) == entry["dp"]


@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_trainer_reads_its_arguments(zero, recompute, tmp_path):
    pytest.importorskip("transformers")
    from transformers import HfArgumentParser, TrainingArguments

    answer = plan(MODELS["dense"], dp=8, zero=zero, recompute=recompute, num_microbatches=3)
    file = written(tmp_path, answer) / "trainer_args.json"
    settings = json.loads(file.read_text("utf-8")) | {"use_cpu": True}
    settings["output_dir"] = str(tmp_path)
    (args,) = HfArgumentParser(TrainingArguments).parse_dict(settings)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (1, 3)
    assert (args.bf16, args.fp16) == (True, False)
    assert args.activation_checkpointing is (recompute == "full" and zero < 2)
    with pytest.raises(ValueError, match="activation_checkpoint_"):
        HfArgumentParser(TrainingArguments).parse_dict(settings | {"activation_checkpoint_": True})


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_fp8_reaches_every_rank_and_the_trainer_leaves_it_alone(zero, tmp_path):
    pytest.importorskip("transformers")
    from transformers import HfArgumentParser, TrainingArguments

    bundle = written(tmp_path, plan(MODELS["dense"], dp=8, zero=zero, precision="fp8"))
    _, env = environment(bundle)
    assert env["ACCELERATE_MIXED_PRECISION"] == "fp8"
    assert env["ACCELERATE_FP8_BACKEND"] == "AO"
    if zero:  # Accelerator refuses to start otherwise
        assert env["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    told = json.loads((bundle / "trainer_args.json").read_text("utf-8"))
    told |= {"use_cpu": True, "output_dir": str(tmp_path)}
    with mock.patch.dict(os.environ, env):
        (args,) = HfArgumentParser(TrainingArguments).parse_dict(told)
    assert args.mixed_precision == "fp8"


@pytest.fixture
def one_rank() -> Iterator[Any]:
    """Return a device mesh of this process alone, by gloo."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("dp_shard",))
    dist.destroy_process_group()


@pytest.mark.parametrize("loads_for_all", [False, True])
def test_weights_made_from_a_configuration_reach_fsdp2_buffers_or_not(
    loads_for_all, tmp_path, one_rank
):
    """As `prepare` does it; loading by rank 0 for all knows no buffers: the bundle has it off."""
    _, env = environment(written(tmp_path, plan(MODELS["dense"], dp=8, zero=3)))
    assert env["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    env |= {"FSDP_CPU_RAM_EFFICIENT_LOADING": str(loads_for_all).lower()}
    import torch
    from accelerate.utils import FullyShardedDataParallelPlugin, fsdp_utils
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    made = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    made.model.layers[0].mlp.register_buffer("e_score_correction_bias", torch.ones(4))
    own = {name: value.clone() for name, value in made.state_dict().items()}
    with mock.patch.dict(os.environ, env), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plugin = FullyShardedDataParallelPlugin()
    accelerator = mock.Mock(torch_device_mesh=one_rank, is_main_process=True, mixed_precision="no")
    accelerator.parallelism_config.fsdp_dim_names = ["dp_shard"]
    accelerator.state.fsdp_plugin = plugin
    if loads_for_all:
        with pytest.raises(AttributeError, match="device_mesh"):
            fsdp_utils.fsdp2_prepare_model(accelerator, made)
        return
    sharded = fsdp_utils.fsdp2_prepare_model(accelerator, made).state_dict()
    assert sharded.keys() == own.keys()
    for name, value in sharded.items():
        assert torch.equal(getattr(value, "_local_tensor", value), own[name]), name


def test_planted_mistakes_are_caught(tmp_path):
    answer = plan(MODELS["dense"], dp=8, zero=2)
    file = written(tmp_path, answer) / "accelerate.yaml"
    good = file.read_text("utf-8")
    file.write_text(good + 'fsdp_versoin: "2"\n', "utf-8")
    with pytest.raises(ValueError, match="unknown keys"):
        environment(file.parent)
    for wrong, right in (  # accelerate takes both without a word
        ("fsdp_reshard_after_froward", "fsdp_reshard_after_forward"),
        ("parallelism_config_dp_size", "parallelism_config_dp_shard_size"),
    ):
        assert right in good
        file.write_text(good.replace(right, wrong), "utf-8")
        assert disagreements(answer.best.layout, environment(file.parent)[1])
    file.write_text(good.replace('"bf16"', '"bf61"'), "utf-8")
    with pytest.raises(ValueError, match="bf61"):
        environment(file.parent)


def test_the_bundle_starts_and_learns(tmp_path, warm):
    """`run.sh` on two CPU processes, plain data parallelism with recomputed layers."""
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    answer = plan(model(layers=4), dp=2, zero=0, recompute="full", placeholders=True)
    env = warm.env("accelerate") | {"MASTER_PORT": str(free_port())}
    run = [str(written(tmp_path, answer) / "run.sh"), "--steps", "4"]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    losses = [float(x) for x in re.findall(r"^step \d+ loss (\S+)$", done.stdout, re.MULTILINE)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]

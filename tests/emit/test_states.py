"""The optimizer, its formats and offload reach the frameworks' own readers, or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bash_bundle
import deepspeed_harness
import megatron_harness
import pytest
import titan_harness
from plan_grid import MODELS, plan

from planner.emit import EMITTER_NAMES, emitter_named
from planner.emit.base import write_bundle
from planner.emit.states import FORMATS
from planner.layouts.rules import Context, broken_rules
from planner.layouts.table import OFFLOAD, Layouts
from planner.plan import Plan
from planner.specs.stack import AMOUNTS
from planner.specs.workload import Optimizer

DENSE = MODELS["dense"]


def written(folder: Path, target: str, answer: Plan) -> Path:
    emitter = emitter_named(target)
    assert emitter.unsupported(answer) == []
    write_bundle(folder / "bundle", emitter.emit(answer), force=False)
    return folder / "bundle"


def megatron(folder: Path, answer: Plan) -> Any:
    """Return what Megatron's parser makes of the bundle that bash started."""
    megatron_harness.load()
    (folder / "Megatron-LM").mkdir()
    (folder / "Megatron-LM" / "pretrain_gpt.py").touch()
    emitter = emitter_named("megatron")
    assert emitter.unsupported(answer) == []
    where = {"MEGATRON_PATH": str(folder / "Megatron-LM"), "NODE_RANK": "0"}
    argv, env = bash_bundle.started(
        folder, emitter.emit(answer), "torchrun", SKIP_PREFLIGHT="1", **where
    )
    script = argv.index(str(folder / "Megatron-LM" / "pretrain_gpt.py"))
    queue = {k: v for k, v in env.items() if k == "CUDA_DEVICE_MAX_CONNECTIONS"}
    args, _ = megatron_harness.parse(argv[script + 1 :], answer.best.layout.gpus, queue)
    return args


@pytest.mark.frameworks
@pytest.mark.parametrize(("optimizer", "theirs"), [("adamw", "adam"), ("sgd", "sgd")])
def test_megatron_reads_the_optimizer(optimizer, theirs, tmp_path):
    args = megatron(tmp_path, plan(DENSE, dp=8, zero=1, optimizer=optimizer))
    assert (args.optimizer, args.use_distributed_optimizer) == (theirs, True)


@pytest.mark.frameworks
@pytest.mark.parametrize("zero", [0, 1])
def test_megatron_deals_muons_matrices_out_over_replicas_under_zero_1(zero, tmp_path):
    args = megatron(tmp_path, plan(DENSE, dp=8, zero=zero, optimizer="muon"))
    assert args.optimizer == "muon"
    assert args.use_layer_wise_distributed_optimizer == bool(zero)


@pytest.mark.frameworks
def test_megatron_reads_offload(tmp_path):
    args = megatron(tmp_path, plan(DENSE, dp=8, zero=1, offload="optimizer"))
    assert (args.optimizer_cpu_offload, args.optimizer_offload_fraction) == (True, 1.0)
    assert args.use_precision_aware_optimizer


@pytest.mark.frameworks
def test_megatron_and_deepspeed_read_which_part_of_the_optimizer_leaves_the_gpus(tmp_path):
    folders = [tmp_path / name for name in ("megatron", "deepspeed")]
    for folder in folders:
        folder.mkdir()
    stack = "+offload-fraction=0.25"
    args = megatron(
        folders[0], plan(DENSE, dp=8, zero=1, offload="optimizer", stack="megatron" + stack)
    )
    assert (args.optimizer_cpu_offload, args.optimizer_offload_fraction) == (True, 0.25)
    answer = plan(DENSE, dp=8, zero=3, offload="optimizer", stack="deepspeed" + stack)
    path = written(folders[1], "deepspeed", answer) / "ds_config.json"
    config = deepspeed_harness.read(path, world=8, dp=8).zero_config
    assert config.offload_optimizer.ratio == 0.25
    # a group of parameters is on the GPU or on the host as a whole
    assert config.sub_group_size <= 5e7


@pytest.mark.frameworks
def test_megatron_keeps_parameters_in_fp8_where_it_is_asked_to(tmp_path):
    for name, flag in (("plain", ""), ("kept", "+fp8-params")):
        (tmp_path / name).mkdir()
        answer = plan(DENSE, dp=8, zero=1, precision="fp8", stack=f"megatron{flag}")
        args = megatron(tmp_path / name, answer)
        assert (args.fp8, args.fp8_param_gather) == ("hybrid", bool(flag))
        bridge = written(tmp_path / name, "megatron-bridge", answer) / "plan.overrides"
        line = f"mixed_precision.fp8_param_gather={str(bool(flag)).lower()}"
        assert line in bridge.read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    ("more", "stack", "sound"),
    [
        ({"precision": "fp8", "zero": 1}, "fp8-params", True),
        ({"precision": "fp8", "zero": 3}, "fp8-params", True),
        ({"precision": "bf16", "zero": 1}, "fp8-params", False),
        ({"precision": "fp8", "zero": 0}, "fp8-params", False),
        ({"precision": "fp8", "zero": 1, "offload": "optimizer"}, "fp8-params", False),
        ({"precision": "fp8", "zero": 1}, "fp8-params+precision-aware", False),
    ],
    ids=str,
)
def test_parameters_in_fp8_are_refused_alike_by_rules_and_emitter(more, stack, sound):
    answer = plan(DENSE, dp=8, stack=f"megatron+{stack}", **more)
    request = answer.request
    context = Context(request.model, request.cluster, request.workload)
    rows = Layouts.of([answer.best.layout.model_dump()])
    broken = [r for r in broken_rules(rows, 0, context) if "fp8-param-gather" in r]
    told = [r for r in emitter_named("megatron").unsupported(answer) if "fp8-params" in r]
    assert bool(broken) == bool(told) == (not sound)


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("flags", "form", "recipe", "reused"),
    [
        ("", "hybrid", "tensorwise", False),
        ("+fp8-current", "hybrid", "tensorwise", False),
        ("+mxfp8", "e4m3", "mxfp8", False),
        ("+mxfp8+fp8-params", "e4m3", "mxfp8", True),
        ("+fp8-rowwise", "e4m3", "blockwise", False),
    ],
)
def test_megatron_scales_as_the_stack_says(flags, form, recipe, reused, tmp_path):
    answer = plan(DENSE, dp=8, zero=1, precision="fp8", stack=f"megatron{flags}")
    args = megatron(tmp_path, answer)
    assert (args.fp8, args.fp8_recipe) == (form, recipe)
    assert args.reuse_grad_buf_for_mxfp8_param_ag == reused


@pytest.mark.parametrize("target", ["megatron", "megatron-bridge"])
def test_four_bits_are_not_written_as_eight(target):
    answer = plan(DENSE, dp=8, zero=1, precision="fp8", stack="megatron+nvfp4")
    assert any("NVFP4" in line for line in emitter_named(target).unsupported(answer))


@pytest.mark.frameworks
def test_megatron_reads_which_layers_send_their_activations_to_the_host(tmp_path):
    args = megatron(tmp_path, plan(DENSE, dp=8, zero=1, stack="megatron+offload-layers=3"))
    assert (args.cpu_offloading, args.cpu_offloading_num_layers) == (True, 3)
    assert not args.use_precision_aware_optimizer


@pytest.mark.frameworks
@pytest.mark.parametrize(
    "degrees",
    [
        {},
        {"pp": 2},
        {"recompute": "selective"},
        {"recompute": "full"},
        {"dp": 8, "zero": 3},
        {"tp": 2, "cp": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("layers", [1, DENSE.layers - 1, DENSE.layers])
def test_activations_go_to_the_host_where_megatron_takes_them(degrees, layers, tmp_path):
    """Its own configuration refuses what the rules refuse, and nothing that they allow."""
    answer = plan(DENSE, stack=f"megatron+offload-layers={layers}", **degrees)
    request = answer.request
    context = Context(request.model, request.cluster, request.workload)
    rows = Layouts.of([answer.best.layout.model_dump()])
    allowed = not any("activations" in r for r in broken_rules(rows, 0, context))
    if allowed:
        assert megatron(tmp_path, answer).cpu_offloading_num_layers == layers
    else:
        with pytest.raises(megatron_harness.RefusedError, match="ffloading"):
            megatron(tmp_path, answer)


def test_deepspeed_offloads_a_part_under_zero_3_only():
    answers = [
        plan(DENSE, dp=8, zero=zero, offload="optimizer", stack="any+offload-fraction=0.5")
        for zero in (1, 2, 3)
    ]
    told = [emitter_named("deepspeed").unsupported(answer) for answer in answers]
    assert ["zero=3" in " ".join(lines) for lines in told] == [True, True, False]


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("flags", "moments", "gradients"),
    [
        ("precision-aware", "float32", "float32"),
        ("bf16-moments", "bfloat16", "float32"),
        ("fp8-moments", "uint8", "float32"),
        ("bf16-moments+bf16-gradients", "bfloat16", "bfloat16"),
    ],
)
def test_megatron_reads_the_formats(flags, moments, gradients, tmp_path):
    args = megatron(tmp_path, plan(DENSE, dp=8, zero=1, stack=f"megatron+{flags}"))
    assert args.use_precision_aware_optimizer
    found = (args.exp_avg_dtype, args.exp_avg_sq_dtype, args.main_grads_dtype)
    assert [str(d) for d in found] == [f"torch.{d}" for d in (moments, moments, gradients)]


@pytest.mark.frameworks
@pytest.mark.parametrize(("optimizer", "theirs"), [("sgd", "SGD"), ("muon", "muon")])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_deepspeed_reads_the_optimizer(optimizer, theirs, zero, tmp_path):
    bundle = written(tmp_path, "deepspeed", plan(DENSE, dp=8, zero=zero, optimizer=optimizer))
    config = deepspeed_harness.read(bundle / "ds_config.json", world=8, dp=8)
    assert config.optimizer_name == theirs
    assert config.zero_allow_untested_optimizer == (optimizer == "sgd")
    assert config.zero_config.reduce_scatter == (optimizer == "sgd")


@pytest.mark.frameworks
def test_the_sgd_that_deepspeed_finds_by_name_is_torchs():
    torch = pytest.importorskip("torch")
    assert hasattr(torch.optim, "SGD")


@pytest.mark.frameworks
@pytest.mark.parametrize("offload", OFFLOAD)
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_deepspeed_reads_offload(zero, offload, tmp_path):
    if offload not in ("none", "optimizer") and zero < 3:
        pytest.skip("parameters, and to drives, are offloaded under zero 3 only")
    bundle = written(tmp_path, "deepspeed", plan(DENSE, dp=8, zero=zero, offload=offload))
    config = deepspeed_harness.read(bundle / "ds_config.json", world=8, dp=8)
    devices = [
        getattr(part, "device", "none") or "none"
        for part in (config.zero_config.offload_optimizer, config.zero_config.offload_param)
    ]
    assert [str(getattr(d, "value", d)) for d in devices] == {
        "none": ["none", "none"],
        "optimizer": ["cpu", "none"],
        "optimizer+params": ["cpu", "cpu"],
        "optimizer-nvme": ["nvme", "none"],
        "optimizer+params-nvme": ["nvme", "nvme"],
    }[offload]
    # torch's Adam would step on the host, several times slower
    assert ("torch_adam" in config.optimizer_params) == (offload == "none")


@pytest.mark.frameworks
def test_torchtitan_reads_offload_and_16_bit_states(tmp_path):
    answer = plan(DENSE, dp=8, zero=3, offload="optimizer+params", stack="torchtitan+pure-bf16")
    bundle = written(tmp_path, "torchtitan", answer)
    made = titan_harness.read(bundle, titan_harness.arguments(bundle))
    assert (made.training.enable_cpu_offload, made.training.dtype) == (True, "bfloat16")
    plain = tmp_path / "plain"
    plain.mkdir()
    bundle = written(plain, "torchtitan", plan(DENSE, dp=8, zero=3))
    made = titan_harness.read(bundle, titan_harness.arguments(bundle))
    assert (made.training.enable_cpu_offload, made.training.dtype) == (False, "float32")


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("optimizer", "theirs"),
    [("adamw", "adamw_torch_fused"), ("adamw-8bit", "adamw_torch_8bit"), ("sgd", "sgd")],
)
def test_the_trainer_knows_the_optimizer(optimizer, theirs, tmp_path):
    args = pytest.importorskip("transformers.training_args")
    bundle = written(tmp_path, "accelerate", plan(DENSE, dp=8, zero=3, optimizer=optimizer))
    told = json.loads((bundle / "trainer_args.json").read_text("utf-8"))
    assert args.OptimizerNames(told["optim"]) == theirs
    assert told.get("optim_args") == ("momentum=0.9" if optimizer == "sgd" else None)


def test_accelerate_offloads_parameters_with_fsdp_and_the_optimizer_with_deepspeed(tmp_path):
    bundle = written(tmp_path, "accelerate", plan(DENSE, dp=8, zero=3, offload="optimizer+params"))
    assert "fsdp_offload_params: true" in (bundle / "accelerate.yaml").read_text("utf-8")
    other = tmp_path / "zero-1"
    other.mkdir()
    bundle = written(other, "accelerate", plan(DENSE, dp=8, zero=1, offload="optimizer"))
    config = json.loads((bundle / "ds_config.json").read_text("utf-8"))
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


EXPRESSED = {
    "megatron": {"adamw", "sgd", "muon"},
    "megatron-bridge": {"adamw", "sgd"},
    "deepspeed": {"adamw", "sgd", "muon"},
    "accelerate": {"adamw", "sgd", "adamw-8bit"},
}
"""Targets that write more than AdamW."""


@pytest.mark.parametrize("target", sorted(set(EMITTER_NAMES) - {"slurm", "k8s"}))
@pytest.mark.parametrize("optimizer", [o.value for o in Optimizer])
def test_no_target_writes_adam_for_another_optimizer(target, optimizer):
    told = [
        emitter_named(target).unsupported(plan(DENSE, dp=8, zero=zero, optimizer=optimizer))
        for zero in range(4)
    ]
    refused = [any(f"={optimizer}" in line or "8-bit" in line for line in t) for t in told]
    if optimizer not in EXPRESSED.get(target, {"adamw"}):
        assert all(refused)
    else:
        assert not all(refused)


WRITERS = {"pure-bf16": {"torchtitan"}}
"""Targets that write a format, where it is not Megatron's two."""


@pytest.mark.parametrize("flag", [f for f in FORMATS if f not in AMOUNTS])
def test_a_format_is_written_or_refused(flag):
    theirs = WRITERS.get(flag, {"megatron", "megatron-bridge"})
    precision = "fp8" if flag == "fp8-params" else "bf16"
    answer = plan(DENSE, dp=8, zero=2, precision=precision, stack=f"any+{flag}")
    for target in sorted(set(EMITTER_NAMES) - {"slurm", "k8s"}):
        refused = any(flag in line for line in emitter_named(target).unsupported(answer))
        assert refused == (target not in theirs), target


@pytest.mark.parametrize("target", ["megatron", "deepspeed", "torchtitan"])
@pytest.mark.parametrize("offload", OFFLOAD)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_what_the_rules_allow_the_emitter_of_the_stack_can_write(target, offload, optimizer):
    """SGD and Muon aside, which FSDP2 can step with and torchtitan (or its bundle) cannot."""
    for zero in (0, 2, 3) if target == "torchtitan" else range(4):
        answer = plan(DENSE, dp=8, zero=zero, offload=offload, optimizer=optimizer, stack=target)
        request = answer.request
        context = Context(request.model, request.cluster, request.workload)
        rows = Layouts.of([answer.best.layout.model_dump()])
        words = ("offload", "optim", "muon", "Muon")
        broken = [r for r in broken_rules(rows, 0, context) if any(w in r for w in words)]
        broken = [r for r in broken if "nvme_gb_per_s" not in r]  # the cluster's, not a framework's
        told = [
            line
            for line in emitter_named(target).unsupported(answer)
            if any(w in line for w in words)
        ]
        if target == "torchtitan" and optimizer != "adamw":
            assert told
        else:
            assert bool(broken) == bool(told), (zero, broken, told)


@pytest.mark.parametrize(
    ("target", "file", "offload", "zero"),
    [
        ("megatron", "env.sh", "optimizer", 1),
        ("torchtitan", "env.sh", "optimizer+params", 3),
        ("accelerate", "run.sh", "optimizer+params", 3),
        ("deepspeed", "env.sh", "optimizer", 2),
        ("nanotron", "run.sh", "none", 1),
        ("torchrun", "env.sh", "none", 3),
    ],
)
def test_a_rank_whose_host_steps_the_optimizer_has_more_than_one_thread(
    target, file, offload, zero, tmp_path
):
    told = []
    for number, away in enumerate(("none", offload)):
        (folder := tmp_path / str(number)).mkdir()
        bundle = written(folder, target, plan(DENSE, dp=8, zero=zero, offload=away))
        told.append((bundle / file).read_text("utf-8"))
    assert ["{OMP_NUM_THREADS:-1}" in text for text in told] == [True, offload == "none"]
    assert ("nproc) + 7) / 8" in told[1]) == (offload != "none")

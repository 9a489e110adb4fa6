"""Megatron-Bridge's own recipe, override parser and validation read the overrides."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bash_bundle
import pytest
from many_plans import many
from plan_grid import MODELS, plan

from planner.emit.base import write_bundle
from planner.emit.megatron_bridge import EMITTER
from planner.emit.states import recipe_of
from planner.plan import Plan
from planner.specs.stack import stack_named

HERE = Path(__file__).parent
DENSE = MODELS["dense"]


@functools.cache
def variables(env: str) -> dict[str, str]:
    """Return what a text of env.sh sets of what Bridge looks at."""
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    script = f'{env}\necho "${{CUDA_DEVICE_MAX_CONNECTIONS-}}"'
    done = subprocess.run([bash, "-euc", script], capture_output=True, text=True, check=True)
    queues = done.stdout.strip()
    return {"CUDA_DEVICE_MAX_CONNECTIONS": queues} if queues else {}


def written(folder: Path, plans: Sequence[Plan]) -> list[Path]:
    for number, answer in enumerate(plans):
        assert EMITTER.unsupported(answer) == []
        write_bundle(folder / str(number), EMITTER.emit(answer), force=False)
    return [folder / str(number) for number in range(len(plans))]


def read(folders: Sequence[Path], plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Return what Bridge makes of each bundle, all in one process of its own."""
    asked = [
        {
            "folder": str(f),
            "world": a.best.layout.gpus,
            "env": variables((f / "env.sh").read_text("utf-8")),
        }
        for f, a in zip(folders, plans, strict=True)
    ]
    command = [sys.executable, str(HERE / "bridge_reader.py")]
    done = subprocess.run(
        command,
        input="".join(f"{json.dumps(line)}\n" for line in asked),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if out and "missing" in out[0]:
        pytest.skip(f"Megatron-Bridge cannot be imported: {out[0]['missing']}")
    assert len(out) == len(plans), done.stderr[-3000:]
    return out


def wanted(answer: Plan) -> dict[str, Any]:
    """Return the plan in the words of Bridge's configuration."""
    lay, work, spec = answer.best.layout, answer.request.workload, answer.request.model
    stack = stack_named(work.stack)
    sharded = {2: "optim_grads", 3: "optim_grads_params"}
    out = {
        "model.num_layers": spec.layers,
        "model.hidden_size": spec.hidden,
        "model.ffn_hidden_size": spec.ffn,
        "model.num_attention_heads": spec.heads,
        "model.vocab_size": spec.vocab,
        "model.gated_linear_unit": spec.gated_mlp,
        "model.add_qkv_bias": spec.qkv_bias and not spec.attention_output_bias,
        "model.add_bias_linear": spec.attention_output_bias,
        "model.share_embeddings_and_output_weights": spec.tied_embeddings,
        "model.num_moe_experts": spec.experts.count if spec.experts else None,
        "model.mtp_num_layers": spec.mtp_layers or None,
        "model.tensor_model_parallel_size": lay.tp,
        "model.sequence_parallel": lay.sp and lay.tp > 1,
        "model.pipeline_model_parallel_size": lay.pp,
        "model.context_parallel_size": lay.cp,
        "model.expert_model_parallel_size": lay.ep,
        "data_parallel_size": lay.dp,
        "ddp.use_distributed_optimizer": lay.zero >= 1,
        "ddp.use_megatron_fsdp": lay.zero >= 2,
        "ddp.num_distributed_optimizer_instances": lay.dp_replicate,
        "ddp.overlap_grad_reduce": True,
        "ddp.overlap_param_gather": lay.zero >= 1,
        "ddp.grad_reduce_in_fp32": work.precision != "fp16",
        "dist.use_megatron_fsdp": lay.zero >= 2,
        "optimizer.optimizer": {"adamw": "adam", "sgd": "sgd"}[work.optimizer],
        "optimizer.optimizer_cpu_offload": lay.offload == "optimizer",
        "train.micro_batch_size": lay.micro_batch,
        "train.global_batch_size": work.global_batch,
        "model.seq_length": work.seq_tokens,
        "dataset.seq_length": work.seq_tokens,
        "model.recompute_granularity": None if lay.recompute == "none" else lay.recompute,
        "model.bf16": work.precision != "fp16",
        "model.fp16": work.precision == "fp16",
        "model.fp8": _format(answer),
        "model.fp8_param": work.precision == "fp8" and stack.fp8_params,
        "ddp.fp8_param_gather": work.precision == "fp8" and stack.fp8_params,
        "model.cpu_offloading": stack.offload_layers > 0,
        "model.cpu_offloading_num_layers": stack.offload_layers,
        "model.first_last_layers_bf16": False,
        "stage_layers": answer.best.stage_layers,
    }
    if lay.zero >= 2:
        out["ddp.data_parallel_sharding_strategy"] = sharded[lay.zero]
    if work.precision == "fp8":
        out["model.fp8_recipe"] = recipe_of(work)
    if lay.offload == "optimizer":
        out["optimizer.optimizer_offload_fraction"] = stack.offload_fraction
    if spec.experts:
        out["model.expert_tensor_parallel_size"] = lay.etp
        out["model.moe_router_topk"] = spec.experts.top_k
    if spec.mla:
        out["model.kv_lora_rank"] = spec.mla.kv_lora_rank
        out["model.v_head_dim"] = spec.mla.v_head_dim
    return out


def _format(answer: Plan) -> str | None:
    """Return FP8's format: with one scale per tensor gradients have a wider range."""
    if answer.request.workload.precision != "fp8":
        return None
    return "hybrid" if recipe_of(answer.request.workload) == "tensorwise" else "e4m3"


STATES = [
    plan(DENSE, dp=8, zero=1, precision="fp8", stack=f"megatron{flags}")
    for flags in ("+fp8-params", "+mxfp8", "+mxfp8+fp8-params", "+fp8-rowwise")
] + [
    plan(DENSE, dp=8, zero=3, precision="fp8", stack="megatron+fp8-params"),
    plan(DENSE, dp=8, zero=1, offload="optimizer", stack="megatron+offload-fraction=0.5"),
    plan(DENSE, dp=8, zero=1, stack="megatron+offload-layers=3"),
]
"""Where and in what format states are."""
PLANTED = [
    ("plan.overrides", "model.tensor_model_parallel_size=4", "model.tensor_model_paralel_size=4",
     "tensor_model_paralel_size"),
    ("plan.overrides", "model.context_parallel_size=2", "model.context_parallel_size=3", "world"),
    ("plan.overrides", "train.global_batch_size=", "train.global_batch_size=3", "global_batch"),
    ("plan.overrides", "model.seq_length=4096", "model.seq_length=4098", "sequence length"),
    ("model.overrides", "model.num_attention_heads=32", "model.num_attention_heads=30", "multiple"),
    ("plan.overrides", "mixed_precision=bf16_mixed", "mixed_precision=bf61_mixed", "bf61"),
    ("plan.overrides", "dataset.seq_length=4096", "dataset.seq_length=[1", "overrides"),
]  # fmt: skip


@pytest.mark.frameworks
def test_bridge_reads_200_plans_back_and_catches_planted_mistakes(tmp_path):
    """In one test, because a process of its own takes longer to start than to read them all."""
    plans = [*many(EMITTER), *STATES, *[plan(DENSE, tp=4, cp=2, dp=4)] * (len(PLANTED) + 1)]
    folders = written(tmp_path, plans)
    for folder, (name, right, wrong, _) in zip(folders[-len(PLANTED) :], PLANTED, strict=True):
        text = (folder / name).read_text("utf-8")
        assert right in text
        (folder / name).write_text(text.replace(right, wrong), "utf-8")
    answers = read(folders, plans)
    sound = len(plans) - len(PLANTED)
    assert sound > 200
    told = [disagreement(*pair) for pair in zip(plans[:sound], answers[:sound], strict=True)]
    assert list(filter(None, told)) == []
    for found, (_, _, wrong, says) in zip(answers[sound:], PLANTED, strict=True):
        assert says.lower() in found.get("refused", "").lower(), (wrong, found.get("refused"))


def disagreement(answer: Plan, found: dict[str, Any]) -> str:
    """Return where Bridge's reading differs from the plan; nothing where it does not."""
    differ = {k: (v, found.get(k)) for k, v in wanted(answer).items() if found.get(k) != v}
    if not differ and "refused" not in found:
        return ""
    said = found.get("refused", differ)
    return f"{answer.request.model.name} {answer.best.layout.short()}: {said}"


def test_every_flag_of_a_plan_has_its_override():
    """A flag that no rule renames would raise KeyError."""
    for answer in many(EMITTER, 50):
        assert EMITTER.emit(answer)


def test_a_recipe_of_ones_own_keeps_its_shapes():
    files = {a.path: a.text for a in EMITTER.emit(plan(DENSE, tp=2, dp=4))}
    shapes = [line.partition("=")[0] for line in files["model.overrides"].splitlines()]
    plans = [line.partition("=")[0] for line in files["plan.overrides"].splitlines()]
    assert "model.num_layers" in shapes
    assert "model.tensor_model_parallel_size" in plans
    assert not {s for s in shapes if s.startswith("model.")} & set(plans)


def test_run_starts_the_script_on_its_node(tmp_path):
    answer = plan(DENSE, dp=16, hosts=("b2", "a10"))
    argv, env = bash_bundle.started(
        tmp_path,
        EMITTER.emit(answer),
        "torchrun",
        words=("train.train_iters=3",),
        MESHWRIGHT_HOSTNAME="a10",
        RECIPE="my.recipes:mine",
    )
    script = str(tmp_path / "a bundle" / "train_bridge.py")
    rendezvous = ["--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1"]
    assert argv[:6] == rendezvous
    assert argv[6:] == [
        *("--master-addr", "b2", "--master-port", "29500", script, "train.train_iters=3")
    ]
    assert env["RECIPE"] == "my.recipes:mine"


REFUSED = [
    (plan(DENSE, dp=8, optimizer="muon"), "optimizer=muon"),
    (plan(MODELS["many-heads"], dp=8, seq=4096), "8192"),
    (plan(DENSE, pp=2, dp=4, schedule="gpipe"), "schedule=gpipe"),
    (plan(DENSE, pp=2, dp=4, zero=3), "pp > 1"),
]


@pytest.mark.parametrize(("answer", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_what_bridge_cannot_run_is_said(answer, words):
    assert [s for s in EMITTER.unsupported(answer) if words in s], EMITTER.unsupported(answer)

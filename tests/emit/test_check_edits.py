"""`emit --check` finds an edit of any value that we write, but for those listed here by hand."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase

import hand_edits
import pytest
from plan_grid import MODELS, plan

from planner.emit import EMITTER_NAMES, emitter_named
from planner.emit.base import write_bundle
from planner.emit.check import check_bundle, text_problems
from planner.emit.shared import fingerprint
from planner.plan import Plan

DENSE, MOE = MODELS["dense"], MODELS["moe"]
TWO = ("b2", "a10")
PLANS: dict[str, list[Plan]] = {
    "torchrun": [plan(DENSE, dp=16, zero=3, hosts=TWO)],
    "deepspeed": [
        plan(DENSE, dp=16, zero=3, dp_replicate=2, offload="optimizer+params", hosts=TWO),
        plan(MOE, dp=8, pp=2, ep=8, zero=1, precision="fp16", hosts=TWO),
    ],
    "megatron": [
        plan(MOE, dp=8, tp=2, ep=8, zero=1, recompute="selective", hosts=TWO),
        plan(DENSE, dp=4, tp=2, pp=2, vpp=2, cp=2, num_microbatches=4, precision="fp8"),
        plan(DENSE, dp=16, zero=3, hosts=TWO),
    ],
    "megatron-bridge": [plan(MOE, dp=8, tp=2, ep=8, zero=1, recompute="full", hosts=TWO)],
    "accelerate": [
        plan(DENSE, dp=8, cp=2, zero=3, recompute="full", hosts=TWO),
        plan(DENSE, dp=16, zero=2, precision="fp8", hosts=TWO),
        plan(DENSE, dp=16, zero=1, hosts=TWO),
    ],
    "torchtitan": [plan(DENSE, dp=4, tp=2, pp=2, zero=2, recompute="full", hosts=TWO)],
    "nanotron": [plan(DENSE, dp=4, tp=2, pp=2, zero=1, hosts=TWO)],
    "dataparallel": [plan(DENSE, dp=8, zero=0, dp_sync="parameter-server")],
    "slurm": [
        plan(DENSE, dp=16, zero=3, hosts=TWO),
        plan(DENSE, dp=16, zero=3, placeholders=True),
    ],
    "k8s": [
        plan(DENSE, dp=16, zero=3, hosts=TWO),
        plan(DENSE, dp=16, zero=3, placeholders=True),
    ],
}
SHELL = (
    *("MASTER_PORT", "master_port", "TRAIN_SCRIPT", "TRAIN", "PYTHONPATH", "MEGATRON_PATH"),
    *("NANOTRON_PATH", "RECIPE", "DATA", "DATA_ARGS", "DATASET", "DATASET_PATH", "HF_ASSETS_PATH"),
    *("#SBATCH --job-name", "#SBATCH --output", "#SBATCH --open-mode", "#SBATCH --requeue"),
    "#SBATCH --mem",
)
USERS: dict[str, tuple[str, ...]] = {
    "rank_map.json": ("planned",),  # told of plan.json, below
    "run.sh": SHELL,
    "node.sh": SHELL,
    "job.sbatch": SHELL,
    "ds_config.json": (
        *("optimizer.params.*", "gradient_clipping", "steps_per_print", "wall_clock_breakdown"),
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    ),
    "megatron.args": (
        *("--lr", "--min-lr", "--clip-grad", "--train-iters", "--eval-iters", "--log-interval"),
        *("--log-throughput", "--moe-aux-loss-coeff", "--moe-router-load-balancing-type"),
    ),
    "plan.overrides": (
        *("optimizer.lr", "optimizer.min_lr", "optimizer.clip_grad", "train.train_iters"),
        *("validation.eval_iters", "logger.*"),
    ),
    "accelerate.yaml": (
        *("compute_environment", "debug", "machine_rank", "main_training_function"),
        *("fsdp_config.fsdp_state_dict_type", "fsdp_config.fsdp_cpu_ram_efficient_loading"),
    ),
    "trainer_args.json": (
        *("output_dir", "max_steps", "learning_rate", "adam_*", "weight_decay", "seed"),
        *("max_grad_norm", "lr_scheduler_type", "logging_steps", "save_strategy", "report_to"),
        *("disable_tqdm", "dataloader_drop_last", "remove_unused_columns"),
    ),
    "torchtitan.args": ("--training.steps", "--metrics.log_freq"),
    "nanotron.yaml": (
        *("general.*", "tokens.train_steps", "tokens.val_check_interval", "data_stages.*"),
        *("model.init_method.std", "optimizer.weight_decay", "optimizer.clip_grad"),
        *("optimizer.optimizer_factory.adam_*", "optimizer.learning_rate_scheduler.*"),
        *("checkpoints.*", "logging.*", "tokens.limit_*"),
    ),
    "jobset.yaml": (
        *("metadata.*", "spec.network.*", "spec.failurePolicy.*", "*.hostNetwork", "*.dnsPolicy"),
        *("*.restartPolicy", "*.backoffLimit", "*.image", "*.volumes.*", "*.volumeMounts.*"),
        *("*.command.*", "*.annotations.*", "*s.0.name", "*.env.2.*", "*.jobset-name"),
        "*.securityContext.*",
    ),
    "trainjob.yaml": (
        *("metadata.*", "spec.runtimeRef.*", "*.image", "*.volumes.*", "*.volumeMounts.*"),
        *("*.command.*", "*.annotations.*", "*s.0.name", "*.manager", "*.securityContext.*"),
    ),
}
ADDRESS = ("master_addr", "node_rank")  # where the plan names no hosts
CASES = [(t, i) for t in EMITTER_NAMES for i in range(len(PLANS[t]))]


def _users(name: str, label: str) -> bool:
    return any(fnmatchcase(label, pattern) for pattern in USERS.get(name, ()))


@pytest.mark.parametrize(("target", "number"), CASES, ids=[f"{t}-{i}" for t, i in CASES])
def test_an_edit_of_any_planned_value_is_told_and_none_of_the_users(target, number):
    answer = PLANS[target][number]
    assert emitter_named(target).unsupported(answer) == []
    named = answer.request.cluster.names_hosts
    tried = 0
    for path, text, _ in emitter_named(target).emit(answer):
        if path.endswith((".md", ".py")) or path == "plan.json":
            continue
        assert text_problems(path, text, text, answer) == []
        for label, edited in hand_edits.of(path, text):
            renamed = path == "hosts.txt" and len(edited.split()) == len(text.split())
            left = renamed or (path == "run.sh" and label in ADDRESS)
            users = _users(path, label) or (left and not named)
            told = bool(text_problems(path, text, edited, answer))
            assert told is not users, (path, label, edited)
            tried += 1
    assert tried > (9 if target == "dataparallel" else 50)


def test_an_edit_of_any_value_that_was_asked_or_found_changes_the_fingerprint(tmp_path):
    answer = PLANS["torchrun"][0]
    planned = json.loads(answer.to_json())
    held = {"request": planned["request"], "plans": [{"layout": planned["plans"][0]["layout"]}]}
    tried = 0
    for label, edited in hand_edits.of_data(held):
        changed = planned | {"request": edited["request"]}
        changed["plans"] = [planned["plans"][0] | edited["plans"][0]]
        try:
            other = Plan.model_validate(changed)
        except ValueError:  # no longer a plan at all
            continue
        if other != answer:
            assert fingerprint(other) != fingerprint(answer), label
            tried += 1
    assert tried > 50


def test_a_plan_that_was_edited_after_its_bundle_is_told(tmp_path):
    write_bundle(tmp_path / "out", emitter_named("torchrun").emit(PLANS["torchrun"][0]), force=True)
    file = tmp_path / "out" / "plan.json"
    file.write_text(file.read_text("utf-8").replace('"seq_tokens":4096', '"seq_tokens":2048'))
    (problem,) = check_bundle(tmp_path / "out").problems
    assert problem.startswith("plan.json: is not the plan that the other files were written from")

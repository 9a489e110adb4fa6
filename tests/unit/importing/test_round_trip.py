"""What is emitted and read back is the same layout: a grid of layouts, every framework."""

from __future__ import annotations

from itertools import product

import pytest
from plan_grid import MODELS, plan

from planner.emit import EMITTER_NAMES, bundle, emitter_named
from planner.importing import read_job
from planner.specs.parameters import count_parameters

AXES = {
    "tp": (1, 2, 8),
    "pp": (1, 4),
    "cp": (1, 2),
    "dp": (1, 4),
    "zero": (0, 1, 2, 3),
    "recompute": ("none", "selective", "full"),
    "micro_batch": (1, 2),
}
MORE = [
    {"vpp": 2, "pp": 4},
    {"schedule": "gpipe", "pp": 2},
    {"dp": 8, "dp_replicate": 2, "zero": 3},
    {"dp": 4, "zero": 1, "offload": "optimizer"},
    {"dp": 4, "zero": 3, "offload": "optimizer+params"},
    {"tp": 4, "sp": False, "dp": 2},
    {"cp": 4, "dp": 1, "zero": 1},
    {"dp": 4, "zero": 0, "dp_sync": "parameter-server"},
]
EXPERTS = [
    {"ep": 4, "dp": 8},
    {"ep": 2, "etp": 2, "tp": 2, "dp": 4},
    {"ep": 8, "pp": 2, "vpp": 2, "dp": 8, "zero": 1},
    {"tp": 2, "etp": 2, "dp": 4, "zero": 3},
]
FILES = {
    "megatron": ("megatron.args", "run.sh"),
    "megatron-bridge": ("model.overrides", "plan.overrides", "run.sh"),
    "torchtitan": ("torchtitan.args", "run.sh"),
    "deepspeed": ("ds_config.json",),
    "accelerate": ("accelerate.yaml", "trainer_args.json", "ds_config.json"),
    "nanotron": ("nanotron.yaml", "run.sh"),
}
"""The framework's own files: what is read where nobody has a plan.json."""
SILENT = {
    "megatron": set(),
    "megatron-bridge": set(),
    "torchtitan": {"vpp"},  # its chunks are the script's, which reads plan.json
    "deepspeed": {"recompute", "ep"},  # the model's code has them
    "accelerate": set(),
    "nanotron": set(),
}


def layouts() -> list[dict[str, object]]:
    grid = [dict(zip(AXES, values, strict=True)) for values in product(*AXES.values())]
    return [*grid, *MORE]


def read_back(made, target, folder, names=None):
    folder.mkdir(parents=True)
    for artifact in bundle(made, target):
        (folder / artifact.path).write_text(artifact.text)
    paths = [folder / n for n in names if (folder / n).exists()] if names else [folder]
    return read_job(paths)


def planned(made):
    fields = made.best.layout.model_dump(mode="json", exclude={"num_microbatches", "dp_sync"})
    return {n: str(int(v) if isinstance(v, bool) else v) for n, v in fields.items()}


def cases(target):
    for name in ("dense", "wide-heads", "moe"):
        spec = MODELS[name]
        more = EXPERTS if spec.experts else []
        for degrees in [*layouts()[:: 1 if name == "dense" else 7], *more]:
            lay = dict(degrees)
            if lay.get("dp", 1) * lay.get("cp", 1) == 1 and lay.get("zero", 1):
                continue  # nothing to shard over: not a legal layout
            made = plan(spec, **lay)
            if not emitter_named(target).unsupported(made):
                yield made


@pytest.mark.parametrize("target", FILES)
def test_the_framework_s_own_files_give_back_the_layout(target, tmp_path):
    count = 0
    for number, made in enumerate(cases(target)):
        job = read_back(made, target, tmp_path / str(number), FILES[target])
        wanted = {n: v for n, v in planned(made).items() if n in job.layout}
        for silent in SILENT[target]:
            wanted.pop(silent, None)
        assert set(planned(made)) - set(job.layout) <= {*SILENT[target], "etp"}
        if made.request.model.experts is None:
            wanted.pop("etp", None)
        said = {n: v for n, v in job.layout.items() if n in wanted}
        assert said == wanted, made.best.layout.short()
        assert job.gpus == made.best.layout.gpus
        assert job.global_batch == made.request.workload.global_batch
        if job.seq_tokens:
            assert job.seq_tokens == made.request.workload.seq_tokens
        count += 1
    assert count >= 20


@pytest.mark.parametrize("target", [*EMITTER_NAMES])
def test_a_bundle_s_folder_gives_back_the_whole_layout_and_the_model(target, tmp_path):
    made_for = list(cases(target))
    assert made_for
    for number, made in enumerate(made_for[:: max(1, len(made_for) // 12)]):
        job = read_back(made, target, tmp_path / str(number))
        wanted = planned(made)
        said = {n: v for n, v in job.layout.items() if n in wanted}
        if made.request.model.experts is None:
            said["etp"] = wanted["etp"]
        assert said == wanted, made.best.layout.short()
        assert job.model == made.request.model
        assert job.layout["dp_sync"] == made.best.layout.dp_sync
        assert job.cluster == made.request.cluster
        assert job.seq_tokens == made.request.workload.seq_tokens


EXPRESSED = [n for n in MODELS if not emitter_named("megatron").unsupported(plan(MODELS[n], dp=2))]


@pytest.mark.parametrize("name", EXPRESSED)
def test_megatron_s_arguments_give_back_the_model(name, tmp_path):
    spec = MODELS[name]
    made = plan(spec, dp=2)
    job = read_back(made, "megatron", tmp_path / "b", ("megatron.args", "run.sh"))
    ours = job.model.model_copy(update={"vocab": spec.vocab})  # the vocabulary is the tokenizer's
    assert count_parameters(ours) == count_parameters(spec)
    shown = ("moe_layers", "sliding_window_tokens", "full_attention_period", "attention_sinks")
    assert [getattr(ours, n) for n in shown] == [getattr(spec, n) for n in shown]


@pytest.mark.parametrize("target", FILES)
def test_precision_and_optimizer_come_back(target, tmp_path):
    read = []
    for pair in product(("bf16", "fp16", "fp8"), ("adamw", "sgd", "muon")):
        precision, optimizer = pair
        made = plan(MODELS["dense"], dp=4, zero=1, precision=precision, optimizer=optimizer)
        if target == "torchtitan":
            made = plan(MODELS["dense"], dp=4, zero=3, precision=precision, optimizer=optimizer)
        if emitter_named(target).unsupported(made):
            continue
        # torchtitan's script takes FP8 from plan.json
        names = None if target == "torchtitan" else FILES[target]
        job = read_back(made, target, tmp_path / "-".join(pair), names)
        assert (job.precision, job.optimizer) == pair
        read.append(pair)
    assert ("bf16", "adamw") in read


@pytest.mark.parametrize(
    ("target", "zero"), [("megatron", 1), ("megatron-bridge", 1), ("deepspeed", 3)]
)
@pytest.mark.parametrize("fraction", ["", "+offload-fraction=0.25"])
def test_the_offloaded_part_of_the_optimizer_comes_back(target, zero, fraction, tmp_path):
    stack = f"{target}{fraction}"
    made = plan(MODELS["dense"], dp=4, zero=zero, offload="optimizer", stack=stack)
    job = read_back(made, target, tmp_path / "b", FILES[target])
    assert job.layout["offload"] == "optimizer"
    assert [f for f in job.stack.split("+") if "offload" in f] == (
        [fraction[1:]] if fraction else []
    )


@pytest.mark.parametrize("target", ["megatron", "megatron-bridge"])
def test_the_layers_whose_activations_go_to_the_host_come_back(target, tmp_path):
    made = plan(MODELS["dense"], dp=4, zero=1, stack=f"{target}+offload-layers=2")
    job = read_back(made, target, tmp_path / "b", FILES[target])
    assert "offload-layers=2" in job.stack.split("+")
    assert not [n for n in set(job.ignored) - set(job.without_effect) if "offload" in n]


@pytest.mark.parametrize("target", ["megatron", "megatron-bridge"])
@pytest.mark.parametrize("flag", ["mxfp8", "fp8-rowwise", "fp8-current"])
def test_how_fp8_scales_comes_back(target, flag, tmp_path):
    made = plan(MODELS["dense"], dp=4, zero=1, precision="fp8", stack=f"{target}+{flag}")
    job = read_back(made, target, tmp_path / "b", FILES[target])
    assert flag in job.stack.split("+")


@pytest.mark.parametrize("target", ["megatron", "megatron-bridge"])
@pytest.mark.parametrize("flag", ["", "+fp8-params"])
def test_parameters_in_fp8_come_back(target, flag, tmp_path):
    made = plan(MODELS["dense"], dp=4, zero=1, precision="fp8", stack=f"{target}{flag}")
    job = read_back(made, target, tmp_path / "b", FILES[target])
    assert ("fp8-params" in job.stack.split("+")) == bool(flag)

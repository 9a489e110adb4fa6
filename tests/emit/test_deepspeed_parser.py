"""DeepSpeed itself reads `ds_config.json` and `hostfile`, and runs the bundle on two processes."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import deepspeed_harness
import pytest
from plan_grid import MODELS, model, plan
from ports import free_port

from planner.emit.base import write_bundle
from planner.emit.deepspeed import EMITTER
from planner.plan import Plan

pytestmark = pytest.mark.frameworks

LAYOUTS: list[dict[str, Any]] = [
    *({"dp": dp, "zero": z} for dp, z in itertools.product((8, 16), range(4))),
    *({"dp": 4, "zero": z, "micro_batch": 2, "num_microbatches": 5} for z in range(4)),
    {"dp": 16, "zero": 3, "dp_replicate": 2},
    {"dp": 32, "zero": 3, "dp_replicate": 8, "recompute": "full"},
    {"pp": 4, "dp": 2},
    {"pp": 4, "dp": 4, "zero": 0, "num_microbatches": 7},
    {"pp": 3, "dp": 8, "recompute": "full"},
]
CASES = [
    (name, row | {"precision": kind})
    for name, kind in (("dense", "bf16"), ("many-heads", "fp16"), ("mla", "bf16"))
    for row in LAYOUTS
]


def written(folder: Path, answer: Plan) -> Path:
    """Write the bundle and return its folder."""
    assert EMITTER.unsupported(answer) == []
    write_bundle(folder / "bundle", EMITTER.emit(answer), force=False)
    return folder / "bundle"


@pytest.mark.parametrize(("name", "row"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_the_configuration_class_reads_the_plan_back(name, row, tmp_path):
    answer = plan(MODELS[name], **row)
    lay, work = answer.best.layout, answer.request.workload
    config = deepspeed_harness.read(
        written(tmp_path, answer) / "ds_config.json", world=lay.gpus, dp=lay.dp
    )
    assert (config.train_batch_size, config.train_micro_batch_size_per_gpu) == (
        work.global_batch,
        lay.micro_batch,
    )
    assert config.gradient_accumulation_steps == lay.num_microbatches
    assert config.zero_optimization_stage == lay.zero
    assert (config.bfloat16_config.enabled, config.float16_config.enabled) == (
        work.precision == "bf16",
        work.precision == "fp16",
    )
    assert config.gradient_clipping == 1.0
    zero = config.zero_config
    assert isinstance(zero.reduce_bucket_size, int)
    shards = lay.dp // lay.dp_replicate if lay.dp_replicate > 1 else 1
    assert zero.zero_hpz_partition_size == shards
    assert config.pipeline["stages"] == (lay.pp if lay.pp > 1 else "auto")
    assert config.optimizer_name == "adamw"


@pytest.mark.parametrize(
    "change",
    [
        {"train_batch_size": 17},
        {"gradient_accumulation_steps": 3},
        {"zero_optimization": {"stage": 4}},
        {"zero_optimization": {"stage": 3, "mics_shard_size": 8}},
        {"fp16": {"enabled": True}},
    ],
    ids=str,
)
def test_a_planted_mistake_is_refused(change, tmp_path):
    file = written(tmp_path, plan(MODELS["dense"], dp=8, zero=2)) / "ds_config.json"
    deepspeed_harness.read(file, world=8, dp=8)
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(Exception, match=r"batch|stage|MiCS|simultaneously"):
        deepspeed_harness.read(file, world=8, dp=8)


def test_every_top_level_key_is_one_that_deepspeed_reads(tmp_path):
    """DeepSpeed ignores unknown keys there, so its own constants are asked."""
    deepspeed_harness.load()
    from deepspeed import runtime

    folder = Path(runtime.__file__).parent
    sources = "".join((folder / n).read_text("utf-8") for n in ("constants.py", "config.py"))
    sources += "".join(p.read_text("utf-8") for p in folder.glob("*/config.py"))
    sources += (folder / "precision_config.py").read_text("utf-8")
    for row in ({"dp": 8, "zero": 3}, {"pp": 2, "dp": 4}, {"dp": 8, "precision": "fp16"}):
        case = tmp_path / str(len(list(tmp_path.iterdir())))
        case.mkdir()
        file = written(case, plan(MODELS["dense"], **row)) / "ds_config.json"
        for key in json.loads(file.read_text("utf-8")):
            assert f'"{key}"' in sources or f"'{key}'" in sources, key


def test_the_launcher_reads_the_host_file_in_node_order(tmp_path):
    deepspeed_harness.load()
    from deepspeed.launcher.runner import fetch_hostfile

    answer = plan(MODELS["dense"], dp=32)
    hosts = fetch_hostfile(str(written(tmp_path, answer) / "hostfile"))
    assert answer.placement
    assert list(hosts.items()) == [(host, 8) for host in answer.placement.hosts]


STARTS = [
    {"dp": 2, "ep": 2, "zero": 1, "spec": MODELS["moe"].model_copy(update={"layers": 4})},
    {"dp": 2, "zero": 3, "recompute": "full"},
    {"pp": 2, "zero": 1, "stage_layers": [[3], [1]], "recompute": "full"},
]


@pytest.mark.parametrize("row", STARTS, ids=["experts", "zero-3", "pipeline"])
def test_the_bundle_starts_and_learns(row, tmp_path, warm):
    """`run.sh` on two CPU processes (rig/warm.py).

    The script itself compares the groups that DeepSpeed made with the rank map.
    """
    deepspeed_harness.load()
    here = plan(**{"spec": model(layers=4)} | {"placeholders": True} | row)
    port = free_port()
    env = warm.env("deepspeed") | {"MASTER_PORT": str(port)}
    run = [str(written(tmp_path, here) / "run.sh"), "--steps", "10"]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False, timeout=500)
    for left in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"):
        left.unlink()  # 66 MiB a rank, which DeepSpeed never takes away
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    losses = [float(x) for x in re.findall(r"^step \d+ loss (\S+)$", done.stdout, re.MULTILINE)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    held = dict(re.findall(r"rank (\d) holds (\d+) layers", done.stdout))
    assert held == ({"0": "3", "1": "1"} if row.get("pp") else {"0": "4", "1": "4"})

"""DeepSpeed's AutoTP: the bundle trains as one process does, and its configuration is read."""

from __future__ import annotations

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

SMALL = model(layers=3)


def split(**row: Any) -> Plan:
    return plan(**{"spec": MODELS["dense"], "sp": False, "etp": 1, **row})


def written(folder: Path, answer: Plan) -> Path:
    assert EMITTER.unsupported(answer) == []
    write_bundle(folder, EMITTER.emit(answer), force=False)
    return folder


def losses(bundle: Path, env: dict[str, str]) -> list[float]:
    """Start a bundle as its README says and return the losses that it tells."""
    port = free_port()
    run = [str(bundle / "run.sh"), "--steps", "3"]
    done = subprocess.run(
        run,
        env=env | {"MASTER_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    for left in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"):
        left.unlink()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [float(x) for x in re.findall(r"^step \d+ loss (\S+)$", done.stdout, re.MULTILINE)]


@pytest.mark.parametrize("row", [{"zero": 1}, {"zero": 3, "recompute": "full"}], ids=str)
def test_split_layers_train_as_whole_ones_do(row, tmp_path, warm):
    """Two ranks with one batch against one rank; the script compares the groups with the map."""
    deepspeed_harness.load()
    told = []
    for tp in (1, 2):
        answer = split(spec=SMALL, tp=tp, micro_batch=2, placeholders=True, **row)
        told.append(losses(written(tmp_path / str(tp), answer), warm.env("deepspeed")))
    assert len(told[0]) == 3
    assert told[0][-1] < told[0][0]
    assert told[1] == pytest.approx(told[0], rel=5e-4)  # sums in 16 bit


def test_deepspeed_reads_the_split_and_counts_the_batch_over_replicas(tmp_path):
    bundle = written(tmp_path / "b", split(spec=SMALL, tp=4, dp=4, zero=2, micro_batch=2))
    made = deepspeed_harness.read(bundle / "ds_config.json", world=16, dp=4)
    told = made.tensor_parallel_config
    assert told.autotp_size == 4
    assert told.get_partition_config_object().tp_size == 4
    assert len(told.get_partition_config_object().layer_specs) == 3
    assert made.train_batch_size == 4 * 2 * made.gradient_accumulation_steps


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tp": 2, "sp": True, "dp": 4}, "has no sequence parallelism"),
    ({"tp": 2, "pp": 2, "dp": 2}, "not tried with pipelines"),
    ({"tp": 2, "dp": 4, "zero": 3, "offload": "optimizer"}, "hpZ or offload"),
    ({"tp": 16, "dp": 1}, "does not divide 8 kv heads"),
    ({"tp": 2, "dp": 4, "optimizer": "muon"}, "latents or Muon"),
    ({"tp": 2, "dp": 4, "spec": MODELS["moe"]}, "with experts"),
]


@pytest.mark.parametrize(("row", "says"), REFUSED)
def test_what_it_was_not_tried_with_is_refused(row, says):
    why = EMITTER.unsupported(split(**row))
    assert any(says in sentence for sentence in why), why

"""nanotron's YAML: keys as its source has them, and, where a checkout is named, its own reader."""

from __future__ import annotations

import itertools
import os
import pathlib
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import bash_bundle
import pytest
import yaml
from plan_grid import MODELS, model, plan, renamed

from planner.emit.base import write_bundle
from planner.emit.nanotron import EMITTER
from planner.errors import SpecError
from planner.plan import Plan

DENSE = MODELS["dense"]

# dataclass fields of src/nanotron/config at commit 2411b022: the reader is strict about them
KEYS = {
    "general": "project run seed step consumed_train_samples benchmark_csv_path "
    "ignore_sanity_checks",
    "parallelism": "dp pp tp pp_engine tp_mode tp_linear_async_communication recompute_layer "
    "tp_recompute_allgather expert_parallel_size context_parallel_size",
    "tokens": "sequence_length train_steps micro_batch_size batch_accumulation_per_replica "
    "val_check_interval limit_val_batches limit_test_batches",
    "model": "model_config init_method dtype make_vocab_size_divisible_by ddp_bucket_cap_mb",
    "model.model_config": "bos_token_id eos_token_id hidden_act hidden_size initializer_range "
    "intermediate_size is_llama_config max_position_embeddings num_attention_heads "
    "num_hidden_layers attention_bias num_key_value_heads pad_token_id pretraining_tp rms_norm_eps "
    "rope_scaling rope_theta rope_interleaved tie_word_embeddings use_cache vocab_size",
    "optimizer": "optimizer_factory zero_stage weight_decay clip_grad accumulate_grad_in_fp32 "
    "learning_rate_scheduler weight_decay_exclude_named_params",
    "checkpoints": "checkpoints_path checkpoint_interval save_initial_state save_final_state "
    "resume_checkpoint_path load_lr_scheduler load_optimizer "
    "checkpoints_path_is_shared_file_system",
    "logging": "log_level log_level_replica iteration_step_info_interval",
}


def config(answer: Plan) -> dict[str, Any]:
    assert EMITTER.unsupported(answer) == []
    text = next(a.text for a in EMITTER.emit(answer) if a.path == "nanotron.yaml")
    return yaml.safe_load(text)  # type: ignore[no-any-return]


ROWS: list[dict[str, Any]] = [
    {"tp": tp, "pp": pp, "dp": dp, "zero": zero, "sp": sp and tp > 1, "recompute": recompute}
    for tp, pp, dp, zero, sp, recompute in itertools.product(
        (1, 2, 8), (1, 4), (1, 4), (0, 1), (False, True), ("none", "full")
    )
]


@pytest.mark.parametrize("row", ROWS[::7], ids=str)
def test_every_key_is_one_that_its_reader_knows(row):
    made = config(plan(DENSE, **row))
    for path, known in KEYS.items():
        part: Any = made
        for name in path.split("."):
            part = part[name]
        assert part.keys() <= set(known.split()), path
    assert made.keys() <= {*KEYS, "data_stages"}


def test_the_batch_and_the_degrees_are_the_plans():
    made = config(plan(DENSE, tp=2, pp=4, dp=4, micro_batch=2, num_microbatches=6))
    tokens, degrees = made["tokens"], made["parallelism"]
    assert tokens["micro_batch_size"] * tokens["batch_accumulation_per_replica"] * 4 == 48
    assert (degrees["tp"], degrees["pp"], degrees["dp"]) == (2, 4, 4)
    assert (degrees["pp_engine"], degrees["tp_mode"]) == ("1f1b", "REDUCE_SCATTER")
    gpipe = config(plan(DENSE, pp=4, schedule="gpipe"))
    assert gpipe["parallelism"]["pp_engine"] == "afab"


REFUSED = [
    (plan(MODELS["moe"], dp=8), "neither experts"),
    (plan(MODELS["many-heads"], dp=8), "2 RMSNorms"),
    (plan(MODELS["qkv-bias"], dp=8), "without biases"),
    (plan(MODELS["wide-heads"], dp=8), "not 256"),
    (plan(DENSE, dp=8, zero=3), "zero=3"),
    (plan(DENSE, dp=4, cp=2), "cp=2"),
    (plan(DENSE, pp=2, vpp=2, dp=4), "vpp=2"),
    (plan(DENSE, dp=8, recompute="selective"), "recompute=selective"),
    (plan(DENSE, tp=16), "tp=16 does not divide 32 heads and 8 kv heads"),
    (plan(DENSE, tp=2, seq=4097), "4097 tokens"),
    (plan(DENSE, dp=8, precision="fp16"), "precision=fp16"),
    (plan(DENSE, dp=8, zero=0, dp_sync="parameter-server"), "parameter-server"),
]


@pytest.mark.parametrize(("answer", "words"), REFUSED, ids=[w for _, w in REFUSED])
def test_what_nanotron_cannot_run_is_said(answer, words):
    assert [s for s in EMITTER.unsupported(answer) if words in s], EMITTER.unsupported(answer)


def start(folder: Path, answer: Plan, **variables: str) -> tuple[list[str], dict[str, str]]:
    checkout = folder / "its checkout"
    checkout.mkdir()
    (checkout / "run_train.py").write_text("")
    variables = {"NANOTRON_PATH": str(checkout)} | variables
    return bash_bundle.started(folder, EMITTER.emit(answer), "torchrun", **variables)


def test_run_starts_the_nodes_own_rank(tmp_path):
    answer = plan(DENSE, dp=16, hosts=("b2", "a10"))
    argv, env = start(tmp_path, answer, MESHWRIGHT_HOSTNAME="a10")
    size = ["--nnodes", "2", "--nproc-per-node", "8", "--node-rank", "1", "--master-addr", "b2"]
    checked = str(tmp_path / "a bundle" / "checked_nanotron.py")
    script = [checked, str(tmp_path / "its checkout" / "run_train.py"), "--config-file"]
    file = str(tmp_path / "a bundle" / "nanotron.yaml")
    assert argv == [*size, "--master-port", "29500", *script, file]
    assert env["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


def test_without_a_checkout_it_says_so(tmp_path):
    with pytest.raises(AssertionError, match="set NANOTRON_PATH"):
        bash_bundle.started(tmp_path, EMITTER.emit(plan(DENSE, dp=8)), "torchrun")


def test_hostile_names_reach_no_shell(tmp_path):
    _, env = start(tmp_path, plan(model(name="x$(touch owned)\nexport EVIL=1"), dp=8))
    assert "EVIL" not in env
    assert not list(tmp_path.rglob("owned"))
    with pytest.raises(SpecError, match="not a host name"):
        EMITTER.emit(renamed(plan(DENSE, dp=16), "a b"))


STAND_IN = """
import numpy as np
import torch.distributed as dist


class ParallelContext:
    def __init__(self, tensor_parallel_size, pipeline_parallel_size, data_parallel_size):
        self.shape = (pipeline_parallel_size, data_parallel_size, 1, tensor_parallel_size)
        self._init_parallel_groups()

    def _init_parallel_groups(self):
        ranks = np.arange(dist.get_world_size()).reshape(self.shape)
        for number, axis in enumerate(("pp", "dp", "cp", "tp")):
            for row in np.moveaxis(ranks, number, -1).reshape(-1, self.shape[number]):
                group = dist.new_group(row.tolist())
                if dist.get_rank() in row:
                    setattr(self, f"{axis}_pg", group)
"""
"""nanotron's context and its order of axes (src/nanotron/parallel/context.py), no more."""
RUN_TRAIN = """
import sys
import torch.distributed as dist
from nanotron.parallel import ParallelContext
from torch.testing._internal.distributed.fake_pg import FakeStore
import os

dist.init_process_group("fake", rank=int(os.environ["RANK"]), world_size=8, store=FakeStore())
ParallelContext.set_device = lambda self: None
tp, pp, dp = map(int, sys.argv[1:])
ParallelContext(
    tensor_parallel_size=tp, pipeline_parallel_size=pp, data_parallel_size=dp
)
print("trained")
"""


@pytest.mark.frameworks
@pytest.mark.parametrize(("degrees", "goes"), [("2 2 2", True), ("1 2 4", False)])
def test_groups_other_than_the_plans_stop_the_job(degrees, goes, tmp_path, warm):
    """With the stand-in above, or with the checkout that MESHWRIGHT_NANOTRON_SOURCE names."""
    pytest.importorskip("torch")
    write_bundle(tmp_path / "out", EMITTER.emit(plan(DENSE, tp=2, pp=2, dp=2)), force=False)
    (tmp_path / "nanotron").mkdir()
    (tmp_path / "nanotron" / "parallel.py").write_text(STAND_IN)
    (tmp_path / "run_train.py").write_text(RUN_TRAIN)
    source = os.environ.get("MESHWRIGHT_NANOTRON_SOURCE")
    env = {k: v for k, v in warm.env("torch").items() if not k.startswith("MASTER_")}
    env |= {"RANK": "5", "LOCAL_RANK": "5", "WORLD_SIZE": "8"}
    env["PYTHONPATH"] = str(Path(source) / "src" if source else tmp_path)
    script = [str(tmp_path / "out" / "checked_nanotron.py"), str(tmp_path / "run_train.py")]
    command = ["python", *script, *degrees.split()]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if goes:
        assert (done.returncode, done.stdout.split()) == (0, ["trained"]), done.stderr
    else:
        assert done.returncode == 3, done.stderr
        assert "rank 5 expected coordinates" in done.stderr


GPU_ONLY = (
    *("flash_attn", "flash_attn.bert_padding", "flash_attn.flash_attn_interface"),
    *("flash_attn.layers", "flash_attn.layers.rotary", "flash_attn.modules"),
    *("flash_attn.modules.mha", "flash_attn.ops", "flash_attn.ops.triton"),
    *("flash_attn.ops.triton.layer_norm", "grouped_gemm", "grouped_gemm.ops", "triton"),
    *("triton.language", "datasets", "datasets.download"),
    "datasets.download.streaming_download_manager",
)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return `get_config_from_file` of the checkout that MESHWRIGHT_NANOTRON_SOURCE names."""
    source = os.environ.get("MESHWRIGHT_NANOTRON_SOURCE")
    if not source:
        pytest.skip("MESHWRIGHT_NANOTRON_SOURCE names no checkout of nanotron")
    pytest.importorskip("torch")
    pytest.importorskip("dacite")
    for name in GPU_ONLY:
        fake = mock.MagicMock(__spec__=mock.MagicMock(), __version__="2.7.0")
        fake.xPath = pathlib.PosixPath
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.syspath_prepend(str(Path(source) / "src"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nanotron.config import get_config_from_file
    return get_config_from_file


@pytest.mark.frameworks
def test_its_own_reader_takes_every_layout(reader, tmp_path):
    for row in ROWS:
        answer = plan(DENSE, **row)
        file = tmp_path / "nanotron.yaml"
        file.write_text(yaml.safe_dump(config(answer)))
        made = reader(str(file))
        assert made.global_batch_size == answer.request.workload.global_batch
        assert made.optimizer.zero_stage == row["zero"]
        assert made.parallelism.recompute_layer is (row["recompute"] == "full")
    for wrong in ({"tpp": 2}, {"tp": "2"}, {"tp": 3}):
        spoilt = config(plan(DENSE, dp=8))
        spoilt["parallelism"] |= wrong
        file.write_text(yaml.safe_dump(spoilt))
        with pytest.raises(Exception, match=r"tpp|tp"):
            reader(str(file))

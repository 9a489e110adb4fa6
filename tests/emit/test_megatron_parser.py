"""Megatron-LM's own parser reads what `run.sh` hands to `pretrain_gpt.py`."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import bash_bundle
import megatron_harness
import pytest
from plan_grid import MODELS, model, plan

from planner.emit.megatron import EMITTER
from planner.plan import Plan
from planner.specs.catalog import load_model

pytestmark = pytest.mark.frameworks

DENSE_LAYOUTS: list[dict[str, Any]] = [
    {"dp": 8},
    {"dp": 8, "zero": 0},
    {"dp": 16, "zero": 2},
    {"dp": 16, "zero": 3, "recompute": "full"},
    {"dp": 16, "zero": 3, "dp_replicate": 2},
    {"dp": 16, "zero": 1, "dp_replicate": 4},
    {"tp": 8, "dp": 2, "recompute": "selective"},
    {"tp": 2, "dp": 4, "zero": 3},
    {"tp": 16, "dp": 2},
    {"tp": 2, "sp": False, "dp": 4, "micro_batch": 2},
    {"pp": 4, "dp": 2},
    {"tp": 2, "pp": 4, "dp": 2, "num_microbatches": 3},
    {"tp": 2, "pp": 4, "vpp": 4, "dp": 2, "num_microbatches": 16},
    {"tp": 2, "pp": 3, "dp": 4, "recompute": "full"},
    {"tp": 2, "pp": 3, "vpp": 2, "dp": 4},
    {"tp": 4, "pp": 2, "dp": 2, "stage_layers": [[7], [9]]},
    {"tp": 2, "pp": 4, "vpp": 2, "dp": 1, "stage_layers": [[0, 3], [3, 2], [2, 2], [2, 2]]},
    {"pp": 17, "dp": 1, "num_microbatches": 17, "stage_layers": [[0], *[[1]] * 16]},
    {"pp": 18, "dp": 4, "num_microbatches": 2, "stage_layers": [[0], *[[1]] * 16, [0]]},
]
DENSE_CP_LAYOUTS: list[dict[str, Any]] = [
    {"tp": 2, "cp": 2, "dp": 2},
    {"tp": 4, "cp": 8, "pp": 2, "dp": 2, "seq": 8192, "zero": 1},
    {"cp": 4, "dp": 4, "zero": 3},
]
MOE_LAYOUTS: list[dict[str, Any]] = [
    {"dp": 8, "ep": 8},
    {"tp": 2, "dp": 8, "ep": 8, "recompute": "selective"},
    {"tp": 4, "dp": 4, "ep": 8, "etp": 1, "pp": 2},
    {"tp": 2, "dp": 8, "ep": 4, "etp": 2, "zero": 0},
    {"dp": 16, "ep": 2, "zero": 3, "dp_replicate": 2},
    {"dp": 16, "ep": 4, "zero": 2, "recompute": "full"},
    {"tp": 2, "pp": 4, "vpp": 2, "dp": 4, "ep": 8, "num_microbatches": 8},
    {"dp": 8, "ep": 8, "capacity_factor": 1.25},
]
CASES = [
    *(("dense", row) for row in DENSE_LAYOUTS + DENSE_CP_LAYOUTS),
    *(("wide-heads", row) for row in DENSE_LAYOUTS[1:11:3] + DENSE_CP_LAYOUTS),
    *((name, row) for name in ("many-heads", "qkv-bias") for row in DENSE_LAYOUTS[:11:4]),
    *((name, row) for name in ("moe", "mla") for row in MOE_LAYOUTS),
    *((name, row) for name in ("moe-period", "moe-bias", "moe-gate") for row in MOE_LAYOUTS[:3]),
    *(("dense", row | {"precision": "fp16"}) for row in DENSE_LAYOUTS[:2]),
    *(("dense", row | {"precision": "fp8"}) for row in DENSE_LAYOUTS[:7]),
    *(("moe", row | {"precision": "fp8"}) for row in MOE_LAYOUTS[:3]),
]


def read(folder: Path, answer: Plan) -> tuple[Any, Any]:
    """Return what Megatron's parser makes of the bundle that bash started."""
    megatron_harness.load()
    (folder / "Megatron-LM").mkdir()
    (folder / "Megatron-LM" / "pretrain_gpt.py").touch()
    argv, env = bash_bundle.started(
        folder,
        EMITTER.emit(answer),
        "torchrun",
        MEGATRON_PATH=str(folder / "Megatron-LM"),
        NODE_RANK="0",
        SKIP_PREFLIGHT="1",
    )
    script = argv.index(str(folder / "Megatron-LM" / "pretrain_gpt.py"))
    queue = {k: v for k, v in env.items() if k == "CUDA_DEVICE_MAX_CONNECTIONS"}
    return megatron_harness.parse(argv[script + 1 :], answer.best.layout.gpus, queue)


def expected(answer: Plan) -> dict[str, Any]:
    """Return the plan in the words of Megatron's arguments."""
    lay, work, spec = answer.best.layout, answer.request.workload, answer.request.model
    return {
        "tensor_model_parallel_size": lay.tp,
        "sequence_parallel": lay.sp and lay.tp > 1,
        "pipeline_model_parallel_size": lay.pp,
        "virtual_pipeline_model_parallel_size": lay.vpp if lay.vpp > 1 else None,
        "context_parallel_size": lay.cp,
        "expert_model_parallel_size": lay.ep,
        "expert_tensor_parallel_size": lay.etp if spec.experts else lay.tp,
        "data_parallel_size": lay.dp,
        "num_distributed_optimizer_instances": lay.dp_replicate,
        # Muon deals whole matrices out, which has a flag of its own
        "use_distributed_optimizer": lay.zero >= 1 and work.optimizer != "muon",
        "use_megatron_fsdp": lay.zero >= 2,
        "overlap_grad_reduce": True,
        "overlap_param_gather": lay.zero >= 1,
        "recompute_granularity": None if lay.recompute == "none" else lay.recompute,
        "micro_batch_size": lay.micro_batch,
        "global_batch_size": work.global_batch,
        "seq_length": work.seq_tokens,
        "bf16": work.precision != "fp16",
        "fp16": work.precision == "fp16",
        "fp8": "hybrid" if work.precision == "fp8" else None,
        "num_layers": spec.layers,
        "hidden_size": spec.hidden,
        "ffn_hidden_size": spec.ffn,
        "num_attention_heads": spec.heads,
        "vocab_size": spec.vocab,
        "swiglu": spec.gated_mlp,
        "untie_embeddings_and_output_weights": not spec.tied_embeddings,
        "add_qkv_bias": spec.qkv_bias,
        "num_experts": spec.experts.count if spec.experts else None,
        "moe_shared_expert_gate": bool(spec.experts and spec.experts.shared_gate),
        "multi_latent_attention": spec.mla is not None,
        "mtp_num_layers": spec.mtp_layers or None,
        "position_embedding_type": "learned_absolute" if spec.learned_positions else "rope",
        "mock_data": True,
    }


@pytest.mark.parametrize(("name", "row"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_the_parser_reads_the_plan_back(name, row, tmp_path):
    spec = MODELS[name]
    answer = plan(spec, **row)
    assert EMITTER.unsupported(answer) == []
    args, config = read(tmp_path, answer)
    want = expected(answer)
    assert {k: getattr(args, k) for k in want} == want
    assert args.global_batch_size == (
        args.micro_batch_size * args.data_parallel_size * answer.best.layout.num_microbatches
    )
    if answer.best.layout.zero >= 2:
        strategy = {2: "optim_grads", 3: "optim_grads_params"}[answer.best.layout.zero]
        assert args.data_parallel_sharding_strategy == strategy
    assert megatron_harness.stage_layers(config) == answer.best.stage_layers


SHIPPED = (
    "deepseek-v3", "glm-4.5", "gpt-3-175b", "gpt-oss-120b", "kimi-k2", "llama-3.1-405b",
    "llama-4-maverick", "mixtral-8x7b", "nemotron-4-340b", "qwen2.5-72b", "qwen3-235b-a22b",
)  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_are_read_back(name, tmp_path):
    spec = load_model(name)
    answer = plan(spec, dp=8, seq=min(spec.max_seq_tokens, 2048))
    assert EMITTER.unsupported(answer) == []
    args, config = read(tmp_path, answer)
    want = expected(answer)
    assert {k: getattr(args, k) for k in want} == want
    assert spec.experts is None or layer_kinds(config) == list(spec.moe_layers)


def layer_kinds(config: Any) -> list[bool]:
    """Return, layer by layer, whether Megatron builds experts (its own rule for both forms)."""
    freq = config.moe_layer_freq
    if isinstance(freq, int):
        return [i % freq == 0 for i in range(config.num_layers)]
    return [bool(x) for x in freq]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"first_dense_layers": 3},
        {"layer_period": 2},
        {"layer_period": 3},
        {"layer_period": 2, "first_dense_layers": 4},
    ],
)
def test_experts_stand_in_the_same_layers(change, tmp_path):
    spec = model(experts={"count": 16, "top_k": 2, "ffn": 2048, **change})
    _, config = read(tmp_path, plan(spec, dp=8, ep=8))
    assert layer_kinds(config) == list(spec.moe_layers)
    assert (config.moe_ffn_hidden_size, config.moe_router_topk) == (2048, 2)


def test_every_third_layer_sees_the_whole_sequence(tmp_path):
    megatron_harness.load()
    from megatron.core.transformer.utils import is_layer_window_attention

    spec = model(sliding_window_tokens=1024, full_attention_period=3)
    _, config = read(tmp_path, plan(spec, dp=8))
    windows = [
        is_layer_window_attention(config.window_size, config.window_attn_skip_freq, n + 1)
        for n in range(spec.layers)
    ]
    assert windows == [(n + 1) % 3 != 0 for n in range(spec.layers)]
    assert config.window_size == (1023, 0)


def test_latent_attention_has_the_planned_widths(tmp_path):
    spec = MODELS["mla"]
    _, config = read(tmp_path, plan(spec, tp=2, dp=8, ep=8))
    mla = spec.mla
    assert mla is not None
    assert (config.q_lora_rank, config.kv_lora_rank) == (mla.q_lora_rank, mla.kv_lora_rank)
    assert (config.qk_head_dim, config.qk_pos_emb_head_dim) == (128, 64)
    assert (config.v_head_dim, config.qk_layernorm) == (128, True)


def test_heads_keep_their_width_when_they_do_not_fill_the_model(tmp_path):
    _, config = read(tmp_path, plan(MODELS["wide-heads"], dp=8))
    assert (config.kv_channels, config.num_query_groups, config.qk_layernorm) == (256, 8, True)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--context-parallel-size", "3"),
        ("--num-attention-heads", "30"),
        ("--global-batch-size", "7"),
        ("--use-custom-fsdp", None),
        ("--pipeline-model-parallel-layout", "Et*7|t*8L"),
    ],
)
def test_a_planted_mistake_is_refused(flag, value, tmp_path, monkeypatch):
    from planner.emit import megatron

    planted = f"{flag} {value}\n" if value else f"{flag}\n"
    original = megatron.args_text
    monkeypatch.setattr(megatron, "args_text", lambda *a: original(*a) + planted)
    with pytest.raises(megatron_harness.RefusedError):
        read(tmp_path, plan(MODELS["dense"], tp=4, pp=2, dp=4))


@pytest.mark.parametrize(
    ("degrees", "wrong"),
    [({"tp": 2, "dp": 4}, {}), ({"dp": 8, "zero": 3}, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"})],
)
def test_the_environment_is_part_of_the_plan(degrees, wrong):
    from planner.emit.megatron_flags import flags

    answer = plan(MODELS["dense"], **degrees)
    words = [w for _, rows in flags(answer) for name, values in rows for w in (name, *values)]
    words += ["--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "128256"]
    with pytest.raises(megatron_harness.RefusedError, match="CUDA_DEVICE_MAX_CONNECTIONS"):
        megatron_harness.parse(words, answer.best.layout.gpus, wrong)


def test_the_flag_table_is_the_parsers():
    known = megatron_harness.known_flags()
    table = Path(__file__).parents[1] / "measured" / "megatron_flags.csv"
    lines = [x for x in table.read_text("utf-8").splitlines() if not x.startswith("#")]
    for row in csv.DictReader(lines):
        action = known[row["flag"]]
        choices = "|".join(map(str, action.choices or ()))
        nargs = "" if action.nargs is None else str(action.nargs)
        assert (row["nargs"], row["choices"]) == (nargs, choices), row["flag"]

"""The frameworks' own memory estimators, called here and now, as special cases of the estimate."""

from __future__ import annotations

import contextlib
import io
import types
import warnings

import pytest
from estimate_cases import inputs, spec

from planner.estimate import memory
from planner.specs.model import Experts, LatentAttention, ModelSpec, Norm
from planner.specs.parameters import count_parameters, padded_vocab

pytestmark = pytest.mark.frameworks


def states(x):
    parts = memory.weights_bytes(x), memory.gradients_bytes(x), memory.optimizer_bytes(x)
    return sum(parts)[0]


# --- DeepSpeed


def deepspeed(stage: int):
    pytest.importorskip("torch")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        pytest.importorskip("deepspeed")
        from deepspeed.runtime.zero import stage3, stage_1_and_2
    if stage == 2:
        return stage_1_and_2.estimate_zero2_model_states_mem_needs
    return stage3.estimate_zero3_model_states_mem_needs


@pytest.mark.parametrize("nodes", [1, 2, 16])
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_estimators_are_special_cases(stage, nodes):
    """ZeRO-2: 2 P + 18 P / n. ZeRO-3 leaves out the 16-bit gradients' shard: + 4 * layer."""
    model = spec()
    total = count_parameters(model).total
    x = inputs(
        model,
        {"dp": 8 * nodes, "zero": stage},
        cluster=f"dgx-h100:{nodes}",
        stack="deepspeed",
    )
    if stage == 2:
        _, told = deepspeed(2)(total, 8, nodes, cpu_offload=False)
        assert states(x)[0] == pytest.approx(told, abs=8)
        return
    largest = 704 * 256
    _, told, _ = deepspeed(3)(total, largest, 8, nodes, cpu_offload=False, cpu_offload_params=False)
    told += 2 * total / (8 * nodes) - 4 * largest
    assert states(x)[0] == pytest.approx(told, abs=8)


# --- Megatron


def megatron_args(model: ModelSpec, row: dict[str, int]) -> types.SimpleNamespace:
    """Return what Megatron's parser would hand its estimator."""
    experts, mla = model.experts, model.mla
    tp, ep, etp = row["tp"], row.get("ep", 1), row.get("etp", 1)
    return types.SimpleNamespace(
        kv_channels=model.head_dim,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        group_query_attention=model.kv_heads != model.heads,
        hidden_size=model.hidden,
        ffn_hidden_size=model.ffn,
        num_layers=model.layers,
        swiglu=model.gated_mlp,
        normalization="RMSNorm" if model.norm is Norm.RMSNORM else "LayerNorm",
        padded_vocab_size=padded_vocab(model.vocab, tp),
        untie_embeddings_and_output_weights=not model.tied_embeddings,
        add_bias_linear=False,
        num_experts=experts and experts.count,
        moe_layer_freq=[int(moe) for moe in model.moe_layers],
        moe_ffn_hidden_size=experts and experts.ffn,
        moe_shared_expert_intermediate_size=(experts and experts.shared_ffn) or None,
        moe_shared_expert_gate=bool(experts and experts.shared_gate),
        moe_router_topk=experts and experts.top_k,
        moe_latent_size=None,
        mtp_num_layers=None,
        multi_latent_attention=mla is not None,
        q_lora_rank=mla and mla.q_lora_rank,
        kv_lora_rank=mla and mla.kv_lora_rank,
        qk_head_dim=mla and mla.qk_nope_head_dim,
        qk_pos_emb_head_dim=mla and mla.qk_rope_head_dim,
        v_head_dim=mla and mla.v_head_dim,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=row.get("pp", 1),
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
        context_parallel_size=1,
        data_parallel_size=row["dp"],
        world_size=row["dp"] * tp * row.get("pp", 1),
        use_distributed_optimizer=row["zero"] == 1,
        hybrid_layer_pattern=None,
    )


GPT = {"gated_mlp": False, "norm": Norm.LAYERNORM, "tied_embeddings": True, "vocab": 50257}
EIGHT = Experts(count=8, top_k=2, ffn=512, shared_ffn=128, shared_gate=True)
LATENT = LatentAttention(
    q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=32
)
CASES = {
    "gpt": (spec(**GPT), {"tp": 4}),
    "llama": (spec(kv_heads=2, vocab=32003), {"tp": 2}),
    "pipeline": (spec(layers=8), {"tp": 2, "pp": 4, "schedule": "1f1b"}),
    "experts": (spec(experts=EIGHT), {"tp": 2, "sp": 1, "ep": 4}),
    "split experts": (spec(experts=EIGHT), {"tp": 2, "sp": 1, "ep": 2, "etp": 2}),
    "latent": (spec(mla=LATENT, head_dim=24), {"tp": 1}),
}


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_megatrons_estimator_is_a_special_case(name, zero):
    """It deals the final norm over the stages, and splits latent attention's down-projections."""
    import megatron_harness

    megatron_harness.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.training import theoretical_memory_usage as theirs
    model, degrees = CASES[name]
    row = {"dp": 8, "zero": zero, **degrees}
    x = inputs(model, row, cluster="dgx-h100:8", stack="megatron", every_stage=True)
    norm = model.hidden * (2 if model.norm is Norm.LAYERNORM else 1)
    pp = row.get("pp", 1)
    each = 6 + 12 / 8 if zero else 18
    dealt = norm / pp if pp > 1 else 0.0  # the final norm stands on the last stage here
    told = theirs.compute_weight_and_optimizer_memory(megatron_args(model, row))
    assert states(x)[0] + dealt * each == pytest.approx(told, rel=1e-9)

"""The frameworks' own estimators as special cases, and mistakes that other planners make."""

from __future__ import annotations

import numpy as np
import pytest
from estimate_cases import inputs, spec, table

from planner.estimate import activations, memory, params, recompute
from planner.estimate.states import step_gradients_bytes
from planner.specs.model import Experts, Norm
from planner.specs.parameters import count_parameters, padded_vocab

EIGHT = Experts(count=8, top_k=2, ffn=512, shared_ffn=128)


def states(x):
    parts = memory.weights_bytes(x), memory.gradients_bytes(x), memory.optimizer_bytes(x)
    return sum(parts)


# --- vendors


@pytest.mark.parametrize("row", table("megatron_theoretical.csv"), ids=lambda r: r["layout"])
def test_states_are_those_of_megatrons_estimator(row):
    """The final norm is dealt out over the stages and V taken as told; the rest is equal."""
    n = {k: int(v) if v else 0 for k, v in row.items() if k not in ("layout", "dist_opt")}
    gpt = row["layout"].startswith("gpt")
    model = spec(
        layers=n["L"],
        hidden=n["h"],
        heads=n["a"],
        kv_heads=n["g"],
        head_dim=n["h"] // n["a"],
        ffn=n["f"],
        vocab=n["V"],
        gated_mlp=not gpt,
        norm=Norm.LAYERNORM if gpt else Norm.RMSNORM,
        tied_embeddings=gpt,
        experts=Experts(count=n["E"], top_k=2, ffn=n["mf"]) if n["E"] else None,
    )
    degrees = {k: n[k] or 1 for k in ("tp", "pp", "dp", "ep", "etp")}
    more = {"zero": int(row["dist_opt"] == "True"), "schedule": "1f1b" if n["pp"] > 1 else "none"}
    x = inputs(model, degrees | more, cluster="dgx-h100:64", stack="megatron")
    first = (params.stage_dense_parameters(x) + params.stage_expert_parameters(x))[0, 0]
    elsewhere = n["pp"] > 1 and n["h"] * (2 if gpt else 1) / n["pp"]
    elsewhere -= (padded_vocab(n["V"], n["tp"]) - n["V"]) * n["h"] / n["tp"]  # V as it is told
    assert first + elsewhere == pytest.approx(n["shard_params"], abs=1)
    each = 6 + 12 / n["dp"] if more["zero"] else 18
    told = states(x)[0, 0] + elsewhere * each
    if not n["E"]:  # experts' own data-parallel groups
        assert told == pytest.approx(n["weight_opt_bytes"], rel=1e-6)


@pytest.mark.parametrize(
    "row",
    table("deepspeed_estimates.csv"),
    ids=lambda r: f"{r['estimator']}-{r['model']}-{r['gpus']}",
)
def test_states_are_those_of_deepspeeds_estimators(row):
    """ZeRO-2: equal. ZeRO-3: it leaves out the 16-bit gradients' shard, and adds 4 * layer."""
    gpus, total = int(row["gpus"]), int(row["total_params"])
    zero = int(row["estimator"][-1])
    x = inputs(spec(), {"dp": gpus, "zero": zero}, cluster="dgx-h100:64", stack="deepspeed")
    each = states(x)[0, 0] / count_parameters(spec()).total
    told = each * total
    if zero == 3:
        told += 4 * int(row["largest_layer_params"]) - 2 * total / gpus
    assert told == pytest.approx(int(row["gpu_bytes"]), rel=1e-6)


@pytest.mark.parametrize("dp", [2, 8, 64])
def test_16_bit_gradients_are_upcast_at_the_step(dp):
    """Megatron-LM docs/user-guide/features/dist_optimizer: 4 + 16/dp, 20 without."""
    rows = [{"dp": dp, "zero": zero} for zero in (0, 1)]
    stack = "megatron+bf16-gradients"
    x = inputs(spec(), *rows, stack=stack, cluster="dgx-h100:8")
    held = states(x) + step_gradients_bytes(x)
    assert held[:, 0] / count_parameters(spec()).total == pytest.approx([20, 4 + 16 / dp])


def test_deepspeed_adds_gradients_up_in_the_models_format_where_asked_to():
    """grad_accum_dtype is the model's by default (deepspeed/runtime/config.py)."""
    row = {"dp": 8, "zero": 1}
    wide, own = (
        memory.gradients_bytes(inputs(spec(), row, stack=stack))[0, 0]
        for stack in ("deepspeed", "deepspeed+bf16-gradients")
    )
    assert [wide, own] == [n * count_parameters(spec()).total for n in (6, 2)]


def test_the_steps_gradients_count_where_they_are_more_than_the_activations_were():
    model, row = spec(layers=64, hidden=1024, ffn=4096), {"recompute": "full"}
    stack = "megatron+bf16-gradients"
    few = inputs(model, row, stack=stack, seq_tokens=16)
    gone = memory.activations_bytes(few) + memory.logits_bytes(few)
    assert memory.step_excess_bytes(few) == pytest.approx(step_gradients_bytes(few) - gone)
    many = inputs(model, row, stack=stack, seq_tokens=65536)
    assert not memory.step_excess_bytes(many).any()


# --- unfused attention, FP8

GPT = {"gated_mlp": False, "norm": Norm.LAYERNORM, "ffn": 1024}


@pytest.mark.parametrize(("dropout", "each"), [(True, 5), (False, 2)])
def test_unfused_attention_saves_korthikantis_5_as2b(dropout, each):
    """arXiv:2205.05198 equation 1: softmax (2), its mask (1) and its dropped output (2)."""
    row = {"tp": 4, "sp": 1, "micro_batch": 2}
    model = spec(**GPT, dropout=dropout)
    fused, unfused = (
        activations.dense_layer_activation_bytes(inputs(model, row, stack=stack))[0]
        for stack in ("megatron", "megatron+unfused")
    )
    statistics = 4 * 2 * 1024 * 8 / 4
    assert unfused - fused == each * 8 * 1024**2 * 2 / 4 - statistics


def test_selective_recompute_drops_the_scores_and_leaves_34_sbh():
    row = {"tp": 4, "sp": 1, "recompute": "selective"}
    x = inputs(spec(**GPT, dropout=True), row, stack="megatron+unfused")
    kept, _ = recompute.kept_layer_bytes(x)
    assert kept[0] == 34 * 1024 * 256 / 4 + 16 * 1024 / 4


def test_fp8_saves_the_inputs_of_multiplies_in_a_byte():
    """Two norm outputs and the second projection's input; attention's output is kept in both."""
    row = {"tp": 2, "sp": 1}
    wide, narrow = (
        activations.dense_layer_activation_bytes(
            inputs(spec(), row, stack="megatron", precision=precision)
        )[0]
        for precision in ("bf16", "fp8")
    )
    tokens, hidden, ffn = 1024, 256, 704
    assert wide - narrow == tokens * (2 * hidden + ffn - hidden) / 2


# --- mistakes that other planners make


@pytest.mark.parametrize("stack", ["megatron", "deepspeed"])
def test_tp_divides_parameters_once_and_zero_divides_states_once(stack):
    """Not mistaken for one division by tp * dp of the already divided."""
    rows = [{"tp": tp, "dp": 8, "zero": 1} for tp in (1, 4)]
    x = inputs(spec(vocab=8192), *rows, cluster="dgx-h100:4", stack=stack)
    held = params.stage_dense_parameters(x)[:, 0]
    per_parameter = {"megatron": 12, "deepspeed": 16}[stack]
    assert memory.optimizer_bytes(x)[:, 0] == pytest.approx(per_parameter * held / 8)
    tables = {"megatron": 0, "deepspeed": 2 * 8192 * 256}[stack]  # AutoTP leaves both ends whole
    whole = 4 * 2 * 256 + 256 + tables
    assert held[1] == pytest.approx((held[0] - whole) / 4 + whole)


def test_tp_does_not_divide_experts_and_dp_divides_their_state_by_less():
    rows = [{"tp": 4, "sp": 1, "dp": 8, "ep": ep, "zero": 1} for ep in (1, 8)]
    x = inputs(spec(experts=EIGHT), *rows, cluster="dgx-h100:4", stack="megatron")
    experts = 4 * 8 * 3 * 256 * 512
    assert params.stage_expert_parameters(x)[:, 0].tolist() == [experts, experts / 8]
    dense = params.stage_dense_parameters(x)[0, 0]
    # 32 ranks hold the experts: as often as there are ranks over ep, not over dp
    told = memory.optimizer_bytes(x)[:, 0]
    assert told == pytest.approx([12 * (dense / 8 + experts / 32), 12 * (dense / 8 + experts / 32)])


def test_the_peak_is_the_heaviest_stage_and_not_the_mean():
    row = {"pp": 4, "schedule": "1f1b", "num_microbatches": 8}
    x = inputs(spec(layers=8, vocab=128_000), row, every_stage=True, cluster="dgx-h100:4")
    stages = memory.stage_bytes(x)[0]
    assert memory.peak_bytes(x)[0] == stages.max() > 1.05 * stages.mean()
    assert stages[3] > stages[2]  # logits
    assert stages[0] > stages[1]  # the embedding, and one more micro-batch


def test_tied_embeddings_are_held_once_on_one_stage_and_by_both_ends_of_a_pipeline():
    rows = [{}, {"pp": 2, "schedule": "1f1b"}]
    cases = [inputs(spec(tied_embeddings=tied), *rows) for tied in (True, False)]
    tied, untied = ((params.stage_dense_parameters(x) * x.stages.count).sum(axis=1) for x in cases)
    assert untied[0] - tied[0] == 8192 * 256
    assert untied[1] == tied[1] == untied[0]


def test_a_token_prediction_layer_brings_its_norms_and_the_table_it_looks_up():
    """Megatron's last stage: projection over tp, three norms, one layer, the embedding again."""
    one, two = {"tp": 2}, {"tp": 2, "pp": 2, "schedule": "1f1b"}

    def added(row):
        more, plain = (inputs(spec(mtp_layers=n), row, every_stage=True) for n in (1, 0))
        return (params.stage_dense_parameters(more) - params.stage_dense_parameters(plain))[0]

    layer = (4 * 256**2 + 3 * 256 * 704) / 2 + 2 * 256
    alone = layer + 2 * 256**2 / 2 + 3 * 256
    table = 8192 * 256 / 2
    assert added(one).tolist() == [alone]
    assert added(two).tolist() == [0, alone + table]


STACKS = {"megatron": (0, 1), "deepspeed": (0, 1, 2, 3), "torchtitan": (2, 3)}


@pytest.mark.parametrize(
    ("stack", "zero"), [(s, z) for s, stages in STACKS.items() for z in stages]
)
@pytest.mark.parametrize("experts", [None, EIGHT], ids=["dense", "experts"])
def test_the_shards_of_all_ranks_sum_to_at_least_the_whole_state(stack, zero, experts):
    model = spec(experts=experts)
    rows = [
        {"tp": tp, "sp": int(tp > 1), "pp": pp, "dp": 8, "ep": ep, "zero": zero}
        | ({"schedule": "1f1b"} if pp > 1 else {})
        for tp in (1, 2)
        for pp in (1, 2)
        for ep in ((1, 4) if experts else (1,))
    ]
    x = inputs(model, *rows, cluster="dgx-h100:4", stack=stack)
    ranks = (x.layouts.tp * x.layouts.dp)[:, None] * x.stages.count
    everywhere = (states(x) * ranks).sum(axis=1)
    per_parameter = {"megatron": 18, "deepspeed": 20, "torchtitan": 16}[stack]
    assert (everywhere >= per_parameter * count_parameters(model).total * (1 - 1e-9)).all()
    assert np.isfinite(everywhere).all()

"""The formulas against what was measured or replayed: no figure here comes from this planner."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from estimate_cases import inputs, spec, table

from planner.estimate import activations, memory
from planner.estimate.collectives import inside_s
from planner.estimate.flops import step_flops
from planner.estimate.in_flight import microbatches_in_flight
from planner.specs.catalog import load_model
from planner.specs.model import ModelSpec, Norm
from planner.specs.workload import Workload


def numbers(row, *names):
    return [int(row[name]) for name in names]


# --- FLOPs


@pytest.mark.parametrize(
    "row", table("flops.csv"), ids=lambda r: f"{r['model']}-{r['seq']}-{r['mbs']}"
)
def test_flops_are_those_of_the_flop_counter(row):
    """Biases are counted as weights here and are free there: GPT-2's and OPT's 0.02 %."""
    model = load_model(row["model"])
    model = ModelSpec(**{**model.model_dump(), "layers": int(row["layers"]), "mtp_layers": 0})
    seq, batch, forward, backward = numbers(row, "seq", "mbs", "fwd_flops", "bwd_flops")
    assert backward == 2 * forward
    workload = Workload(seq_tokens=seq, global_batch=batch)
    assert step_flops(model, workload, causal=False) == pytest.approx(3 * forward, rel=1e-3)
    assert step_flops(model, workload, causal=True) < 3 * forward


# --- activations of one layer


@pytest.mark.parametrize(
    "row", table("activations_dtensor.csv"), ids=lambda r: f"tp{r['tp']}-sp{r['sp']}-{r['h']}"
)
def test_dtensor_layers_save_what_autograd_saves(row):
    tp, sp, s, b, h, a, g, f = numbers(row, "tp", "sp", "s", "b", "h", "a", "g", "f")
    model = spec(hidden=h, heads=a, kv_heads=g, head_dim=h // a, ffn=f)
    one = {"tp": tp, "sp": sp if tp > 1 else 0, "micro_batch": b}
    x = inputs(model, one, seq_tokens=s, stack="torchtitan")
    assert activations.dense_layer_activation_bytes(x)[0] == int(row["saved_bytes_per_rank"])


@pytest.mark.parametrize(
    "row", table("activations.csv"), ids=lambda r: f"{r['model']}-{r['h']}-{r['s']}-{r['b']}"
)
def test_unsharded_layers_save_what_autograd_saves(row):
    s, b, h, a, g, d, f = numbers(row, "s", "b", "h", "a", "g", "hd", "f")
    gpt = row["model"] == "gpt_flash"
    model = spec(
        hidden=h,
        heads=a,
        kv_heads=g,
        head_dim=d,
        ffn=f,
        gated_mlp=not gpt,
        norm=Norm.LAYERNORM if gpt else Norm.RMSNORM,
    )
    x = inputs(model, {"micro_batch": b}, seq_tokens=s, stack=row["stack"])
    saved = int(row["saved_bytes"])
    if row["model"] == "llama_megatron_like" and b > 1:
        saved -= 2 * s * b * a * d  # a copy from [b, s] to [s, b], which Megatron's layout has not
    assert activations.dense_layer_activation_bytes(x)[0] == saved


def test_dropout_adds_korthikantis_two_masks():
    x = inputs(spec(), {"micro_batch": 2}, stack="megatron")
    dropped = inputs(spec(dropout=True), {"micro_batch": 2}, stack="megatron")
    more = activations.dense_layer_activation_bytes(
        dropped
    ) - activations.dense_layer_activation_bytes(x)
    assert more[0] == 2 * 1024 * 2 * 256


def test_a_gpt_layer_with_sequence_parallelism_is_korthikantis_34_sbh_over_t():
    """arXiv:2205.05198, equation 4 without the attention core; the statistics come on top."""
    gpt = {"gated_mlp": False, "norm": Norm.LAYERNORM, "dropout": True, "ffn": 1024}
    x = inputs(spec(**gpt), {"tp": 4, "sp": 1}, stack="megatron")
    tokens, hidden, heads = 1024, 256, 8
    statistics = (16 * tokens + 4 * heads * tokens) / 4
    expected = 34 * tokens * hidden / 4 + statistics
    assert activations.dense_layer_activation_bytes(x)[0] == expected


@pytest.mark.parametrize(("tp", "cp"), [(1, 1), (1, 4), (8, 2)])
def test_full_recompute_keeps_the_input_of_a_layer(tp, cp):
    """2 bytes a token and channel, sharded with sp; plus one layer live while it runs backward."""
    rows = [
        {"tp": tp, "cp": cp, "sp": int(tp > 1), "recompute": "full", "num_microbatches": 4},
        {"tp": tp, "cp": cp, "sp": int(tp > 1), "recompute": "none", "num_microbatches": 4},
    ]
    four, eight = (
        memory.activations_bytes(inputs(spec(layers=n), *rows, stack="megatron")) for n in (4, 8)
    )
    each = (eight - four)[:, 0] / 4
    layer = activations.dense_layer_activation_bytes(inputs(spec(), *rows, stack="megatron"))
    assert each[0] == pytest.approx(2 * 1024 / cp * 256 / tp)
    assert each[1] == pytest.approx(layer[1])


# --- loss


@pytest.mark.parametrize("row", [r for r in table("loss_peak.csv") if "float()" in r["variant"]])
def test_the_loss_takes_what_torch_takes_at_its_peak(row):
    if "chunked" in row["variant"]:
        return
    tokens, vocab, hidden, peak = numbers(row, "T", "V", "h", "peak_extra_bytes")
    stack = "torchtitan" if "dropped" in row["variant"] else "deepspeed"
    model = spec(vocab=vocab, hidden=hidden)
    x = inputs(model, {}, seq_tokens=tokens, stack=stack)
    assert memory.logits_bytes(x)[0, 0] == pytest.approx(peak, rel=1e-3)


def test_megatrons_loss_is_split_by_tp_and_sits_on_the_last_stage():
    rows = [{"tp": tp, "pp": 2, "schedule": "1f1b"} for tp in (1, 4)]
    x = inputs(spec(), *rows, stack="megatron", every_stage=False)
    logits = np.where(x.stages.last == 1, memory.logits_bytes(x), 0).max(axis=1)
    assert logits.tolist() == [6 * 1024 * 8192, 6 * 1024 * 8192 / 4]
    assert (memory.logits_bytes(x)[x.stages.last == 0] == 0).all()


# --- pipeline


@functools.cache
def in_flight(schedule, pp, v, m):
    row = {"pp": pp, "vpp": v, "schedule": schedule, "num_microbatches": m}
    x = inputs(spec(layers=pp * v), row, every_stage=True)
    return microbatches_in_flight(x)[0]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
def test_chunks_in_flight_are_those_of_torchs_own_schedules(schedule):
    rows = [r for r in table("pipeline_inflight.csv") if r["schedule"] == schedule]
    assert len(rows) >= 120
    for row in rows:
        pp, v, m, rank, peak = numbers(row, "pp", "v", "m", "rank", "peak_chunks")
        if schedule == "interleaved" and v == 1:
            continue
        assert in_flight(schedule, pp, v, m)[rank] * v == pytest.approx(peak), row


# --- collectives


@pytest.mark.parametrize("cluster", ["dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200"])
def test_collectives_in_a_node_take_the_measured_time(cluster):
    errors = []
    for row in table("collectives.csv"):
        if row["cluster"] != cluster:
            continue
        x = inputs(spec(), {}, cluster=cluster)
        n = np.array([int(row["gpus"])])
        told = inside_s(x, row["op"], float(row["bytes"]), n)[0]
        errors.append(abs(told * 1e6 / float(row["time_us"]) - 1))
    assert len(errors) >= 40
    assert np.median(errors) < 0.10
    assert np.quantile(errors, 0.9) < 0.30


# --- states


@pytest.mark.parametrize("dp", [2, 8, 64])
def test_megatron_holds_18_bytes_or_6_and_12_over_dp(dp):
    """Megatron-LM docs/user-guide/features/dist_optimizer: bf16 parameters, fp32 gradients."""
    rows = [{"dp": dp, "zero": zero} for zero in (0, 1)]
    x = inputs(spec(), *rows, stack="megatron", cluster="dgx-h100:8")
    parts = memory.weights_bytes(x), memory.gradients_bytes(x), memory.optimizer_bytes(x)
    each = sum(parts)[:, 0] / (sum(parts)[0, 0] / 18)
    assert each == pytest.approx([18, 6 + 12 / dp])


def test_deepspeed_stages_divide_what_zero_says():
    """ZeRO table 1 with DeepSpeed's fp32 gradients: at the step, and whole sums under ZeRO-1."""
    rows = [{"dp": 8, "zero": zero} for zero in range(4)]
    x = inputs(spec(), *rows, stack="deepspeed")
    parts = memory.weights_bytes(x), memory.gradients_bytes(x), memory.optimizer_bytes(x)
    each = sum(parts)[:, 0] / (sum(parts)[0, 0] / 20)
    assert each == pytest.approx([20, 2 + 2 + 4 + 16 / 8, 2 + 2 / 8 + 16 / 8, 20 / 8])

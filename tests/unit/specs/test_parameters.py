"""Parameter counts against modules that were really built, and against the papers' own formulas."""

import csv
import dataclasses
from pathlib import Path

import pytest

from planner.specs.catalog import load_model
from planner.specs.model import Experts, LatentAttention, ModelSpec, QkNorm
from planner.specs.parameters import count_parameters, layer_parameters, padded_vocab

MEASURED = Path(__file__).parents[2] / "measured"
SMALL = ModelSpec(
    name="small",
    layers=3,
    hidden=10,
    heads=4,
    kv_heads=2,
    head_dim=3,
    ffn=7,
    vocab=11,
    max_seq_tokens=16,
)


def rows(name):
    lines = (MEASURED / name).read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def numbers(row, *names):
    return {name: int(row[name]) for name in names}


@pytest.mark.parametrize("row", rows("params_oracle.csv"), ids=lambda row: row["model"])
def test_every_part_equals_the_modules_that_transformers_builds(row):
    counted = dataclasses.asdict(count_parameters(load_model(row["model"])))
    assert counted == numbers(row, *counted)


@pytest.mark.parametrize(
    "row", rows("params_layer_oracle.csv"), ids=lambda row: f"{row['model']}-{row['kind']}"
)
def test_each_kind_of_layer_equals_the_module_that_transformers_builds(row):
    model, moe = load_model(row["model"]), row["kind"] == "moe"
    layer = layer_parameters(model, moe=moe)
    assert numbers(row, "total", "attention", "router", "experts", "norms") == {
        name: getattr(layer, name) for name in ("total", "attention", "router", "experts", "norms")
    }
    assert layer.mlp + layer.mlp_replicated == int(row["mlp"])
    assert model.moe_layers.count(moe) == int(row["layers"])
    assert model.moe_layers.index(moe) == int(row["first"])


def test_the_table_is_whole():
    assert len(rows("params_oracle.csv")) == 57


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gpt-1.7b", 1.7),
        ("gpt-3.6b", 3.6),
        ("gpt-7.5b", 7.5),
        ("gpt-18b", 18.4),
        ("gpt-39b", 39.1),
        ("gpt-76b", 76.1),
        ("gpt-145b", 145.6),
        ("gpt-310b", 310.1),
        ("gpt-530b", 529.6),
        ("gpt-1t", 1008.0),
    ],
)
def test_megatron_models_are_as_large_as_their_paper_says(name, billions):
    """Equation 2 of arXiv:2104.04473, and the size that its table 1 prints."""
    model = load_model(name)
    layers, hidden, vocab, seq = model.layers, model.hidden, model.vocab, model.max_seq_tokens
    paper = 12 * layers * hidden**2 + 13 * layers * hidden + (vocab + seq) * hidden
    total = count_parameters(model).total
    assert total == paper + 2 * hidden  # the equation leaves out the last norm
    assert total / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("deepseek-v2-lite", 15.7),
        ("gpt-22b", 22.06),
        ("gpt-3-1.3b", 1.3),
        ("gpt-3-13b", 12.85),
        ("gpt-3-175b", 174.6),
        ("mt-nlg-530b", 529.6),
        ("moonlight-16b-a3b", 15.96),
        ("nemotron-4-15b", 15.63),
        ("nemotron-4-340b", 341.02),
        ("qwen2.5-14b", 14.77),
    ],
)
def test_other_models_are_as_large_as_published(name, billions):
    assert count_parameters(load_model(name)).total / 1e9 == pytest.approx(billions, rel=0.015)


def test_a_small_gated_layer_by_hand():
    layer = layer_parameters(SMALL, moe=False)
    assert layer.attention_heads == 10 * 12 + 12 * 10  # q: 4 heads of 3; o back to 10
    assert layer.attention_kv == 2 * 10 * 6  # k and v: 2 heads of 3 each
    assert layer.attention_replicated == 0
    assert layer.mlp == 3 * 10 * 7
    assert layer.norms == 2 * 10


def test_biases_go_where_their_outputs_are_divided():
    biased = SMALL.model_copy(
        update={"qkv_bias": True, "attention_output_bias": True, "mlp_bias": True}
    )
    plain, layer = layer_parameters(SMALL, moe=False), layer_parameters(biased, moe=False)
    assert layer.attention_heads - plain.attention_heads == 12
    assert layer.attention_kv - plain.attention_kv == 12
    assert layer.attention_replicated == 10
    assert layer.mlp - plain.mlp == 2 * 7
    assert layer.mlp_replicated == 10


def test_latent_attention_keeps_its_down_projections_whole():
    mla = LatentAttention(
        q_lora_rank=5, kv_lora_rank=6, qk_nope_head_dim=2, qk_rope_head_dim=1, v_head_dim=4
    )
    layer = layer_parameters(SMALL.model_copy(update={"mla": mla}), moe=False)
    assert layer.attention_replicated == 10 * 5 + 10 * (6 + 1)
    assert layer.attention_heads == 5 * 4 * 3 + 6 * 4 * (2 + 4) + 4 * 4 * 10
    assert layer.attention_kv == 0
    assert layer.norms == 2 * 10 + 5 + 6


def test_latent_attention_without_a_query_rank_projects_queries_whole():
    mla = LatentAttention(
        kv_lora_rank=6, qk_nope_head_dim=2, qk_rope_head_dim=1, v_head_dim=4, q_lora_rank=None
    )
    layer = layer_parameters(SMALL.model_copy(update={"mla": mla}), moe=False)
    assert layer.attention_heads == 10 * 4 * 3 + 6 * 4 * (2 + 4) + 4 * 4 * 10
    assert layer.attention_replicated == 10 * (6 + 1)


@pytest.mark.parametrize(
    ("kind", "more"), [(QkNorm.NONE, 0), (QkNorm.HEAD, 3 + 3), (QkNorm.FULL, 12 + 6)]
)
def test_norms_of_queries_and_keys(kind, more):
    layer = layer_parameters(SMALL.model_copy(update={"qk_norm": kind}), moe=False)
    assert layer.norms == 20 + more


def test_active_leaves_out_the_experts_a_token_does_not_visit():
    experts = Experts(count=8, top_k=2, ffn=5, shared_ffn=4, first_dense_layers=1)
    counted = count_parameters(SMALL.model_copy(update={"experts": experts}))
    assert counted.total - counted.active == 2 * (8 - 2) * 3 * 10 * 5  # 2 of 3 layers hold experts
    assert counted.mlp == 3 * 10 * 7 + 2 * 3 * 10 * 4
    assert counted.router == 2 * 8 * 10


def test_tied_weights_are_counted_once():
    tied = count_parameters(SMALL.model_copy(update={"tied_embeddings": True}))
    untied = count_parameters(SMALL)
    assert (tied.output, untied.output) == (0, 110)
    assert untied.total - tied.total == 110


def test_multi_token_prediction_layers_are_not_in_the_total():
    more = SMALL.model_copy(update={"mtp_layers": 2})
    assert count_parameters(more) == count_parameters(SMALL)


@pytest.mark.parametrize(
    ("vocab", "tp", "padded"),
    [(50257, 1, 50304), (50257, 8, 51200), (50257, 2, 50432), (128256, 8, 129024), (128, 1, 128)],
)
def test_vocabulary_is_padded_as_megatron_pads_it(vocab, tp, padded):
    assert padded_vocab(vocab, tp) == padded


def test_padding_works_on_arrays():
    np = pytest.importorskip("numpy")
    np.testing.assert_array_equal(padded_vocab(50257, np.array([1, 8])), [50304, 51200])

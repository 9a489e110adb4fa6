"""Finding specs by name and by path, and the YAML that ships."""

import json
import subprocess
import sys

import pytest
import yaml

from planner.errors import SpecError
from planner.files import data_folder
from planner.specs import catalog
from planner.specs.catalog import load_accelerator, load_cluster, load_model
from planner.specs.model import ModelSpec

MODEL = {
    "layers": 2,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 16,
    "ffn": 128,
    "vocab": 100,
    "max_seq_tokens": 32,
}
ACCELERATOR = {
    "name": "toy",
    "memory_gib": 80,
    "usable_memory_gib": 79,
    "hbm_gb_per_s": 3000,
    "peak_tflops": {"bf16": 1e3},
    "gemm": {"t0_us": 5, "emax": 0.8},
    "attention": {"te": 0.6, "fa2": 0.4},
    "sources": {"memory_gib": "made up for this test"},
}
CLUSTER = {
    "accelerator": ACCELERATOR,
    "node": {"gpus": 8, "nics": 8, "nic_gbit_per_s": 400},
    "scale_up": {"kind": "NVLink", "gb_per_s": 450},
    "fabric": {"kind": "rail", "nodes_per_leaf": 32},
}


def written(folder, data, name="mine.yaml"):
    path = folder / name
    path.write_text(json.dumps(data) if name.endswith("json") else yaml.safe_dump(data))
    return str(path)


def refusal(action, text):
    with pytest.raises(SpecError) as caught:
        action(text)
    return str(caught.value)


# --- what ships ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalog.model_names())
def test_every_shipped_model_loads_under_its_name_and_says_its_source(name):
    model = load_model(name)
    assert model.name == name
    assert model.source


@pytest.mark.parametrize("name", catalog.model_names())
def test_a_shipped_model_keeps_the_order_of_its_fields_and_leaves_defaults_out(name):
    path = data_folder("model_specs") / f"{name}.yaml"
    data = yaml.safe_load(path.read_text())
    order = list(ModelSpec.model_fields)
    assert list(data) == sorted(data, key=order.index)
    assert data == load_model(name).model_dump(mode="json", exclude_defaults=True)


def test_the_models_that_people_ask_for_ship():
    asked = {"llama-3.1-405b", "deepseek-v3", "gpt-3-175b", "gpt-1t", "mt-nlg-530b", "kimi-k2"}
    assert asked <= set(catalog.model_names())


def test_names_are_sorted():
    for names in (catalog.model_names(), catalog.cluster_names(), catalog.accelerator_names()):
        assert list(names) == sorted(names)


def test_no_two_shipped_names_differ_only_in_case_and_dashes():
    for names in (catalog.model_names(), catalog.cluster_names(), catalog.accelerator_names()):
        plain = [name.lower().translate(str.maketrans("", "", "-_ ")) for name in names]
        assert len(set(plain)) == len(plain)


def test_listing_names_loads_neither_numpy_nor_the_solver_and_parses_nothing():
    script = (
        "import sys, yaml\n"
        "yaml.parse = yaml.load = None\n"
        "from planner.specs import catalog\n"
        "assert catalog.model_names()\n"
        "catalog.cluster_names(), catalog.accelerator_names()\n"
        "print([m for m in ('numpy', 'ortools', 'rich') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# --- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gpt3-175b", "gpt-3-175b"),
        ("Llama-3.1-70B", "llama-3.1-70b"),
        ("llama_3.1 70b", "llama-3.1-70b"),
        ("llama31-70b", "llama-3.1-70b"),
        ("DEEPSEEK_V3", "deepseek-v3"),
        ("gpt-3-1.3b", "gpt-3-1.3b"),
        ("gpt3-1.3b", "gpt-3-1.3b"),
        ("gpt3-13b", "gpt-3-13b"),
        ("GPT 3 2 7B", "gpt-3-2.7b"),
    ],
)
def test_names_match_whatever_their_case_and_punctuation(text, name):
    assert load_model(text).name == name


def test_a_name_that_may_mean_two_specs_is_refused(tmp_path, monkeypatch):
    for name in ("a-1.3b", "a-13b"):
        written(tmp_path, MODEL, f"{name}.yaml")
    monkeypatch.setattr(catalog, "data_folder", lambda _: tmp_path)
    assert load_model("A1.3b").name == "a-1.3b"
    assert load_model("a13b").name == "a-13b"
    written(tmp_path, MODEL, "a-1.3-b.yaml")
    assert "may mean" in refusal(load_model, "a1.3b")


@pytest.mark.parametrize("text", ["lama-3.1-8b", "llama-3.1-8", "llama 3.1 8bb"])
def test_an_unknown_name_gets_the_nearest_one(text):
    message = refusal(load_model, text)
    assert f"no model is named '{text}'" in message
    assert "did you mean 'llama-3.1-8b'?" in message
    assert "meshwright specs list" in message


@pytest.mark.parametrize(
    "text", ["", " ", "-", "zzz", "a\0b", "x" * 100_000, "\x1b[31m", ".", ".."]
)
def test_hostile_names_are_refused_in_one_printable_sentence(text):
    message = refusal(load_model, text)
    assert len(message) < 400
    assert all(line.isprintable() for line in message.splitlines())


def test_a_model_of_ones_own_is_named_after_its_file(tmp_path):
    model = load_model(written(tmp_path, MODEL, "tiny.yaml"))
    assert model == ModelSpec(name="tiny", **MODEL)
    assert load_model(written(tmp_path, {"name": "other", **MODEL})).name == "other"


def test_a_spec_may_be_json_too(tmp_path):
    assert load_model(written(tmp_path, MODEL, "tiny.json")) == ModelSpec(name="tiny", **MODEL)


def test_a_file_without_a_suffix_is_found_by_its_path(tmp_path, monkeypatch):
    written(tmp_path, MODEL, "tiny")
    monkeypatch.chdir(tmp_path)
    assert load_model("tiny").hidden == 64


def test_a_shipped_name_wins_over_a_file_beside_us(tmp_path, monkeypatch):
    written(tmp_path, MODEL, "gpt2")
    monkeypatch.chdir(tmp_path)
    assert load_model("gpt2").hidden == 768
    assert load_model("./gpt2").hidden == 64


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 32,
}


def test_a_config_json_is_named_after_its_folder(tmp_path):
    (tmp_path / "My-Model").mkdir()
    path = written(tmp_path / "My-Model", CONFIG, "config.json")
    assert load_model(path).name == "My-Model"
    assert load_model(str(tmp_path / "My-Model")) == load_model(path)
    assert load_model(path).layers == 2


def test_a_directory_without_a_config_is_refused(tmp_path):
    assert "is a directory without a config.json" in refusal(load_model, str(tmp_path))


def test_a_config_that_says_nothing_of_its_kind_is_told_what_it_lacks(tmp_path):
    message = refusal(load_model, written(tmp_path, {"hidden_size": 4}, "config.json"))
    assert "missing: num_hidden_layers" in message


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layers": 10**64}, "field 'layers'"),
        ({"layers": -3}, "field 'layers': -3 is not allowed, must be greater than 0"),
        ({"heads": 5}, "heads (5) is not a multiple of kv_heads (4)"),
        ({"hiden": 64}, "did you mean 'hidden'?"),
        ({"layers": True}, "field 'layers': true"),
        ({"norm": "batchnorm"}, "'rmsnorm' or 'layernorm'"),
        ({"experts": {"count": 10**30, "top_k": 1, "ffn": 4}}, "field 'experts.count'"),
        ({"experts": {"count": 2, "top_k": 3, "ffn": 4}}, "top_k (3) is more than count (2)"),
        ({"experts": {"count": 2, "topk": 2, "ffn": 4}}, "did you mean 'top_k'?"),
        ({"max_seq_tokens": 10**40}, "field 'max_seq_tokens'"),
        ({"mla": []}, "field 'mla': a list is not allowed, must be a mapping of fields"),
    ],
)
def test_a_wrong_model_is_refused_naming_file_and_field(tmp_path, changes, why):
    path = written(tmp_path, {**MODEL, **changes})
    message = refusal(load_model, path)
    assert message.startswith(path)
    assert why in message
    assert len(message.splitlines()) <= 2


def test_nan_in_a_model_is_refused(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("layers: .nan\n")
    assert "line 1: .nan is not a number" in refusal(load_model, str(path))


# --- clusters -----------------------------------------------------------------------------------


def test_a_cluster_is_one_node_unless_it_says_more(tmp_path):
    assert load_cluster(written(tmp_path, CLUSTER)).nodes == 1
    assert load_cluster(written(tmp_path, {**CLUSTER, "nodes": 4})).nodes == 4
    hosts = {**CLUSTER, "hosts": ["a", "b", "c"]}
    assert load_cluster(written(tmp_path, hosts)).nodes == 3


def test_the_number_of_nodes_may_follow_the_name(tmp_path):
    path = written(tmp_path, {**CLUSTER, "nodes": 4})
    cluster = load_cluster(f"{path}:64")
    assert (cluster.name, cluster.nodes, cluster.gpus) == ("mine", 64, 512)


def test_a_list_of_hosts_must_agree_with_the_number(tmp_path):
    path = written(tmp_path, {**CLUSTER, "hosts": ["a", "b"]})
    assert "hosts lists 2 names for 3 nodes" in refusal(load_cluster, f"{path}:3")


@pytest.mark.parametrize(
    "count", ["0", "-1", "x", "", "1.5", "٣", "1e3", "9" * 64, "1000001", " 2"]
)
def test_what_is_no_number_of_nodes_is_refused(tmp_path, count):
    message = refusal(load_cluster, f"{written(tmp_path, CLUSTER)}:{count}")
    assert "is not a number of nodes" in message
    assert "from 1 to 131,072" in message


def test_a_path_may_hold_a_colon(tmp_path):
    path = written(tmp_path, CLUSTER, "rack:7")
    assert load_cluster(path).nodes == 1
    assert load_cluster(f"{path}:2").nodes == 2


def test_an_accelerator_is_named_given_or_changed(tmp_path, monkeypatch):
    shipped = tmp_path / "hardware_specs" / "accelerators"
    shipped.mkdir(parents=True)
    written(shipped, ACCELERATOR, "toy.yaml")
    monkeypatch.setattr(catalog, "data_folder", lambda name: tmp_path / name)
    named = load_cluster(written(tmp_path, {**CLUSTER, "accelerator": "TOY"}))
    assert named.accelerator == load_cluster(written(tmp_path, CLUSTER)).accelerator
    changed = {"base": "toy", "memory_gib": 141}
    assert load_cluster(
        written(tmp_path, {**CLUSTER, "accelerator": changed})
    ).accelerator == named.accelerator.model_copy(update={"memory_gib": 141.0})
    assert load_accelerator("toy") == named.accelerator
    assert "no accelerator is named 'tpy'" in refusal(
        load_cluster, written(tmp_path, {**CLUSTER, "accelerator": "tpy"})
    )
    assert "accelerator.base" in refusal(
        load_cluster, written(tmp_path, {**CLUSTER, "accelerator": {"base": 3}})
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"accelerator": 3}, "field 'accelerator': 3 is not allowed, must be a mapping of fields"),
        ({"acelerator": 3}, "did you mean 'accelerator'?"),
        ({"node": {"gpus": 8, "nics": 8, "nic_gbps": 1}}, "did you mean 'nic_gbit_per_s'?"),
        ({"hosts": 7}, "field 'hosts': 7 is not allowed, must be a list"),
        ({"fabric": {"kind": "ring"}}, "field 'fabric.kind': 'ring' is not allowed, must be"),
        ({"nodes": 2, "node": {"gpus": 8, "nics": 0, "nic_gbit_per_s": 1}}, "need a network"),
    ],
)
def test_a_wrong_cluster_is_refused_naming_file_and_field(tmp_path, changes, why):
    path = written(tmp_path, {**CLUSTER, **changes})
    message = refusal(load_cluster, path)
    assert message.startswith(path)
    assert why in message


def test_an_unknown_cluster_is_refused():
    assert "no cluster is named 'dgx-h1000000'" in refusal(load_cluster, "dgx-h1000000:4")

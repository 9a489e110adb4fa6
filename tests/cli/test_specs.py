"""`specs`: what ships can be listed, shown and checked, and files are taken for what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from planner.cli import app as cli
from planner.specs.catalog import accelerator_names, cluster_names, model_names
from planner.specs.read import read_mapping


def answer(capsys, *words: str):
    assert cli.main(list(words)) == 0
    return json.loads(capsys.readouterr().out)


def test_list_names_everything_that_ships(capsys):
    found = answer(capsys, "specs", "list", "--json")
    assert tuple(found["models"]) == model_names()
    assert tuple(found["clusters"]) == cluster_names()
    assert tuple(found["accelerators"]) == accelerator_names()
    assert "dgx-h100" in found["clusters"]


def test_search_ignores_case_and_punctuation(capsys):
    found = answer(capsys, "specs", "list", "--search", "DGX H-100", "--json")
    assert found["clusters"] == ["dgx-h100"]
    assert cli.main(["specs", "list", "--search", "no-such-thing"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no-such-thing" in captured.err


def test_show_counts_the_parameters_of_a_model_by_part(tmp_path, capsys):
    # GPT-2 small as Hugging Face writes it; 124,439,808 parameters, the output table tied
    config = dict(model_type="gpt2", n_embd=768, n_layer=12, n_head=12, n_positions=1024)
    config |= dict(vocab_size=50257, activation_function="gelu_new", tie_word_embeddings=True)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    shown = answer(capsys, "specs", "show", str(file), "--json")
    assert shown["kind"] == "model"
    assert shown["parameters"]["total"] == 124_439_808
    assert shown["parameters"]["output"] == 0
    parts = ("embedding", "attention", "mlp", "router", "experts", "norms", "output")
    assert sum(shown["parameters"][p] for p in parts) == 124_439_808
    assert cli.main(["specs", "show", str(file)]) == 0
    assert "124,439,808" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kind"), [("dgx-h100:64", "cluster"), ("h100-sxm-80gb", "accelerator")]
)
def test_show_finds_out_what_a_name_is_and_prints_yaml(name, kind, capsys):
    shown = answer(capsys, "specs", "show", name, "--json")
    assert shown["kind"] == kind
    assert cli.main(["specs", "show", name]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == shown["spec"]


def test_what_show_prints_is_a_spec_file_again(tmp_path, capsys):
    assert cli.main(["specs", "show", "dgx-h100:4"]) == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    shown = answer(capsys, "specs", "show", str(file), "--json")
    assert shown == answer(capsys, "specs", "show", "dgx-h100:4", "--json")
    assert shown["gpus"] == 32
    assert answer(capsys, "specs", "show", f"{file}:2", "--json")["gpus"] == 16


def test_check_tells_every_kind_apart(tmp_path, capsys, cluster, model):
    contents = {
        "model": model.model_dump_json(),
        "cluster": cluster.model_dump_json(exclude_none=True),
        "accelerator": cluster.accelerator.model_dump_json(exclude_none=True),
        "workload": '{"seq_tokens": 4096, "global_batch": 8}',
    }
    for kind, text in contents.items():
        (tmp_path / f"{kind}.json").write_text(text)
    files = [str(tmp_path / f"{kind}.json") for kind in contents]
    found = answer(capsys, "specs", "check", *files, "--json")["files"]
    assert [(f["kind"], f["ok"]) for f in found] == [(kind, True) for kind in contents]


def test_check_says_which_file_is_wrong_and_still_reads_the_others(tmp_path, capsys, model):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump(model.model_dump(mode="json")))
    bad.write_text("layers: -1\nhidden: 8\n")
    assert cli.main(["specs", "check", str(bad), str(good)]) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{good}: ok (model tiny-70b)\n"
    assert captured.err.count("error:") == 1
    assert "bad.yaml" in captured.err


@pytest.mark.parametrize("words", [("show", "dgx-h1000"), ("show", "nothing.yaml")])
def test_what_is_not_there_is_refused_with_exit_2(words, capsys):
    assert cli.main(["specs", *words]) == 2
    assert words[1] in capsys.readouterr().err


def test_a_near_miss_gets_a_suggestion(capsys):
    assert cli.main(["specs", "show", "dgx-h1000"]) == 2
    assert "did you mean 'dgx-h100'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["model", "cluster", "accelerator", "workload"])
def test_schema_is_json_schema_that_names_the_fields(kind, capsys):
    schema = answer(capsys, "specs", "schema", kind)
    known = {"model": "layers", "cluster": "fabric", "accelerator": "gemm", "workload": "stack"}
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert known[kind] in schema["properties"]


def test_the_cluster_schema_allows_what_files_may_write(capsys):
    schema = answer(capsys, "specs", "schema", "cluster")
    forms = schema["properties"]["accelerator"]["anyOf"]
    assert {"type": "string"}.items() <= forms[1].items()
    extends, mix, whole = (form["required"] for form in schema["anyOf"])
    assert (extends, mix) == (["extends"], ["mix"])
    assert {"accelerator", "node"} < set(whole)
    assert not {"name", "nodes"} & set(whole)


STUDY = """\
fixed: {model: llama-3.1-8b, cluster: dgx-h100, seq: 4096, fix.tp: "2"}
axes:
  nodes, global_batch: [[1, 64], [2, 128]]
  cluster.fabric.leaf_oversubscription: [1, 2]
"""


def test_the_study_schema_takes_what_the_sweep_takes(capsys, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    schema = answer(capsys, "specs", "schema", "study")
    jsonschema.validate(yaml.safe_load(STUDY), schema)
    for wrong in ("seq: 4096", "nodes, global_batch: [[1, 64], [2, 128]]"):
        name = wrong.partition(":")[0]
        broken = yaml.safe_load(STUDY.replace(wrong, wrong.replace(name, "sequence")))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    assert cli.main(["specs", "check", str(file)]) == 0
    assert "ok (study study)" in capsys.readouterr().out
    file.write_text(STUDY.replace("seq", "sequence"))
    assert cli.main(["specs", "check", str(file)]) == 2


def test_every_shipped_file_passes_their_schema(capsys):
    jsonschema = pytest.importorskip("jsonschema")
    root = Path(__file__).resolve().parents[2]
    folders = {
        "model": root / "model_specs",
        "cluster": root / "hardware_specs/clusters",
        "accelerator": root / "hardware_specs/accelerators",
    }
    for kind, folder in folders.items():
        schema = answer(capsys, "specs", "schema", kind)
        files = sorted(folder.glob("*.yaml"))
        assert files
        for file in files:
            jsonschema.validate(read_mapping(file), schema)

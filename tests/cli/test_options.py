"""The small languages of the options: text in, words out, and one message for what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.cli.asking import Asked, default_batch, request_of, workload_of
from planner.cli.machines import real_cluster
from planner.cli.names import LAYOUT_FIELDS
from planner.cli.options import fields_of, listed, rule_of, shares_of, words_of
from planner.errors import SpecError
from planner.layouts.ranges import FIXABLE


def test_layout_fields_are_those_that_the_search_can_fix():
    assert LAYOUT_FIELDS == FIXABLE


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ("tp=8", {"tp": "8"}),
        (" tp = 8 , pp=4..16 ", {"tp": "8", "pp": "4..16"}),
        ("micro-batch=1|2,recompute=full", {"micro_batch": "1|2", "recompute": "full"}),
        ("TP=8,", {"tp": "8"}),
    ],
)
def test_fields_are_read_as_written(text, fields):
    assert fields_of(text, option="--fix") == fields


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tpp=8", "did you mean 'tp'"),
        ("recomputation=full", "did you mean 'recompute'"),
        ("8", "unknown layout field '8'"),
        ("=8", "unknown layout field ''"),
        ("tp", "'tp' has no value"),
        ("tp=", "'tp' has no value"),
        ("tp=1,tp=1", "'tp' is given twice"),
        ("micro_batch=1,micro-batch=2", "'micro_batch' is given twice"),
    ],
)
def test_what_is_no_field_is_refused_with_a_hint(text, said):
    with pytest.raises(SpecError) as raised:
        fields_of(text, option="--fix")
    assert said in str(raised.value)
    assert raised.value.hint


def test_words_come_from_the_option_or_from_a_file(tmp_path):
    file = tmp_path / "bad.txt"
    file.write_text("node1, node2:3  # the loud one\n\nnode9\n")
    assert words_of("node1,node2:3, node9", option="--unhealthy") == ("node1", "node2:3", "node9")
    assert words_of(f"@{file}", option="--unhealthy") == ("node1", "node2:3", "node9")
    assert words_of(None, option="--unhealthy") == ()


@pytest.mark.parametrize("text", ["", ",", "@", "@/nowhere/at/all", "@."])
def test_words_that_name_nothing_are_refused(text):
    with pytest.raises(SpecError):
        words_of(text, option="--unhealthy")


@pytest.mark.parametrize("content", [b"", b"# none\n", b"\xff\xfe\x00", b"no\x1bde\n"])
def test_a_list_file_needs_printable_names(tmp_path, content):
    file = tmp_path / "hosts"
    file.write_bytes(content)
    with pytest.raises(SpecError):
        listed(file, option="--nodes-file")


@pytest.mark.parametrize("text", ["[1, 2.5, 0]", "1\n2.5\n0\n", "1,2.5,0"])
def test_expert_shares_are_read_from_json_or_lines(tmp_path, text):
    file = tmp_path / "load"
    file.write_text(text)
    assert shares_of(file, option="--expert-load") == (1.0, 2.5, 0.0)


@pytest.mark.parametrize("text", ["", "[]", "[1, null]", "[1", "[[1]]", "one", "nan", "[1e999]"])
def test_expert_shares_must_be_finite_numbers(tmp_path, text):
    file = tmp_path / "load"
    file.write_text(text)
    with pytest.raises(SpecError, match="--expert-load"):
        shares_of(file, option="--expert-load")


def test_deep_json_is_refused_rather_than_recursed_into(tmp_path):
    file = tmp_path / "load"
    file.write_text("[" * 200_000)
    with pytest.raises(SpecError):
        shares_of(file, option="--expert-load")


@pytest.mark.parametrize(
    ("seq", "gpus", "batch"),
    [
        (8192, 256, 512),  # 4M tokens
        (2048, 8, 2048),
        (8192, 16384, 2048),  # 16M tokens, as Llama 3 405B was trained
        (8192, 96, 384),  # 3 * 128: divides by every factor of 96
        (2**23, 8, 1),
    ],
)
def test_the_default_batch_is_about_4m_tokens_and_divides_evenly(seq, gpus, batch):
    assert default_batch(seq, gpus) == batch


@pytest.mark.parametrize(
    ("layout", "batch"),
    [
        ({"tp": "4", "pp": "4", "dp": "12"}, 384),
        ({"tp": "4", "pp": "2", "cp": "2", "dp": "12"}, 384),
        ({"tp": "4", "pp": "4", "dp": "8", "micro_batch": "3"}, 384),
        ({"tp": "4", "pp": "4", "dp": "8", "micro_batch": "0"}, 512),
        ({"tp": "4", "pp": "4", "dp": "8", "micro_batch": "99999999999"}, 512),
        ({"tp": "4", "dp": "12"}, 640),  # how many stages is open
        ({"tp": "4", "pp": "4", "dp": "1200"}, 640),  # more GPUs than there are
        ({"tp": "4", "pp": "4", "dp": "4|12"}, 640),
    ],
)
def test_a_layout_of_a_part_of_the_cluster_gets_the_batch_that_it_has_alone(layout, batch):
    asked = Asked("llama-3.1-70b", "dgx-h100:40", layout=layout)
    assert request_of(asked, lambda _: None).workload.global_batch == batch
    alone = Asked("llama-3.1-70b", "dgx-h100:24")
    assert request_of(alone, lambda _: None).workload.global_batch == 384


def test_defaults_are_said_and_given_values_are_not(model, capsys):
    work = workload_of(Asked("m", "c", global_batch=64), model, 8)
    assert (work.seq_tokens, work.global_batch) == (8192, 64)
    assert "--seq 8192" in capsys.readouterr().err
    workload_of(Asked("m", "c", seq=4096, global_batch=64), model, 8)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seq": 0}, "--seq: 0"),
        ({"seq": -8192}, "--seq: -8192"),
        ({"global_batch": -1}, "--global-batch: -1"),
        ({"global_batch": 10**30}, "--global-batch"),
        ({"precision": "int3"}, "--precision: int3"),
        ({"optimizer": "lion"}, "--optimizer: lion"),
        ({"stack": "megatorn"}, "megatron"),
        ({"expert_imbalance": 0.5}, "--expert-imbalance: 0.5"),
        ({"expert_imbalance": float("nan")}, "--expert-imbalance: nan"),
        ({"capacity_factor": float("inf")}, "--capacity-factor: inf"),
    ],
)
def test_refused_workload_values_are_named_by_their_option(changes, named, model):
    with pytest.raises(SpecError) as raised:
        workload_of(Asked("m", "c", **changes), model, 8)
    assert named in str(raised.value)


def test_a_nodes_file_names_the_hosts(tmp_path, cluster):
    file = tmp_path / "hosts"
    file.write_text("b[1-2]\n")
    named = real_cluster(cluster, "c.json", nodes_file=file).cluster
    assert (named.nodes, named.host(1)) == (2, "b2")
    with pytest.raises(SpecError, match="lists 2 hosts, ':5' asks for"):
        real_cluster(cluster, "c.json:5", nodes_file=file)
    file.write_text("b1\nb2\nb1\n")
    with pytest.raises(SpecError, match="'b1' is already on line 1"):
        real_cluster(cluster, "c.json", nodes_file=file)
    file.write_text("b1\n$(reboot)\n")
    with pytest.raises(SpecError, match="not a hostname"):
        real_cluster(cluster, "c.json", nodes_file=file)


def test_only_two_rules_place_pipelines():
    assert rule_of("fastest") == "fastest"
    with pytest.raises(SpecError, match="did you mean 'fastest'"):
        rule_of("fast")


def test_hosts_may_be_written_with_brackets(tmp_path):
    from planner.cli.options import hosts_of

    assert hosts_of("a1:3,n[08-10,3]:0,b", option="--slow") == (
        *("a1:3", "n08:0", "n09:0", "n10:0", "n3:0", "b"),
    )
    (tmp_path / "bad").write_text("n[1,2] # down\nb:7\n")
    assert hosts_of(f"@{tmp_path / 'bad'}", option="--slow") == ("n1", "n2", "b:7")
    with pytest.raises(SpecError, match=r"--slow: brackets do not match"):
        hosts_of("n[1-", option="--slow")


def test_a_gpu_without_bf16_gets_fp16_and_that_is_said(capsys):
    asked = Asked(model="gpt2", cluster="dgx-1-v100", seq=1024, global_batch=64)
    assert request_of(asked).workload.precision == "fp16"
    assert "--precision fp16 (v100-sxm2-32gb has no bf16)" in capsys.readouterr().err
    with pytest.raises(SpecError, match="has no BF16") as refused:
        request_of(replace(asked, precision="bf16"))
    assert "fp16" in refused.value.hint
    assert request_of(replace(asked, precision="fp16")).workload.precision == "fp16"
    assert "fp16" not in capsys.readouterr().err

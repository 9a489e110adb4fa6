"""What a study may say, and that each thing it may not is refused by name."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from planner.errors import SpecError
from planner.sweep.evaluate import evaluate
from planner.sweep.points import points_of
from planner.sweep.study import MOST_POINTS, read_study


def points(path):
    return points_of(read_study(path), path)


def without_nulls(path: Path) -> Path:
    """Return the study with the fixed names that were blanked left out."""
    lines = [line for line in path.read_text().splitlines() if not line.endswith(": null")]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_last_axis_varies_fastest(study):
    found = list(read_study(study({"nodes": [1, 2], "fix.tp": [1, 8]})).settings())
    assert [(s["nodes"], s["fix.tp"]) for s in found] == [(1, 1), (1, 8), (2, 1), (2, 8)]


def test_names_joined_by_a_comma_vary_together(study):
    path = study({"nodes, global_batch": [[1, 64], [2, 128]]}, fixed={"global_batch": 64})
    with pytest.raises(SpecError, match="'global_batch' is set twice"):
        read_study(path)
    text = path.read_text().replace("  global_batch: 64\n", "")
    path.write_text(text)
    assert [(p.inputs["nodes"], p.inputs["global_batch"]) for p in points(path)] == [
        (1, 64),
        (2, 128),
    ]


def test_without_axes_there_is_one_point(study):
    (only,) = points(study({}, fixed={"nodes": 2}))
    assert only.request.cluster.nodes == 2


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("cluster.fabric.efficiency", 0.5, lambda r: r.cluster.fabric.efficiency),
        ("cluster.node.nic_gbit_per_s", 100, lambda r: r.cluster.node.nic_gbit_per_s),
        ("cluster.accelerator.tdp_w", 500, lambda r: r.cluster.accelerator.tdp_w),
        ("model.layers", 12, lambda r: r.model.layers),
        ("fix.tp", "4..8", lambda r: r.fix["tp"]),
        ("precision", "fp8", lambda r: r.workload.precision.value),
        ("stack", "megatron", lambda r: r.workload.stack),
        ("max_memory", 0.5, lambda r: r.workload.max_memory),
        ("risk_memory", 0.5, lambda r: r.workload.risk_memory),
        ("gpus", 4, lambda r: r.gpus),
        ("search", "offload,precision", lambda r: ",".join(r.search)),
    ],
)  # fmt: skip
def test_every_kind_of_name_reaches_the_request(study, path, value, read):
    (point,) = points(study({path: [value]}))
    assert point.refused is None
    assert read(point.request) == value
    assert value in point.inputs.values() or point.inputs["fix"] == f"tp={value}"


def test_lengths_and_shares_are_written_as_options_are(study):
    """'8k' and 8192 are the same point, with the same id and the same columns."""
    typed, plain = (
        points(without_nulls(study({"seq": [length]}, fixed={"seq": None, "max_memory": share})))
        for length, share in (("8k", "90%"), (8192, 0.9))
    )
    assert typed[0].request.workload.seq_tokens == 8192
    assert typed[0].request.workload.max_memory == pytest.approx(0.9)
    assert (typed[0].id, typed[0].inputs) == (plain[0].id, plain[0].inputs)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"seq": ["8kk"]}, "'8kk' is not allowed, must be a number of tokens, 8192 or 8k"),
        ({"seq": ["0"]}, "must be a number of tokens"),
        ({"max_memory": ["most"]}, "must be a share above 0, 0.9 or 90%"),
        ({"max_memory": ["0%"]}, "must be a share above 0"),
        ({"global_batch": ["8k"]}, "must be a whole number"),
    ],
    ids=str,
)
def test_what_is_no_length_or_share_is_refused_by_name(study, axes, said):
    fixed = {name: None for name in axes if name in ("seq", "global_batch")}
    with pytest.raises(SpecError) as refused:
        points(without_nulls(study(axes, fixed)))
    assert said in str(refused.value)


def test_a_gpu_without_bf16_is_planned_in_fp16_and_one_without_fp8_is_refused(study):
    old, asked, fp8 = (
        points(without_nulls(study({"cluster": [name]}, {"cluster": None, **more})))[0]
        for name, more in (
            ("dgx-1-v100", {}),
            ("dgx-1-v100", {"precision": "bf16"}),
            ("dgx-a100", {"precision": "fp8"}),
        )
    )
    assert old.request.workload.precision == "fp16"
    assert "no BF16" in asked.refused["reason"]
    assert "no FP8" in fp8.refused["reason"]


def test_an_accelerator_may_be_swapped_by_name(study):
    first, second = points(study({"cluster.accelerator": ["h100-sxm-80gb", "h200-sxm-141gb"]}))
    assert (
        first.request.cluster.accelerator.memory_gib < second.request.cluster.accelerator.memory_gib
    )


def test_fix_is_text_a_mapping_or_dotted_and_means_the_same(study):
    ids = {
        points(study({}, fixed=fixed))[0].id
        for fixed in (
            {"fix": "tp=8,zero=1"},
            {"fix": {"zero": 1, "tp": 8}},
            {"fix.tp": 8, "fix.zero": 1},
        )
    }
    assert len(ids) == 1


def test_an_id_follows_what_a_point_resolves_to_not_how_it_is_written(study):
    (named,) = points(study({}, fixed={"cluster": "dgx-h100:2"}))
    (counted,) = points(study({}, fixed={"cluster": "DGX_H100", "nodes": 2}))
    (other,) = points(study({}, fixed={"cluster": "dgx-h100:4"}))
    assert named.id == counted.id != other.id


def test_spec_files_are_found_beside_the_study_wherever_one_stands(study, tmp_path, monkeypatch):
    path = study({})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert points(path)[0].inputs["model"] == "small"


def test_what_a_point_may_choose_is_in_its_row_and_an_unknown_axis_refuses_the_study(study):
    (point,) = points(study({"search": ["precision"]}))
    row = evaluate(point.request)
    assert row["search.precision"] in ("bf16", "fp8")
    with pytest.raises(SpecError, match="--search: 'precison' is no axis") as error:
        points(study({"search": ["offload", "precison"]}))
    assert "did you mean 'precision'" in error.value.hint


def test_a_contradiction_is_a_refused_point_and_stops_no_other(study):
    bad, good = points(study({"cluster.fabric.leaf_oversubscription": [0.5, 2]}))
    assert bad.request is None
    assert "leaf_oversubscription" in bad.refused["reason"]
    assert bad.refused["status"] == "refused"
    assert good.request is not None


@pytest.mark.parametrize(
    ("axes", "fixed", "said"),
    [
        ({"nodse": [1]}, {}, "did you mean 'nodes'"),
        ({"nodes": []}, {}, "axes.nodes: lists no values"),
        ({"nodes": [1, 0]}, {}, "axes.nodes[1]: 0 is not allowed, must be a whole number"),
        ({"nodes": [True]}, {}, "axes.nodes[0]: True is not allowed"),
        ({"nodes": [1.5]}, {}, "1.5 is not allowed"),
        ({"nodes": 4}, {}, "field 'axes.nodes': 4 is not allowed, must be a list"),
        ({"nodes, fix": [[1]]}, {}, "must be a list of 2 values"),
        ({"model": ["llama-3.1-80b"]}, {"model": None}, "no model is named"),
        ({"cluster": ["dgx-h1000"]}, {"cluster": None}, "did you mean 'dgx-h100'"),
        ({"cluster.fabric.leaf_oversubsription": [1]}, {}, "did you mean 'leaf_oversubscription'"),
        ({"cluster.fabrik.x": [1]}, {}, "did you mean 'fabric'"),
        ({"cluster.nodes": [1]}, {}, "set 'nodes'"),
        ({"fix.tpp": [1]}, {}, "did you mean 'tp'"),
        ({"fix": ["tp"]}, {}, "'tp' has no value"),
        ({"fix": ["tp=8", "zero=9"]}, {}, "zero=9"),
        ({"stack": ["megatrom"]}, {}, "did you mean 'megatron'"),
        ({"nodes": [1]}, {"nodes": 1}, "'nodes' is set twice"),
        ({"nodes": [2]}, {"cluster": "dgx-h100:2"}, "gives its nodes"),
        ({"cluster.fabric": [{}], "cluster.fabric.efficiency": [1]}, {}, "is part of"),
        ({"nodes": list(range(1, 2000)), "seq": list(range(1, 2000))}, {"seq": None}, "at most"),
        ({}, {"seq": None}, "'seq' is neither fixed nor an axis"),
        ({}, {"max_memory": -1}, "fixed.max_memory: -1 is not allowed"),
        ({}, {"": 1}, "unknown name ''"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_study_may_not_say_is_refused_by_name(study, axes, fixed, said):
    path = without_nulls(study(axes, fixed))
    with pytest.raises(SpecError) as refused:
        points(path)
    assert said in str(refused.value)
    assert "study.yaml" in refused.value.message


def test_a_product_that_is_too_large_is_refused_before_it_is_made(study):
    assert MOST_POINTS < 10**6
    axes = {name: list(range(1, 1000)) for name in ("nodes", "gpus", "max_memory")}
    with pytest.raises(SpecError, match="997,002,999 points"):
        read_study(study(axes))


def test_unknown_fields_of_the_file_are_refused(study):
    with pytest.raises(SpecError, match="unknown field 'axis'"):
        read_study(study(axis={}))


def test_the_study_in_the_docs_is_one(tmp_path):
    page = (Path(__file__).resolve().parents[3] / "docs/sweeps.md").read_text()
    path = tmp_path / "study.yaml"
    path.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    found = points(path)
    assert len(found) == 9
    assert all(point.refused is None for point in found)


WORDS = ["nodes", "model", "cluster", "fix", "seq", ".", ",", "tp=8", "cluster.fabric", "é", "null",
         "-1", "1e999", "[", "{", "]", "}", ": ", "\n  ", "- ", "&a", "*a", "!!python/x", "\x00",
         '"', "0x7f", "~", "axes", "fixed", "#", "%", "@", "9" * 400]  # fmt: skip


def test_hundreds_of_damaged_studies_are_read_or_refused_in_one_message(study):
    path = study({"nodes": [1, 2], "cluster.fabric.efficiency": [0.5, 0.7], "fix": ["", "tp=8"]})
    whole, random_ = path.read_text(), random.Random(11)
    refused = []
    for _ in range(500):
        text = whole
        for _ in range(random_.randint(1, 3)):
            place = random_.randrange(len(text))
            cut = place + random_.choice([0, 1, 5, 20])
            text = text[:place] + random_.choice(WORDS) + text[cut:]
        path.write_text(text)
        try:
            points(path)
        except SpecError as error:
            refused.append(error.message)
    assert len(refused) > 150
    assert [message for message in refused if "study.yaml" not in message] == []


def test_the_network_study_that_ships_asks_for_48_networks_and_a_narrow_one_costs():
    path = Path(__file__).resolve().parents[3] / "examples" / "network.yaml"
    points = points_of(read_study(path), path)
    assert len(points) == len({point.id for point in points}) == 48
    kinds = [point.inputs["cluster.fabric.kind"] for point in points]
    assert {kinds.count("rail"), kinds.count("tor")} == {16, 32}
    wide, narrow = points[0].request, points[3].request
    assert wide
    assert narrow
    assert [p.cluster.fabric.leaf_oversubscription for p in (wide, narrow)] == [1, 8]
    fast = next(p.request for p in points if p.inputs["pipelines"] == "fastest")
    assert (wide.pipelines, fast and fast.pipelines) == ("under-leaf", "fastest")
    took = [evaluate(one)["step_time_s"] for one in (wide, narrow)]
    assert took[0] < took[1]


def test_a_rule_that_there_is_not_is_a_refused_point(tmp_path):
    text = (
        "fixed: {model: llama-3.1-8b, cluster: 'dgx-h100:2', seq: 4096, global_batch: 32}\n"
        "axes: {pipelines: [under-leaf, quickest]}\n"
    )
    path = tmp_path / "study.yaml"
    path.write_text(text)
    good, bad = points_of(read_study(path), path)
    assert good.refused is None
    assert bad.refused is not None
    assert "pipelines: 'quickest' is not a rule" in str(bad.refused["reason"])

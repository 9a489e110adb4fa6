"""ClusterSpec: units, the arithmetic of domains, leafs and pods, names, and what it refuses."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from planner.specs.accelerator import Accelerator
from planner.specs.cluster import ClusterSpec


def gpu(**changes: Any) -> dict[str, Any]:
    return {
        "name": "gpu",
        "memory_gib": 80,
        "usable_memory_gib": 79,
        "hbm_gb_per_s": 3000,
        "peak_tflops": {"bf16": 1000, "fp8": 2000, "tf32": 500},
        "gemm": {"t0_us": 4, "emax": 0.8},
        "attention": {"te": 0.6, "fa2": 0.3},
        "sources": {},
        **changes,
    }


def cluster(**changes: Any) -> ClusterSpec:
    """A DGX-like cluster; `domain`, `leaf` and the like are short for their long names."""
    fabric = {"kind": "rail", "nodes_per_leaf": changes.pop("leaf", None)}
    fabric |= {"leafs_per_pod": changes.pop("pod", None)} | changes.pop("fabric", {})
    scale_up = {"kind": "NVLink", "gb_per_s": 450, "domain_gpus": changes.pop("domain", None)}
    fields: dict[str, Any] = {
        "name": "test",
        "accelerator": gpu(),
        "node": {"gpus": changes.pop("gpus", 8), "nics": 8, "nic_gbit_per_s": 400},
        "scale_up": scale_up,
        "fabric": fabric,
        "nodes": 1,
    }
    return ClusterSpec.model_validate(fields | changes)


def nvl72(trays: int, **changes: Any) -> ClusterSpec:
    return cluster(nodes=trays, gpus=4, domain=72, **changes)


# --- units --------------------------------------------------------------------------------------


def test_figures_are_decimal_but_memory_is_binary():
    spec = cluster()
    assert spec.scale_up.bytes_per_s == 450e9
    assert spec.node.nic_bytes_per_s == 8 * 50e9
    assert spec.accelerator.hbm_bytes_per_s == 3e12
    assert spec.accelerator.usable_memory_bytes == 79 * 2**30


@pytest.mark.parametrize(
    ("peaks", "precision", "tflops"),
    [
        ({"bf16": 1000, "fp8": 2000}, "fp8", 2000),
        ({"bf16": 1000}, "fp8", 1000),
        ({"fp16": 125, "fp32": 16}, "bf16", 125),
        ({"bf16": 312}, "fp16", 312),
        ({"bf16": 312, "tf32": 156, "fp32": 20}, "fp32", 156),
        ({"fp16": 125, "fp32": 16}, "fp32", 16),
        ({"bf16": 300}, "fp32", 300),
    ],
)
def test_a_missing_precision_falls_back_to_the_next_one(peaks, precision, tflops):
    accelerator = Accelerator.model_validate(gpu(peak_tflops=peaks))
    assert accelerator.peak_flops_per_s(precision) == pytest.approx(tflops * 1e12)


# --- domains, leafs, pods -----------------------------------------------------------------------


def test_64_trays_of_nvl72_stand_in_4_racks_of_16():
    spec = nvl72(64)
    domains = [spec.domain_of(i) for i in range(64)]
    assert [len(list(run)) for _, run in groupby(domains)] == [16, 16, 16, 16]


@pytest.mark.parametrize(
    ("trays", "racks"),
    [(1, 1), (16, 1), (18, 1), (19, 2), (36, 2), (37, 3), (60, 4), (100, 6), (144, 8)],
)
def test_nvl72_racks_hold_at_most_18_trays_and_are_as_few_as_that_allows(trays, racks):
    spec = nvl72(trays)
    assert spec.domains == racks == len({spec.domain_of(i) for i in range(trays)})
    assert spec.domain_nodes == 18


@pytest.mark.parametrize("trays", [32, 64, 128, 256, 512, 1024])
def test_a_power_of_two_of_trays_stands_16_to_a_rack(trays):
    spec = nvl72(trays)
    assert set(np.bincount([spec.domain_of(i) for i in range(trays)])) == {16}


def test_a_plain_node_is_its_own_domain():
    spec = cluster(nodes=5)
    assert [spec.domain_of(i) for i in range(5)] == [0, 1, 2, 3, 4]
    assert spec.domain_gpus == 8


def test_2048_nodes_in_scalable_units_of_32_are_64_leafs():
    spec = cluster(nodes=2048, leaf=32)
    leafs = [spec.leaf_of(i) for i in range(2048)]
    assert len(set(leafs)) == 64
    assert all(leafs.count(leaf) == 32 for leaf in set(leafs))
    assert spec.gpus == 16384


def test_a_scalable_unit_of_8_nvl72_racks_is_one_leaf_however_full_the_racks_are():
    full, partly = nvl72(288, leaf=144), nvl72(256, leaf=144)
    assert [full.leaf_of(i) for i in (0, 143, 144, 287)] == [0, 0, 1, 1]
    assert [partly.leaf_of(i) for i in (0, 127, 136, 255)] == [0, 0, 1, 1]


@pytest.mark.parametrize("trays", [1, 17, 18, 19, 64, 100])
def test_a_fabric_without_leafs_is_one_leaf_even_with_partly_filled_racks(trays):
    spec = nvl72(trays)
    assert {spec.leaf_of(i) for i in range(trays)} == {0}


def test_pods_count_leafs_and_without_them_there_is_one():
    spec = cluster(nodes=3072, leaf=2, pod=192)
    assert [spec.pod_of(i) for i in (0, 383, 384, 3071)] == [0, 0, 1, 7]
    assert {cluster(nodes=40, leaf=8).pod_of(i) for i in range(40)} == {0}


@given(
    nodes=st.integers(1, 400),
    gpus=st.sampled_from([1, 4, 8]),
    domain_nodes=st.sampled_from([1, 2, 9, 18]),
    leaf=st.one_of(st.none(), st.integers(1, 150)),
    pod=st.one_of(st.none(), st.integers(1, 5)),
)
def test_domains_nest_in_leafs_and_leafs_in_pods(nodes, gpus, domain_nodes, leaf, pod):
    spec = cluster(nodes=nodes, gpus=gpus, domain=gpus * domain_nodes, leaf=leaf, pod=pod)
    index = np.arange(nodes)
    tiers = (spec.domain_of, spec.leaf_of, spec.pod_of)
    domain, leafs, pods = ([tier(int(i)) for i in index] for tier in tiers)
    for inner, outer in ((domain, leafs), (leafs, pods)):
        assert len(set(zip(inner, outer, strict=True))) == len(set(inner)), "straddles"
    for tier in (domain, leafs, pods):  # runs of consecutive numbers, counted from 0
        assert tier[0] == 0
        assert set(np.diff(tier)) <= {0, 1}
    assert max(np.bincount(domain)) <= domain_nodes
    if leaf:
        assert max(np.bincount(leafs)) <= max(leaf, domain_nodes)


@given(nodes=st.integers(1, 300), leaf=st.integers(1, 100), domain_nodes=st.sampled_from([1, 18]))
def test_all_nodes_at_once_equal_one_by_one(nodes, leaf, domain_nodes):
    spec = cluster(nodes=nodes, gpus=4, domain=4 * domain_nodes, leaf=leaf, pod=3)
    index: Any = np.arange(nodes)
    for tier in (spec.domain_of, spec.leaf_of, spec.pod_of):
        np.testing.assert_array_equal(tier(index), [tier(i) for i in range(nodes)])


# --- names --------------------------------------------------------------------------------------


def test_hosts_are_named_from_one_by_the_pattern():
    assert cluster(nodes=2).host(0) == "node00001"
    assert cluster(nodes=12, host_pattern="gpu-{:03d}").host(11) == "gpu-012"


def test_listed_hosts_are_taken_as_they_are():
    assert cluster(nodes=2, hosts=["left", "right"]).host(1) == "right"


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"nodes": 2, "node": {"gpus": 8, "nics": 0, "nic_gbit_per_s": 1}},
            "2 nodes need a network, but node.nics is 0",
        ),
        (
            {"nodes": 2, "fabric": {"kind": "none"}},
            "2 nodes need a network, but fabric.kind is none",
        ),
        ({"domain": 12}, r"domain_gpus \(12\) is not a multiple of node.gpus \(8\)"),
        ({"domain": 4}, r"domain_gpus \(4\) is not a multiple of node.gpus \(8\)"),
        ({"nodes": 3, "hosts": ["a", "b"]}, "hosts lists 2 names for 3 nodes"),
        ({"accelerator": gpu(usable_memory_gib=81)}, r"\(81.0\) is more than memory_gib \(80.0\)"),
        ({"accelerator": gpu(peak_tflops={"fp8": 2000})}, "peak_tflops needs bf16 or fp16"),
    ],
)
def test_contradictions_are_refused_with_both_sides(changes, message):
    with pytest.raises(ValidationError, match=message):
        cluster(**changes)


def test_one_node_needs_no_network():
    node = {"gpus": 8, "nics": 0, "nic_gbit_per_s": 1}
    assert cluster(node=node, fabric={"kind": "none"}).gpus == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": 0},
        {"nodes": 2.5},
        {"gpus": 0},
        {"leaf": 0},
        {"fabric": {"leaf_oversubscription": 0.5}},
        {"fabric": {"efficiency": 0}},
        {"fabric": {"efficiency": 1.2}},
        {"fabric": {"latency_us": -1}},
        {"fabric": {"kind": "token-ring"}},
        {"accelerator": gpu(hbm_gb_per_s=float("nan"))},
        {"accelerator": gpu(hbm_gb_per_s=float("inf"))},
        {"accelerator": gpu(attention={"te": 58, "fa2": 28})},
        {"accelerator": gpu(gemm={"t0_us": 4, "emax": 1.01})},
        {"accelerator": gpu(peak_tflops={"bf16": 1000, "int8": 2000})},
        {"colour": "green"},
    ],
)
def test_figures_out_of_range_and_unknown_fields_are_refused(changes):
    with pytest.raises(ValidationError):
        cluster(**changes)


# --- leafs that are listed ----------------------------------------------------------------------


def named(*leafs: tuple[str, str, str], **changes: Any) -> ClusterSpec:
    fields = [{"name": n, "pod": p, "hosts": h} for n, p, h in leafs]
    nodes = changes.pop("nodes", sum(len(h.split(",")) for _, _, h in leafs))
    return cluster(leafs=fields, nodes=nodes, **changes)


def test_listed_leafs_say_where_every_node_stands():
    spec = named(("s1", "p", "n[1-3]"), ("s2", "p", "m7"), ("s3", "q", "n[4-5]"), nodes=6)
    assert [spec.host(n) for n in range(6)] == ["n1", "n2", "n3", "m7", "n4", "n5"]
    assert [spec.leaf_of(n) for n in range(6)] == [0, 0, 0, 1, 2, 2]
    assert [spec.pod_of(n) for n in range(6)] == [0, 0, 0, 0, 1, 1]
    assert [spec.domain_of(n) for n in range(6)] == [0, 1, 2, 3, 4, 5]
    assert spec.positions == ((0, 1, 2, 3, 4, 5), (0, 0, 0, 1, 2, 2), (0, 0, 0, 0, 1, 1))
    assert (spec.leaf_nodes, spec.pod_nodes, spec.leaf_name(1)) == (3, 6, "s2")
    assert spec.names_hosts


def test_domains_do_not_cross_listed_leafs():
    # racks of 18 trays: a leaf of 20 holds two half-filled ones, a leaf of 16 one
    spec = named(("a", "", "n[1-20]"), ("b", "", "n[21-36]"), nodes=36, gpus=4, domain=72)
    assert [spec.domain_of(n) for n in (0, 9, 10, 19, 20, 35)] == [0, 0, 1, 1, 2, 2]
    assert (spec.domains, spec.domain_gpus_used) == (3, 64)


def test_a_listed_cluster_reads_back_from_its_own_json():
    spec = named(("a", "p", "n[1-2]"), ("b", "q", "n3"), nodes=3)
    assert ClusterSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("leafs", "changes", "said"),
    [
        ([("a", "", "n1")], {"nodes": 2}, "leafs list 1 hosts for 2 nodes"),
        ([("a", "", "n1"), ("a", "", "n2")], {}, "two leafs have the name 'a'"),
        ([("a", "", "n1"), ("b", "", "n1")], {}, "host 'n1' is listed twice"),
        ([("a", "p", "x"), ("b", "q", "y"), ("c", "p", "z")], {}, "of pod 'p' are not listed one"),
        ([("a", "", "n1")], {"hosts": ["n1"]}, "hosts and leafs both name the nodes"),
        ([("a", "", "n[1-")], {"nodes": 1}, "brackets do not match"),
    ],
)
def test_leafs_that_contradict_are_refused(leafs, changes, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        named(*leafs, **changes)


@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([1, 2, 18]))
def test_positions_agree_with_one_node_at_a_time(nodes, per_leaf, trays):
    spec = cluster(nodes=nodes, leaf=per_leaf, gpus=4, domain=4 * trays, pod=2)
    asked = [(spec.domain_of(n), spec.leaf_of(n), spec.pod_of(n)) for n in range(nodes)]
    assert list(zip(*spec.positions, strict=True)) == asked

"""The shipped hardware: it loads, every figure has a source, and it agrees with datasheets.

The tables here were written down apart from the YAML files, from vendors' datasheets.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.specs.accelerator import Accelerator
from planner.specs.catalog import load_accelerator, load_cluster
from planner.specs.cluster import ClusterSpec, Record

ROOT = Path(__file__).parents[3]
ACCELERATORS = sorted((ROOT / "hardware_specs/accelerators").glob("*.yaml"))
CLUSTERS = sorted((ROOT / "hardware_specs/clusters").glob("*.yaml"))

# Dense 16-bit TFLOP/s with fp32 accumulation, and GB/s of memory, as datasheets give them.
DATASHEET = {
    "v100-sxm2-32gb": (125, 900),
    "a100-sxm-40gb": (312, 1555),
    "a100-sxm-80gb": (312, 2039),
    "a100-pcie-80gb": (312, 1935),
    "h100-sxm-80gb": (989, 3350),
    "h100-pcie-80gb": (756, 2000),
    "h200-sxm-141gb": (989, 4800),
    "h20-sxm-96gb": (148, 4000),
    "b200-sxm-180gb": (2250, 7700),
    "gb200-186gb": (2500, 8000),
    "gb300": (2500, 8000),
    "l40s": (362, 864),
    "l4": (121, 300),
    "rtx-4090": (165.2, 1008),
    "rtx-5090": (209.5, 1792),
    "mi300x": (1307.4, 5300),
    "mi325x": (1307.4, 6000),
    "mi250x": (383 / 2, 3276.8 / 2),  # one of two dies
}

# The best bf16 matrix multiply that anyone reports, TFLOP/s (ml-engineering@744d01e, MAMF).
BEST_ACHIEVED = {
    "a100-sxm-80gb": 271,
    "h100-sxm-80gb": 794,
    "b200-sxm-180gb": 1745,
    "gb200-186gb": 1822,
    "b300-sxm": 1769,
    "mi300x": 668,
    "mi325x": 785,
    "mi355x": 1565,
}

# GB/s of one GPU's NVLink or xGMI, one direction, by the link's name.
LINK = {"NVLink 2": 150, "NVLink 3": 300, "NVLink 4": 450, "NVLink 5": 900}

# GPUs a node, Gbit/s of all its NICs, nodes under a leaf, leafs in a pod.
NETWORK = {
    "dgx-a100": (8, 1600, 20, 7),
    "dgx-h100": (8, 3200, 32, 4),
    "dgx-b200": (8, 3200, 32, 8),
    "gb200-nvl72": (4, 1600, 144, 16),
    "gb300-nvl72": (4, 3200, 144, 16),
    "aws-p3dn": (8, 100, None, None),
    "aws-p4d": (8, 400, None, None),
    "aws-p5": (8, 3200, None, None),
    "aws-p5en": (8, 3200, None, None),
    "gcp-a3-high": (8, 800, None, None),
    "gcp-a3-mega": (8, 1600, 32, None),
    "jean-zay-a100": (8, 400, None, None),
    "meta-24k-roce": (8, 3200, 2, 192),
    "alibaba-hpn": (8, 3200, 128, 15),
    "h100-tor-4to1": (8, 3200, 8, None),
}

# From the machines that papers, clouds and resellers name.
EXPECTED_CLUSTERS = """
dgx-1-v100 dgx-2 dgx-a100 dgx-a100-40gb dgx-h100 dgx-h200 dgx-b200 dgx-b300 gb200-nvl72 gb300-nvl72
aws-p3dn aws-p4d aws-p4de aws-p5 aws-p5en aws-p6-b200 gcp-a2-ultra gcp-a3-high gcp-a3-mega gcp-a4
gcp-a3-ultra azure-nd-a100-v4 azure-nd-h100-v5 azure-nd-mi300x-v5 oci-h100 coreweave-h100 selene eos
lambda-h100-ethernet meta-24k-roce alibaba-hpn deepseek-h800 jean-zay-a100 mi300x-8x400g mi355x-8x
l40s-8x rtx-4090-8x rtx-pro-6000-8x h100-tor-4to1 h100-tor-2to1
"""


def raw(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(path.read_text())
    return data


def holds_a_number(value: object) -> bool:
    if isinstance(value, dict | list):
        return any(map(holds_a_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float)


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda p: p.stem)


def accelerator(path: Path) -> Accelerator:
    return load_accelerator(path.stem)


def cluster(path: Path) -> ClusterSpec:
    return load_cluster(path.stem)


# --- all of them --------------------------------------------------------------------------------


def test_the_clusters_people_ask_for_are_there():
    assert not set(EXPECTED_CLUSTERS.split()) - {p.stem for p in CLUSTERS}


@each(ACCELERATORS)
def test_an_accelerator_loads_under_its_file_name_as_plain_yaml_reads_it(path):
    spec = accelerator(path)
    assert spec.name == raw(path)["name"] == path.stem
    assert spec == Accelerator.model_validate(raw(path))


@each(CLUSTERS)
def test_a_cluster_loads_under_its_file_name_as_plain_yaml_reads_it(path):
    spec, data = cluster(path), raw(path)
    assert spec.name == data["name"] == path.stem
    assert spec.source
    data["accelerator"] = raw(ROOT / f"hardware_specs/accelerators/{data['accelerator']}.yaml")
    assert spec == ClusterSpec.model_validate(data)


@each(ACCELERATORS + CLUSTERS)
def test_every_group_of_figures_has_a_source_and_no_source_is_left_over(path):
    data = raw(path)
    groups = {name for name, value in data.items() if holds_a_number(value)}
    if data.get("nodes") == 1:  # not a figure: how many a user asks for
        groups.remove("nodes")
    if "collectives" in data.get("scale_up", {}):
        groups.add("collectives")
    assert set(data["sources"]) == groups
    assert all(len(text) > 10 for text in data["sources"].values())


# --- accelerators -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASHEET)
def test_peaks_are_dense_and_memory_is_as_fast_as_the_datasheet_says(name):
    spec = load_accelerator(name)
    tflops, gb_per_s = DATASHEET[name]
    assert spec.peak_flops_per_s("bf16") == pytest.approx(tflops * 1e12, rel=2e-3)
    assert spec.hbm_gb_per_s == pytest.approx(gb_per_s, rel=2e-3)


@each(ACCELERATORS)
def test_fp8_is_twice_and_tf32_half_of_16_bit(path):
    peaks = accelerator(path).peak_tflops
    sixteen = peaks.get("bf16") or peaks["fp16"]
    if "fp8" in peaks:
        assert peaks["fp8"] == pytest.approx(2 * sixteen, rel=0.03)
    if "tf32" in peaks:
        assert peaks["tf32"] == pytest.approx(sixteen / 2, rel=0.03)


@each(ACCELERATORS)
def test_fp8_has_a_fit_wherever_it_has_a_peak_and_is_faster_than_16_bit(path):
    spec = accelerator(path)
    assert ("fp8" in spec.peak_tflops) == (spec.gemm_fp8 is not None)
    if spec.gemm_fp8:
        slow = spec.peak_flops_per_s("bf16") * spec.gemm.emax * spec.gemm.derate
        fast = spec.peak_flops_per_s("fp8") * spec.gemm_fp8.emax * spec.gemm_fp8.derate
        assert 1.3 < fast / slow < 2.25


@each(ACCELERATORS)
def test_memory_is_what_the_name_says_and_most_of_it_is_usable(path):
    spec = accelerator(path)
    if sold := re.search(r"(\d+)gb$", path.stem):
        assert spec.memory_gib == pytest.approx(int(sold[1]), rel=0.01)
    assert 0.9 <= spec.usable_memory_gib / spec.memory_gib < 1


@pytest.mark.parametrize("name", BEST_ACHIEVED)
def test_training_sustains_less_than_the_best_multiply_ever_measured(name):
    spec = load_accelerator(name)
    sustained = spec.peak_flops_per_s("bf16") * spec.gemm.emax * spec.gemm.derate / 1e12
    assert 0.6 * BEST_ACHIEVED[name] < sustained < BEST_ACHIEVED[name]


@each(ACCELERATORS)
def test_attention_is_slower_than_matrix_multiplies_and_fa2_never_the_faster_class(path):
    spec = accelerator(path)
    assert spec.attention.fa2 <= spec.attention.te <= spec.gemm.emax


@pytest.mark.parametrize("name", ["b200-sxm-180gb", "gb200-186gb", "b300-sxm", "gb300"])
def test_flash_attention_2_is_no_faster_on_blackwell_than_on_hopper(name):
    def rate(spec: Accelerator) -> float:
        return spec.attention.fa2 * spec.peak_flops_per_s("bf16")

    hopper = rate(load_accelerator("h100-sxm-80gb"))
    assert rate(load_accelerator(name)) == pytest.approx(hopper, rel=0.12)


# --- clusters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORK)
def test_networks_are_as_published(name):
    spec = load_cluster(name)
    gpus, node_gbit, leaf, pod = NETWORK[name]
    assert spec.node.gpus == gpus
    assert spec.node.nic_bytes_per_s == node_gbit * 1e9 / 8
    assert (spec.fabric.nodes_per_leaf, spec.fabric.leafs_per_pod) == (leaf, pod)


@each(CLUSTERS)
def test_nvlink_is_one_direction(path):
    spec = cluster(path)
    if spec.scale_up.kind.endswith("cut"):
        assert spec.scale_up.gb_per_s == 200
    elif rate := LINK.get(spec.scale_up.kind[:8]):
        assert spec.scale_up.gb_per_s == rate


@each(CLUSTERS)
def test_no_collective_beats_its_link(path):
    up = cluster(path).scale_up
    for fit in up.collectives:
        room = 1.2 if fit.op == "all_reduce" and up.topology == "switch" else 1.0  # NVLS adds up
        assert fit.gb_per_s <= room * up.gb_per_s, fit


@each(CLUSTERS)
def test_collectives_stand_once_for_each_number_of_gpus_of_the_domain(path):
    spec = cluster(path)
    keys = [(fit.op, fit.gpus) for fit in spec.scale_up.collectives]
    assert len(set(keys)) == len(keys)
    assert all(1 < gpus <= spec.domain_gpus for _, gpus in keys)
    assert len({op for op, _ in keys}) in {0, 4}


def test_equal_machines_have_equal_collectives():
    seen: dict[tuple[str, str], tuple[Record, ...]] = {}
    for path in CLUSTERS:
        spec = cluster(path)
        key = spec.accelerator.name, spec.scale_up.kind
        assert seen.setdefault(key, spec.scale_up.collectives) == spec.scale_up.collectives, path


@each(CLUSTERS)
def test_a_leaf_holds_whole_domains_and_a_named_pod_named_leafs(path):
    spec = cluster(path)
    if leaf := spec.fabric.nodes_per_leaf:
        assert leaf % spec.domain_nodes == 0
    assert not spec.fabric.leafs_per_pod or spec.fabric.nodes_per_leaf
    if spec.fabric.pod_oversubscription > 1:
        assert spec.fabric.leafs_per_pod


def test_nodes_can_be_asked_for():
    assert load_cluster("dgx-h100").nodes == 1
    assert load_cluster("meta-24k-roce").gpus == 24576
    many = load_cluster("dgx-h100:2048")
    assert len({many.leaf_of(i) for i in range(many.nodes)}) == 64
    racks = load_cluster("gb200-nvl72:64")
    assert [racks.domain_of(i) for i in (0, 15, 16, 63)] == [0, 0, 1, 3]


# --- docs ---------------------------------------------------------------------------------------


def test_the_examples_of_the_docs_load(tmp_path):
    text = (ROOT / "docs/hardware.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    specs = {}
    for number, example in enumerate(examples):
        (file := tmp_path / f"{number}.yaml").write_text(example)
        spec = load_cluster(str(file))
        specs[spec.name] = spec
    tor, rack, capped = (specs[f"my-{n}"] for n in ("h100", "nvl72", "capped-h100"))
    assert (tor.fabric.leaf_oversubscription, tor.host(0)) == (4, "gpu-001")
    assert {rack.domain_nodes, rack.leaf_nodes} == {18, 144}
    assert capped.accelerator.gemm.derate == 0.7


def test_the_docs_name_every_field():
    text = (ROOT / "docs/hardware.md").read_text()
    nested = ("node", "scale_up", "fabric")
    fields = [f for name in nested for f in ClusterSpec.model_fields[name].annotation.model_fields]
    fields += [*Accelerator.model_fields, *ClusterSpec.model_fields]
    optional_prose = {"name", "vendor", "source", "kind"}
    assert not [f for f in fields if f not in text and f not in optional_prose]

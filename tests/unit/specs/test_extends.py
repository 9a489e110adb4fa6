"""Clusters that extend others: only what differs stands in the file."""

from __future__ import annotations

import pytest

from planner.errors import SpecError
from planner.estimate.inputs import Inputs
from planner.estimate.uncertainty import interval
from planner.layouts.table import Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.stack import stack_named, stack_with
from planner.specs.workload import Workload


def written(folder, text, name="my.yaml"):
    (folder / name).write_text(text)
    return str(folder / name)


def test_what_a_file_leaves_out_is_that_of_the_cluster_it_extends(tmp_path):
    mine = load_cluster(written(tmp_path, "extends: dgx-h100\nfabric: {efficiency: 0.9}\n") + ":4")
    base = load_cluster("dgx-h100:4")
    assert mine.fabric.efficiency == 0.9
    same = base.fabric.model_copy(update={"efficiency": 0.9})
    assert mine == base.model_copy(update={"name": "my", "fabric": same})


def test_figures_of_the_accelerator_change_one_by_one(tmp_path):
    text = "extends: dgx-h100\naccelerator:\n  gemm: {derate: 0.7}\n"
    mine, base = load_cluster(written(tmp_path, text)), load_cluster("dgx-h100")
    assert mine.accelerator.gemm == base.accelerator.gemm.model_copy(update={"derate": 0.7})
    assert mine.accelerator.attention == base.accelerator.attention


def test_another_accelerator_keeps_nothing_of_the_first(tmp_path):
    mine = load_cluster(written(tmp_path, "extends: dgx-h100\naccelerator: a100-sxm-80gb\n"))
    assert mine.accelerator == load_cluster("dgx-a100").accelerator
    text = "extends: dgx-h100\naccelerator: {base: a100-sxm-80gb, memory_gib: 99}\n"
    mine = load_cluster(written(tmp_path, text))
    assert mine.accelerator.name == "a100-sxm-80gb"
    assert mine.accelerator.gemm_fp8 is None


def test_a_measured_collective_replaces_only_its_own(tmp_path):
    row = "{op: all_reduce, gpus: 8, alpha_us: 20, gb_per_s: 400}"
    text = f"extends: dgx-h100\nscale_up:\n  collectives:\n    - {row}\n"
    mine, base = load_cluster(written(tmp_path, text)), load_cluster("dgx-h100")
    changed = [c for c in mine.scale_up.collectives if c not in base.scale_up.collectives]
    assert [(c.op, c.gpus, c.alpha_us) for c in changed] == [("all_reduce", 8, 20)]
    assert len(mine.scale_up.collectives) == len(base.scale_up.collectives)


def test_files_extend_files_beside_them(tmp_path):
    written(tmp_path, "extends: dgx-h100\nfabric: {efficiency: 0.9}\n", "first.yaml")
    second = written(tmp_path, "extends: ./first.yaml\nfabric: {latency_us: 7}\n", "second.yaml")
    mine = load_cluster(second)
    assert (mine.fabric.efficiency, mine.fabric.latency_us, mine.name) == (0.9, 7, "second")


def test_listed_hosts_replace_the_number_of_nodes(tmp_path):
    mine = load_cluster(written(tmp_path, "extends: dgx-h100\nhosts: [a, b, c]\n"))
    assert (mine.nodes, mine.host(2)) == (3, "c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: dgx-h10\n", "no cluster is named 'dgx-h10'"),
        ("extends: my.yaml\n", "leads back to itself"),
        ("extends: nowhere.yaml\n", "no such file"),
        ("extends: [a]\n", "extends must be the name"),
        ("extends: ''\n", "extends must be the name"),
        ("extends: dgx-h100\nfabric: {efficency: 1}\n", "unknown field 'fabric.efficency'"),
        ("extends: dgx-h100\nstacks: {torchtitan: {gem: 1}}\n", "unknown field"),
        ("extends: dgx-h100\nstacks: {torchtitn: {gemm: 1}}\n", "no stack is named 'torchtitn'"),
        ("extends: dgx-h100\nstacks: {torchtitan: {gemm: -1}}\n", "must be greater than 0"),
        ("extends: dgx-h100\nstacks: {torchtitan: {low: 0.9}}\n", "low and high are one interval"),
    ],
)
def test_what_is_wrong_with_an_overlay_is_said_in_one_sentence(tmp_path, text, said):
    with pytest.raises(SpecError) as refused:
        load_cluster(written(tmp_path, text))
    assert said in refused.value.message


def test_a_stack_measured_on_a_cluster_is_what_its_estimates_use(tmp_path):
    text = "extends: dgx-h100\nstacks: {torchtitan: {gemm: 0.9, runs: 9, low: 0.97, high: 1.02}}\n"
    mine = load_cluster(written(tmp_path, text))
    work = Workload(seq_tokens=4096, global_batch=8, stack="torchtitan+eager")
    x = Inputs(load_model("llama-3.1-8b"), mine, work, Layouts.empty())
    assert x.stack == stack_with("torchtitan+eager", {"gemm": 0.9})
    assert x.stack.fusion == stack_named("torchtitan+eager").fusion
    assert interval(mine, work) == (0.97, 1.02, 9)
    other = work.model_copy(update={"stack": "megatron"})
    assert Inputs(x.model, mine, other, Layouts.empty()).stack == stack_named("megatron")
    assert interval(mine, other) == interval(load_cluster("dgx-h100"), other)

"""A mix of node types: as slow, as small and as badly linked as the worst of them."""

from __future__ import annotations

import numpy as np
import pytest

from planner.errors import SpecError
from planner.estimate.inputs import Inputs
from planner.estimate.memory import limit_bytes, peak_bytes
from planner.estimate.step import step_s
from planner.layouts.ranges import Fix
from planner.layouts.rules import Context
from planner.rank import rank
from planner.specs.catalog import load_cluster, load_model
from planner.specs.cluster import ClusterSpec
from planner.specs.workload import Workload


@pytest.mark.parametrize(
    ("text", "model", "precision"),
    [
        ("dgx-h100:1+dgx-a100:3", "llama-3.1-8b", "bf16"),
        ("dgx-h100:2+dgx-h200:2", "llama-3.1-70b", "fp8"),
        ("dgx-1-v100:2+dgx-a100-40gb:2", "gpt2", "fp16"),
        ("aws-p4d:2+dgx-h100:2", "mixtral-8x7b", "bf16"),
    ],
)
def test_no_type_would_be_slower_or_smaller_than_the_mix(text, model, precision):
    mix = load_cluster(text)
    work = Workload(seq_tokens=1024, global_batch=64, precision=precision)
    spec = load_model(model)
    found = rank(Context(spec, mix, work), 32, Fix())
    rows = np.arange(0, len(found.layouts), max(1, len(found.layouts) // 300))
    layouts = found.layouts.take(rows)
    x = Inputs(spec, mix, work, layouts)
    mixed_s, mixed_peak, room = step_s(x), peak_bytes(x), limit_bytes(x)
    for part in mix.mix:
        alone = part.model_dump() | {
            "nodes": mix.nodes,
            "leafs": tuple(leaf.model_dump() for leaf in mix.leafs or ()),
            "fabric": mix.fabric.model_dump(),
        }
        own = Inputs(spec, ClusterSpec.model_validate(alone), work, layouts)
        assert (step_s(own) <= mixed_s * (1 + 1e-9)).all()
        assert (peak_bytes(own) <= mixed_peak * (1 + 1e-9)).all()
        assert limit_bytes(own) >= room


def test_a_mix_of_one_type_with_itself_is_that_type():
    both, one = load_cluster("dgx-a100:2+dgx-a100:3"), load_cluster("dgx-a100:5")
    for field in ("accelerator", "node", "scale_up", "fabric"):
        mine, theirs = getattr(both, field).model_dump(), getattr(one, field).model_dump()
        for told in ("sources", "memory_gb_per_s", "host_link_gb_per_s", "leafs_per_pod"):
            mine.pop(told, None)
            theirs.pop(told, None)
        assert mine == theirs
    assert both.nodes == 5
    assert [part.name for part in both.mix] == ["dgx-a100", "dgx-a100-2"]
    assert len({both.host(n) for n in range(5)}) == 5


def test_types_stand_apart_and_gpus_beyond_the_fewest_a_node_idle():
    mix = load_cluster("gb200-nvl72:3+dgx-h100:2")
    assert (mix.node.gpus, mix.gpus, mix.domain_nodes) == (4, 20, 1)
    assert [leaf.pod.partition("/")[0] for leaf in mix.leafs] == ["gb200-nvl72", "dgx-h100"]
    assert mix.accelerator.memory_gib == 80
    # a GPU's share of the NICs is the least, whatever there is a node
    assert mix.node.nic_bytes_per_s / 4 == 400e9 / 8


def test_what_is_paid_for_idle_gpus_too_is_shared_by_those_used(tmp_path):
    for name, base, usd in (("a", "dgx-h100", 4.0), ("b", "gb200-nvl72", 8.0)):
        (tmp_path / f"{name}.yaml").write_text(
            f"extends: {base}\naccelerator: {{price_usd_per_hour: {usd}}}\n"
        )
    mix = load_cluster(f"{tmp_path}/a.yaml:1+{tmp_path}/b.yaml:1")
    assert mix.accelerator.price_usd_per_hour == pytest.approx((8 * 4.0 + 4 * 8.0) / 8)


def test_a_file_may_name_the_types(tmp_path):
    (tmp_path / "old.yaml").write_text("extends: dgx-a100\nhosts: [old1, old2]\n")
    lab = tmp_path / "lab.yaml"
    lab.write_text("mix: [dgx-h100:2, old.yaml]\n")
    mix = load_cluster(str(lab))
    assert (mix.name, mix.nodes) == ("lab", 4)
    assert [mix.host(n) for n in range(4)] == ["node00001", "node00002", "old1", "old2"]
    with pytest.raises(SpecError, match="a mix says the nodes of each type itself"):
        load_cluster(f"{lab}:8")
    lab.write_text("mix: [dgx-h100:2, old.yaml]\nnode: {gpus: 4}\n")
    with pytest.raises(SpecError, match="'node' stands beside 'mix'"):
        load_cluster(str(lab))
    (tmp_path / "twice.yaml").write_text("mix: [old.yaml, old.yaml]\n")
    with pytest.raises(SpecError, match="host 'old1' is in two of the types"):
        load_cluster(str(tmp_path / "twice.yaml"))
    (tmp_path / "self.yaml").write_text("mix: [self.yaml, old.yaml]\n")
    with pytest.raises(SpecError, match="is a mix itself"):
        load_cluster(str(tmp_path / "self.yaml"))
    (tmp_path / "self.yaml").write_text("mix: dgx-h100\n")
    with pytest.raises(SpecError, match="'mix' must list node types"):
        load_cluster(str(tmp_path / "self.yaml"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dgx-h100:2+mi300x-8x400g:2", "GPUs of amd and nvidia"),
        ("+".join(["dgx-h100"] * 9), "at most 8"),
        ("dgx-h100:2+", "no cluster is named ''"),
        ("dgx-h100:2+dgx-h100:0", "is not a number of nodes"),
    ],
)
def test_what_cannot_run_one_job_is_refused(text, why):
    with pytest.raises(SpecError, match=why):
        load_cluster(text)

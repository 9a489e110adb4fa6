"""Several node types: the best alone, or on request one job over all, and what that gains."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from planner.errors import InfeasibleError, SpecError
from planner.place import check_placement
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.workflow import PlanRequest, explain, narrowed, place, plan

FEW, MANY = "dgx-h100:2+dgx-a100:2", "dgx-h100:1+dgx-a100:7"


def request(cluster, model="llama-3.1-8b", **more):
    work = Workload(seq_tokens=4096, global_batch=448)  # every number of GPUs here divides it
    more = {"fix": {"cp": "1", "vpp": "1"}} | more
    return PlanRequest(load_model(model), load_cluster(cluster), work, top=2, **more)


@pytest.mark.parametrize(("cluster", "best"), [(FEW, "dgx-h100"), (MANY, "dgx-a100")])
def test_by_default_the_best_type_alone_answers(cluster, best):
    found = plan(request(cluster))
    assert found.request.cluster.name == best
    assert all(r.host.startswith(best) for r in found.placement.ranks)
    assert found.notes[0].startswith(f"of the node types {best} alone is used")
    assert "--mixed tries one job over all" in found.notes[0]
    # the files that are written are for the type that was chosen
    assert narrowed(request(cluster), found).cluster == found.request.cluster


def test_a_mixed_job_says_what_it_gains_or_loses():
    whole = plan(request(MANY, mixed=True))
    alone = plan(request(MANY))
    assert whole.best.layout.gpus == 64
    told = next(note for note in whole.notes if note.startswith("mixing is "))
    gain = float(re.search(r"mixing is ([0-9.]+)% faster than dgx-a100 alone", told)[1])
    ratio = whole.best.estimate.tokens_per_s / alone.best.estimate.tokens_per_s
    assert gain == pytest.approx(100 * (ratio - 1), abs=0.051)
    assert 1 < ratio <= 8 / 7 * 1.02
    lost = plan(request(FEW, mixed=True)).notes[1]
    assert re.match(r"mixing is [0-9.]+% slower than dgx-h100 alone.*leave --mixed out", lost)


def test_ranks_of_both_types_are_placed_and_pipelines_keep_to_one():
    asked = request(FEW, mixed=True)
    found = place(asked, {"tp": "8", "pp": "2", "dp": "2"})
    kinds = {r.dp: set() for r in found.ranks}
    for rank in found.ranks:
        kinds[rank.dp].add(rank.host.rpartition("-")[0])
    assert sorted(map(sorted, kinds.values())) == [["dgx-a100"], ["dgx-h100"]]
    assert "every pipeline stands on nodes of one type" in found.notes
    spanning = place(asked, {"tp": "8", "pp": "4", "dp": "1"})
    assert "0 of 1 pipeline on nodes of one type, the others on several" in spanning.notes
    whole = plan(replace(asked, fix={"tp": "8", "pp": "4", "dp": "1"}))
    check_placement(asked.cluster, whole.best.layout, whole.placement)


def test_hosts_to_avoid_are_those_of_their_own_type():
    avoid = ("dgx-h100-node00001", "dgx-a100-node00002:3")
    found = plan(request(FEW, unhealthy=avoid))
    assert set(found.placement.hosts) == {"dgx-h100-node00002"}
    both = plan(request(FEW, unhealthy=avoid, mixed=True))
    assert set(both.placement.hosts) == {"dgx-h100-node00002", "dgx-a100-node00001"}


def test_a_host_that_no_type_has_is_refused():
    for mixed in (False, True):
        with pytest.raises(SpecError, match="host 'nope' is not one of"):
            plan(request(FEW, unhealthy=("nope",), mixed=mixed))


def test_a_gpu_that_idles_anyway_may_be_broken():
    asked = request("dgx-h100:2+gb200-nvl72:2", unhealthy=("dgx-h100-node00001:6",), mixed=True)
    assert plan(asked).best.layout.gpus == 16
    found = place(asked, {"tp": "4", "dp": "4"})
    assert len(found.hosts) == 4
    assert any("4 of 8 GPUs of dgx-h100 idle" in note for note in found.notes)


def test_a_type_without_room_is_told_and_none_alone_refused():
    small = "dgx-1-v100:1+dgx-a100:2"
    found = plan(request(small, "llama-3.1-8b", gpus=16))
    assert "dgx-1-v100: 16 GPUs asked for" in found.notes[0]
    with pytest.raises(InfeasibleError, match="no node type will do alone") as refused:
        plan(request("dgx-h100:1+dgx-h200:1", gpus=16))
    assert refused.value.hint == "--mixed tries all together"
    whole = plan(request("dgx-h100:1+dgx-h200:1", gpus=16, mixed=True))
    assert "no node type will do alone: only together they hold this job" in whole.notes


def test_explain_opens_the_type_or_the_mix_that_was_asked_for():
    layout = {"tp": "8", "pp": "1"}
    alone, whole = explain(request(FEW), layout), explain(request(FEW, mixed=True), layout)
    assert (alone.layout.dp, whole.layout.dp) == (2, 4)
    assert alone.notes[0].startswith("of the node types dgx-h100 alone")
    assert whole.notes[0].startswith("one job over 2 node types")

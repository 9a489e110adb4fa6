"""What a map promises, each expectation counted by hand from the cluster's numbers."""

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
import small_clusters

from planner.errors import InfeasibleError, SpecError
from planner.place import place
from planner.place.hosts import with_hosts


def test_two_thousand_nodes_split_no_pipeline_and_prove_it(cluster_of, layout_of):
    found = place(cluster_of(2048, per_leaf=32), layout_of(tp=8, pp=16, dp=128))
    assert (found.status, found.splits, found.bound) == ("optimal", 0, 0)
    assert len(found.ranks) == 16_384
    # in hostname order stage p fills leafs 4p to 4p + 3, so all 128 * 15 edges leave a leaf
    assert found.baseline["splits"] == 1920
    assert found.tiers["pp"] == {"node": 0, "leaf": 1024, "pod": 0, "across": 0}
    assert found.tiers["tp"]["node"] == 2048


def test_a_ring_of_replicas_enters_each_leaf_once(cluster_of, layout_of):
    cluster, layout = cluster_of(60, per_leaf=20), layout_of(tp=8, pp=12, dp=5)
    found = place(cluster, layout)
    assert found.splits == 2
    for stage in range(12):
        leafs = [r.leaf for r in found.ranks if r.pp == stage and r.tp == 0]
        changes = sum(a != b for a, b in pairwise(leafs))
        assert changes == len(set(leafs)) - 1


def test_unhealthy_nodes_are_left_out_and_counted(cluster_of, layout_of):
    cluster = cluster_of(16, per_leaf=8)
    found = place(cluster, layout_of(tp=8, pp=4, dp=3), unhealthy=["node00002", "node00010:5"])
    assert not {"node00002", "node00010"} & set(found.hosts)
    # 7 healthy nodes a leaf hold one pipeline of 4 each, the third is split once
    assert (found.status, found.splits) == ("optimal", 1)
    assert "2 nodes with fewer than 8 healthy GPUs left out" in found.notes
    assert "2 spare nodes" in found.notes


def test_where_spares_stand_is_said(cluster_of, layout_of):
    # leafs of 9, 9 and 8: two pipelines of four each, a spare under the first two
    cluster, layout = cluster_of(27, per_leaf=9), layout_of(tp=8, pp=4, dp=6)
    found = place(cluster, layout, unhealthy=["node00027"])
    (said,) = (note for note in found.notes if "a spare node" in note)
    assert said.startswith("2 of the 3 leafs used have a spare node for one that fails")
    assert said.endswith("under leaf0002 one that fails is replaced from another leaf")
    (said,) = (note for note in place(cluster, layout).notes if "a spare node" in note)
    assert said == "every leaf used has a spare node for one that fails"
    alone = place(cluster, layout_of(tp=8, pp=4, dp=1))
    assert not any("a spare node" in note for note in alone.notes)


def test_hosts_that_were_told_are_not_counted_again(cluster_of, layout_of):
    cluster, layout = cluster_of(16, per_leaf=8), layout_of(tp=8, pp=4, dp=3)
    avoid = {"unhealthy": ["node00002", "node00010", "node00003"], "busy": ["node00010"]}
    notes = place(cluster, layout, told=["node00002", "node00010"], **avoid).notes
    assert [note for note in notes if "left out" in note] == [
        "1 node with fewer than 8 healthy GPUs left out"
    ]


def test_too_few_nodes_is_said_with_numbers(cluster_of, layout_of):
    down = [f"node{n:05d}:0" for n in range(1, 8)]
    with pytest.raises(InfeasibleError) as error:
        place(cluster_of(128, per_leaf=32), layout_of(tp=8, pp=16, dp=8), unhealthy=down)
    assert error.value.message == (
        "needs 128 nodes with 8 healthy GPUs; 121 of 128 have them; short by 7"
    )
    assert "lower dp to 7" in error.value.hint


def test_a_layout_larger_than_the_cluster_is_refused(cluster_of, layout_of):
    with pytest.raises(InfeasibleError, match=r"needs 4 nodes .*; 2 of 2 have them; short by 2"):
        place(cluster_of(2), layout_of(tp=8, pp=4))


def test_a_tensor_group_larger_than_the_node_is_refused(cluster_of, layout_of):
    with pytest.raises(InfeasibleError, match=r"16 GPUs is larger than .* 8 GPUs"):
        place(cluster_of(4), layout_of(tp=16, dp=2))


def test_expert_groups_that_do_not_divide_a_stage_are_refused(cluster_of, layout_of):
    with pytest.raises(SpecError, match=r"ep \* etp \(3\) does not divide tp \* cp \* dp \(16\)"):
        place(cluster_of(4), layout_of(tp=8, dp=2, ep=3))


def test_a_small_world_runs_on_the_healthy_gpus_of_a_broken_node(cluster_of, layout_of):
    found = place(cluster_of(1), layout_of(tp=2, pp=2), unhealthy=["node00001:0", "node00001:2"])
    assert [r.gpu for r in found.ranks] == [1, 3, 4, 5]
    assert found.splits == 0


def test_a_whole_node_unit_needs_a_whole_node(cluster_of, layout_of):
    with pytest.raises(InfeasibleError, match="with 8 healthy GPUs; 0 of 1 have them; short by 1"):
        place(cluster_of(1), layout_of(tp=2, pp=4), unhealthy=["node00001:0"])


def test_a_job_that_fits_one_leaf_takes_the_tightest(cluster_of, layout_of):
    down = [f"node{n:05d}" for n in (1, 9, 10, 17, 18, 19)]  # 7, 6 and 5 free
    found = place(cluster_of(24, per_leaf=8), layout_of(tp=8, pp=5, dp=1), unhealthy=down)
    assert {r.leaf for r in found.ranks} == {"leaf0002"}


def test_a_job_that_fits_one_pod_stays_there(cluster_of, layout_of):
    down = [f"node{n:05d}" for n in range(1, 5)]  # pod 0 keeps 12 nodes, pods 1 and 2 have 16
    found = place(
        cluster_of(48, per_leaf=8, per_pod=2), layout_of(tp=8, pp=4, dp=4), unhealthy=down
    )
    assert found.splits == 0
    assert found.tiers["dp"] == {"node": 0, "leaf": 0, "pod": 32, "across": 0}


def test_split_pipelines_stay_inside_a_pod(cluster_of, layout_of):
    # four leafs of 6, two a pod: pipelines of 4 leave 2 nodes a leaf, one more pipeline a pod
    found = place(cluster_of(24, per_leaf=6, per_pod=2), layout_of(tp=8, pp=4, dp=6))
    assert (found.splits, found.bound) == (2, 2)
    assert found.tiers["pp"] == {"node": 0, "leaf": 32, "pod": 16, "across": 0}


def test_a_node_with_several_stages_keeps_its_pipelines_whole(cluster_of, layout_of):
    # a stage is 2 ranks, a node 4 stages: the 4 nodes are a chain, leafs of 2 cut it once,
    # and the cut splits both replicas
    found = place(cluster_of(4, per_leaf=2), layout_of(tp=1, pp=16, dp=2))
    assert (found.status, found.splits) == ("optimal", 2)
    assert found.tiers["tp"] == {"node": 32, "leaf": 0, "pod": 0, "across": 0}


def test_several_replicas_of_a_node_are_split_together(cluster_of, layout_of):
    # two nodes a stage, each with 4 replicas; leafs of 3 nodes and pipelines of 3 stages: none cut
    whole = place(cluster_of(6, per_leaf=3), layout_of(tp=2, pp=3, dp=8))
    assert whole.splits == 0
    # leafs of 2: each of the two columns is cut once, and with it 4 replicas
    cut = place(cluster_of(6, per_leaf=2), layout_of(tp=2, pp=3, dp=8))
    assert (cut.status, cut.splits) == ("optimal", 8)


def test_context_groups_of_two_nodes_share_a_leaf(cluster_of, layout_of):
    found = place(cluster_of(12, per_leaf=6), layout_of(tp=8, cp=2, pp=3, dp=2))
    assert (found.status, found.splits) == ("optimal", 0)
    assert found.tiers["cp"] == {"node": 0, "leaf": 48, "pod": 0, "across": 0}
    # leafs of two groups: three leafs hold the two pipelines of three, each split once
    cut = place(cluster_of(12, per_leaf=4), layout_of(tp=8, cp=2, pp=3, dp=2))
    assert (cut.status, cut.splits) == ("optimal", 2)
    assert cut.tiers["cp"]["leaf"] == 48
    assert any("kept under one leaf" in note for note in cut.notes)


def test_cells_that_strand_nodes_fall_back_to_single_nodes(cluster_of, layout_of):
    # leafs of 3 hold one group of 2 nodes each, three of the six are needed on 12 nodes
    found = place(cluster_of(12, per_leaf=3), layout_of(tp=8, cp=2, pp=3, dp=2))
    assert len(found.hosts) == 12
    assert any("do not hold every stage" in note for note in found.notes)
    assert found.bound <= found.splits


def test_a_stage_that_ends_inside_a_node_is_placed_too(cluster_of, layout_of):
    # stages of 12 ranks on nodes of 8; everything fits one leaf: no split
    layout = layout_of(tp=4, pp=4, dp=3)
    whole = place(cluster_of(12, per_leaf=6), layout)
    assert (whole.status, whole.splits) == ("optimal", 0)
    cut = place(cluster_of(6, per_leaf=3), layout)
    assert cut.bound <= cut.splits <= cut.baseline["splits"]
    assert cut.splits > 0
    assert any("ends inside a node" in note for note in cut.notes)


def test_ranks_that_do_not_fill_nodes_are_spread_evenly(cluster_of, layout_of):
    found = place(cluster_of(4, per_leaf=4), layout_of(tp=4, pp=3))
    assert set(Counter(r.host for r in found.ranks).values()) == {4}
    assert any("4 ranks a node, the other GPUs idle" in note for note in found.notes)
    with pytest.raises(InfeasibleError, match=r"needs 3 nodes with 4 .* by 1 \(12 ranks in tensor"):
        place(cluster_of(2), layout_of(tp=4, pp=3))


def test_tensor_and_expert_groups_stay_inside_an_nvlink_domain(cluster_of, layout_of):
    # 64 trays of 4 GPUs in 4 racks of 16; tp 8 is two trays, ep 64 one rack
    cluster = cluster_of(64, per_leaf=18, gpus=4, domain_gpus=72)
    found = place(cluster, layout_of(tp=8, pp=2, dp=16, ep=64))
    assert found.tiers["tp"] == {"node": 0, "domain": 32, "leaf": 0, "pod": 0, "across": 0}
    assert found.tiers["ep"] == {"node": 0, "domain": 4, "leaf": 0, "pod": 0, "across": 0}


def test_expert_groups_cross_domains_where_there_is_no_room_and_it_is_said(cluster_of, layout_of):
    # three racks of 18 trays; expert groups of 32 ranks are 8 trays, so a rack holds two of them
    cluster, layout = (
        cluster_of(54, per_leaf=18, gpus=4, domain_gpus=72),
        layout_of(tp=8, dp=24, ep=32),
    )
    fits = place(cluster, layout)
    assert fits.tiers["ep"] == {"node": 0, "domain": 6, "leaf": 0, "pod": 0, "across": 0}
    assert not any("cross domains" in note for note in fits.notes)
    # 15 trays are left of the first rack: room for five groups, and for all pairs of trays
    down = ["node00001", "node00002", "node00003"]
    crossing = place(cluster, layout, unhealthy=down)
    assert 0 < crossing.tiers["ep"]["domain"] <= 5
    assert crossing.tiers["tp"]["domain"] == 24
    assert any("cross domains" in note for note in crossing.notes)


def test_expert_groups_may_be_let_loose(cluster_of, layout_of):
    # a rack of 5 trays and one of 5; expert groups of 2 trays waste one tray of each
    cluster = cluster_of(10, per_leaf=5, gpus=4, domain_gpus=20)
    layout = layout_of(tp=4, dp=10, ep=8)
    kept = place(cluster, layout_of(tp=4, dp=8, ep=8))
    assert kept.tiers["ep"]["domain"] == 4
    loose = place(cluster, layout, keep_ep_in_domain=False)
    assert loose.tiers["ep"] == {"node": 0, "domain": 4, "leaf": 0, "pod": 1, "across": 0}
    assert not any("cross domains" in note for note in loose.notes)


def test_tensor_groups_that_do_not_fit_their_domains_are_counted(cluster_of, layout_of):
    # four racks of 16 trays with one down in each: 7 pairs a rack, 28 of the 30 wanted
    cluster = cluster_of(64, per_leaf=18, gpus=4, domain_gpus=72)
    down = [f"node{n:05d}" for n in (1, 17, 33, 49)]
    with pytest.raises(InfeasibleError) as error:
        place(cluster, layout_of(tp=8, pp=2, dp=15), unhealthy=down)
    assert "needs 30 groups of 2 nodes" in error.value.message
    assert "room for 28; short by 2" in error.value.message


def test_hosts_named_in_a_file_are_the_ones_used(cluster_of, layout_of):
    cluster = with_hosts(cluster_of(64, per_leaf=2), ["b10", "b9", "b2", "b1"])
    found = place(cluster, layout_of(tp=8, pp=2, dp=2))
    assert found.splits == 0
    assert set(found.hosts) == {"b10", "b9", "b2", "b1"}
    # hostname order b1 b2 b9 b10 puts stage 0 under one leaf and stage 1 under the other
    assert found.baseline["splits"] == 2


def test_pipelines_longer_than_a_leaf_are_said_to_be(cluster_of, layout_of):
    found = place(cluster_of(24, per_leaf=4), layout_of(tp=8, pp=8, dp=3))
    assert (found.status, found.splits) == ("optimal", 3)
    assert "no leaf holds a whole pipeline of 8 nodes: the largest has 4 free" in found.notes


HARD = """
import sys
sys.path.insert(0, sys.argv[1])
import small_clusters as c
from planner.place import place
down = [f"node{n:05d}" for n in range(3, 250, 17)]
found = place(c.make_cluster(256, 32, 2), c.make_layout(tp=8, pp=12, dp=19), unhealthy=down)
print(found.model_dump_json())
"""


def test_the_same_question_gets_the_same_bytes():
    rig = os.path.dirname(small_clusters.__file__)
    said = {
        subprocess.run(
            [sys.executable, "-c", HARD, rig],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(said) == 1
    assert len(said.pop()) > 100_000


def test_importing_place_loads_neither_numpy_nor_ortools():
    code = (
        "import sys, planner.place; "
        "assert not {'numpy', 'ortools', 'pydantic'} & set(sys.modules); "
        "from planner.place import place; assert 'ortools' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ranks_on_other_rails_than_their_peers_are_said(cluster_of, layout_of):
    """Four ranks a node; two nodes have lost a GPU among the first four."""
    layout, down = layout_of(tp=4, pp=2, dp=2), ["node00001:0", "node00003:2", "node00004:7"]
    down += [f"node0000{n}:6" for n in (1, 2, 3)]
    found = place(cluster_of(4, per_leaf=4), layout, unhealthy=down)
    assert found.gpus_per_node == 4
    (said,) = (note for note in found.notes if "other rails" in note)
    assert said.startswith("2 nodes with ranks on other rails")
    whole = place(cluster_of(4, per_leaf=4), layout, unhealthy=["node00004:7"])
    assert not any("rails" in note for note in whole.notes)

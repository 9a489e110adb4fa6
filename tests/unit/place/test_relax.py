"""Why a job does not fit, and the least that would have to give way."""

import pytest

from planner.errors import InfeasibleError
from planner.layouts.rules import Context
from planner.place import Clock, place
from planner.specs.catalog import load_model
from planner.specs.workload import Workload


def refused(cluster, layout, **more):
    with pytest.raises(InfeasibleError) as error:
        place(cluster, layout, **more)
    return error.value


def test_the_smallest_set_of_left_out_nodes_is_named(cluster_of, layout_of):
    cluster, layout = cluster_of(16, per_leaf=8), layout_of(tp=8, pp=4, dp=4)
    down = ["node00001", "node00002", "node00003:4", "node00004"]
    # either kind alone is enough when one node is missing: neither is needed together
    only = refused(cluster, layout, unhealthy=down)
    assert only.message == "needs 16 nodes with 8 healthy GPUs; 12 of 16 have them; short by 4"
    assert "all 4 unhealthy nodes repaired; lower dp to 3; tp=4 (8 nodes)" in only.hint
    both = refused(cluster, layout, unhealthy=down, busy=["node00001", "node00002"])
    assert "both busy nodes freed and both unhealthy nodes repaired" in both.hint
    wider = cluster_of(20, per_leaf=8)
    spare = [*down, "node00005", "node00006"]
    either = refused(wider, layout, unhealthy=spare, busy=["node00001", "node00002", "node00004"])
    assert "2 of the 3 busy nodes freed; 2 of the 3 unhealthy nodes repaired" in either.hint


def test_slow_nodes_are_avoided_and_offered(cluster_of, layout_of):
    cluster, slow = cluster_of(16, per_leaf=8), ["node00003", "node00009", "node00010"]
    found = place(cluster, layout_of(tp=8, pp=4, dp=3), unhealthy=slow, slow=slow)
    assert not set(slow) & set(found.hosts)
    down = [*slow, "node00001"]
    hint = refused(cluster, layout_of(tp=8, pp=2, dp=7), unhealthy=down, slow=slow).hint
    assert "2 of the 3 slow nodes used all the same" in hint
    one = refused(cluster, layout_of(tp=8, pp=4, dp=4), unhealthy=down, slow=slow).hint
    assert "all 3 slow nodes used all the same and the unhealthy node repaired" in one


def test_nodes_with_a_broken_gpu_run_fewer_ranks_where_whole_ones_are_too_few(
    cluster_of, layout_of
):
    cluster = cluster_of(6, per_leaf=6)
    broken = [f"node{n:05d}:{n}" for n in range(1, 6)]
    found = place(cluster, layout_of(tp=4, pp=2, dp=2), unhealthy=broken)
    assert len(found.hosts) == 4
    assert all(f"{rank.host}:{rank.gpu}" not in broken for rank in found.ranks)
    assert "1 nodes have 8" not in " ".join(found.notes)
    assert any("2 would be needed: 4 ranks each on 4 nodes" in note for note in found.notes)
    # the map before had them whole, so ranks that can stay do
    old = place(cluster, layout_of(tp=4, pp=2, dp=2))
    with pytest.raises(InfeasibleError, match="needs 2 nodes with 8 healthy GPUs; 1 of 6"):
        place(cluster, layout_of(tp=4, pp=2, dp=2), unhealthy=broken, moved_from=old)


def test_what_cannot_help_is_not_offered(cluster_of, layout_of):
    found = refused(cluster_of(2), layout_of(tp=8, pp=4, dp=1))
    assert "repaired" not in found.hint
    assert "dp" not in found.hint
    assert found.hint == "any one of these would do: tp=4 (2 nodes); 2 more nodes"


def test_every_way_that_is_offered_does(cluster_of, layout_of):
    cluster, down = cluster_of(16, per_leaf=8), [f"node{n:05d}:0" for n in range(1, 6)]
    layout = layout_of(tp=8, pp=4, dp=4)
    hint = refused(cluster, layout, unhealthy=down).hint
    assert "lower dp to 2" in hint
    assert "tp=4 (8 nodes)" in hint
    assert place(cluster, layout_of(tp=8, pp=4, dp=2), unhealthy=down).splits == 0
    with pytest.raises(InfeasibleError):
        place(cluster, layout_of(tp=8, pp=4, dp=3), unhealthy=down)
    assert len(place(cluster, layout_of(tp=4, pp=4, dp=4), unhealthy=down).hosts) == 8
    assert place(cluster, layout, unhealthy=down[:0]).splits == 0


def test_tensor_groups_that_span_nodes_may_shrink_into_one(cluster_of, layout_of):
    cluster = cluster_of(64, per_leaf=18, gpus=4, domain_gpus=72)
    down = [f"node{n:05d}" for n in (1, 17, 33, 49)]
    hint = refused(cluster, layout_of(tp=8, pp=2, dp=15), unhealthy=down).hint
    assert "lower dp to 14" in hint
    assert "tp=4, whose groups stay inside a node" in hint


def test_what_is_offered_is_legal_with_the_batch_asked_for(cluster_of, layout_of):
    cluster = cluster_of(11)
    layout = layout_of(tp=8, dp=12, etp=1).model_copy(update={"num_microbatches": 8})
    work = Workload(seq_tokens=4096, global_batch=96)
    clock = Clock(Context(load_model("llama-3.1-8b"), cluster, work), layout)
    hint = refused(cluster, layout, clock=clock).hint
    assert "lower dp to 8 (11 would fit, but is not legal)" in hint  # 11 does not divide 96
    assert "tp=4 (6 nodes)" in hint


def test_fewer_stages_are_offered_where_neither_dp_nor_tp_will_do(cluster_of, layout_of):
    hint = refused(cluster_of(2), layout_of(tp=1, pp=32, dp=1)).hint
    assert "pp=16 (2 nodes)" in hint

"""Orders scored in seconds: against all maps there are, and against the estimate itself."""

import itertools

import numpy as np
import pytest

from planner.estimate.collectives import leaf_slowdown, point_to_point_s
from planner.estimate.inputs import Inputs
from planner.estimate.running import judge
from planner.layouts.rules import Context
from planner.layouts.table import Layouts
from planner.place import Clock, place
from planner.place.traffic import Load, flows_of, load_of
from planner.specs.catalog import load_model
from planner.specs.workload import Workload


@pytest.fixture(scope="module")
def clock_of(cluster_of):
    """Return a clock for a cluster of leafs with oversubscribed uplinks, and that cluster."""

    def make(layout, nodes, leaf, *, ways=4.0, down=1.0, per_pod=None, pods=1.0):
        cluster = cluster_of(nodes, per_leaf=leaf, per_pod=per_pod)
        fabric = {
            "leaf_oversubscription": ways,
            "routing_efficiency": down,
            "pod_oversubscription": pods,
        }
        cluster = cluster.model_copy(update={"fabric": cluster.fabric.model_copy(update=fabric)})
        batch = layout.dp * layout.num_microbatches
        workload = Workload(seq_tokens=4096, global_batch=batch)
        return Clock(Context(load_model("llama-3.1-70b"), cluster, workload), layout), cluster

    return make


def placed(clock, cluster, rule="fastest", **more):
    return place(cluster, clock.layout, clock=clock, pipelines=rule, **more)


def test_a_job_alone_on_narrow_uplinks_trades_rings_for_sends(clock_of, layout_of):
    layout = layout_of(tp=8, pp=8, dp=8).model_copy(update={"vpp": 2})
    clock, cluster = clock_of(layout, 64, 8)
    kept, fast = placed(clock, cluster, "under-leaf"), placed(clock, cluster)
    assert (kept.splits, kept.question, kept.status) == (0, "fewest-splits", "optimal")
    assert fast.question == "least-step-time"
    assert fast.splits > 0
    assert fast.objective == fast.step_time_s < kept.step_time_s
    assert fast.bound == fast.step_time_bound_s == kept.step_time_bound_s <= fast.objective
    assert np.isclose(fast.gap, 1 - fast.bound / fast.objective, atol=1e-9)
    assert fast.step_time_s == min(o.step_time_s for o in fast.orders)
    cost = f"{kept.step_time_s / fast.step_time_s - 1:.1%}"
    assert any(f"the one-leaf rule costs {cost} on this 4:1 fabric" in n for n in kept.notes)
    assert any(f"the one-leaf rule would cost {cost} on this 4:1 f" in n for n in fast.notes)
    by_name = next(o for o in fast.orders if o.order == "hosts in name order")
    assert fast.baseline["step_time_s"] == by_name.step_time_s


def test_on_a_non_blocking_fabric_the_order_does_not_matter(clock_of, layout_of):
    clock, cluster = clock_of(layout_of(tp=8, pp=4, dp=8), 32, 8, ways=1.0)
    found = placed(clock, cluster)
    assert found.splits == 0
    assert (found.status, found.gap) == ("optimal", 0)
    assert found.step_time_s == found.step_time_bound_s == found.baseline["step_time_s"]
    assert any("every order of hosts takes the same estimated time" in n for n in found.notes)
    # flows that collide make the same switches a bottleneck
    lossy, cluster = clock_of(layout_of(tp=8, pp=4, dp=8), 32, 8, ways=1.0, down=0.3)
    assert placed(lossy, cluster).baseline["step_time_s"] > lossy.bound()


def test_no_map_of_a_small_cluster_beats_the_best_order(clock_of, layout_of):
    """All ways to give 8 nodes to 4 leafs of 2, for two pipelines of four stages."""
    layout = layout_of(tp=8, pp=4, dp=2).model_copy(update={"vpp": 2})
    clock, cluster = clock_of(layout, 8, 2, ways=4.0)
    pods = np.zeros(4, dtype=np.int64)
    loads = {
        load_of(layout, np.array(leaf).reshape(4, 2), pods, send_gpus=8, member_ranks=8, near=1)
        for leaf in set(itertools.permutations([0, 0, 1, 1, 2, 2, 3, 3]))
    }
    least = min(clock.seconds(sorted(loads, key=repr)))
    found = placed(clock, cluster)
    assert found.bound <= least
    assert np.isclose(found.step_time_s, least, rtol=1e-9)


def test_the_load_of_one_leaf_a_pipeline_is_what_the_estimate_assumes(clock_of, layout_of):
    layout = layout_of(tp=8, pp=8, dp=8)
    clock, cluster = clock_of(layout, 64, 8, ways=8.0, per_pod=4, pods=7.0)
    row = Layouts.of([layout.model_dump()])
    plain = Inputs(*clock.context, row)
    each_ring_leaves_once = flows_of([Load(rings=(8.0, 8.0))])
    loaded = Inputs(*clock.context, row, flows=each_ring_leaves_once)
    stride, n = row.tp, row.dp * row.cp
    assert leaf_slowdown(plain, stride, n) == leaf_slowdown(loaded, stride, n) == 8.0
    sent = np.array([1e8])
    assert point_to_point_s(plain, sent) == point_to_point_s(loaded, sent)
    estimated = judge(clock.context, row)[0].step_s
    assert np.isclose(estimated, placed(clock, cluster, "under-leaf").step_time_s)


def test_uplinks_that_carry_nothing_slow_nothing_down(clock_of, layout_of):
    layout = layout_of(tp=8, pp=2, dp=8)
    clock, _ = clock_of(layout, 16, 4, ways=8.0)
    wide, _ = clock_of(layout, 16, 4, ways=1.0)
    assert np.isclose(clock.bound(), wide.bound())
    more = [Load(rings=(float(n), 0.0), sends=(8.0 * n, 0.0)) for n in range(5)]
    times = clock.seconds(more)
    assert times == sorted(times)
    assert times[-1] > times[0]


@pytest.mark.parametrize("down", [(), (2, 9, 10), (0, 1, 2, 3, 20)])
@pytest.mark.parametrize("degrees", [(8, 6, 4), (4, 5, 8), (2, 12, 4), (8, 3, 8)])
def test_fastest_is_never_slower_than_either_rule_and_sound(clock_of, layout_of, degrees, down):
    tp, pp, dp = degrees
    layout = layout_of(tp=tp, pp=pp, dp=dp)
    clock, cluster = clock_of(layout, 32, 6, ways=4.0, per_pod=2, pods=3.0)
    out = [cluster.host(n) for n in down]
    fast = placed(clock, cluster, unhealthy=out)  # `place` checks the map by other code
    kept = placed(clock, cluster, "under-leaf", unhealthy=out)
    assert fast.step_time_s <= kept.step_time_s * (1 + 1e-6)
    assert fast.step_time_s <= fast.baseline["step_time_s"] * (1 + 1e-6)
    assert fast.splits >= kept.bound


def test_spare_nodes_are_used_to_spread_the_load(clock_of, layout_of):
    # 16 nodes wanted of 64: over all leafs the rings leave on a quarter of the load
    layout = layout_of(tp=8, pp=2, dp=8)
    clock, cluster = clock_of(layout, 64, 8, ways=4.0)
    found = placed(clock, cluster)
    assert np.isclose(found.step_time_s, found.step_time_bound_s)


def test_without_a_clock_only_splits_are_told(cluster_of, layout_of):
    found = place(cluster_of(8, per_leaf=3), layout_of(tp=8, pp=2, dp=4))
    assert (found.step_time_s, found.orders) == (None, [])
    assert found.proven == "no map splits pipelines at fewer edges, among maps of whole nodes"
    assert found.gap == 0


def test_stages_that_end_inside_a_node_are_timed_too(clock_of, layout_of):
    clock, cluster = clock_of(layout_of(tp=4, pp=4, dp=3), 6, 3, ways=8.0)
    found = placed(clock, cluster)
    assert [o.order for o in found.orders] == ["one leaf a pipeline", "hosts in name order"]
    assert found.bound <= found.step_time_s <= found.baseline["step_time_s"]


def test_tensor_groups_over_nodes_never_take_name_order(cluster_of, layout_of):
    # racks of 5 trays: pairs waste one tray of each, which name order would tear apart
    cluster = cluster_of(20, per_leaf=5, gpus=4, domain_gpus=20)
    fabric = cluster.fabric.model_copy(update={"leaf_oversubscription": 8.0})
    cluster = cluster.model_copy(update={"fabric": fabric})
    layout = layout_of(tp=8, pp=2, dp=4)
    workload = Workload(seq_tokens=4096, global_batch=32)
    clock = Clock(Context(load_model("llama-3.1-70b"), cluster, workload), layout)
    found = placed(clock, cluster)
    assert found.tiers["tp"]["domain"] == 8
    assert found.step_time_s <= placed(clock, cluster, "under-leaf").step_time_s


def test_expert_groups_are_part_of_the_time(cluster_of, layout_of):
    cluster = cluster_of(16, per_leaf=4)
    fabric = cluster.fabric.model_copy(update={"leaf_oversubscription": 8.0})
    cluster = cluster.model_copy(update={"fabric": fabric})
    layout = layout_of(tp=1, pp=4, dp=32, ep=16, etp=1)
    workload = Workload(seq_tokens=4096, global_batch=256)
    clock = Clock(Context(load_model("deepseek-v2-lite"), cluster, workload), layout)
    assert clock.near == 8
    slow, fast = clock.seconds([Load(experts=(16.0, 0.0)), Load()])
    assert slow > fast
    kept, found = placed(clock, cluster, "under-leaf"), placed(clock, cluster)
    # groups of two nodes: a stage's four nodes under one leaf keep them, pipelines do not
    assert found.step_time_s < kept.step_time_s


def test_expert_groups_torn_out_of_their_racks_cost_time(cluster_of, layout_of):
    """Three racks of 18 trays; a rack of 15 trays left holds one of two groups of 8 trays whole."""
    cluster = cluster_of(54, per_leaf=18, gpus=4, domain_gpus=72)
    layout = layout_of(tp=2, dp=96, ep=32, etp=1)
    workload = Workload(seq_tokens=4096, global_batch=96 * layout.num_microbatches)
    clock = Clock(Context(load_model("deepseek-v2-lite"), cluster, workload), layout)
    assert clock.near == 32
    whole = placed(clock, cluster, "under-leaf")
    assert whole.step_time_s == whole.step_time_bound_s
    torn = placed(clock, cluster, "under-leaf", unhealthy=["node00001", "node00002", "node00003"])
    assert torn.tiers["ep"]["domain"] < 6
    assert torn.step_time_s > whole.step_time_s
    assert torn.step_time_bound_s == whole.step_time_bound_s
    # the fewer of a group share a rack, the more of its traffic takes the NICs
    times = clock.seconds([Load(apart=lost) for lost in (0, 4, 16, 28)])
    assert times == sorted(times)
    assert times[0] < times[-1]
    assert not (Load(apart=1) <= Load())

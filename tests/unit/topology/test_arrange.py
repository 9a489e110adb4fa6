"""Hosts, leafs and health from several sources, joined into one cluster."""

import pytest
from small_clusters import make_cluster

from planner.errors import SpecError
from planner.specs.cluster import Leaf
from planner.topology import NodeState, arrange


def leafs(**hosts):
    return [Leaf(name=name, pod=name[0], hosts=tuple(h.split())) for name, h in hosts.items()]


def test_nodes_with_other_gpus_are_left_out():
    kinds = {"a": "h100", "b": "a100", "c": "h100", "d": "H100-PCIE", "e": ""}
    states = [NodeState(host, gpus=8, kind=kind) for host, kind in kinds.items()]
    cluster = make_cluster(4)
    named = cluster.accelerator.model_copy(update={"name": "h100-sxm-80gb"})
    found = arrange(cluster.model_copy(update={"accelerator": named}), states=states)
    assert found.cluster.hosts == ("a", "c", "d", "e")
    assert found.notes[0] == (
        "1 node with other GPUs (a100: b) left out; those with H100-PCIE, h100 are used"
    )
    # no type is called like the cluster's accelerator: the commonest it is
    assert arrange(cluster, states=states).cluster.hosts == ("a", "c", "e")
    # one type only: schedulers call it what they like
    assert arrange(cluster, states=states[:1]).notes == ()
    with pytest.raises(SpecError, match="no node to use is left"):
        arrange(cluster, states=states, hosts=["b"])


def test_hosts_hang_where_the_topology_says():
    found = arrange(make_cluster(1, per_leaf=32), leafs=leafs(p1="a b", p2="c", q1="d e f"))
    cluster = found.cluster
    assert [cluster.host(n) for n in range(6)] == list("abcdef")
    assert [cluster.leaf_of(n) for n in range(6)] == [0, 0, 1, 2, 2, 2]
    assert [cluster.pod_of(n) for n in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [cluster.leaf_name(leaf) for leaf in range(3)] == ["p1", "p2", "q1"]
    # uplinks belong to the leaf as built: the largest has 3 ports, the largest pod two leafs
    assert (cluster.leaf_nodes, cluster.pod_nodes) == (3, 6)
    assert (found.avoid, found.notes) == ((), ())


def test_an_allocation_keeps_the_sizes_of_the_leafs_it_is_part_of():
    found = arrange(make_cluster(1), hosts=["e", "a"], leafs=leafs(p1="a b c", q1="d e"))
    assert [found.cluster.host(n) for n in range(2)] == ["a", "e"]
    assert found.cluster.leaf_nodes == 3
    assert found.notes == ("3 hosts of the topology not among the nodes to use",)


def test_hosts_that_the_topology_lacks_get_one_leaf_of_their_own_and_a_note():
    found = arrange(make_cluster(1), hosts=["x", "a", "y"], leafs=leafs(p1="a"))
    cluster = found.cluster
    assert [(cluster.host(n), cluster.leaf_of(n), cluster.pod_of(n)) for n in range(3)] == [
        ("a", 0, 0),
        ("x", 1, 1),
        ("y", 1, 1),
    ]
    assert found.notes == ("2 hosts (x, y) not in the topology: taken as one leaf of their own",)


def test_a_topology_of_other_hosts_is_refused():
    with pytest.raises(SpecError, match="none of the 1 hosts"):
        arrange(make_cluster(1), hosts=["x"], leafs=leafs(p1="a"), origin="t.conf")


def test_down_and_busy_nodes_and_lost_gpus_are_avoided():
    states = [
        NodeState("a", "free", 8),
        NodeState("b", "down", 8, why="IDLE+DRAIN"),
        NodeState("c", "busy", 8),
        NodeState("d", "free", 6),
        NodeState("login", "free", 0),
    ]
    found = arrange(make_cluster(1), states=states)
    assert found.cluster.nodes == 4
    assert found.avoid == ("b", "c", "d:6", "d:7")
    assert (found.down, found.busy) == (("b",), ("c",))
    assert found.notes == (
        "1 node down or drained (b: IDLE+DRAIN) avoided",
        "1 node busy with other jobs (c) avoided",
        "2 GPUs (d:6, d:7) missing on nodes that are up",
    )


def test_nodes_that_are_down_are_named_with_their_reasons_and_the_rest_counted():
    states = [NodeState("a", "free", 8), NodeState("b", "down", 8, why="DOWN*")]
    states += [NodeState(host, "down", 8) for host in "cdef"]
    assert arrange(make_cluster(1), states=states).notes == (
        "5 nodes down or drained (b: DOWN*, c, d and 2 more) avoided",
    )


def test_busy_nodes_of_ones_own_allocation_are_used():
    states = [NodeState("a", "busy", 8), NodeState("b", "busy", 8), NodeState("c", "down")]
    found = arrange(make_cluster(1), hosts=["a", "c"], states=states)
    assert (found.avoid, found.busy) == (("c",), ())


def test_labels_of_nodes_name_their_leafs():
    states = [
        NodeState("n2", leaf="l1", pod="p2"),
        NodeState("n1", leaf="l1", pod="p1"),
        NodeState("n3", leaf="l2", pod="p1"),
        NodeState("n4", leaf="l1", pod="p1"),
    ]
    cluster = arrange(make_cluster(1), states=states).cluster
    assert [cluster.host(n) for n in range(4)] == ["n1", "n4", "n3", "n2"]
    # one name under two pods is two leafs
    assert [cluster.leaf_name(leaf) for leaf in range(3)] == ["p1/l1", "l2", "p2/l1"]


def test_nodes_with_more_gpus_than_the_spec_are_said():
    found = arrange(make_cluster(1), states=[NodeState("a", gpus=16)])
    assert found.avoid == ()
    assert found.notes == ("1 host (a) with more than 8 GPUs: only 8 of each are used",)


def test_hosts_of_a_mix_are_of_the_type_that_their_gpus_are_called_after():
    def named(cluster, name, gpu):
        more = {"accelerator": cluster.accelerator.model_copy(update={"name": gpu})}
        return cluster.model_copy(update={"name": name, **more})

    from planner.specs.mixing import joined

    types = [named(make_cluster(1), "new", "gb200"), named(make_cluster(1), "old", "b200-sxm")]
    mix = joined(types, "lab", "test")
    kinds = {"x": "gb200", "a": "NVIDIA-B200", "b": "b200", "c": "rtx-4090"}
    states = [NodeState(host, gpus=8, kind=kind) for host, kind in kinds.items()]
    states[2] = NodeState("b", "down", gpus=8, kind="b200")
    found = arrange(mix, states=states, leafs=leafs(p="x a", q="b"))
    new, old = found.cluster.mix
    assert [new.host(n) for n in range(new.nodes)] == ["x"]
    assert [old.host(n) for n in range(old.nodes)] == ["a", "b"]
    assert [leaf.name for leaf in found.cluster.leafs] == ["new/p", "old/p", "old/q"]
    assert found.avoid == ("b",)
    only = arrange(mix, states=states, hosts=["b", "a"])
    assert (only.cluster.name, only.cluster.hosts) == ("old", ("b", "a"))
    assert only.notes[0] == "no node of type new among the nodes to use"
    with pytest.raises(SpecError, match="nothing says which node type z is"):
        arrange(mix, states=states, hosts=["a", "z"])

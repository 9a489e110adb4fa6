"""The bound on step times against every map, and leafs dealt to blocks of stages."""

import itertools

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.place.blocks import deal
from planner.place.bound import least_loads
from planner.place.traffic import load_of


def at_least_one(trades, load, tier):
    return any(
        trade.rings[tier] <= load.rings[tier] and trade.sends[tier] <= load.sends[tier]
        for trade in trades[tier]
    )


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    stages=st.integers(1, 7),
    groups=st.integers(1, 6),
    per_leaf=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_map_loads_its_uplinks_as_much_as_some_trade(
    layout_of, *, stages, groups, per_leaf, seed
):
    """Maps drawn at random, and ones that fill leafs in a row: those come near the trades."""
    random = np.random.default_rng(seed)
    pods, wrap = int(random.integers(1, 4)), int(random.integers(0, 2))
    layout = layout_of(tp=8, pp=stages, dp=groups).model_copy(update={"vpp": 1 + wrap})
    used = stages * groups
    leaf_of_node = np.arange(used + int(random.integers(0, 4))) // per_leaf
    pod_of_leaf = np.arange(leaf_of_node.max() + 1) // pods
    trades = least_loads(layout, 8, (leaf_of_node, pod_of_leaf[leaf_of_node]))
    rows = leaf_of_node[:used].reshape(groups, stages).T, leaf_of_node[:used].reshape(stages, -1)
    shuffled = random.permutation(leaf_of_node)[:used].reshape(stages, groups)
    for leaf in (*rows, shuffled):
        load = load_of(layout, leaf, pod_of_leaf, send_gpus=8, member_ranks=8, near=1)
        assert at_least_one(trades, load, 0)
        assert at_least_one(trades, load, 1)


def test_the_bound_of_a_small_cluster_is_what_its_best_map_carries(layout_of):
    """Of all maps of 12 nodes to three leafs of 4, some carry exactly a trade, part for part."""
    layout = layout_of(tp=8, pp=2, dp=6).model_copy(update={"vpp": 2})
    leafs, pods = np.repeat(np.arange(3), 4), np.zeros(3, dtype=np.int64)
    (trades, _) = least_loads(layout, 8, (leafs, pods[leafs]))
    seen = set()
    for first in itertools.combinations_with_replacement(range(3), 6):
        room = [4 - first.count(k) for k in range(3)]
        if min(room) < 0:
            continue
        second = [k for k in range(3) for _ in range(room[k])]
        for third in set(itertools.permutations(second)):
            leaf = np.array([first, third])
            load = load_of(layout, leaf, pods, send_gpus=8, member_ranks=8, near=1)
            seen.add((load.rings[0], load.sends[0]))
    # one stage a leaf is impossible: 6 of a stage fill no leafs of 4 exactly, and none is spare
    assert {(t.rings[0], t.sends[0]) for t in trades} == {(2.0, 0.0)}
    assert (2.0, 0.0) in seen
    assert not any(rings < 2 for rings, _ in seen)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    rooms=st.lists(st.integers(0, 9), min_size=1, max_size=14),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    data=st.data(),
)
def test_leafs_are_dealt_in_full_and_once(rooms, widths, data):
    columns = data.draw(st.integers(1, 6))
    needs = [width * columns for width in widths]
    assume(sum(needs) <= sum(rooms))
    takes = deal(np.array(rooms), needs, widths)
    assert sum(cells for _, cells in takes) == sum(needs)
    leafs = [leaf for leaf, _ in takes]
    assert len(leafs) == len(set(leafs))
    assert all(0 < cells <= rooms[leaf] for leaf, cells in takes)


def test_blocks_end_with_leafs_where_rooms_allow():
    # blocks of 7 from leafs of 3, 4, 3 and 4: in that order a leaf would hold two blocks
    takes = deal(np.array([3, 3, 4, 4]), [7, 7], [1, 1])
    assert [sum(c for _, c in takes[:2]), sum(c for _, c in takes[2:])] == [7, 7]

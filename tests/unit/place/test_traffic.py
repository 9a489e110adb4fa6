"""Loads of uplinks, counted by hand and one rank at a time."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.place.traffic import load_of


def load(layout, leaf, pods=None, near=1):
    leaf = np.array(leaf).reshape(layout.pp, layout.dp * layout.cp)
    pod_of_leaf = np.array(pods or [0] * (int(leaf.max()) + 1))
    return load_of(
        layout, leaf, pod_of_leaf, send_gpus=layout.tp, member_ranks=layout.tp, near=near
    )


def test_pipelines_under_a_leaf_send_nothing_and_all_rings_leave(layout_of):
    # two leafs of four nodes, two pipelines of two stages each: each of the two rings leaves once
    found = load(layout_of(tp=8, pp=2, dp=4), [0, 0, 1, 1, 0, 0, 1, 1])
    assert (found.rings, found.sends, found.experts) == ((2, 0), (0, 0), (0, 0))


def test_stages_under_a_leaf_keep_their_rings_and_send_everything(layout_of):
    found = load(layout_of(tp=8, pp=2, dp=4), [0, 0, 0, 0, 1, 1, 1, 1], pods=[0, 1])
    assert (found.rings, found.sends) == ((0, 0), (32, 32))


def test_pods_are_loaded_by_what_leaves_them(layout_of):
    # leafs 0 and 1 are one pod: the ring's 0 -> 1 stays inside it, 1 -> 2 and 2 -> 0 do not
    found = load(layout_of(tp=8, pp=1, dp=3), [0, 1, 2], pods=[0, 0, 1])
    assert found.rings == (1, 1)


def test_interleaved_pipelines_wrap_around(layout_of):
    layout = layout_of(tp=1, pp=3, dp=1)
    assert load(layout, [0, 1, 2]).sends == (1, 0)
    # without the wrap leaf 0 sends one edge; with it stage 2 sends back to stage 0
    assert load(layout, [0, 1, 0]).sends == (1, 0)
    assert load(layout.model_copy(update={"vpp": 2}), [0, 1, 1]).sends == (1, 0)
    assert load(layout.model_copy(update={"vpp": 2}), [0, 0, 0]).sends == (0, 0)


def test_an_expert_group_over_two_leafs_sends_half_of_its_traffic_up(layout_of):
    # 4 ranks, 2 a leaf, each a domain of its own: of 3 peers 2 are outside, so 2 ranks * 2/3
    layout = layout_of(tp=1, dp=4, ep=4, etp=1)
    found = load(layout, [0, 0, 1, 1])
    assert np.isclose(found.experts[0], 4 / 3)
    # domains of two: what is not in the domain is all outside, 2 ranks at full rate
    assert load(layout, [0, 0, 1, 1], near=2).experts[0] == 2
    assert load(layout, [0, 0, 1, 1], near=4).experts[0] == 0
    assert load(layout, [0, 0, 0, 0]).experts[0] == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_loads_equal_a_count_of_one_edge_after_the_other(layout_of, data):
    pp, dp, cp = (data.draw(st.integers(1, 4)) for _ in range(3))
    tp, vpp = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 2]))
    divisors = [e for e in range(1, dp * cp * tp + 1) if dp * cp * tp % e == 0]
    ep = data.draw(st.sampled_from(divisors))
    layout = layout_of(tp=tp, pp=pp, cp=cp, dp=dp, ep=ep, etp=1).model_copy(update={"vpp": vpp})
    leaf = data.draw(st.lists(st.integers(0, 3), min_size=pp * dp * cp, max_size=pp * dp * cp))
    ranks = [leaf[n // tp] for n in range(layout.gpus)]
    stage = tp * cp * dp
    rings, out, back, experts = Counter(), Counter(), Counter(), Counter()
    for rank in range(layout.gpus):
        first = rank // stage * stage
        following = first + (rank - first + tp) % stage
        rings[ranks[rank]] += ranks[rank] != ranks[following] and rank % tp == 0
        if rank + stage < layout.gpus or vpp > 1:
            other = (rank + stage) % layout.gpus
            out[ranks[rank]] += ranks[rank] != ranks[other]
            back[ranks[other]] += ranks[rank] != ranks[other]
        group = rank // ep * ep
        away = sum(ranks[rank] != ranks[peer] for peer in range(group, group + ep))
        experts[ranks[rank]] += away / max(1, ep - 1) if ep > tp else 0
    found = load(layout, leaf)
    assert found.rings[0] == max(rings.values())
    assert found.sends[0] == max(itertools.chain(out.values(), back.values()), default=0)
    assert np.isclose(found.experts[0], max(experts.values()))

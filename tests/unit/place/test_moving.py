"""After a failure: who moves, where to, and what it costs."""

import itertools

import pytest

from planner.errors import InfeasibleError, SpecError
from planner.place import place
from planner.plan import Placement


def spots(placement):
    return [(r.host, r.gpu) for r in placement.ranks]


def test_only_the_ranks_of_a_lost_node_move_and_next_to_their_pipeline(cluster_of, layout_of):
    # leafs of 9: two pipelines of 4 each and one spare
    cluster, layout = cluster_of(36, per_leaf=9), layout_of(tp=8, pp=4, dp=8)
    old = place(cluster, layout)
    assert old.splits == 0
    lost = old.ranks[0].host
    new = place(cluster, layout, unhealthy=[lost], moved_from=old)
    moved = [
        n for n, pair in enumerate(zip(spots(old), spots(new), strict=True)) if len({*pair}) > 1
    ]
    assert moved == [r.rank for r in old.ranks if r.host == lost]
    assert (new.moved_ranks, new.objective, new.bound, new.status) == (8, 8, 8, "optimal")
    assert new.question == "fewest-moved-ranks"
    assert new.ranks[0].leaf == old.ranks[0].leaf
    assert new.splits == 0
    assert any("8 ranks of the earlier map move; placing anew would move" in n for n in new.notes)


def test_nothing_moves_when_nothing_is_lost(cluster_of, layout_of):
    cluster, layout = cluster_of(10, per_leaf=5), layout_of(tp=8, pp=2, dp=4)
    old = place(cluster, layout)
    spare = ({cluster.host(n) for n in range(10)} - set(old.hosts)).pop()
    new = place(cluster, layout, unhealthy=[spare], moved_from=old)
    assert spots(new) == spots(old)
    assert (new.moved_ranks, new.gap) == (0, 0)


def test_the_spares_chosen_split_fewest_pipelines_of_all_choices(cluster_of, layout_of):
    cluster, layout = cluster_of(21, per_leaf=7), layout_of(tp=8, pp=3, dp=5)
    old = place(cluster, layout)
    lost = [old.ranks[0].host, old.ranks[-1].host]
    new = place(cluster, layout, unhealthy=lost, moved_from=old)
    assert new.moved_ranks == 16
    index = {cluster.host(n): n for n in range(21)}
    spare = sorted(set(index.values()) - {index[h] for h in old.hosts})

    def split(nodes):
        leaf = [n // 7 for n in nodes]
        return sum(leaf[5 * p + d] != leaf[5 * p + 5 + d] for p in range(2) for d in range(5))

    best = 99
    for pair in itertools.permutations(spare, 2):
        put = dict(zip(lost, pair, strict=True))
        best = min(best, split([put.get(h, index[h]) for h in old.hosts]))
    assert new.splits == best


def test_ranks_keep_their_gpus_when_an_earlier_broken_one_is_mended(cluster_of, layout_of):
    cluster, layout = cluster_of(1), layout_of(tp=4, dp=1)
    old = place(cluster, layout, unhealthy=["node00001:0"])
    assert [r.gpu for r in old.ranks] == [1, 2, 3, 4]
    assert any("`emit` refuses this map" in note for note in old.notes)
    assert spots(place(cluster, layout, moved_from=old)) == spots(old)
    broken = place(cluster, layout, moved_from=old, unhealthy=["node00001:4"])
    assert [r.gpu for r in broken.ranks] == [0, 1, 2, 3]
    # one GPU is gone, but launchers number a node's GPUs in rising order
    assert (broken.moved_ranks, broken.bound, broken.status) == (4, 1, "feasible")


def test_nodes_are_taken_whose_gpus_count_from_0(cluster_of, layout_of):
    cluster, layout = cluster_of(3, per_leaf=3), layout_of(tp=4, dp=1)
    old = place(cluster, layout, unhealthy=["node00001:0"])
    assert spots(old) == [("node00002", n) for n in range(4)]
    assert any("not the first 4, left out: launchers count GPUs from 0" in n for n in old.notes)
    # one GPU of four is lost: its node has others, but a launcher could not name them
    new = place(cluster, layout, unhealthy=["node00002:2"], moved_from=old)
    assert spots(new) in ([(f"node0000{host}", n) for n in range(4)] for host in (1, 3))
    assert (new.moved_ranks, new.bound) == (4, 1)
    alone = place(
        cluster, layout, unhealthy=["node00001", "node00002:2", "node00003"], moved_from=old
    )
    assert [r.gpu for r in alone.ranks] == [0, 1, 3, 4]
    assert (alone.moved_ranks, alone.bound) == (2, 1)
    assert any("`emit` refuses this map" in note for note in alone.notes)


def test_tensor_groups_stay_in_their_scale_up_domain(cluster_of, layout_of):
    # racks of 5 trays: two pairs each and one spare
    cluster = cluster_of(20, per_leaf=5, gpus=4, domain_gpus=20)
    layout = layout_of(tp=8, pp=2, dp=3)
    old = place(cluster, layout)
    new = place(cluster, layout, unhealthy=[old.hosts[3]], moved_from=old)
    assert new.moved_ranks == 4
    rack = (int(old.hosts[3][4:]) - 1) // 5
    assert (int(new.hosts[3][4:]) - 1) // 5 == rack
    two = [h for h in old.hosts if (int(h[4:]) - 1) // 5 == rack][:3:2]
    with pytest.raises(InfeasibleError, match="no scale-up domain has 1 spare node for"):
        place(cluster, layout, unhealthy=two, moved_from=old)


def test_a_placement_of_another_layout_is_refused(cluster_of, layout_of):
    cluster = cluster_of(10, per_leaf=5)
    old = place(cluster, layout_of(tp=8, pp=2, dp=4))
    with pytest.raises(SpecError, match="64 ranks of another layout"):
        place(cluster, layout_of(tp=8, pp=4, dp=2), moved_from=old)
    with pytest.raises(SpecError, match="64 ranks of another layout"):
        place(cluster, layout_of(tp=8, pp=2, dp=5), moved_from=old)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"placement": null}', "{" * 5000, "\x00"])
def test_a_file_without_a_placement_is_refused(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(SpecError, match="holds no placement"):
        Placement.read(path)


def test_what_place_and_plan_write_is_read(tmp_path, cluster_of, layout_of):
    found = place(cluster_of(2), layout_of(tp=8, dp=2))
    path = tmp_path / "old.json"
    path.write_text(found.model_dump_json())
    assert Placement.read(path) == found
    path.write_text(f'{{"schema": "meshwright.plan/1", "placement": {found.model_dump_json()}}}')
    assert Placement.read(path) == found
    with pytest.raises(SpecError, match="cannot be read"):
        Placement.read(tmp_path / "none")

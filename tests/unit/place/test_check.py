"""Planted mistakes: the checker has to see each of them."""

import pytest

from planner.place import PlacementError, check_placement, place


def changed(placement, changes, **claims):
    """Return `placement` with {rank: {field: value}} and other claims changed."""
    ranks = list(placement.ranks)
    for rank, fields in changes.items():
        ranks[rank] = ranks[rank].model_copy(update=fields)
    return placement.model_copy(update={"ranks": ranks, **claims})


@pytest.fixture
def job(cluster_of, layout_of):
    cluster, layout = cluster_of(8, per_leaf=4), layout_of(tp=8, pp=4, dp=2)
    return cluster, layout, place(cluster, layout)


def test_a_sound_map_passes(job):
    check_placement(*job)


def test_hosts_swapped_across_leafs_show_in_the_splits(job):
    cluster, layout, sound = job
    swap = {}
    for local in range(8):  # stage 0 of the two replicas change places: both are split now
        a, b = sound.ranks[local], sound.ranks[8 + local]
        swap[local] = {"host": b.host, "leaf": b.leaf}
        swap[8 + local] = {"host": a.host, "leaf": a.leaf}
    with pytest.raises(PlacementError, match=r"splits claimed 0 .* are 2"):
        check_placement(cluster, layout, changed(sound, swap))


def test_a_gpu_used_twice_is_seen(job):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match="GPU used twice: rank 5 on node00001:4"):
        check_placement(cluster, layout, changed(sound, {5: {"gpu": 4}}))


def test_a_gpu_that_is_not_there_is_seen(job):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match="outside 0 to 7: rank 5"):
        check_placement(cluster, layout, changed(sound, {5: {"gpu": 8}}))


def test_gpus_out_of_rank_order_are_seen(job):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match="not in rank order: rank 3 on node00001:2"):
        check_placement(cluster, layout, changed(sound, {2: {"gpu": 3}, 3: {"gpu": 2}}))


def test_an_unhealthy_host_is_seen(job):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match="unhealthy GPU used: rank 2 on node00001:2"):
        check_placement(cluster, layout, sound, unhealthy=["node00001:2"])


def test_an_unknown_host_is_seen(job):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match="does not have: nowhere"):
        check_placement(cluster, layout, changed(sound, {0: {"host": "nowhere"}}))


def test_a_missing_rank_is_seen(job):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match="ranks are not 0 to 63"):
        check_placement(cluster, layout, sound.model_copy(update={"ranks": sound.ranks[:-1]}))


def test_a_rank_listed_twice_is_seen(job):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match="each once"):
        check_placement(cluster, layout, changed(sound, {7: {"rank": 6}}))


def test_a_wrong_leaf_is_seen(job):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match="another leaf than claimed: rank 3"):
        check_placement(cluster, layout, changed(sound, {3: {"leaf": "leaf0009"}}))


def test_ranks_scattered_over_nodes_are_seen(job):
    cluster, layout, sound = job
    a, b = sound.ranks[0], sound.ranks[8]
    mixed = {0: {"host": b.host, "leaf": b.leaf}, 8: {"host": a.host, "leaf": a.leaf}}
    with pytest.raises(PlacementError, match="not consecutive"):
        check_placement(cluster, layout, changed(sound, mixed))


@pytest.mark.parametrize("kind", ["tp", "cp", "ep", "dp", "pp"])
def test_a_wrong_coordinate_is_seen(job, kind):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match=f"{kind} coordinate of rank 9 is 7"):
        check_placement(cluster, layout, changed(sound, {9: {kind: 7}}))


def test_a_split_tensor_group_is_seen(cluster_of, layout_of):
    cluster, layout = cluster_of(4, per_leaf=4), layout_of(tp=8)
    sound = place(cluster, layout)
    half = {r: {"host": "node00002", "gpu": r - 4} for r in range(4, 8)}
    with pytest.raises(PlacementError, match="1 tensor-parallel groups leave their"):
        check_placement(cluster, layout, changed(sound, half))


def test_a_tensor_group_across_nvlink_domains_is_seen(cluster_of, layout_of):
    cluster = cluster_of(8, per_leaf=8, gpus=4, domain_gpus=16)
    layout = layout_of(tp=8, dp=2)
    sound = place(cluster, layout)
    far = {r: {"host": "node00008"} for r in range(4, 8)}
    with pytest.raises(PlacementError, match="leave their scale-up domain"):
        check_placement(cluster, layout, changed(sound, far))


def test_a_false_proof_is_seen(job):
    cluster, layout, sound = job
    with pytest.raises(PlacementError, match="called optimal with bound -1 under 0"):
        check_placement(cluster, layout, sound.model_copy(update={"bound": -1.0}))
    with pytest.raises(PlacementError, match="bound 1 is above"):
        check_placement(cluster, layout, sound.model_copy(update={"bound": 1.0}))


def test_false_tiers_are_seen(job):
    cluster, layout, sound = job
    tiers = {**sound.tiers, "dp": {**sound.tiers["dp"], "leaf": 99}}
    with pytest.raises(PlacementError, match="dp groups by tier claimed"):
        check_placement(cluster, layout, sound.model_copy(update={"tiers": tiers}))


def test_a_step_time_claimed_wrongly_is_found(cluster_of, layout_of):
    cluster, layout = cluster_of(8, per_leaf=4), layout_of(tp=8, pp=2, dp=4)
    sound = place(cluster, layout).model_copy(
        update={
            "question": "least-step-time",
            "objective": 2.0,
            "step_time_s": 2.0,
            "bound": 1.9,
            "status": "feasible",
        }
    )
    check_placement(cluster, layout, sound)
    for change, said in (
        ({"bound": 2.1}, "bound 2.1 is above the objective, 2"),
        ({"status": "optimal"}, "called optimal with bound 1.9 under objective 2"),
        ({"step_time_s": 2.5}, "objective 2"),
        ({"splits": 3}, "splits claimed 3"),
    ):
        with pytest.raises(PlacementError, match=said):
            check_placement(cluster, layout, sound.model_copy(update=change))


def test_leafs_carry_the_names_of_their_switches(cluster_of, layout_of):
    leafs = [
        {"name": "tor-b", "pod": "east", "hosts": "x[1-4]"},
        {"name": "tor-a", "pod": "west", "hosts": "y[1-2]"},
    ]
    cluster, layout = cluster_of(6, leafs=leafs), layout_of(tp=8, pp=2, dp=3)
    found = place(cluster, layout)
    assert {(r.host[0], r.leaf) for r in found.ranks} == {("x", "tor-b"), ("y", "tor-a")}
    assert found.splits == 0
    assert found.tiers["dp"]["across"] == 16
    wrong = [r.model_copy(update={"leaf": "tor-a"}) for r in found.ranks]
    with pytest.raises(PlacementError, match="under another leaf than claimed"):
        check_placement(cluster, layout, found.model_copy(update={"ranks": wrong}))

"""The optimum against other ways to find it: counts per leaf and stage, and every map there is."""

import itertools
import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.errors import InfeasibleError
from planner.place import place
from planner.place.cells import Grid
from planner.place.packing import pack


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    rooms=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    stages=st.integers(2, 6),
    full=st.booleans(),
    data=st.data(),
)
def test_packing_cuts_as_few_edges_as_the_counts_model(counted, rooms, stages, full, data):
    most = max(1, sum(rooms) // stages)
    columns = most if full else data.draw(st.integers(1, most + 1))
    pods = {leaf: data.draw(st.integers(0, 1)) for leaf in range(len(rooms))}
    packing = pack(dict(enumerate(rooms)), pods, Grid(stages, columns, 1, 1))
    fewest = counted(rooms, stages, columns)
    if fewest is None:
        assert packing is None
    else:
        assert packing.bound == fewest
        assert sum(run.columns for run in packing.runs) == columns
        assert sum(len(run.leafs) - 1 for run in packing.runs) == fewest
        used = [leaf for run in packing.runs for leaf in run.leafs]
        assert len(used) == len(set(used))
        for run in packing.runs:
            assert run.columns * stages <= sum(rooms[leaf] for leaf in run.leafs)


def fewest_splits_by_trying_all(layout, ranks, rooms):
    """Return the fewest split edges over all maps of nodes' worth of ranks to leafs.

    Where the ranks of one stage of a replica span nodes and stages end with nodes, such nodes
    share a leaf, as `place` promises.
    """
    units = layout.gpus // ranks
    stage, replica = layout.tp * layout.cp * layout.dp, layout.tp * layout.cp
    cell = math.lcm(replica, ranks) // ranks if stage % ranks == 0 else 1
    best = math.inf
    for leafs in itertools.product(range(len(rooms)), repeat=units // cell):
        of_unit = np.repeat(leafs, cell)
        if (np.bincount(of_unit, minlength=len(rooms)) > rooms).any():
            continue
        of_rank = np.repeat(of_unit, ranks)
        here, there = of_rank[: layout.gpus - stage], of_rank[stage:]
        edges = (np.arange(layout.gpus - stage) // replica)[here != there]
        best = min(best, len(set(edges.tolist())))
    return best


@st.composite
def small_jobs(draw):
    """Yield degrees of a job, the GPUs of a node, and leafs of up to 4 nodes with room for it."""
    gpus = draw(st.sampled_from([2, 4]))
    degrees = {
        "tp": draw(st.sampled_from([1, 2] if gpus == 2 else [1, 2, 3, 4])),
        "cp": draw(st.sampled_from([1, 1, 2, 3])),
        "pp": draw(st.integers(2, 6)),
        "dp": draw(st.integers(1, 6)),
    }
    leafs = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    assume(math.prod(degrees.values()) <= gpus * sum(leafs))
    return degrees, gpus, leafs


@settings(max_examples=250, deadline=None, derandomize=True)
@given(job=small_jobs())
def test_maps_are_as_good_as_any_and_bounds_hold(cluster_of, layout_of, job):
    degrees, gpus, leafs = job
    layout = layout_of(**degrees)
    cluster = cluster_of(4 * len(leafs), per_leaf=4, gpus=gpus)
    down = [cluster.host(4 * k + n) for k, free in enumerate(leafs) for n in range(free, 4)]
    try:
        found = place(cluster, layout, unhealthy=down)
    except InfeasibleError:
        assert layout.gpus % gpus or gpus % layout.tp  # such ranks leave GPUs of every node idle
        return
    assume(len(leafs) ** len(found.hosts) <= 3**8)
    fewest = fewest_splits_by_trying_all(layout, found.gpus_per_node, leafs)
    if fewest < math.inf:  # otherwise no map keeps every stage of a replica under one leaf
        assert found.bound <= fewest <= found.splits
        assert found.splits == fewest or found.status == "feasible"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_job_gets_a_sound_map_or_a_reason(cluster_of, layout_of, data):
    """`place` checks each map by other code, and raises what is no PlannerError if it is wrong."""
    gpus, trays = data.draw(st.sampled_from([1, 2, 3, 4, 8])), data.draw(st.integers(1, 5))
    nodes, per_leaf = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    cluster = cluster_of(
        nodes,
        per_leaf=per_leaf,
        per_pod=data.draw(st.sampled_from([None, 1, 2])),
        gpus=gpus,
        domain_gpus=gpus * trays,
    )
    degrees = {k: data.draw(st.integers(1, 4)) for k in ("cp", "pp", "dp")}
    degrees["tp"] = data.draw(st.integers(1, gpus * trays))
    stage = degrees["tp"] * degrees["cp"] * degrees["dp"]
    ep = data.draw(st.sampled_from([e for e in range(1, stage + 1) if stage % e == 0]))
    layout = layout_of(**degrees, ep=ep, etp=1)
    down = data.draw(st.lists(st.integers(0, nodes - 1), max_size=3))
    found, reason = None, ""
    try:
        found = place(cluster, layout, unhealthy=[f"{cluster.host(n)}:{n % gpus}" for n in down])
    except InfeasibleError as error:
        reason = error.message
    assert (found is None) == ("short by" in reason)
    if found is None:
        return
    assert len(found.ranks) == layout.gpus
    for kind, size in {**degrees, "ep": ep}.items():
        assert sum(found.tiers[kind].values()) == layout.gpus // size

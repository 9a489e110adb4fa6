"""Problems with optima proven by formulations other than ours (see README.md beside them)."""

import json
from pathlib import Path

import pytest

from planner.errors import InfeasibleError
from planner.place import place

FILES = sorted((Path(__file__).parents[2] / "measured" / "placement").glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_proven_optimum_is_found_and_proven(cluster_of, layout_of, counted, file):
    problem = json.loads(file.read_text())
    leafs = [leaf["node_gpus"] for leaf in problem["cluster"]["leafs"]]
    width = max(map(len, leafs))
    cluster = cluster_of(width * len(leafs), per_leaf=width)
    unhealthy = []
    for k, healthy in enumerate(leafs):
        padded = [*healthy, *[0] * (width - len(healthy))]
        for n, gpus in enumerate(padded):
            unhealthy += [f"{cluster.host(k * width + n)}:{g}" for g in range(gpus, 8)]
    layout = layout_of(**problem["layout"])
    expected = problem["expected"]
    if expected["status"] == "infeasible":
        with pytest.raises(InfeasibleError, match=f"short by {expected['lacking']}"):
            place(cluster, layout, unhealthy=unhealthy)
    else:
        found = place(cluster, layout, unhealthy=unhealthy)
        cuts = fewest_cuts(problem, found.gpus_per_node, counted)
        assert (found.status, found.splits, found.bound) == ("optimal", cuts, cuts)


def fewest_cuts(problem, ranks, counted):
    """Return the optimum of a problem about cuts alone, else that of its cells by counting.

    Launchers give a node consecutive ranks, so a cell here is a node at least, where the problem's
    may be half of one. A cut cell edge splits every pipeline of which the cell holds a stage.
    """
    layout, expected = problem["layout"], problem["expected"]
    cell = max(problem["cell"]["gpus"], ranks)
    pipelines = cell // (layout["tp"] * layout["cp"])
    leafs = [leaf["node_gpus"] for leaf in problem["cluster"]["leafs"]]
    rooms = [sum(gpus >= ranks for gpus in leaf) * ranks // cell for leaf in leafs]
    cuts = counted(rooms, layout["pp"], layout["dp"] // pipelines)
    if not problem["weights"]["dp_extra_leaf"]:
        assert cuts == expected["pp_edges_crossing_leaf"]
    return cuts * pipelines


def test_the_instances_are_there():
    assert len(FILES) == 10

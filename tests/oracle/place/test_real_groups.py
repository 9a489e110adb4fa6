"""Our groups against those that Megatron-Core and DeviceMesh build, under a fake process group.

The worlds are larger than any machine here: nothing is sent, only groups are made.
"""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec

import pytest

from planner.place import place
from planner.place.groups import groups

pytestmark = pytest.mark.frameworks

MEGATRON = """
import json, sys
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from megatron.core import parallel_state as state
out = []
for degrees, rank in json.loads(sys.argv[1]):
    world = degrees["tp"] * degrees["pp"] * degrees["cp"] * degrees["dp"]
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    state.initialize_model_parallel(
        tensor_model_parallel_size=degrees["tp"],
        pipeline_model_parallel_size=degrees["pp"],
        context_parallel_size=degrees["cp"],
        expert_model_parallel_size=degrees["ep"],
        expert_tensor_parallel_size=degrees["etp"],
        create_gloo_process_groups=False,
    )
    of = torch.distributed.get_process_group_ranks
    out.append({
        "tp": of(state.get_tensor_model_parallel_group()),
        "cp": of(state.get_context_parallel_group()),
        "pp": of(state.get_pipeline_model_parallel_group()),
        "dp": of(state.get_data_parallel_group(with_context_parallel=False)),
        "ep": of(state.get_expert_model_parallel_group()),
    })
    state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
print(json.dumps(out))
"""

MESH = """
import json, sys
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
names = ("pp", "dp", "cp", "tp")
out = []
for degrees, rank in json.loads(sys.argv[1]):
    sizes = tuple(degrees[name] for name in names)
    world = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    of = torch.distributed.get_process_group_ranks
    out.append({name: of(mesh[name].get_group()) for name in names})
    torch.distributed.destroy_process_group()
print(json.dumps(out))
"""

DEGREES = [
    {"tp": 8, "pp": 4, "cp": 1, "dp": 6, "ep": 1, "etp": 8},
    {"tp": 4, "pp": 3, "cp": 2, "dp": 4, "ep": 8, "etp": 1},
    {"tp": 2, "pp": 2, "cp": 4, "dp": 8, "ep": 4, "etp": 2},
]


def built(
    env: dict[str, str], script: str
) -> list[tuple[dict[str, int], int, dict[str, list[int]]]]:
    """Return degrees, a rank, and the ranks of its groups by kind, as the script builds them."""
    asked = [(degrees, rank) for degrees in DEGREES for rank in some_ranks(degrees)]
    words = ["python", "-c", script, json.dumps(asked)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    return [(*one, groups) for one, groups in zip(asked, told, strict=True)]


def some_ranks(degrees: dict[str, int]) -> list[int]:
    world = degrees["tp"] * degrees["pp"] * degrees["cp"] * degrees["dp"]
    return sorted({0, 1, world // 3, world // 2 + 1, world - 1})


@pytest.fixture(scope="module")
def by_megatron(warm):
    if find_spec("megatron") is None or find_spec("torch") is None:
        pytest.skip("megatron-core is not installed")
    return built(warm.env("megatron"), MEGATRON)


@pytest.fixture(scope="module")
def by_mesh(warm):
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    return built(warm.env("torch"), MESH)


@pytest.mark.parametrize("builder", ["by_megatron", "by_mesh"])
def test_frameworks_build_these_groups(layout_of, request, builder):
    for degrees, rank, kinds in request.getfixturevalue(builder):
        for kind, members in kinds.items():
            ours = groups(layout_of(**degrees), kind)
            (row,) = ours[(ours == rank).any(axis=1)]
            assert sorted(row.tolist()) == sorted(members), (degrees, rank, kind)


def test_a_map_keeps_their_tensor_groups_in_nodes_and_their_pipelines_under_leafs(
    cluster_of, layout_of, by_mesh
):
    """The groups are a DeviceMesh's, the hosts are the map's: nothing of ours between."""
    layout, cluster = layout_of(**DEGREES[0]), cluster_of(34, per_leaf=9)
    found = place(cluster, layout, unhealthy=["node00004:1", "node00020"])
    assert found.splits == 0
    for degrees, _, kinds in by_mesh:
        if degrees == DEGREES[0]:
            assert len({found.ranks[member].host for member in kinds["tp"]}) == 1
            assert len({found.ranks[member].leaf for member in kinds["pp"]}) == 1

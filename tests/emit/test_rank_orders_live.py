"""Our groups are those of the frameworks' own code, over every layout of up to 64 GPUs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import deepspeed_harness
import megatron_harness
import numpy as np
import pytest
from plan_grid import MODELS, layout

from planner.place.groups import coordinates, groups
from planner.plan import Layout

pytestmark = pytest.mark.frameworks
DEGREES = (1, 2, 3, 4, 8)


def layouts(*, cp: bool = True, experts: bool = False) -> Iterator[Layout]:
    widths = DEGREES if cp else (1,)
    for tp, c, dp, pp in itertools.product(DEGREES, widths, DEGREES, DEGREES):
        if tp * c * dp * pp > 64:
            continue
        if not experts:
            yield layout(MODELS["dense"], tp=tp, cp=c, dp=dp, pp=pp, etp=1)
            continue
        for ep, etp in itertools.product((2, 4, 8), (1, tp)):
            if tp * c * dp % (ep * etp) == 0:
                yield layout(MODELS["moe"], tp=tp, cp=c, dp=dp, pp=pp, ep=ep, etp=etp)


def as_sets(rows: Any) -> list[tuple[int, ...]]:
    return sorted(tuple(int(rank) for rank in row) for row in rows)


def test_megatrons_rank_generator_forms_the_same_groups():
    megatron_harness.load()
    from megatron.core.parallel_state import RankGenerator

    count = 0
    for lay in layouts():
        order = {"order": "tp-cp-ep-dp-pp"}
        theirs = RankGenerator(tp=lay.tp, ep=1, dp=lay.dp, pp=lay.pp, cp=lay.cp, **order)
        for kind in ("tp", "cp", "dp", "pp"):
            found = groups(lay, kind)
            assert as_sets(found) == as_sets(theirs.get_ranks(kind)), (lay.short(), kind)
        count += 1
    assert count >= 200


def test_megatrons_rank_generator_forms_the_same_expert_groups():
    megatron_harness.load()
    from megatron.core.parallel_state import RankGenerator

    count = 0
    for lay in layouts(experts=True):
        theirs = RankGenerator(
            tp=lay.etp, ep=lay.ep, dp=lay.edp, pp=lay.pp, cp=1, order="tp-cp-ep-dp-pp"
        )
        assert as_sets(groups(lay, "ep")) == as_sets(theirs.get_ranks("ep")), lay.short()
        count += 1
    assert count >= 200


def test_deepspeeds_topology_gives_every_rank_the_same_coordinates():
    deepspeed_harness.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    for lay in layouts(cp=False):
        theirs = PipeModelDataParallelTopology(num_pp=lay.pp, num_mp=lay.tp, num_dp=lay.dp)
        at = coordinates(lay)
        for rank in range(lay.gpus):
            place = theirs.get_coord(rank)
            ours = (at["pp"][rank], at["dp"][rank], at["tp"][rank])
            assert (place.pipe, place.data, place.model) == ours, (lay.short(), rank)


def test_deepspeed_forms_the_same_expert_groups():
    deepspeed_harness.load()
    from deepspeed.utils.groups import _get_expert_parallel_ranks

    count = 0
    for lay in layouts(experts=True):
        if (lay.tp, lay.cp, lay.etp) != (1, 1, 1) or lay.dp % lay.ep:
            continue
        theirs, _ = _get_expert_parallel_ranks(lay.gpus, 1, lay.ep, lay.pp)
        assert as_sets(groups(lay, "ep")) == as_sets(theirs), lay.short()
        count += 1
    assert count >= 20


def test_a_device_mesh_gives_every_rank_the_same_coordinates():
    """The mesh of pp, dp, cp, tp that train.py makes, and Accelerate and torchtitan by theirs."""
    pytest.importorskip("torch")
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    names = ("pp", "dp", "cp", "tp")
    for lay in itertools.islice(layouts(), 0, None, 7):
        dist.init_process_group("fake", rank=0, world_size=lay.gpus, store=FakeStore())
        try:
            shape = [getattr(lay, name) for name in names]
            ranks = np.arange(lay.gpus).reshape(shape)
            mesh = DeviceMesh("cpu", ranks.tolist(), mesh_dim_names=names, _init_backend=False)
            at, where = coordinates(lay), mesh.mesh.numpy()
            for rank in range(lay.gpus):
                (place,) = np.argwhere(where == rank)
                assert [int(at[name][rank]) for name in names] == place.tolist()
        finally:
            dist.destroy_process_group()

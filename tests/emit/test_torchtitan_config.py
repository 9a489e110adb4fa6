"""torchtitan's config manager reads the arguments, its ParallelDims and its model the result."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import titan_harness
from plan_grid import MODELS, plan

from planner.emit.base import write_bundle
from planner.emit.torchtitan import EMITTER
from planner.plan import Plan
from planner.specs.parameters import count_parameters

pytestmark = pytest.mark.frameworks

DENSE: list[dict[str, Any]] = [
    *({"dp": dp, "zero": z} for dp, z in itertools.product((1, 8, 16), (2, 3))),
    {"dp": 8, "zero": 0},
    *({"tp": tp, "dp": 4, "cp": cp, "zero": 3} for tp in (1, 4, 8) for cp in (1, 2)),
    {"tp": 2, "dp": 4, "zero": 3, "sp": False},
    *({"dp": 8, "zero": 3, "dp_replicate": r, "recompute": "full"} for r in (2, 4)),
]
PIPES: list[dict[str, Any]] = [
    *({"pp": pp, "dp": 2, "zero": z, "num_microbatches": 8} for pp in (2, 4) for z in (2, 3)),
    {"pp": 2, "tp": 4, "dp": 2, "zero": 2, "schedule": "gpipe", "num_microbatches": 1},
    {"pp": 4, "vpp": 2, "dp": 2, "zero": 2, "num_microbatches": 8, "recompute": "selective"},
    {"pp": 3, "dp": 2, "zero": 2, "num_microbatches": 3, "stage_layers": [[5], [7], [4]]},
    {"pp": 2, "vpp": 2, "dp": 2, "zero": 2, "schedule": "looped-bfs", "num_microbatches": 4},
    {"pp": 2, "vpp": 4, "dp": 2, "zero": 2, "schedule": "interleaved-zb", "num_microbatches": 4},
    {
        **{"pp": 2, "vpp": 2, "dp": 2, "zero": 2, "schedule": "zbv", "num_microbatches": 4},
        "stage_layers": [[3, 2], [5, 6]],
    },
    {"pp": 4, "vpp": 2, "dp": 2, "zero": 2, "schedule": "dualpipev", "num_microbatches": 8},
]
EXPERTS: list[dict[str, Any]] = [
    {"dp": 8, "ep": 8, "zero": 3},
    {"dp": 4, "tp": 2, "ep": 4, "etp": 1, "zero": 3},
    {"dp": 4, "tp": 2, "etp": 2, "zero": 3},
    {"dp": 4, "pp": 2, "ep": 2, "zero": 2, "num_microbatches": 4},
    {"dp": 8, "ep": 4, "dp_replicate": 2, "zero": 3},
    {"dp": 4, "cp": 2, "ep": 8, "zero": 3},
]
CASES = [
    *(("dense", row) for row in (*DENSE, *PIPES)),
    *(("wide-heads", row) for row in DENSE),
    *(("moe", row) for row in (*EXPERTS, *PIPES)),
    *(("moe-period", row) for row in EXPERTS),
]


def written(folder: Path, answer: Plan) -> Path:
    assert EMITTER.unsupported(answer) == []
    write_bundle(folder / "bundle", EMITTER.emit(answer), force=False)
    return folder / "bundle"


@pytest.mark.parametrize(("name", "row"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_the_config_manager_reads_the_plan_back(name, row, tmp_path):
    if name.startswith("moe") and row.get("tp", 1) > 1 and "ep" not in row:
        row = row | {"etp": row["tp"]}
    answer = plan(MODELS[name], **row)
    lay, work = answer.best.layout, answer.request.workload
    bundle = written(tmp_path, answer)
    made = titan_harness.read(bundle, titan_harness.arguments(bundle))
    from torchtitan.distributed import ParallelDims

    dims = ParallelDims.from_config(made.parallelism, lay.gpus)
    replicas = lay.dp if lay.zero == 0 else lay.dp_replicate
    found = (dims.tp, dims.cp, dims.pp, dims.ep, dims.dp_replicate, dims.dp_shard)
    assert found == (lay.tp, lay.cp, lay.pp, lay.ep, replicas, lay.dp // replicas)
    accumulate = work.global_batch // (made.training.local_batch_size * lay.dp)
    pipe = made.training.local_batch_size // lay.micro_batch
    assert accumulate * pipe == lay.num_microbatches
    assert (pipe if lay.pp == 1 else accumulate) == 1
    assert made.training.seq_len == work.seq_tokens
    assert made.parallelism.enable_sequence_parallel is (lay.sp or lay.tp == 1)
    kind = type(made.activation_checkpoint).__qualname__.split(".")[0]
    assert kind == {"none": "NoneType", "selective": "SelectiveAC", "full": "FullAC"}[lay.recompute]


@pytest.mark.parametrize("row", PIPES, ids=str)
def test_its_pipeline_cuts_the_model_as_planned(row, tmp_path):
    answer = plan(MODELS["dense"], **row)
    lay = answer.best.layout
    bundle = written(tmp_path, answer)
    made = titan_harness.read(bundle, titan_harness.arguments(bundle)).parallelism
    from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

    parts = made.module_fqns_per_model_part
    assert [m for part in parts for m in part] == [
        "tok_embeddings", *(f"layers.{i}" for i in range(16)), "norm", "lm_head"
    ]  # fmt: skip
    from torchtitan.distributed.pipeline_parallel import _get_pp_rank_to_stage_indices_mapping

    name = made.pipeline_parallel_schedule
    of_rank = [
        _get_pp_rank_to_stage_indices_mapping(rank, lay.pp, name, len(parts))
        for rank in range(lay.pp)
    ]
    held = [[sum("layers" in m for m in parts[part]) for part in mine] for mine in of_rank]
    assert held == answer.best.stage_layers
    schedule = get_schedule_class(made.pipeline_parallel_schedule)
    assert issubclass(schedule, PipelineScheduleSingle) == (lay.vpp == 1)


@pytest.mark.parametrize("name", ["dense", "wide-heads", "moe", "moe-period"])
def test_the_model_has_the_parameters_that_the_plan_counts(name, tmp_path):
    """Built without memory; what is not counted alike is the balancing bias of the router."""
    spec = MODELS[name]
    bundle = written(tmp_path, plan(spec, dp=8, zero=3))
    made = titan_harness.read(bundle, titan_harness.arguments(bundle))
    import torch

    with torch.device("meta"):
        built = made.model_spec.model.build()
    weights = {id(p): p.numel() for p in built.parameters()}
    assert sum(weights.values()) == count_parameters(spec).total


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_fp8_is_in_every_layer_and_not_in_what_chooses(name, tmp_path):
    """torchao swaps the layers; its question for the GPU's generation is answered as by Hopper."""
    answer = plan(MODELS[name], dp=8, zero=3, precision="fp8")
    bundle = written(tmp_path, answer)
    with titan_harness.on_hopper():
        made = titan_harness.read(bundle, titan_harness.arguments(bundle))
    kinds = {f: type(c).__qualname__ for f, c, *_ in made.model_spec.model.traverse(linear())}
    kept = {fqn for fqn, kind in kinds.items() if not kind.startswith("Float8")}
    assert {fqn.split(".")[-1] for fqn in kept} <= {"lm_head", "gate"}
    assert len(kinds) - len(kept) >= 2 * answer.request.model.layers


def linear() -> Any:
    from torchtitan.models.common import Linear

    return Linear.Config


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("dense", {"tp": 2, "cp": 2, "dp": 4, "pp": 2, "zero": 2, "dp_replicate": 2}),
        ("moe", {"dp": 4, "pp": 2, "ep": 2, "zero": 2, "num_microbatches": 4}),
        ("moe", {"dp": 4, "tp": 2, "ep": 4, "etp": 1, "zero": 3}),
    ],
)
def test_its_device_meshes_put_every_rank_where_the_rank_map_does(name, row, tmp_path):
    answer = plan(MODELS[name], **row)
    bundle = written(tmp_path, answer)
    made = titan_harness.read(bundle, titan_harness.arguments(bundle))
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torchtitan.distributed import ParallelDims

    ranks = json.loads((bundle / "rank_map.json").read_text("utf-8"))["ranks"]
    names = {"tp": "tp", "cp": "cp", "dp": "batch", "pp": "pp", "ep": "ep"}
    for entry in ranks:
        dist.init_process_group(
            "fake", rank=entry["rank"], world_size=len(ranks), store=FakeStore()
        )
        try:
            dims = ParallelDims.from_config(made.parallelism, len(ranks))
            for axis, title in names.items():
                mesh = dims.get_optional_mesh(title)
                assert entry[axis] == (mesh.get_local_rank() if mesh else 0), (entry, axis)
        finally:
            dist.destroy_process_group()


@pytest.mark.parametrize(
    "mistake",
    [
        "--parallelism.tensor_paralel_degree=2",
        "--parallelism.fsdp_reshard_after_forward=sometimes",
        "--parallelism.pipeline_parallel_degree=2",  # with CUDA graphs on
        "--parallelism.tensor_parallel_degree=16",  # 8 key-value heads
        "--training.seq_len=99999",
        "--activation_checkpoint.mode=full",
    ],
)
def test_a_planted_mistake_is_refused(mistake, tmp_path, capsys):
    bundle = written(tmp_path, plan(MODELS["dense"], dp=8, zero=3))
    argv = titan_harness.arguments(bundle)
    titan_harness.read(bundle, argv)
    with pytest.raises((SystemExit, ValueError)):
        titan_harness.read(bundle, [*argv[:-1], mistake, argv[-1]])

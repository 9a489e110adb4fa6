"""How the tiny model is split: tensors over tp, and its state over data-parallel ranks (ZeRO)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from tiny_experts import Experts
from tiny_model import Chunk, Shape
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)


@dataclass(frozen=True)
class Job:
    """The plan's layout, and three meshes of the same ranks.

    grid: pp, dp, cp, tp, the plan's coordinates. mesh: pp, dp_replicate, dp_shard_cp, tp, where
    context-parallel ranks count as data, because they hold other tokens and the same weights.
    experts: pp, dp_replicate, edp, ep, where an expert group is neighbours within a pipeline stage.
    """

    lay: dict[str, Any]
    shape: Shape
    grid: DeviceMesh
    mesh: DeviceMesh
    experts: DeviceMesh

    @classmethod
    def of(cls, plan: dict[str, Any], device: str) -> Job:
        """Return the job in the plan's rank order: rank = tp + TP * (cp + CP * (dp + DP * pp))."""
        lay = plan["plans"][0]["layout"]
        shards = lay["dp"] // lay["dp_replicate"] * lay["cp"]
        outer = {"pp": lay["pp"], "dp_replicate": lay["dp_replicate"]}
        grid, mesh, experts = (
            init_device_mesh(device, tuple(m.values()), mesh_dim_names=tuple(m))
            for m in (
                {axis: lay[axis] for axis in ("pp", "dp", "cp", "tp")},
                outer | {"dp_shard_cp": shards, "tp": lay["tp"]},
                outer | {"edp": shards * lay["tp"] // lay["ep"], "ep": lay["ep"]},
            )
        )
        return cls(lay, Shape.of(plan), grid, mesh, experts)

    @property
    def coordinates(self) -> dict[str, int]:
        here = {axis: self.grid.get_local_rank(axis) for axis in ("tp", "cp", "dp", "pp")}
        return here | {"ep": self.experts.get_local_rank("ep")}

    @property
    def device(self) -> torch.device:
        return torch.device(self.grid.device_type)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def split_tensors(chunk: Chunk, tp: DeviceMesh, *, sp: bool) -> None:
    """Apply tensor parallelism; with `sp`, 1/tp of the tokens travel between blocks.

    Experts see to themselves: how they are split is a matter of ep as well.
    """
    between = Shard(1) if sp else Replicate()
    whole = {"input_layouts": (between,), "desired_input_layouts": (Replicate(),)}
    norm = {"": SequenceParallel()} if sp else {}
    for block in chunk.blocks:
        dense = not isinstance(block.ffn, Experts)
        inner = ("attention", "ffn") if dense else ("attention",)
        columns = ["attention.wq", "attention.wk", "attention.wv"]
        rows = ["attention.wo"]
        if dense:
            columns, rows = [*columns, "ffn.gate", "ffn.up"], [*rows, "ffn.down"]
        parallelize_module(
            block,
            tp,
            {
                **{f"{n}_norm{k}": v for n in ("attention", "ffn") for k, v in norm.items()},
                **{name: PrepareModuleInput(**whole) for name in inner},
                **{name: ColwiseParallel() for name in columns},
                **{name: RowwiseParallel(output_layouts=between) for name in rows},
            },
        )
    if chunk.embed is not None:
        plan = RowwiseParallel(input_layouts=Replicate(), output_layouts=between)
        parallelize_module(chunk.embed, tp, plan)
    if chunk.head is not None:
        head = ColwiseParallel(
            input_layouts=between, output_layouts=Replicate(), use_local_output=False
        )
        parallelize_module(chunk.head, tp, {**{f"0{k}": v for k, v in norm.items()}, "1": head})


def split_data(chunk: Chunk, job: Job) -> None:
    """Apply the ZeRO stage, block by block; experts have data-parallel groups of their own."""
    lay = job.lay
    if lay["dp_sync"] == "parameter-server":
        return
    if lay["ep"] > 1:
        for experts in experts_of([chunk]):
            split_state(experts.routed, lay, job.experts, "edp")
    if lay["dp"] * lay["cp"] > 1:
        for module in (*chunk.blocks, chunk):
            split_state(module, lay, job.mesh, "dp_shard_cp")


def split_state(module: nn.Module, lay: dict[str, Any], mesh: DeviceMesh, axis: str) -> None:
    """Replicate the module over an axis, or shard it (and replicate it over dp_replicate)."""
    if lay["zero"] < 2:
        replicate(module, mesh=mesh[axis])
        return
    axes = ("dp_replicate", axis) if lay["dp_replicate"] > 1 else (axis,)
    fully_shard(module, mesh=mesh[axes], reshard_after_forward=lay["zero"] == 3)


def experts_of(chunks: Iterable[nn.Module]) -> list[Experts]:
    """Return the layers of experts."""
    return [m for chunk in chunks for m in chunk.modules() if isinstance(m, Experts)]


def mend_gradients(chunks: Iterable[nn.Module], job: Job) -> None:
    """Make the gradients of experts and routers those of the mean loss.

    FSDP takes the mean over the ranks that hold a parameter. An expert's gradient is a sum over
    the tokens of all ranks, of which dp*cp have data of their own. A router's is a part on each
    rank of tp, by its tokens (ep) or by its slices of the experts.
    """
    lay = job.lay
    for layer in experts_of(chunks):
        if lay["ep"] > 1:
            for weight in layer.routed.parameters():
                local(weight.grad).mul_(lay["tp"] / lay["ep"])
        if lay["tp"] > 1:
            dist.all_reduce(local(layer.router.weight.grad), group=job.grid["tp"].get_group())

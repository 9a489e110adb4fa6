#!/usr/bin/env python3
"""Train a tiny stand-in of a planned model with the plan's own layout, to see that it starts.

Degrees, rank order, schedule, sharding and recompute are the plan's. Shapes are scaled down (and
dense, also where the model has experts), micro-batches are at most 4 a stage and 2 sequences each.
It runs on CUDA (nccl) and on CPU (gloo), in fp32 on synthetic tokens, and ends with every rank's
coordinates and loss. A layout changes how the work is split, never the result: layouts that come
to the same shapes and global batch print the same losses up to rounding.

    torchrun --nproc-per-node G train_tiny.py [--plan plan.json] [--steps 3]

tp        Colwise/RowwiseParallel, with SequenceParallel where the plan has sp
cp        each rank holds a slice of the sequence and gathers keys and values (as Llama 3 did)
pp        torch.distributed.pipelining: GPipe, 1F1B, interleaved 1F1B
zero 0-3  replicate; replicate and a sharded Adam; fully_shard that keeps weights; fully_shard
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import preflight
import torch
import torch.distributed as dist
from tiny_model import SEED, Chunk, Shape, chunks_of
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)
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
    """The plan's layout, and two meshes of the same ranks: DTensor shards over one, cp is in both.

    grid: pp, dp, cp, tp, the plan's coordinates; mesh: pp, dp_replicate, dp_shard_cp, tp, where
    context-parallel ranks count as data, because they hold other tokens and the same weights.
    """

    lay: dict[str, Any]
    shape: Shape
    grid: DeviceMesh
    mesh: DeviceMesh

    @classmethod
    def of(cls, plan: dict[str, Any], device: str) -> Job:
        """Return the job in the plan's rank order: rank = tp + TP * (cp + CP * (dp + DP * pp))."""
        lay = plan["plans"][0]["layout"]
        grid = {axis: lay[axis] for axis in ("pp", "dp", "cp", "tp")}
        shards = lay["dp"] // lay["dp_replicate"] * lay["cp"]
        mesh = {
            "pp": lay["pp"],
            "dp_replicate": lay["dp_replicate"],
            "dp_shard_cp": shards,
            "tp": lay["tp"],
        }
        grid, mesh = (
            init_device_mesh(device, tuple(m.values()), mesh_dim_names=tuple(m))
            for m in (grid, mesh)
        )
        return cls(lay, Shape.of(plan), grid, mesh)

    @property
    def coordinates(self) -> dict[str, int]:
        return {axis: self.grid.get_local_rank(axis) for axis in ("tp", "cp", "dp", "pp")}

    @property
    def device(self) -> torch.device:
        return torch.device(self.grid.device_type)


def split_tensors(chunk: Chunk, tp: DeviceMesh, *, sp: bool) -> None:
    """Apply tensor parallelism; with `sp`, 1/tp of the tokens travel between blocks."""
    between = Shard(1) if sp else Replicate()
    whole = {"input_layouts": (between,), "desired_input_layouts": (Replicate(),)}
    norm = {"": SequenceParallel()} if sp else {}
    for block in chunk.blocks:
        columns = ("attention.wq", "attention.wk", "attention.wv", "ffn.gate", "ffn.up")
        rows = ("attention.wo", "ffn.down")
        parallelize_module(
            block,
            tp,
            {
                **{f"{n}_norm{k}": v for n in ("attention", "ffn") for k, v in norm.items()},
                **{name: PrepareModuleInput(**whole) for name in ("attention", "ffn")},
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
    """Apply the ZeRO stage, block by block."""
    lay, mesh = job.lay, job.mesh
    if lay["dp_sync"] == "parameter-server" or lay["dp"] * lay["cp"] == 1:
        return
    if lay["zero"] < 2:
        for module in (*chunk.blocks, chunk):
            replicate(module, mesh=mesh["dp_shard_cp"])
        return
    axes = ("dp_replicate", "dp_shard_cp") if lay["dp_replicate"] > 1 else ("dp_shard_cp",)
    for module in (*chunk.blocks, chunk):
        fully_shard(module, mesh=mesh[axes], reshard_after_forward=lay["zero"] == 3)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Optimizer:
    """AdamW on all parameters, on an owned share of them (ZeRO-1), or on one server."""

    def __init__(self, params: list[nn.Parameter], job: Job) -> None:
        data = job.mesh["dp_shard_cp"]
        self.params, self.group, n = params, data.get_group(), data.size()
        self.server = job.lay["dp_sync"] == "parameter-server" and n > 1
        sharded = job.lay["zero"] == 1 and n > 1
        self.owners = [i % n if sharded else 0 for i in range(len(params))]
        self.shared = self.server or sharded
        mine = [p for p, o in zip(params, self.owners, strict=True) if o == data.get_local_rank()]
        held = mine if self.shared else params
        # foreach cannot mix parameters that are split over tp with those that are not; the large
        # eps makes the losses depend on the scale of the gradients, which Adam hides otherwise
        self.adam = torch.optim.AdamW(held, lr=1e-2, eps=1e-3, foreach=False) if held else None

    def step(self) -> None:
        if self.server:
            self._gather()
        if self.adam:
            self.adam.step()
        if self.shared:
            for param, owner in zip(self.params, self.owners, strict=True):
                dist.broadcast(local(param.detach()), group=self.group, group_src=owner)
        for param in self.params:
            param.grad = None

    def _gather(self) -> None:
        """Collect all gradients on the server, which averages them."""
        n, first = dist.get_world_size(self.group), dist.get_rank(self.group) == 0
        for param in self.params:
            parts = [torch.empty_like(param.grad) for _ in range(n)] if first else None
            dist.gather(param.grad, parts, group=self.group, group_dst=0)
            if parts:
                param.grad = torch.stack(parts).mean(0)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(local(logits).flatten(0, 1).float(), targets.flatten())


def batch(step: int, job: Job) -> tuple[Tensor, Tensor]:
    """Return this rank's inputs and targets [sequences, tokens] out of the step's global batch."""
    here, mine = job.coordinates, job.shape.micro_batch * job.shape.microbatches
    generator = torch.Generator().manual_seed(SEED + step)
    size = (mine * job.lay["dp"], job.shape.seq_tokens + 1)
    # a skewed distribution, so that there is something to learn
    tokens = (torch.rand(size, generator=generator) ** 3 * job.shape.vocab).long()
    rows = tokens[here["dp"] * mine :][:mine].to(job.device)
    inputs, targets = (t.chunk(job.lay["cp"], 1)[here["cp"]] for t in (rows[:, :-1], rows[:, 1:]))
    return inputs.contiguous(), targets.contiguous()


def pipeline(chunks: list[tuple[int, Chunk]], job: Job) -> Any:
    """Return the plan's schedule over this rank's chunks."""
    group, count = job.grid["pp"].get_group(), job.lay["pp"] * job.lay["vpp"]
    stages = [PipelineStage(c, i, count, job.device, group=group) for i, c in chunks]
    options = {"n_microbatches": job.shape.microbatches, "loss_fn": loss_of}
    if job.lay["vpp"] > 1:
        return ScheduleInterleaved1F1B(stages, **options)
    schedule = ScheduleGPipe if job.lay["schedule"] == "gpipe" else Schedule1F1B
    return schedule(stages[0], **options)


def train(job: Job, steps: int) -> list[float]:
    """Return the mean loss of each step, the same on every rank."""
    chunks = [(i, c.to(job.device)) for i, c in chunks_of(job.shape, job.grid, job.lay)]
    for _, chunk in chunks:
        if job.lay["tp"] > 1:
            split_tensors(chunk, job.mesh["tp"], sp=job.lay["sp"])
        split_data(chunk, job)
    optimizer = Optimizer([p for _, c in chunks for p in c.parameters()], job)
    schedule = pipeline(chunks, job) if job.lay["pp"] > 1 else None
    losses = []
    for step in range(steps):
        inputs, targets = batch(step, job)
        if schedule:
            loss = pipelined(schedule, inputs, targets, job.grid["pp"])
        else:
            loss = accumulated(chunks[0][1], inputs, targets, job.shape.microbatches)
        optimizer.step()
        for axis in ("dp_shard_cp", "dp_replicate"):
            dist.all_reduce(loss, group=job.mesh[axis].get_group())
            loss /= job.mesh[axis].size()
        losses.append(loss.item())
    return losses


def accumulated(chunk: Chunk, inputs: Tensor, targets: Tensor, count: int) -> Tensor:
    """Run forward and backward of every micro-batch; gradients are shared once, after the last."""
    total = torch.zeros((), device=inputs.device)
    for index, (x, y) in enumerate(zip(inputs.chunk(count), targets.chunk(count), strict=True)):
        if isinstance(chunk, FSDPModule):
            chunk.set_requires_gradient_sync(index == count - 1)
        loss = loss_of(chunk(x), y) / count
        loss.backward()
        total += loss.detach()
    return total


def pipelined(schedule: Any, inputs: Tensor, targets: Tensor, pp: DeviceMesh) -> Tensor:
    """Run the pipeline once; the last stage's mean loss reaches all stages."""
    stage, stages, losses = pp.get_local_rank(), pp.size(), []
    # the last chunk is on the last stage, the first one on the first: both ends know their part
    schedule.step(
        *((inputs,) if stage == 0 else ()),
        **({"target": targets, "losses": losses} if stage == stages - 1 else {}),
    )
    loss = torch.stack(losses).mean() if losses else torch.zeros((), device=inputs.device)
    dist.broadcast(loss, group=pp.get_group(), group_src=stages - 1)
    return loss.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_name("plan.json"))
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    preflight.check(arguments.plan.parent)
    plan = json.loads(arguments.plan.read_bytes())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    job = Job.of(plan, device)
    preflight.check_groups(job.coordinates, folder=arguments.plan.parent)
    losses = train(job, arguments.steps)
    shown = " ".join(f"{axis}={index}" for axis, index in job.coordinates.items())
    # one write a rank: lines of many processes must not mix
    print(f"rank {dist.get_rank()} coordinates {shown} loss={losses[-1]:.6f}\n", end="", flush=True)
    if dist.get_rank() == 0:
        print(f"losses {' '.join(f'{loss:.6f}' for loss in losses)}\n", end="", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

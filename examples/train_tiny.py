#!/usr/bin/env python3
"""Train a tiny stand-in of a planned model with the plan's own layout, to see that it starts.

Degrees, rank order, schedule, sharding and recompute are the plan's. Shapes are scaled down (where
the model has experts, every layer has), micro-batches are at most 4 a stage and 2 sequences each.
It runs on CUDA (nccl) and on CPU (gloo), in fp32 on synthetic tokens, and ends with every rank's
coordinates and loss. A layout changes how the work is split, never the result: layouts that come
to the same shapes and global batch print the same losses up to rounding.

    torchrun --nproc-per-node G train_tiny.py [--plan plan.json] [--steps 3]

tp        Colwise/RowwiseParallel, with SequenceParallel where the plan has sp
cp        each rank holds a slice of the sequence and gathers keys and values (as Llama 3 did)
pp        torch.distributed.pipelining: GPipe, 1F1B, interleaved 1F1B
ep        tokens travel to their experts and back by all-to-all; no ep: tp slices every expert
zero 0-3  replicate; replicate and a sharded Adam; fully_shard that keeps weights; fully_shard
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import preflight
import torch
import torch.distributed as dist
from tiny_model import SEED, Chunk, chunks_of
from tiny_split import Job, experts_of, local, mend_gradients, split_data, split_tensors
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)


class Optimizer:
    """AdamW on all parameters, on an owned share of them (ZeRO-1), or on one server."""

    def __init__(self, chunks: list[Chunk], job: Job) -> None:
        self.chunks, self.job = chunks, job
        self.params = [p for chunk in chunks for p in chunk.parameters()]
        self.server = job.lay["dp_sync"] == "parameter-server" and job.lay["dp"] > 1
        self.groups = self._groups()
        sharded = job.lay["zero"] == 1
        self.owners = [
            i % dist.get_world_size(group) if sharded else 0 for i, group in enumerate(self.groups)
        ]
        self.shared = self.server or sharded
        owned = zip(self.params, self.owners, self.groups, strict=True)
        mine = [p for p, owner, group in owned if owner == dist.get_rank(group)]
        held = mine if self.shared else self.params
        # foreach cannot mix parameters that are split over tp with those that are not; the large
        # eps makes the losses depend on the scale of the gradients, which Adam hides otherwise
        self.adam = torch.optim.AdamW(held, lr=1e-2, eps=1e-3, foreach=False) if held else None

    def _groups(self) -> list[Any]:
        """Return for each parameter the ranks that hold the same one."""
        routed = (
            {p for e in experts_of(self.chunks) for p in e.routed.parameters()}
            if self.job.lay["ep"] > 1
            else set()
        )
        data, experts = (
            mesh.get_group() for mesh in (self.job.mesh["dp_shard_cp"], self.job.experts["edp"])
        )
        return [experts if p in routed else data for p in self.params]

    def step(self) -> None:
        mend_gradients(self.chunks, self.job)
        if self.server:
            self._gather()
        if self.adam:
            self.adam.step()
        for param, owner, group in zip(self.params, self.owners, self.groups, strict=True):
            weight = local(param.detach())
            if self.server:  # to each worker its own copy, where a broadcast would pass one on
                copies = [weight] * group.size() if group.rank() == owner else None
                dist.scatter(weight, copies, group=group, group_src=owner)
            elif self.shared:
                dist.broadcast(weight, group=group, group_src=owner)
        for param in self.params:
            param.grad = None

    def _gather(self) -> None:
        """Collect all gradients on the server, which averages them."""
        for param, group in zip(self.params, self.groups, strict=True):
            n, first = dist.get_world_size(group), dist.get_rank(group) == 0
            parts = [torch.empty_like(param.grad) for _ in range(n)] if first else None
            dist.gather(param.grad, parts, group=group, group_dst=0)
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
    made = chunks_of(job.shape, job.grid, job.experts["ep"], job.lay)
    chunks = [(i, c.to(job.device)) for i, c in made]
    for _, chunk in chunks:
        if job.lay["tp"] > 1:
            split_tensors(chunk, job.mesh["tp"], sp=job.lay["sp"])
        split_data(chunk, job)
    optimizer = Optimizer([c for _, c in chunks], job)
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
    preflight.leave()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Train a small stand-in of a planned model under DeepSpeed, to see that the plan starts.

Widths are scaled down; the ranks, the batch, the ZeRO stage, the pipeline split and recompute are
those of `plan.json` and `ds_config.json` beside this file. With tp > 1 DeepSpeed's AutoTP splits
the layers that `ds_config.json` names. With ep > 1 every layer has experts, by
DeepSpeed's own layer, which makes the groups; your loss would add its `l_aux`. It runs on CUDA
(nccl) and on CPU (DS_ACCELERATOR=cpu, gloo). Put your own model where `layers_of` builds the
stand-in.

    deepspeed --num_gpus G train_deepspeed.py --deepspeed_config ds_config.json [--steps 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import deepspeed
import preflight
import torch
from deepspeed.moe.layer import MoE
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.utils import groups
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HERE = Path(__file__).resolve().parent
HIDDEN, HEADS, VOCAB, TOKENS, SEED = 64, 16, 256, 32, 1234


class Embed(nn.Module):
    """Tokens and positions to hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, HIDDEN), nn.Embedding(TOKENS, HIDDEN)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions.weight[: ids.shape[1]]


class FeedForward(nn.Module):
    """The feed-forward of a layer, or of one expert."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


def experts(plan: dict[str, Any]) -> MoE | None:
    """Return DeepSpeed's layer of experts, two a rank, or nothing where the plan has ep=1."""
    ep, routed = plan["plans"][0]["layout"]["ep"], plan["request"]["model"].get("experts")
    if ep == 1:
        return None
    capacity = plan["request"]["workload"].get("capacity_factor")
    count = ep * min(2, routed["count"] // ep)
    return MoE(
        HIDDEN,
        FeedForward(),
        num_experts=count,
        ep_size=ep,
        k=min(routed["top_k"], count),
        drop_tokens=capacity is not None,
        capacity_factor=capacity or 1.0,
        use_rts=False,
        top2_2nd_expert_sampling=False,
    )


class Block(nn.Module):
    """One pre-norm transformer layer, recomputed in the backward pass where the plan says so."""

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.feed_forward = experts(plan) or FeedForward()
        self.recompute = plan["plans"][0]["layout"]["recompute"] == "full"

    def forward(self, x: Tensor) -> Tensor:
        # ZeRO-3 frees weights between the passes, which only the reentrant form allows
        return checkpoint(self.layer, x, use_reentrant=True) if self.recompute else self.layer(x)

    def layer(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        made = self.feed_forward(self.norm2(x))
        return x + (made[0] if isinstance(self.feed_forward, MoE) else made)

    def attention(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, -1, HIDDEN // HEADS)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Head(nn.Module):
    """Hidden states to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.logits = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.norm(x))


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the next token."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def layers_of(plan: dict[str, Any]) -> list[LayerSpec]:
    """Return embedding, every transformer layer and head, not built yet."""
    blocks = [LayerSpec(Block, plan) for _ in range(plan["request"]["model"]["layers"])]
    return [LayerSpec(Embed), *blocks, LayerSpec(Head)]


class PlannedPipeline(PipelineModule):
    """A pipeline cut where the plan cuts it; the first stage also embeds, the last has the head."""

    def __init__(self, plan: dict[str, Any], **options: Any) -> None:
        held = [sum(chunks) for chunks in plan["plans"][0]["stage_layers"]]
        held[0] += 1
        held[-1] += 1
        self.planned = [0, *accumulate(held)]
        super().__init__(layers_of(plan), num_stages=len(held), loss_fn=loss_of, **options)

    def _partition_layers(self, method: str = "planned") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self.parts = self.planned
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])


class Whole(nn.Module):
    """The same layers on every rank, with the loss."""

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(spec.build() for spec in layers_of(plan)))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return loss_of(self.layers(ids), labels)


Batches = Iterator[tuple[Tensor, Tensor]]


def batches(micro_batch: int, dp_rank: int, device: torch.device) -> Batches:
    """Yield (tokens, next tokens); counting upwards, so that there is something to learn."""
    random = torch.Generator().manual_seed(SEED + dp_rank)
    while True:
        first = torch.randint(VOCAB, (micro_batch, 1), generator=random)
        row = (first + torch.arange(TOKENS + 1)) % VOCAB
        yield row[:, :-1].to(device), row[:, 1:].contiguous().to(device)


def engine_of(plan: dict[str, Any], config: dict[str, Any]) -> Any:
    """Return DeepSpeed's engine around the stand-in.

    Under tp its groups are made first: by them DeepSpeed counts the batch, else over all ranks.
    """
    torch.manual_seed(SEED)
    mpu = None
    if tp := config.get("tensor_parallel", {}).get("autotp_size", 0):
        groups._init_tp_mesh_device(tensor_model_parallel_size=tp)
        mpu = groups
    if plan["plans"][0]["layout"]["pp"] > 1:
        model: nn.Module = PlannedPipeline(plan, seed_layers=True, base_seed=SEED)
    else:
        sharded = config["zero_optimization"]["stage"] == 3
        init = deepspeed.zero.Init(config_dict_or_path=config, mpu=mpu)
        with init if sharded else contextlib.nullcontext():
            model = Whole(plan)
    weights = [p for p in model.parameters() if p.requires_grad]
    return deepspeed.initialize(model=model, model_parameters=weights, config=config, mpu=mpu)[0]


def coordinates(engine: Any, tp: int, ep: int) -> dict[str, int]:
    """Return where this rank stands by the groups that DeepSpeed has made."""
    found = {"dp": groups._get_data_parallel_rank()}
    if tp > 1:
        found["tp"] = groups.get_tensor_model_parallel_rank()
    if isinstance(engine.module, PipelineModule):
        found = {"pp": engine.grid.get_stage_id(), "dp": engine.grid.get_data_parallel_rank()}
    return found | ({"ep": groups._get_expert_parallel_rank(f"ep_size_{ep}")} if ep > 1 else {})


def step(engine: Any, data: Batches) -> float:
    """Train one global batch and return its mean loss on this rank."""
    if isinstance(engine.module, PipelineModule):
        return float(engine.train_batch(data_iter=data))
    losses = []
    for _ in range(engine.gradient_accumulation_steps()):
        loss = engine(*next(data))
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    return sum(losses) / len(losses)


def main() -> None:
    """Check the placement, build the engine, train a few steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--local_rank", type=int, help="given by the launcher")
    parser.add_argument("--deepspeed_config", type=Path, default=HERE / "ds_config.json")
    options = parser.parse_args()
    plan = json.loads((HERE / "plan.json").read_text(encoding="utf-8"))
    config = json.loads(options.deepspeed_config.read_text(encoding="utf-8"))

    place = preflight.check(HERE)
    deepspeed.init_distributed()
    engine = engine_of(plan, config)
    layout = plan["plans"][0]["layout"]
    preflight.check_groups(coordinates(engine, layout["tp"], layout["ep"]), folder=HERE)
    mine = sum(isinstance(module, Block) for module in engine.module.modules())
    print(f"rank {place['rank']} holds {mine} layers", flush=True)
    data = batches(config["train_micro_batch_size_per_gpu"], place["dp"], engine.device)
    for number in range(options.steps):
        loss = step(engine, data)
        if int(os.environ["RANK"]) == 0:
            print(f"step {number} loss {loss:.4f}", flush=True)
    preflight.leave()


if __name__ == "__main__":
    main()

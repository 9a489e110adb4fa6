#!/usr/bin/env python3
"""Train a small stand-in by torch.nn.DataParallel: one process, the first GPU as parameter server.

Each step the first GPU sends its weights to all, scatters the batch, gathers the outputs and adds
up the gradients; the batch and the GPUs are those of `plan.json`. Put your own model where
`StandIn` is.

    python3 train_dataparallel.py [--steps 3] [--cpu]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import preflight
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HERE = Path(__file__).resolve().parent
HIDDEN, HEADS, VOCAB, TOKENS, SEED = 64, 4, 256, 32, 1234


class Block(nn.Module):
    """One pre-norm transformer layer, recomputed in the backward pass where the plan says so."""

    def __init__(self, recompute: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute == "full":
            return checkpoint(self.layer, x, use_reentrant=False)
        return self.layer(x)

    def layer(self, x: Tensor) -> Tensor:
        inner, y = self.attention, self.norm1(x)
        again = self.recompute == "selective"
        x = x + (checkpoint(inner, y, use_reentrant=False) if again else inner(y))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    def attention(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class StandIn(nn.Module):
    """The plan's number of layers, scaled down in width."""

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__()
        recompute = plan["plans"][0]["layout"]["recompute"]
        depth = plan["request"]["model"]["layers"]
        self.tokens, self.positions = nn.Embedding(VOCAB, HIDDEN), nn.Embedding(TOKENS, HIDDEN)
        self.layers = nn.Sequential(*(Block(recompute) for _ in range(depth)))
        self.norm, self.logits = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.logits(self.norm(self.layers(x)))


def devices(rank_map: dict[str, Any], cpu: bool) -> list[int]:
    """Return the plan's GPUs; end the process with one message when this is not their host."""
    if cpu:
        return []
    planned = [row["gpu"] for row in rank_map["ranks"]]
    here = os.environ.get("MESHWRIGHT_HOSTNAME") or socket.gethostname()
    host = rank_map["hosts"][0]
    if not rank_map["hosts_are_placeholders"] and not preflight.same_host(host, here):
        stop(f"expected host {host}, saw {here}")
    if (seen := torch.cuda.device_count()) <= max(planned):
        stop(f"expected {len(planned)} GPUs, saw {seen} (--cpu runs one replica without)")
    return planned


def stop(problem: str) -> None:
    """Print the one message and end the process as the preflight does."""
    print(f"preflight: {problem}; the job does not stand as planned", file=sys.stderr, flush=True)
    sys.exit(preflight.EXIT_CODE)


def batch(rows: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (tokens, next tokens); counting upwards, so that there is something to learn."""
    first = torch.randint(VOCAB, (rows, 1), generator=random)
    row = (first + torch.arange(TOKENS + 1)) % VOCAB
    return row[:, :-1], row[:, 1:]


def main() -> None:
    """Check the host and its GPUs, then train a few steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="one replica, to try the script")
    options = parser.parse_args()
    plan = json.loads((HERE / "plan.json").read_text(encoding="utf-8"))
    layout, work = plan["plans"][0]["layout"], plan["request"]["workload"]
    gpus = devices(json.loads((HERE / "rank_map.json").read_text(encoding="utf-8")), options.cpu)

    torch.manual_seed(SEED)
    server = torch.device("cuda", gpus[0]) if gpus else torch.device("cpu")
    model = nn.DataParallel(StandIn(plan).to(server), device_ids=gpus or None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    half = torch.float16 if work["precision"] == "fp16" else torch.bfloat16
    scaler = torch.amp.GradScaler(server.type, enabled=half is torch.float16 and bool(gpus))
    random = torch.Generator().manual_seed(SEED)
    rows, times = layout["micro_batch"] * layout["dp"], layout["num_microbatches"]
    print(f"{max(1, len(gpus))} replicas, {times} x {rows} sequences a step", flush=True)
    for number in range(options.steps):
        total = 0.0
        for _ in range(times):
            ids, labels = (t.to(server) for t in batch(rows, random))
            with torch.autocast(server.type, dtype=half, enabled=bool(gpus)):
                logits = model(ids)  # gathered on the server
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
            scaler.scale(loss / times).backward()
            total += float(loss) / times
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        print(f"step {number} loss {total:.4f}", flush=True)


if __name__ == "__main__":
    main()

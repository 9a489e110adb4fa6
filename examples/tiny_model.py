"""A tiny decoder-only transformer, cut into the chunks that a pipeline stage holds.

Each layer and both ends are seeded by their place in the model, so that every layout starts from
the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tiny_experts import Experts, Split
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.utils.checkpoint import checkpoint

SEED = 1234
HEAD_DIM = 16


@dataclass(frozen=True)
class Shape:
    """The stand-in: a multiple of every degree that splits it, and the model's kind of heads."""

    heads: int
    kv_heads: int
    ffn: int
    experts: int  # 0: dense
    top_k: int
    vocab: int
    seq_tokens: int
    layers: list[list[int]]  # [stage][virtual chunk]
    micro_batch: int
    microbatches: int

    @property
    def hidden(self) -> int:
        return self.heads * HEAD_DIM

    @classmethod
    def of(cls, plan: dict[str, Any]) -> Shape:
        model, lay = plan["request"]["model"], plan["plans"][0]["layout"]
        kv_heads = up_to(2, lay["tp"])
        heads = kv_heads * min(2, model["heads"] // model["kv_heads"])
        chunks = plan["plans"][0]["stage_layers"] or [[1] * lay["vpp"]] * lay["pp"]
        depth = 2 if lay["pp"] * lay["vpp"] == 1 else 1
        return cls(
            heads=heads,
            kv_heads=kv_heads,
            ffn=2 * heads * HEAD_DIM,
            experts=up_to(4, lay["ep"]) if (routed := model.get("experts")) else 0,
            top_k=min(2, routed["top_k"]) if routed else 0,
            vocab=up_to(256, lay["tp"]),
            seq_tokens=up_to(32, lay["tp"] * lay["cp"]),
            layers=[[min(n, depth) for n in stage] for stage in chunks],
            micro_batch=min(lay["micro_batch"], 2),
            microbatches=min(lay["num_microbatches"], 4 * lay["pp"]),
        )


def up_to(least: int, multiple: int) -> int:
    """Return the smallest multiple that is not under `least`."""
    return -(-least // multiple) * multiple


class Attention(nn.Module):
    """Causal attention over rotary positions; the sequence may be split over `cp` ranks."""

    def __init__(self, shape: Shape, cp: DeviceMesh, recompute: bool) -> None:
        super().__init__()
        self.wq = nn.Linear(shape.hidden, shape.heads * HEAD_DIM, bias=False)
        self.wk = nn.Linear(shape.hidden, shape.kv_heads * HEAD_DIM, bias=False)
        self.wv = nn.Linear(shape.hidden, shape.kv_heads * HEAD_DIM, bias=False)
        self.wo = nn.Linear(shape.heads * HEAD_DIM, shape.hidden, bias=False)
        self.cp, self.recompute = cp, recompute

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (  # [batch, heads of this tp rank, tokens, HEAD_DIM]
            w(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for w in (self.wq, self.wk, self.wv)
        )
        if self.recompute:
            out = checkpoint(self.attend, q, k, v, use_reentrant=False)
        else:
            out = self.attend(q, k, v)
        return self.wo(out.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = self.cp.get_local_rank() * q.shape[2]
        here = torch.arange(first, first + q.shape[2], device=q.device)
        q, k = rotate(q, here), rotate(k, here)
        if self.cp.size() > 1:
            k, v = (all_gather(t, self.cp) for t in (k, v))
        mask = here[:, None] >= torch.arange(k.shape[2], device=q.device)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def all_gather(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return the whole sequence (dimension 2); gradients flow back to the rank they came from."""
    whole = DTensor.from_local(x, mesh, [Shard(2)], run_check=False)
    return whole.full_tensor(grad_placements=[Partial()])


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Return x with rotary position embeddings."""
    rates = 10_000.0 ** -torch.linspace(0, 1, HEAD_DIM // 2 + 1, device=x.device)[:-1]
    angle = positions[:, None] * rates
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One transformer layer, pre-norm; `recompute` is the plan's none, selective or full."""

    def __init__(self, shape: Shape, cp: DeviceMesh, split: Split, recompute: str) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(shape.hidden), nn.RMSNorm(shape.hidden)
        self.attention = Attention(shape, cp, recompute == "selective")
        if shape.experts:
            self.ffn: nn.Module = Experts(
                shape.hidden, shape.ffn // 2, shape.experts, shape.top_k, split
            )
        else:
            self.ffn = FeedForward(shape)
        self.full = recompute == "full"

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, x, use_reentrant=False) if self.full else self.layer(x)

    def layer(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Chunk(nn.Module):
    """The layers first..last of the model; the first chunk embeds, the last one has the head."""

    def __init__(
        self, blocks: list[Block], embed: nn.Module | None, head: nn.Module | None
    ) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = embed, nn.ModuleList(blocks), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) if self.embed is not None else x
        for block in self.blocks:
            x = block(x)
        return self.head(x) if self.head is not None else x


def chunks_of(
    shape: Shape, grid: DeviceMesh, ep: DeviceMesh, lay: dict[str, Any]
) -> list[tuple[int, Chunk]]:
    """Return this stage's (global stage index, chunk); the seed makes equal layers on all ranks."""
    pp, vpp, split = lay["pp"], lay["vpp"], Split(ep, grid["tp"], lay["sp"])
    mine, stage = [], grid.get_local_rank("pp")
    for index in range(pp * vpp):
        blocks = []
        for layer in range(shape.layers[index % pp][index // pp]):
            torch.manual_seed(SEED + 1 + sum_before(shape, index, pp) + layer)
            blocks.append(Block(shape, grid["cp"], split, lay["recompute"]))
        torch.manual_seed(SEED)
        embed = nn.Embedding(shape.vocab, shape.hidden)
        head = nn.Sequential(
            nn.RMSNorm(shape.hidden), nn.Linear(shape.hidden, shape.vocab, bias=False)
        )
        first, last = index == 0, index == pp * vpp - 1
        if index % pp == stage:
            mine.append((index, Chunk(blocks, embed if first else None, head if last else None)))
    return mine


def sum_before(shape: Shape, index: int, pp: int) -> int:
    """Return how many layers stand in the chunks before `index`."""
    return sum(shape.layers[i % pp][i // pp] for i in range(index))

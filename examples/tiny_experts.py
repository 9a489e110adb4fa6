"""A layer of experts: a router, a feed-forward an expert, and the exchange between their ranks.

With ep, each rank of an expert group holds its share of the experts; tokens travel to them and back
by all-to-all. With tp and no ep every rank holds a slice of every expert (etp = tp). Every token
reaches its experts: nothing is dropped, so a layout never changes the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard


@dataclass(frozen=True)
class Split:
    """How experts are split: over the ranks of `ep`, or else each over the ranks of `tp`."""

    ep: DeviceMesh
    tp: DeviceMesh
    sp: bool

    @property
    def sliced(self) -> bool:
        """Return whether every rank of tp has a slice of each expert, rather than whole ones."""
        return self.tp.size() > 1 and self.ep.size() == 1

    @property
    def between(self) -> Shard | Replicate:
        """Return how the tokens lie between blocks: 1/tp of them with sequence parallelism."""
        return Shard(1) if self.sp else Replicate()


class AllToAll(torch.autograd.Function):
    """Send rows to the ranks of a group, some to each; gradients take the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.way = (receive, send, group)
        out = x.new_empty((sum(receive), *x.shape[1:]))
        dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return AllToAll.apply(grad, *ctx.way), None, None, None


class Routed(nn.Module):
    """The experts that this rank holds, or its slice of all of them; SwiGLU each."""

    def __init__(self, hidden: int, ffn: int, count: int, split: Split) -> None:
        super().__init__()
        whole = {  # made whole on every rank, so that all layouts start from the same weights
            "gate": torch.randn(count, hidden, ffn) * hidden**-0.5,
            "up": torch.randn(count, hidden, ffn) * hidden**-0.5,
            "down": torch.randn(count, ffn, hidden) * ffn**-0.5,
        }
        for name, weight in whole.items():
            if split.sliced:
                axis = 1 if name == "down" else 2
                mine = weight.chunk(split.tp.size(), axis)[split.tp.get_local_rank()]
            else:
                mine = weight.chunk(split.ep.size(), 0)[split.ep.get_local_rank()]
            self.register_parameter(name, nn.Parameter(mine.clone()))

    def forward(self, x: Tensor, expert: Tensor) -> Tensor:
        """Return the outputs for tokens [n, hidden], each of the local expert that it names."""
        out = torch.zeros_like(x)
        for index in range(len(self.gate)):
            (rows,) = (expert == index).nonzero(as_tuple=True)
            y = x[rows]
            y = nn.functional.silu(y @ self.gate[index]) * (y @ self.up[index])
            out = out.index_add(0, rows, y @ self.down[index])
        return out


class Experts(nn.Module):
    """The router, and what carries tokens to its choice; stands where a feed-forward stands."""

    def __init__(self, hidden: int, ffn: int, count: int, top_k: int, split: Split) -> None:
        super().__init__()
        self.router = nn.Linear(hidden, count, bias=False)
        self.routed = Routed(hidden, ffn, count, split)
        self.top_k, self.split = top_k, split

    def forward(self, x: Tensor) -> Tensor:
        if not self.split.sliced:
            return self.mixed(x.to_local() if isinstance(x, DTensor) else x)
        tp, between = self.split.tp, self.split.between
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, tp, [between], run_check=False)
        # a slice of an expert gives a part of the output, and of every gradient before it
        y = self.mixed(x.redistribute(tp, [Replicate()]).to_local(grad_placements=[Partial()]))
        part = DTensor.from_local(y, tp, [Partial()], run_check=False)
        return part.redistribute(tp, [between]).to_local()

    def mixed(self, x: Tensor) -> Tensor:
        """Return the sum of what the chosen experts make of each token, weighted by the router."""
        tokens = x.flatten(0, 1)
        scores = self.router(tokens).softmax(-1)
        weight, chosen = scores.topk(self.top_k, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # those of one expert together
        sent = tokens.repeat_interleave(self.top_k, 0)[order]
        counts = chosen.flatten().bincount(minlength=scores.shape[-1])
        back = self.exchanged(sent, counts)[order.argsort()]
        return (back.unflatten(0, (-1, self.top_k)) * weight[..., None]).sum(1).view_as(x)

    def exchanged(self, sent: Tensor, counts: Tensor) -> Tensor:
        """Return the experts' outputs for tokens in the order of their experts."""
        ep = self.split.ep
        if ep.size() == 1:
            return self.routed(sent, torch.arange(len(counts)).to(counts).repeat_interleave(counts))
        coming = torch.empty_like(counts)
        dist.all_to_all_single(coming, counts, group=ep.get_group())
        there, here = (c.view(ep.size(), -1) for c in (counts, coming))
        sizes = there.sum(1).tolist(), here.sum(1).tolist()
        got = AllToAll.apply(sent, *sizes, ep.get_group())
        local = torch.arange(here.shape[1]).to(counts).repeat(ep.size())
        done = self.routed(got, local.repeat_interleave(here.flatten()))
        return AllToAll.apply(done, *sizes[::-1], ep.get_group())

"""Print the peaks that torch's FSDPMemTracker sees in training steps, as JSON.

A process of its own for each world: `python fsdp_run.py 8 '[{"seq": 2048, ...}]'`. Nothing is
computed: tensors are fake, and so is the process group. The model is written here in plain torch,
one FSDP group each for the embedding, every block, and norm with head, as torchtitan wraps its
Llama. LayerNorm without bias stands in for the fused RMSNorm, which saves the same but for a
statistic.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore


def norm(hidden: int) -> nn.Module:
    return nn.LayerNorm(hidden, bias=False)


def linear(width: int, out: int) -> nn.Module:
    return nn.Linear(width, out, bias=False)


def rotated(x: Any, table: Any) -> Any:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table[None, :, None]).flatten(3).type_as(x)


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int, kv_heads: int, ffn: int) -> None:
        super().__init__()
        self.dim = hidden // heads
        self.attention_norm, self.ffn_norm = norm(hidden), norm(hidden)
        self.q, self.o = linear(hidden, hidden), linear(hidden, hidden)
        self.k, self.v = (linear(hidden, kv_heads * self.dim) for _ in range(2))
        self.gate, self.up, self.down = (
            linear(hidden, ffn),
            linear(hidden, ffn),
            linear(ffn, hidden),
        )

    def forward(self, x: Any, table: Any) -> Any:
        y = self.attention_norm(x)
        q, k, v = (part(y).unflatten(-1, (-1, self.dim)) for part in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (rotated(q, table), rotated(k, table), v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.ffn_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, c: dict[str, int], seq: int) -> None:
        super().__init__()
        shape = (c["hidden"], c["heads"], c["kv_heads"], c["ffn"])
        self.embedding = nn.Embedding(c["vocab"], c["hidden"])
        self.blocks = nn.ModuleList(Block(*shape) for _ in range(c["layers"]))
        self.norm, self.head = norm(c["hidden"]), linear(c["hidden"], c["vocab"])
        half = torch.zeros(seq, c["hidden"] // c["heads"] // 2, dtype=torch.complex64)
        self.register_buffer("table", half, persistent=False)

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.table)
        return self.head(self.norm(x))


def sharded(run: dict[str, Any], mesh: Any) -> Llama:
    model = Llama(run["model"], run["seq"])
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    with_mesh = {"mesh": mesh, "mp_policy": policy}
    if run["recompute"] == "full":
        for i, block in enumerate(model.blocks):
            model.blocks[i] = checkpoint_wrapper(block)
    for part in (model.embedding, *model.blocks):
        fully_shard(part, reshard_after_forward=run["zero"] == 3, **with_mesh)
    fully_shard([model.norm, model.head], reshard_after_forward=False, **with_mesh)
    return fully_shard(model, **with_mesh)


def step(model: Llama, optimizer: Any, tokens: Any, labels: Any) -> None:
    logits = model(tokens)
    loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
    del logits
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def peak_bytes(run: dict[str, Any], mesh: Any) -> dict[str, int]:
    """Return bytes by category at the peak of the second step; the first one makes Adam's state."""
    with torch._subclasses.FakeTensorMode():
        model = sharded(run, mesh)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
        batch = [torch.zeros(run["batch"], run["seq"], dtype=torch.int64) for _ in range(2)]
        step(model, optimizer, *batch)
        tracker = FSDPMemTracker(model, optimizer)
        tracker.track_inputs(tuple(batch))
        with tracker:
            step(model, optimizer, *batch)
        (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return {str(getattr(kind, "value", kind)): amount for kind, amount in snapshot.items()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    world = int(sys.argv[1])
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    over_all = init_device_mesh("cpu", (world,))
    adam = sys.modules["torch.optim.adam"]
    adam._get_value = lambda _: 1.0  # the step's number; a fake tensor has no value
    print(json.dumps([peak_bytes(run, over_all) for run in json.loads(sys.argv[2])]))
    torch.distributed.destroy_process_group()

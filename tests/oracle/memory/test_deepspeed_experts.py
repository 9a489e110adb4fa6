"""What DeepSpeed's own layer of experts (moe/sharded_moe.py) saves for backward.

It keeps no combine weights of tokens x experts x capacity any more: slots are gathered by number.
One process holds all experts here; a rank of ep holds fewer, and as many slots of each peer's.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
from estimate_cases import inputs
from saved import saved_bytes

from planner.estimate import activations
from planner.specs.huggingface import model_from_config

pytestmark = pytest.mark.frameworks

HIDDEN, FFN, EXPERTS, TOKENS, EP = 256, 192, 8, 512, 4
SHAPE = {
    **{"model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": FFN},
    **{"num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 1},
    **{"vocab_size": 512, "max_position_embeddings": 1024, "num_local_experts": EXPERTS},
}


def layer_of(top_k: int, capacity: float | None) -> Any:
    """Return DeepSpeed's layer with gated experts; skip where it is not installed."""
    torch = pytest.importorskip("torch")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("deepspeed", exc_type=ImportError)
        from deepspeed.moe.experts import Experts
        from deepspeed.moe.sharded_moe import MOELayer, TopKGate

    class Expert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = (torch.nn.Linear(HIDDEN, FFN, bias=False) for _ in range(2))
            self.down = torch.nn.Linear(FFN, HIDDEN, bias=False)

        def forward(self, x: Any) -> Any:
            return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))

    torch.manual_seed(0)
    drop = {"drop_tokens": capacity is not None, "use_rts": False}
    if top_k == 2:
        drop["top2_2nd_expert_sampling"] = False
    gate = TopKGate(HIDDEN, EXPERTS, top_k, capacity or 1.0, 1.0, 4, None, **drop)
    layer = MOELayer(gate, Experts(Expert(), EXPERTS, "x"), "x", 1, EXPERTS).to(torch.bfloat16)
    gate.wg = gate.wg.float()
    return layer


@pytest.mark.parametrize(
    ("top_k", "capacity"), [(1, 1.25), (2, 1.0), (2, None), (4, 1.5), (4, None)]
)
def test_deepspeeds_experts_save_what_is_told(top_k, capacity):
    layer = layer_of(top_k, capacity)
    import torch

    x = torch.randn(1, TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    weights = list(layer.parameters())
    total, tensors = saved_bytes(lambda: layer(x, None), parameters=weights, given=[])
    counts = layer.exp_counts.tolist()
    told = inputs(
        model_from_config(SHAPE | {"num_experts_per_tok": top_k}, "m", "config.json"),
        {"ep": EP, "dp": EP},
        seq_tokens=TOKENS,
        stack="deepspeed",
        capacity_factor=capacity,
        expert_load=None if capacity else tuple(counts),
    )
    assert activations.experts_bytes(told)[0] == pytest.approx(total, rel=0.02), tensors

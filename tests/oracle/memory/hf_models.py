"""Models that `transformers` itself builds, on the meta device: shapes without memory."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

CONFIGS = sorted((Path(__file__).parents[2] / "measured" / "hf").glob("*.json"))
SAME_CLASS = {"kimi_k2": "deepseek_v3"}
"""Model types that transformers 5.23 does not know, and whose modules they are."""

PARTS = (
    ("norms", r"norm|ln_|_ln\b"),
    ("output", r"^(lm_head|embed_out)\b"),
    ("embedding", r"embed|wte|wpe"),
    ("router", r"router|\.gate\.|shared_expert_gate"),
    ("mlp", r"shared"),
    ("experts", r"\.experts\.|block_sparse_moe"),
    ("attention", r"attn|attention"),
    ("mlp", r"mlp|feed_forward|\.fc[12]\."),
)
"""What a parameter's name says it is part of; the first that matches."""


def build(config: dict[str, Any]) -> Any:
    """Return (configuration object, module on the meta device) of a config."""
    import pytest

    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = copy.deepcopy(config)
    kind = fields.pop("model_type")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = transformers.AutoConfig.for_model(SAME_CLASS.get(kind, kind), **fields)
        with torch.device("meta"):
            return made, transformers.AutoModelForCausalLM.from_config(made)


def saved_config(made: Any, kind: str) -> dict[str, Any]:
    """Return the config.json that `save_pretrained` would write."""
    return {**json.loads(made.to_json_string()), "model_type": kind}


def part_of(name: str) -> str:
    for part, pattern in PARTS:
        if re.search(pattern, name):
            return part
    raise AssertionError(f"{name} is in no part")


def parts(module: Any) -> dict[str, int]:
    """Return the parameters of each part; tied ones once, as torch lists them."""
    found = dict.fromkeys([part for part, _ in PARTS], 0)
    for name, parameter in module.named_parameters():
        found[part_of(name)] += parameter.numel()
    return found

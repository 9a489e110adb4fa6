"""What recompute runs again: the modules of selective, the share of layers of full recompute."""

from __future__ import annotations

import numpy as np

from planner.estimate.inputs import FloatArray, Inputs

FULL = 2
"""Code of recompute=full."""


def recomputed_modules(x: Inputs) -> frozenset[str]:
    """Return what selective recompute runs again; `moe` covers what is inside the experts.

    Usually the scores, where attention has any: with fused attention nothing of it is worth it.
    """
    asked = x.workload.recompute_modules
    if asked is None:
        unfused = x.stack.attention_kernel == "unfused"
        return frozenset(("core_attn",) if unfused else ("layernorm", "mla_up_proj", "moe_act"))
    inside = {"moe_act", "shared_experts"} if "moe" in asked else set()
    return frozenset(asked) - inside


def fully_recomputed_share(x: Inputs) -> FloatArray:
    """Return the share of layers that run forward again: all with full recompute, or its blocks."""
    full: FloatArray = (x.layouts.recompute == FULL).astype(np.float64)
    if x.workload.recompute_method != "block":
        return full
    again = x.workload.recompute_layers * x.layouts.pp * x.layouts.vpp
    share: FloatArray = full * np.minimum(again / x.model.layers, 1.0)
    return share

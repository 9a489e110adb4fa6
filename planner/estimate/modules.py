"""What recompute runs again: the modules of selective, the share of layers of full recompute."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.estimate.inputs import FloatArray, Inputs
from planner.layouts.table import IntArray
from planner.layouts.units import layers_of

FULL = 2
"""Code of recompute=full."""
AGAIN = ("recompute", "recompute_units")
"""What a layout runs again, of which layers: the columns."""


def layers_each(x: Inputs) -> tuple[IntArray, NDArray[np.bool_]]:
    """Return the layers that full recompute goes by, and where these are blocks, not units."""
    work, chosen = x.workload, x.layouts.recompute_units
    each, block = layers_of(chosen)
    own = chosen == 0
    whole = work.recompute_method == "block"
    return np.where(own, work.recompute_layers, each), np.where(own, whole, block)


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
    if not x.has_blocks:
        return full
    each, block = layers_each(x)
    share = np.minimum(each * x.layouts.pp * x.layouts.vpp / x.model.layers, 1.0)
    return np.where(block, full * share, full)

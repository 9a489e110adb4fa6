"""Activations of the first layers in the memory of the node between forward and backward.

Transformer Engine copies what a layer keeps as soon as its forward is over, and the layers after it
run meanwhile. Of L layers, N offloaded, layer i must be gone before the forward of layer L - N + i,
and its way back begins with the backward of layer L - 1 - N + i: what L - N layers keep is on the
GPU at most (transformer_engine/pytorch/cpu_offload.py, DefaultOffloadSynchronizer; read at
d0067d0da6). Tensors of fewer than 256 Ki elements (statistics of norms) stay, and are left out.
"""

from __future__ import annotations

import numpy as np

from planner.estimate.inputs import FloatArray, Inputs
from planner.specs.model import ModelSpec

LINK_SUSTAINED = 0.8
"""Share of the link to the host that copies from and to pinned memory reach."""


def layers_within(model: ModelSpec, first: int, last: int) -> tuple[int, int]:
    """Return the dense layers, and those with experts, from one layer up to another."""
    experts = sum(model.moe_layers[first:last]) if model.experts else 0
    return last - first - experts, experts


def windows(model: ModelSpec, offloaded: int) -> set[tuple[int, int]]:
    """Return the kinds of layers that are on the GPU together: any L - N that follow each other."""
    here = model.layers - offloaded
    return {layers_within(model, i, i + here) for i in range(offloaded + 1)}


def copies_bytes_per_s(x: Inputs) -> FloatArray:
    """Return what one GPU sends to or gets from its host while all others of the node do so."""
    ranks = np.minimum(x.layouts.gpus, x.cluster.node.gpus)
    link = x.cluster.host_link_bytes_per_s * LINK_SUSTAINED
    rate: FloatArray = np.minimum(link, x.cluster.host_memory_bytes_per_s / ranks)
    return rate


def wait_s(copies_s: FloatArray, between_s: FloatArray, *, whole: bool) -> FloatArray:
    """Return how long one pass over the layers waits for their copies, one after the other.

    Nothing is there to copy while the first layer runs, and the copies must be over when the last
    one begins: they have the time `between_s`. Where the `whole` model but one layer is offloaded,
    each layer waits for the copy of the one before.
    """
    waits: FloatArray = np.maximum(copies_s - np.where(whole, 0.0, between_s), 0.0)
    return waits

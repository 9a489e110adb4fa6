"""Bytes of state per parameter: what each framework keeps, by optimizer and number format.

A parameter is one of three kinds: a matrix of a hidden layer (experts' and the router's too), a
row of the tables at the ends (embedding, positions, output projection), or a vector (norm, bias).
AdamW keeps two moments of all in fp32 and SGD one (torch.optim 2.13). 8-bit AdamW keeps a byte a
moment, and one fp32 scale for 256 of them; tensors below 4,096 elements stay fp32 (bitsandbytes
0.50 optim/optimizer.py and functional.py, torchao 0.18 optim/adam.py), which all vectors are taken
to do. Muon keeps one moment of matrices and leaves the rest to AdamW (torch.optim.Muon;
megatron-core 0.19 optimizer/emerging_optimizers.py, _is_nonlinear_or_embedding).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.estimate.fp8_weights import copy_bytes, primary
from planner.estimate.inputs import Inputs
from planner.specs.workload import Optimizer, Precision

FP32 = 4.0
BLOCK = 256
"""Moments that share a scale."""
EIGHT_BIT = 1.0 + FP32 / BLOCK


class Kinds(NamedTuple):
    """An amount per parameter, by its kind."""

    matrix: float
    table: float
    vector: float

    @property
    def uniform(self) -> bool:
        """Return whether all kinds are alike, so that their split does not matter."""
        return self.matrix == self.table == self.vector

    def plus(self, more: float) -> Kinds:
        """Return the amounts with `more` on each."""
        return Kinds(*(each + more for each in self))

    def times(self, factor: float) -> Kinds:
        """Return the amounts multiplied."""
        return Kinds(*(each * factor for each in self))


MOMENTS = {
    Optimizer.ADAMW: Kinds(2.0, 2.0, 2.0),
    Optimizer.SGD: Kinds(1.0, 1.0, 1.0),
    Optimizer.MUON: Kinds(1.0, 2.0, 2.0),
}
"""Moments a parameter."""
EIGHT_BIT_MOMENTS = Kinds(2 * EIGHT_BIT, 2 * EIGHT_BIT, 2 * FP32)
"""The same of 8-bit AdamW, in bytes."""

STATE_BYTES = {
    # weights, gradients, master weights, gradients upcast at the step; before sharding
    "megatron": (2.0, 4.0, FP32, 0.0),
    "deepspeed": (2.0, 2.0, FP32, FP32),
    "fsdp2": (4.0, 4.0, 0.0, 0.0),
}
"""Mixed precision. Megatron: bf16 weights, fp32 main gradients, fp32 master weights. DeepSpeed:
16-bit weights and gradients, fp32 master and the gradients it upcasts at the step. FSDP2: fp32
weights and gradients; 16-bit copies are gathered (Megatron-LM docs/dist_optimizer,
deepspeed/runtime/zero, torch FSDP2 memory tracker)."""


class Scheme(NamedTuple):
    """Bytes per parameter before sharding."""

    weight: float
    gradient: float
    master: float
    upcast: float
    """fp32 gradients of a rank's own shard, kept where gradients are 16 bit (DeepSpeed)."""
    moments: Kinds
    passing: float = 0.0
    """The same where they are made at the step only, when activations are gone (Megatron)."""

    @property
    def optimizer(self) -> Kinds:
        """Return what is kept with the optimizer: moments, master weights, upcast gradients."""
        return self.moments.plus(self.master + self.upcast)


def moments(x: Inputs) -> Kinds:
    """Return bytes of the optimizer's moments per parameter."""
    if x.workload.optimizer is Optimizer.ADAMW_8BIT:
        return EIGHT_BIT_MOMENTS
    return MOMENTS[x.workload.optimizer].times(x.stack.moment_bytes)


def _widest_gradient(x: Inputs) -> float:
    """Return the most that a gradient takes: fp16 with loss scaling adds up in fp16 only."""
    return 2.0 if x.workload.precision is Precision.FP16 else np.inf


def scheme(x: Inputs) -> Scheme:
    """Return what the stack keeps with the workload's optimizer."""
    weight, gradient, master, upcast = STATE_BYTES[x.stack.states]
    stack = x.stack
    own, passing = stack.states == "megatron" or stack.low_precision_states, 0.0
    if stack.gradient_bytes is not None and own:
        gradient = min(stack.gradient_bytes, _widest_gradient(x))
        passing = FP32 if gradient < FP32 and not stack.low_precision_states else 0.0
    if stack.weight_bytes is not None:
        weight = stack.weight_bytes
    if stack.master_bytes is not None:
        master = stack.master_bytes
    return Scheme(weight, gradient, master, upcast, moments(x), passing)


def weight_kinds(x: Inputs) -> Kinds:
    """Return bytes of a resident weight: of matrices in FP8 where that is what is kept."""
    kept = scheme(x).weight
    matrix = copy_bytes(x) if primary(x) else kept
    return Kinds(matrix, kept, kept)


def stepped(x: Inputs) -> Kinds:
    """Return bytes that the optimizer's kernels move per parameter.

    The gradient is read and the 16-bit weight written (6; 30 with Adam's moments and the fp32
    weights, each read and written), and nothing is upcast apart.
    """
    kept = x.stack.master_bytes
    return moments(x).plus(FP32 if kept is None else kept).times(2.0).plus(6.0)

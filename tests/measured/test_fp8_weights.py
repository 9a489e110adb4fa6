"""What FP8 weights take between steps, in pairs of runs that differ in nothing else.

`mem-allocated-bytes` of the last rank in Megatron-LM's own CI, NVIDIA/Megatron-LM@d98e8a64dd
tests/functional_tests/test_cases: FP8 beside bf16, where copies of weights are kept beside them,
and H100 beside GB200 with --fp8-param-gather, where parameters are in FP8 by rows, and on H100 also
by columns. The rest of it (workspaces, scales, random states) is the same in both runs of a pair.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.estimate.fp8_weights import fp8_copies_bytes
from planner.estimate.inputs import Inputs
from planner.estimate.states import gradients_bytes, optimizer_bytes, weights_bytes
from planner.layouts.table import Layouts
from planner.units import GIB
from planner.validate.runs import read_runs

ROUNDED_GIB = 0.0015
"""The table's figures have three digits; cuBLAS's workspaces differ between GPUs."""


def inputs(run) -> Inputs:
    return Inputs(*run.context, Layouts.of([run.layout]), every_stage=True)


def states_gib(run) -> float:
    """Return weights, gradients and optimizer state of the last stage."""
    x = inputs(run)
    last = int(x.layouts.pp[0]) - 1
    parts = weights_bytes, gradients_bytes, optimizer_bytes
    return float(sum(part(x)[0, last] for part in parts)) / GIB


RUNS = read_runs(Path(__file__).parent / "fp8_weights.csv")
PAIRS = {runs[0].row["pair"]: runs for runs in zip(RUNS[::2], RUNS[1::2], strict=True)}


@pytest.mark.parametrize("pair", PAIRS)
def test_fp8_weights_add_what_was_measured(pair):
    more, less = PAIRS[pair]
    assert more.row["pair"] == less.row["pair"]
    measured = float(more.row["steady_gib"]) - float(less.row["steady_gib"])
    assert measured > 0.008
    assert states_gib(more) - states_gib(less) == pytest.approx(measured, rel=0.02, abs=ROUNDED_GIB)


def test_copies_are_kept_beside_16_bit_weights_and_not_beside_parameters_in_fp8():
    copies = {name: fp8_copies_bytes(inputs(runs[0])).max() for name, runs in PAIRS.items()}
    assert copies["fp8-beside-bf16"] > 0
    assert copies["kept-pp2"] == copies["kept-cp2"] == 0
    assert fp8_copies_bytes(inputs(PAIRS["fp8-beside-bf16"][1])).max() == 0

"""Weights in FP8: where copies are kept, what is gathered, and what leaves with which flag."""

from __future__ import annotations

import pytest
from estimate_cases import inputs, spec

from planner.estimate import memory
from planner.estimate.communication import dense_gather_s, parameter_bytes, parameter_gather_s
from planner.estimate.fp8_weights import fp8_copies_bytes
from planner.estimate.params import stage_dense_parameters, stage_dense_vectors, stage_tables
from planner.estimate.states import weights_bytes

HOPPER, BLACKWELL, AMPERE = "dgx-h100", "dgx-b200", "dgx-a100"
LAYOUT = {"dp": 8, "zero": 1}


def kept(flags: str, *, cluster: str = HOPPER, precision: str = "fp8", zero: int = 1):
    """Return (bytes of matrices, of all else) per parameter."""
    layout = {"dp": 8, "zero": zero}
    x = inputs(spec(), layout, cluster=cluster, precision=precision, stack=f"megatron{flags}")
    rest = (stage_tables(x) + stage_dense_vectors(x))[0, 0]
    matrices = stage_dense_parameters(x)[0, 0] - rest
    return (weights_bytes(x)[0, 0] - 2.0 * rest / (8 if zero == 3 else 1)) / matrices


@pytest.mark.parametrize(
    ("flags", "cluster", "per_matrix"),
    [
        ("", HOPPER, 2 + 2),
        ("", BLACKWELL, 2 + 1),
        ("", AMPERE, 2),  # no FP8: nothing is cast
        ("+mxfp8", BLACKWELL, 2 + 2.0625),
        ("+nvfp4", BLACKWELL, 2 + 1.125),
        ("+fp8-params", HOPPER, 2),
        ("+fp8-params", BLACKWELL, 1),
        ("+mxfp8+fp8-params", BLACKWELL, 2.0625),
    ],
)
def test_a_matrix_takes_its_16_bits_and_its_copies_or_fp8_alone(flags, cluster, per_matrix):
    assert kept(flags, cluster=cluster) == pytest.approx(per_matrix)


def test_bf16_keeps_no_copies_and_shards_of_fp8_parameters_are_fp8():
    assert kept("+fp8-params", precision="bf16") == pytest.approx(2)
    assert kept("+fp8-params", cluster=BLACKWELL, zero=3) == pytest.approx(1 / 8)
    # copies of gathered weights outlive the gathered weights themselves
    assert kept("", cluster=BLACKWELL, zero=3) == pytest.approx(2 / 8 + 1)


@pytest.mark.parametrize("stack", ["torchtitan", "deepspeed", "transformers"])
def test_copies_are_transformer_engines(stack):
    x = inputs(spec(), {"dp": 8, "zero": 3}, stack=stack, precision="fp8")
    assert fp8_copies_bytes(x)[0, 0] == 0


def test_parameters_in_fp8_halve_what_is_gathered_but_for_the_tables_and_mxfp8():
    rows = [{"dp": 32, "zero": zero} for zero in (1, 3)]
    model = spec(layers=16, hidden=4096, heads=32, kv_heads=32, head_dim=128, ffn=16384)
    found = {
        flags: inputs(model, *rows, cluster="dgx-b200:4", precision="fp8", stack=f"megatron{flags}")
        for flags in ("", "+fp8-params", "+mxfp8+fp8-params")
    }
    assert [parameter_bytes(x) for x in found.values()] == [2.0, 1.0, 2.0]
    plain, fp8, mx = found.values()
    assert dense_gather_s(fp8)[1] == pytest.approx(dense_gather_s(plain)[1] / 2, rel=0.2)
    assert parameter_gather_s(fp8)[0] == pytest.approx(parameter_gather_s(plain)[0] / 2, rel=0.2)
    assert parameter_gather_s(mx)[0] == parameter_gather_s(plain)[0]
    assert (memory.peak_bytes(fp8) < memory.peak_bytes(mx)).all()
    assert (memory.peak_bytes(mx) < memory.peak_bytes(plain)).all()

"""Amounts, durations and counts as people type them, and one message for what is none."""

from __future__ import annotations

import pytest

from planner.cli.aiming import Wanted, aim_of
from planner.cli.amounts import amount, counts, duration_s, share, tokens
from planner.errors import SpecError
from planner.specs.catalog import load_accelerator


@pytest.mark.parametrize(
    ("text", "number"),
    [("15T", 15e12), ("2M", 2e6), ("1.5e12", 1.5e12), ("300b", 300e9), ("42", 42), (" 7 k ", 7e3)],
)
def test_amounts_are_read_with_their_suffix(text, number):
    assert amount(text, option="--tokens", example="15T") == number


@pytest.mark.parametrize(
    ("text", "number"), [("8192", 8192), ("8k", 8192), (" 128K ", 131_072), ("1m", 1 << 20)]
)
def test_lengths_are_told_in_binary_thousands(text, number):
    assert tokens(text) == number


@pytest.mark.parametrize("text", ["", "0", "-8k", "8kk", "8.5k", "8 000", "k", "1e3"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(SpecError, match=r"--seq: .* is not allowed") as raised:
        tokens(text)
    assert "--seq 8k" in raised.value.hint


@pytest.mark.parametrize("text", ["1e300", "9" * 40, "100000001", "100m"])
def test_a_length_that_is_too_large_is_told_the_largest(text):
    with pytest.raises(SpecError, match="must be from 1 to 100,000,000 tokens"):
        tokens(text)


@pytest.mark.parametrize(
    ("option", "most"), [("--nodes", "131,072"), ("--global-batch", "100,000,000")]
)
def test_a_count_that_is_too_large_is_told_the_largest(option, most):
    with pytest.raises(SpecError, match=f"{option}: 10+ is more than {most}"):
        counts("1" + "0" * 30, option=option, doubling=option == "--global-batch")


@pytest.mark.parametrize(("text", "number"), [("90%", 0.9), ("0.9", 0.9), ("97.5 %", 0.975)])
def test_shares_may_be_per_cent(text, number):
    assert share("--max-memory")(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "most", "90%%", "nan", "%"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(SpecError, match=r"--max-memory: .* is not allowed"):
        share("--max-memory")(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "T", "15 trillion", "nan", "inf", "1e999", "1_0"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(SpecError, match=r"--tokens: .* is not an amount") as raised:
        amount(text, option="--tokens", example="15T")
    assert "--tokens 15T" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("20s", 20), ("850ms", 0.85), ("30d", 2_592_000), ("1.5h", 5400), ("2w", 1_209_600)),
        *(("20", 20), ("3m", 180), ("3 min", 180)),
    ],
)
def test_durations_are_read_with_their_unit(text, number):
    assert duration_s(text, option="--deadline", example="30d") == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "0s", "-3d", "d", "3y", "3 days ago", "1e999s"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(SpecError, match=r"--deadline: .* is not a duration"):
        duration_s(text, option="--deadline", example="30d")


@pytest.mark.parametrize(
    ("text", "doubling", "numbers"),
    [
        ("8", False, (8,)),
        ("16|8,16", False, (8, 16)),
        ("8..12", False, (8, 9, 10, 11, 12)),
        ("1..3|8", False, (1, 2, 3, 8)),
        ("256..1500", True, (256, 512, 1024)),
        ("100..100", True, (100,)),
    ],
)
def test_counts_are_lists_and_ranges(text, doubling, numbers):
    assert counts(text, option="--nodes", doubling=doubling) == numbers


@pytest.mark.parametrize("text", ["", "0", "-1", "8..", "..8", "9..8", "8;16", "1..9999999", "x"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(SpecError, match="--nodes: "):
        counts(text, option="--nodes")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted("speed"), r"--objective: 'speed' is not known; allowed: step-time, tokens-per-gpu"),
        (Wanted("cost"), "--objective cost: no price of h100-sxm-80gb is known"),
        (Wanted(budget="2M", tokens="1T"), "--budget: no price"),
        (Wanted(budget="2M", price=2.0), "--budget: says nothing without the tokens"),
        (Wanted(deadline="30d"), "--deadline: says nothing without the tokens"),
        (Wanted("gpus"), "--objective gpus: the fewest GPUs for what"),
        (Wanted(price=0.0), "--price: 0 is not allowed"),
        (Wanted(power=float("nan")), "--power: nan is not allowed"),
        (Wanted(max_step_time="soon"), "--max-step-time: 'soon'"),
    ],
)
def test_what_contradicts_or_is_missing_is_named(wanted, said):
    with pytest.raises(SpecError, match=said) as raised:
        aim_of(wanted, load_accelerator("h100-sxm-80gb"))
    assert raised.value.hint or "allowed" in str(raised.value)


def test_without_a_rated_power_energy_is_refused():
    gpu = load_accelerator("h100-sxm-80gb").model_copy(update={"tdp_w": None})
    with pytest.raises(SpecError, match="no power of h100-sxm-80gb is known"):
        aim_of(Wanted("energy"), gpu)
    assert aim_of(Wanted("energy", power=300.0), gpu).watts_per_gpu == 300


def test_it_is_told_where_a_price_comes_from():
    gpu = load_accelerator("h100-sxm-80gb")
    assert aim_of(Wanted(price=2.5), gpu).usd_source == "given with --price"
    priced = gpu.model_copy(
        update={"price_usd_per_hour": 4.0, "sources": {"price_usd_per_hour": "our contract"}}
    )
    aim = aim_of(Wanted("cost"), priced)
    assert aim.usd_per_gpu_hour == 4.0
    assert "our contract" in aim.usd_source
    assert aim_of(Wanted(price=2.5), priced).usd_per_gpu_hour == 2.5

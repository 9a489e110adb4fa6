"""The robust fit: it finds what made the data, and says nothing that they do not."""

from __future__ import annotations

import numpy as np
import pytest

from planner.calibrate.solve import Number, outliers, solve

SIZES = 2.0 ** np.arange(10, 34)


def line(values):
    latency, rate = values
    return latency + SIZES / rate


def noisy(seconds, *, noise=0.02, share=0.0, seed=0):
    """Return the seconds with noise, and with so many of them a few times too long."""
    random = np.random.default_rng(seed)
    out = seconds * np.exp(random.normal(0, noise, len(seconds)))
    for i in random.permutation(len(out))[: round(share * len(out))]:
        out[i] *= random.uniform(2, 10)
    return out


LOOSE = (Number("latency", 1e-4, 3.0), Number("rate", 1e9, 3.0))


@pytest.mark.parametrize("seed", range(8))
def test_a_tenth_of_outliers_moves_nothing_by_five_percent(seed):
    measured = noisy(line((20e-6, 400e9)), share=0.1, seed=seed)
    found = solve(line, measured, LOOSE)
    assert found.values == pytest.approx([20e-6, 400e9], rel=0.05)
    assert (~found.kept).sum() >= 2


def test_a_number_that_no_measurement_depends_on_stays_as_it_ships():
    numbers = (*LOOSE, Number("idle", 7.0, 0.5))
    found = solve(lambda v: line(v[:2]), noisy(line((20e-6, 400e9))), numbers)
    assert found.values[2] == pytest.approx(7.0)
    assert found.spread[2] >= 0.5


def test_a_number_that_says_too_little_is_kept_and_the_others_fitted_without_it():
    def curved(values):
        latency, rate, bend = values
        return latency + SIZES / rate + bend * 1e-9

    numbers = (*LOOSE, Number("bend", 7.0, 0.5))
    found = solve(curved, noisy(line((20e-6, 400e9))), numbers, keep_untold=True)
    assert found.told.tolist() == [True, True, False]
    assert found.values[2] == 7.0
    assert found.values[:2] == pytest.approx([20e-6, 400e9], rel=0.03)


def test_a_number_stays_within_its_bounds():
    numbers = (Number("latency", 1e-4, 3.0), Number("rate", 1e9, 3.0, high=300e9))
    found = solve(line, line((20e-6, 400e9)), numbers)
    assert found.values[1] <= 300e9 * (1 + 1e-9)


def test_two_measurements_bend_numbers_less_than_many():
    narrow = (Number("latency", 20e-6, 0.1), Number("rate", 200e9, 0.1))
    few = solve(lambda v: line(v)[-2:], line((20e-6, 400e9))[-2:], narrow)
    many = solve(line, line((20e-6, 400e9)), narrow)
    assert 200e9 < few.values[1] < many.values[1] < 400e9


def test_measurements_that_contradict_each_other_are_not_thrown_away():
    half = np.where(np.arange(20) % 2, 0.0, 1.0)
    assert not outliers(half).any()


def test_an_error_left_out_is_never_smaller_than_the_one_fitted():
    found = solve(line, noisy(line((20e-6, 400e9)), noise=0.05), LOOSE)
    assert (np.abs(found.unseen) >= np.abs(found.error) - 1e-12).all()
    assert np.abs(found.unseen).max() > np.abs(found.error).max()

"""Objectives and limits against arithmetic by hand, fronts against the definition of a front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.objectives import (
    FORMULAS,
    Aim,
    Job,
    Objective,
    allowed_step_s,
    lower_envelope,
    mwh_per_trillion,
    pareto,
    score,
    step_limits,
    steps_of,
    usd_per_trillion,
    usual_watts,
    value,
)
from planner.specs.catalog import load_accelerator

JOB = Job(gpus=16, tokens=1_000_000)
POINTS = st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=40)


def dominates(a, b) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


# --- money, energy, time


def test_a_trillion_tokens_cost_their_gpu_hours():
    """2 s for 1M tokens on 16 GPUs: 32M GPU-seconds for 1T tokens, 8,888.9 hours at 3 dollars."""
    assert usd_per_trillion(np.array([2.0]), JOB, 3.0)[0] == pytest.approx(32e6 / 3600 * 3)


def test_a_trillion_tokens_take_their_gpu_hours_of_power():
    """32M GPU-seconds at 500 W are 16 GJ; a MWh is 3.6 GJ."""
    assert mwh_per_trillion(np.array([2.0]), JOB, 500.0)[0] == pytest.approx(16e9 / 3.6e9)


def test_power_is_a_share_of_what_the_board_is_rated_for():
    gpu = load_accelerator("h100-sxm-80gb")
    assert usual_watts(gpu) == pytest.approx(0.76 * 700)
    assert usual_watts(gpu.model_copy(update={"tdp_w": None})) is None


def test_the_last_step_of_a_run_may_be_partly_filled():
    assert [steps_of(n, JOB) for n in (1e6, 1e6 + 1, 15e12)] == [1, 2, 15_000_000]


def test_a_deadline_is_shared_out_over_the_steps():
    """10M tokens are 10 steps; a minute for all of them leaves 6 s for each."""
    assert allowed_step_s(Aim(tokens=10e6, deadline_s=60), JOB) == pytest.approx(6)


def test_a_budget_is_shared_out_over_the_steps_and_the_gpus():
    """36 dollars over 10 steps of 16 GPUs at 4.5 dollars an hour: 0.02 a second, 180 s each."""
    aim = Aim(tokens=10e6, budget_usd=36.0, usd_per_gpu_hour=4.5)
    assert allowed_step_s(aim, JOB) == pytest.approx(36 / 10 / (16 * 4.5 / 3600))
    assert allowed_step_s(aim, JOB) == pytest.approx(180)


def test_the_tightest_limit_binds():
    aim = Aim(tokens=10e6, deadline_s=60, max_step_s=5, budget_usd=36.0, usd_per_gpu_hour=4.5)
    assert dict(step_limits(aim, JOB)) == pytest.approx(
        {"--max-step-time": 5, "--deadline": 6, "--budget": 180}
    )
    assert allowed_step_s(aim, JOB) == 5
    assert allowed_step_s(Aim(), JOB) == np.inf


# --- scores


def test_every_objective_has_a_formula_and_a_value_in_its_unit():
    aim = Aim(usd_per_gpu_hour=3.0, watts_per_gpu=500.0)
    told = {
        one: value(Aim(one, aim.usd_per_gpu_hour, "", aim.watts_per_gpu), JOB, 2.0, 7e9)
        for one in Objective
    }
    assert told == pytest.approx(
        {
            Objective.STEP_TIME: 2.0,
            Objective.TOKENS_PER_GPU: 31_250,
            Objective.COST: 26_666.67,
            Objective.ENERGY: 4.4444444,
            Objective.MEMORY: 7e9,
            Objective.GPUS: 16,
        },
        rel=1e-6,
    )
    assert set(FORMULAS) == set(Objective)


@pytest.mark.parametrize("objective", [o for o in Objective if o is not Objective.TOKENS_PER_GPU])
def test_a_lower_score_is_a_lower_value(objective):
    aim = Aim(objective, 3.0, "", 500.0)
    jobs = [Job(8, 1000), Job(16, 1000), Job(64, 1000)]
    rows = [(job, t, m) for job in jobs for t in (1.0, 2.5) for m in (5.0, 9.0)]
    scores = [float(score(aim, j, np.array([t]), np.array([m]))[0]) for j, t, m in rows]
    values = [value(aim, j, t, m) for j, t, m in rows]
    assert (np.argsort(scores, kind="stable") == np.argsort(values, kind="stable")).all()


def test_more_tokens_a_gpu_are_a_lower_score():
    aim = Aim(Objective.TOKENS_PER_GPU)
    rows = [(Job(8, 1000), 1.0), (Job(16, 1000), 0.6), (Job(16, 3000), 1.0)]
    scores = [float(score(aim, j, np.array([t]), np.array([1.0]))[0]) for j, t in rows]
    values = [value(aim, j, t, 1.0) for j, t in rows]
    assert np.argsort(scores).tolist() == np.argsort(values)[::-1].tolist()


def test_the_step_times_of_two_batches_compare_by_token():
    aim, one = Aim(), np.array([1.0])
    slow_small = score(aim, Job(8, 1000), np.array([2.0]), one)
    fast_large = score(aim, Job(8, 4000), np.array([4.0]), one)
    assert fast_large < slow_small


# --- fronts


@given(points=POINTS)
def test_the_front_is_what_nothing_beats(points):
    columns = tuple(np.array(c, dtype=float) for c in zip(*points, strict=True))
    rows = pareto(columns).tolist()
    brute = {p for p in points if not any(dominates(q, p) for q in points)}
    assert [points[r] for r in rows] == sorted(brute)
    assert len(rows) == len({points[r] for r in rows})
    assert all(points.index(points[r]) == r for r in rows)


@given(points=POINTS)
def test_the_envelope_of_two_figures_is_their_front(points):
    time, peak = (np.array(c, dtype=float) for c in list(zip(*points, strict=True))[:2])
    assert lower_envelope(time, peak).tolist() == pareto((time, peak)).tolist()

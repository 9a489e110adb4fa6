"""The fit finds what runs say, weighs them as it says, and writes numbers where they live."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from planner.specs.profiles import STACKS
from planner.validate import PUBLISHED

ROOT = Path(__file__).parents[3]


@pytest.fixture
def calibration(monkeypatch):
    """The modules of the script, which is no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    import calibration.knobs
    import calibration.runs
    import calibration.solve
    import calibration.write

    return calibration


@pytest.fixture
def table(calibration):
    return calibration.runs.read(PUBLISHED)


def chosen(calibration, table, *names):
    """A problem with the knobs (kind, column, group) only."""
    whole = calibration.solve.Problem.of(table)
    knobs = [k for k in whole.knobs if (k.kind, k.column, k.group) in names]
    assert len(knobs) == len(names)
    return calibration.solve.Problem(table, whole.planner, knobs)


def test_numbers_behind_made_up_runs_are_found_again(calibration, table):
    names = (("device", "gemm", "A100"), ("stack", "step_s", "nanotron"))
    problem = chosen(calibration, table, *names)
    truth = np.array([0.05 if k.kind == "device" else 0.5 for k in problem.knobs])
    table.measured_s = table.measured_s * np.exp(problem.residuals(truth))
    start = np.zeros(len(truth))
    jac = problem.jacobian(start, problem.residuals(start))
    centre, _ = problem.prior()
    found, residual, _ = calibration.solve.fit(problem, start, np.ones(len(table)), jac=jac)
    problem.planner.restore()
    assert np.abs(residual).max() < 0.02
    device = [k.kind for k in problem.knobs].index("device")
    assert found[device] == pytest.approx(0.05, abs=0.01)  # many runs outweigh the prior
    assert np.isfinite(centre).all()


def test_restoring_leaves_the_shipped_numbers(calibration, table):
    before = dict(STACKS)
    problem = calibration.solve.Problem.of(table)
    shipped = problem.residuals(np.zeros(len(problem.knobs)))
    problem.residuals(np.full(len(problem.knobs), 0.1))
    problem.planner.restore()
    assert before == STACKS
    assert problem.residuals(np.zeros(len(problem.knobs))) == pytest.approx(shipped, rel=1e-12)


def test_slopes_that_are_taken_together_equal_slopes_taken_alone(calibration, table):
    names = (("stack", "gemm", "megatron"), ("lineage", "gemm", "te"), ("constant", "DP_FLOOR", ""))
    problem = chosen(calibration, table, *names)
    start = np.zeros(3)
    base = problem.residuals(start)
    together = problem.jacobian(start, base)
    for i in range(3):
        moved = start.copy()
        moved[i] = calibration.solve.STEP
        alone = (problem.residuals(moved) - base) / calibration.solve.STEP
        assert together[:, i] == pytest.approx(alone, abs=1e-9)
    problem.planner.restore()


def test_repeats_of_one_job_weigh_as_one_and_sources_are_capped(calibration, tmp_path):
    with PUBLISHED.open(encoding="utf-8") as file:
        row = next(r for r in csv.DictReader(file) if r["source"] == "llm-foundry")
    rows = [row | {"id": f"a{i}"} for i in range(4)]
    rows += [row | {"id": f"b{i}", "global_batch": str(64 * 512 * (i + 1))} for i in range(100)]
    path = tmp_path / "runs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows(rows)
    weight = calibration.runs.read(path).weight
    assert len(weight) == 104
    assert weight.sum() == pytest.approx(30 + 0.08 * 104)
    assert weight[:4] == pytest.approx(weight[4] / 4)


def test_every_measured_layer_of_a_profiled_source_weighs_the_same(table):
    """vTrain's 720 runs are 32 layers, of which some stand in 100 pipelines and some in one."""
    total: dict[tuple[int, int, int], float] = {}
    for run, weight in zip(table.runs, table.weight, strict=True):
        if run.row["source"] == "vTrain":
            key = (run.context.model.hidden, run.layout["tp"], run.layout["micro_batch"])
            total[key] = total.get(key, 0.0) + weight
    assert len(total) > 2
    assert max(total.values()) == pytest.approx(min(total.values()))


def test_no_accelerator_moves_beyond_what_its_kernels_can(calibration):
    """However far the runs of one odd source pull."""
    from planner.specs.catalog import load_accelerator

    far = {(f, g): 2.0 for f in ("te", "fa2", "gemm_fp8") for g in calibration.knobs.DEVICES}
    for name in ("a100-sxm-80gb", "h20-sxm-96gb", "b200-sxm-180gb"):
        spec = load_accelerator(name)
        gpu = calibration.knobs.accelerator(spec, calibration.knobs.device_of(name), far)
        assert gpu.attention.fa2 <= gpu.attention.te <= gpu.gemm.emax
        if gpu.gemm_fp8:
            fast = gpu.peak_flops_per_s("fp8") * gpu.gemm_fp8.emax * gpu.gemm_fp8.derate
            slow = gpu.peak_flops_per_s("bf16") * gpu.gemm.emax * gpu.gemm.derate
            assert 1.3 < fast / slow < 2.25


def test_numbers_are_written_where_they_are_assigned_and_nowhere_else(calibration, tmp_path):
    path = tmp_path / "home.py"
    path.write_text('RATE = 0.5\n"""Of é."""\nOTHER: float = 0.5\n', encoding="utf-8")
    calibration.write.replace_assigned(path, {"OTHER": "0.25"})
    assert path.read_text(encoding="utf-8") == 'RATE = 0.5\n"""Of é."""\nOTHER: float = 0.25\n'
    with pytest.raises(AssertionError, match="not all assigned"):
        calibration.write.replace_assigned(path, {"MISSING": "1.0"})


def test_a_derate_is_scaled_in_its_own_block(calibration):
    text = "gemm:\n  emax: 0.8\n  derate: 0.80\ngemm_fp8:\n  emax: 0.8\n  derate: 0.5\n"
    found = calibration.write._scaled(text, "gemm_fp8", 1.1)
    assert found == text.replace("0.5\n", "0.55\n")


def test_a_profile_gets_a_number_it_had_from_its_lineage(calibration):
    text = 'X = (replace(_TE, name="megatron", title="é"),)\n'
    edits = calibration.write._profile_edits(
        calibration.knobs.Planner(), text, {"megatron": {"microbatch_s": 9.9}}
    )
    assert "microbatch_s=9.9" in calibration.write._edited(text, edits)

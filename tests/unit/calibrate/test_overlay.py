"""The overlay: what is written is read back as the calibrated cluster, with its quality."""

from __future__ import annotations

from pathlib import Path

import pytest
from logs import EXAMPLES, MEASURED, log_text

from planner.calibrate.calibrating import Given, calibrate
from planner.calibrate.overlay import base_of, checked, overlay_text
from planner.errors import InfeasibleError, SpecError
from planner.specs.catalog import load_cluster

GIVEN = Given(
    logs=(str(EXAMPLES / "h100_all_reduce.log"), str(MEASURED / "h100_all_gather_8.log")),
    gemm=EXAMPLES / "h100_gemm.csv",
    profiles=(MEASURED / "h100_step_trace.json",),
    stack="any",
)


@pytest.fixture(scope="module")
def found():
    return calibrate(load_cluster("dgx-h100"), GIVEN)


def written(found, folder, base="dgx-h100", nodes=None):
    path = folder / "my.yaml"
    path.write_text(overlay_text(base, nodes, found.figures, found.after, found.files))
    return path


def test_the_overlay_is_the_calibrated_cluster(found, tmp_path):
    read = load_cluster(f"{written(found, tmp_path)}:16")
    same = found.after.model_copy(update={"name": "my", "nodes": 16, "sources": read.sources})
    assert read == same
    assert "h100_gemm.csv" in read.sources["calibration"]


def test_every_figure_stands_beside_what_it_was_and_how_well_it_fits(found, tmp_path):
    text = written(found, tmp_path).read_text()
    for figure in found.figures:
        assert f"{figure.path[-1]}: {figure.after:.4g}" in text
        assert f"{figure.quality.points} points" in text.replace("\n    #", "")
    assert "was 0.832" in text
    assert "R2" in text
    assert max(map(len, text.splitlines())) <= 120


def test_only_what_was_measured_is_in_the_overlay(found, tmp_path):
    text = written(found, tmp_path).read_text()
    assert "fabric" not in text
    assert "stacks:" in text
    assert "gpus: 4" not in text


def test_a_figure_moved_by_two_fits_stands_once_against_what_shipped(tmp_path):
    given = Given(gemm=EXAMPLES / "h100_gemm.csv", profiles=GIVEN.profiles, stack="any")
    found = calibrate(load_cluster("dgx-h100"), given)
    paths = [figure.path for figure in found.figures]
    assert len(paths) == len(set(paths))


def test_files_extend_files_by_a_path_beside_them(tmp_path):
    (tmp_path / "mine").mkdir()
    base = tmp_path / "base.yaml"
    base.write_text("extends: dgx-h100\n")
    out = tmp_path / "mine" / "out.yaml"
    assert base_of(f"{base}:8", out) == ("../base.yaml", 8)
    assert base_of("dgx-h100:8", out) == ("dgx-h100", 8)
    assert base_of("dgx-h100", out) == ("dgx-h100", None)
    with pytest.raises(SpecError, match="is the cluster itself"):
        base_of(str(base), base)


def test_an_overlay_of_an_overlay_keeps_both(found, tmp_path):
    first = written(found, tmp_path)
    log = tmp_path / "gather.log"
    timings = [(2**p, 30 + 2**p / 2e5) for p in range(10, 31)]
    log.write_text(log_text("reduce_scatter", 8, 1, timings))
    again = calibrate(load_cluster(str(first)), Given(logs=(str(log),)))
    base, nodes = base_of(str(first), tmp_path / "second.yaml")
    text = overlay_text(base, nodes, again.figures, again.after, again.files)
    both = checked(text, tmp_path / "second.yaml")
    assert both.accelerator.gemm.emax == found.after.accelerator.gemm.emax
    assert both.scale_up.collectives[-1].op == "reduce_scatter"


def test_one_useless_file_among_good_ones_is_said_and_not_fatal(tmp_path):
    (tmp_path / "empty.log").write_text("nothing\n")
    given = Given(logs=(GIVEN.logs[0], str(tmp_path / "empty.log")))
    found = calibrate(load_cluster("dgx-h100"), given)
    assert found.figures
    assert any("empty.log, line 1" in warning for warning in found.found.warnings)


def test_a_missing_file_is_refused_even_among_good_ones():
    given = Given(logs=(GIVEN.logs[0], "nowhere.log"))
    with pytest.raises(SpecError, match=r"nowhere\.log: no such file"):
        calibrate(load_cluster("dgx-h100"), given)


def test_nothing_that_can_be_fitted_is_no_answer(tmp_path):
    path = tmp_path / "short.log"
    path.write_text(log_text("all_reduce", 8, 1, [(2**20, 50.0), (2**21, 80.0)]))
    with pytest.raises(InfeasibleError, match="2 sizes") as refused:
        calibrate(load_cluster("dgx-h100"), Given(logs=(str(path),)))
    assert refused.value.exit_code == 1


def test_reference_jobs_say_what_changed(found):
    jobs = [p for p in found.found.predictions if p.kind == "job"]
    assert len(jobs) == 2
    assert all(job.before_s > 0 and job.measured_s is None for job in jobs)
    assert any(job.before_s != job.after_s for job in jobs)


def test_figures_of_a_cluster_given_by_path_need_no_folder_of_ours(found, tmp_path):
    path = written(found, tmp_path)
    assert Path(load_cluster(str(path)).name) == Path("my")

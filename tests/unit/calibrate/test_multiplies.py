"""Multiplies from a CSV table: known rates are found again; a real H100's table fits better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from logs import EXAMPLES

from planner.calibrate.gemm import Multiply, read_multiplies
from planner.calibrate.links import fit_links
from planner.calibrate.multiplies import fit_multiplies, multiplies_s
from planner.calibrate.nccl import read_logs
from planner.errors import SpecError
from planner.specs.catalog import load_cluster

SHAPES = [(m, n, k) for m in (512, 2048, 8192) for n in (1024, 4096) for k in (1024, 4096, 8192)]


def timed(cluster, seed=0, **truth):
    """Return multiplies of a GPU with these numbers, with noise and every tenth far off."""
    random = np.random.default_rng(seed)
    rows = [Multiply(m, n, k, "bf16", 1.0) for m, n, k in SHAPES]
    seconds = multiplies_s(cluster, "gemm", truth, rows)
    seconds = seconds * np.exp(random.normal(0, 0.02, len(rows)))
    for i in random.permutation(len(rows))[: len(rows) // 10]:
        seconds[i] *= 4
    return [Multiply(*shape, "bf16", float(s)) for shape, s in zip(SHAPES, seconds, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_a_slower_card_is_found_within_five_percent(seed):
    cluster = load_cluster("dgx-h100")
    found, after = fit_multiplies(cluster, timed(cluster, seed, emax=0.6), "made.csv")
    assert after.accelerator.gemm.emax == pytest.approx(0.6, rel=0.05)
    assert after.accelerator.gemm.derate == cluster.accelerator.gemm.derate
    assert after.accelerator.gemm_fp8 == cluster.accelerator.gemm_fp8
    assert found.figures[0].quality.dropped >= 1


def test_a_card_as_shipped_changes_next_to_nothing():
    cluster = load_cluster("dgx-h100")
    _, after = fit_multiplies(cluster, timed(cluster), "made.csv")
    assert after.accelerator.gemm.emax == pytest.approx(cluster.accelerator.gemm.emax, rel=0.03)


def test_a_real_h100_is_predicted_better_afterwards():
    rows = read_multiplies(EXAMPLES / "h100_gemm.csv").rows
    found, after = fit_multiplies(load_cluster("dgx-h100"), rows, "h100_gemm.csv")
    quality = {f.group: f.quality for f in found.figures}["multiplies in bf16"]
    assert quality.median_before > 0.10
    assert quality.median_after < 0.06
    assert quality.median_unseen < 0.06
    assert after.accelerator.gemm.emax < 0.8


def test_times_of_launches_do_not_pass_for_times_of_multiplies():
    cluster = load_cluster("dgx-h100")
    bare = timed(cluster, emax=0.7)
    launched = [Multiply(r.m, r.n, r.k, r.precision, max(r.seconds, 4e-5)) for r in bare]
    found, after = fit_multiplies(cluster, launched, "made.csv")
    assert after.accelerator.gemm.t0_us == cluster.accelerator.gemm.t0_us
    assert after.accelerator.gemm.emax == pytest.approx(0.7, rel=0.06)
    assert any("launching" in fact for fact in found.facts)


def test_a_table_faster_than_the_peak_is_refused_whole():
    cluster = load_cluster("dgx-h100")
    rows = [Multiply(r.m, r.n, r.k, "bf16", r.seconds / 3) for r in timed(cluster)]
    found, after = fit_multiplies(cluster, rows, "made.csv")
    assert after == cluster
    assert "against 989 TFLOP/s: impossible, so none of them is used" in found.warnings[0]


def test_a_few_multiplies_faster_than_the_peak_are_left_out_and_said():
    cluster = load_cluster("dgx-h100")
    rows = timed(cluster, emax=0.6)
    odd = [Multiply(8192, 8192, 8192, "bf16", 5e-4)] * 2
    found, after = fit_multiplies(cluster, [*rows, *odd], "made.csv")
    assert after.accelerator.gemm == fit_multiplies(cluster, rows, "made.csv")[1].accelerator.gemm
    assert "2 of 20 multiplies in bf16 or fp16" in found.warnings[0]
    assert "impossible, left out" in found.warnings[0]


def test_sizes_that_stay_off_after_the_fit_are_said_with_their_sign():
    """A card that throttles under large multiplies: no shape term of the formula can follow."""
    cluster = load_cluster("dgx-h100")
    shapes = [*SHAPES, (16384, 12288, 8192), (16384, 12288, 16384), (12288, 16384, 16384)]
    made = [Multiply(*shape, "bf16", 1.0) for shape in shapes]
    seconds = multiplies_s(cluster, "gemm", {"emax": 0.6}, made)
    large = np.array([2.0 * m * n * k > 1e12 for m, n, k in shapes])
    rows = [
        Multiply(*shape, "bf16", float(s))
        for shape, s in zip(shapes, np.where(large, 1.4, 1.0) * seconds, strict=True)
    ]
    found, _ = fit_multiplies(cluster, rows, "made.csv")
    told = [one.telling for one in found.residuals if one.telling]
    assert told
    assert "1 to 10 TFLOP: still told" in told[0]
    assert "too fast" in told[0]
    assert sum(one.points for one in found.residuals) == len(rows)


def test_bus_bandwidth_above_the_links_is_refused(tmp_path):
    log = next(iter(read_logs(EXAMPLES / "h100_all_reduce.log")))
    fast = replace(log, timings=tuple(replace(t, time_s=t.time_s / 4) for t in log.timings))
    cluster = load_cluster("dgx-h100")
    found, after = fit_links(cluster, [fast])
    assert after == cluster
    assert "above the 900 that NVLink 4 + NVSwitch of dgx-h100 can carry" in found.warnings[0]


@pytest.mark.parametrize(
    ("head", "row", "seconds"),
    [
        ("m,n,k,dtype,seconds", "4096,4096,4096,bf16,2e-4", 2e-4),
        ("M, N, K, dtype, time_us", "4096, 4096, 4096, torch.bfloat16, 200", 2e-4),
        ("k,n,m,precision,ms", "4096,4096,4096,half,0.2", 2e-4),
        ("m,n,k,TFLOPS", "4096,4096,4096,687.19476736", 2e-4),
    ],
)
def test_columns_go_by_the_names_that_benchmarks_give_them(tmp_path, head, row, seconds):
    path = tmp_path / "gemm.csv"
    path.write_text(f"{head}\n{row}\n")
    (one,) = read_multiplies(path).rows
    assert (one.m, one.n, one.k) == (4096, 4096, 4096)
    assert one.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: columns missing: m, n, k, seconds"),
        ("m,n,k\n1,2,3\n", "columns missing: seconds"),
        ("m,n,k,us\n1,2,x,5\n", "line 2: no multiply can be used: k: 'x'"),
        ("m,n,k,us\n1,2,3,nan\n", "time: 'nan' is not a positive number"),
        ("m,n,k,us,dtype\n1,2,3,5,int8\n", "'int8' is not bf16, fp16 or fp8"),
        ("m,n,k,us\n1.5,2,3,5\n", "'1.5' is not a size"),
        ("m,n,k,us\n1,2\n", "line 2"),
        ("m,n,k,us\n", "the table is empty"),
    ],
)
def test_a_table_without_a_multiply_is_refused_with_file_and_line(tmp_path, text, said):
    path = tmp_path / "gemm.csv"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"gemm\.csv") as refused:
        read_multiplies(path)
    assert said in refused.value.message


def test_bad_rows_are_left_out_and_counted(tmp_path):
    path = tmp_path / "gemm.csv"
    path.write_text("m,n,k,us\n1,2,3,5\n1,2,3,-5\n4,5,6,7\n")
    table = read_multiplies(path)
    assert len(table.rows) == 2
    assert "1 rows left out; line 3" in table.warnings[0]

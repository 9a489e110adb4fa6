"""Profiles: kernels by class, busy time, and rates of kernels whose shapes were recorded."""

from __future__ import annotations

import gzip
import json
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from logs import EXAMPLES, MEASURED

from planner.calibrate.gemm import read_multiplies
from planner.calibrate.kernels import Kernel, activity_of, class_of, covered
from planner.calibrate.multiplies import fit_multiplies
from planner.calibrate.profiled import fit_profiles
from planner.calibrate.trace import read_profile
from planner.errors import SpecError
from planner.specs.catalog import load_cluster
from planner.specs.stack import stack_named

TRACE = MEASURED / "h100_step_trace.json"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (
            "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
            "collectives",
        ),
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "multiplies"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "multiplies"),
        ("Cijk_Ailk_Bljk_BBS_BH_MT128x128x32", "multiplies"),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4>", "others"),
        ("", "others"),
    ],
)
def test_kernels_are_told_apart_by_their_names(name, kind):
    assert class_of(name) == kind


def test_overlapping_spans_are_counted_once():
    assert covered(np.array([(0.0, 2.0), (1.0, 3.0), (1.5, 1.6), (5.0, 6.0)])) == 4.0


def test_collectives_are_exposed_only_where_nothing_else_runs():
    kernels = [Kernel("gemm", 0.0, 2.0), Kernel("nccl", 1.0, 3.0), Kernel("other", 6.0, 1.0)]
    found = activity_of("made", kernels)
    assert (found.window_s, found.busy_s, found.exposed_s) == (7.0, 5.0, 2.0)
    assert found.by_class["collectives"] == 3.0


def test_a_real_step_of_an_h100_gives_the_rate_of_its_multiplies():
    activity = read_profile(TRACE)
    found, after = fit_profiles(load_cluster("dgx-h100"), [activity], "megatron")
    gemm = found.figures[0]
    assert gemm.name == "stacks.megatron.gemm"
    assert gemm.quality.points == 12
    assert gemm.quality.median_after < gemm.quality.median_before
    assert after.stacks["megatron"].gemm == gemm.after


def test_a_rate_that_a_flag_sets_is_not_fitted_and_said():
    found, after = fit_profiles(load_cluster("dgx-h100"), [read_profile(TRACE)], "torchtitan+cudnn")
    figures = after.stacks["torchtitan"].numbers if after.stacks else {}
    assert "attention" not in figures
    assert any("a flag of torchtitan+cudnn sets its rate" in fact for fact in found.facts)


def test_a_moment_of_a_cool_card_cannot_overrule_a_table_of_multiplies():
    """The trace and the table are of H100s; the trace's card was at 8 % load."""
    rows = read_multiplies(EXAMPLES / "h100_gemm.csv").rows
    _, tabled = fit_multiplies(load_cluster("dgx-h100"), rows, "h100_gemm.csv")
    now = stack_named("any").gemm
    found, after = fit_profiles(tabled, [read_profile(TRACE)], "any")
    assert now < after.stacks["any"].gemm < 1.1 * now
    assert found.figures[0].spread > 0.05
    assert any("count for" in fact for fact in found.facts)


def test_one_shape_is_said_to_be_not_enough_to_tell():
    found, _ = fit_profiles(load_cluster("dgx-h100"), [read_profile(TRACE)], "any")
    attention = next(f for f in found.figures if f.path[-1] == "attention")
    assert attention.quality.points == 1
    assert attention.quality.r2 is None
    assert attention.quality.median_unseen is None
    assert attention.spread > 0.1
    assert any("1 shape, not enough to tell" in fact for fact in found.facts)


def test_a_long_and_busy_profile_says_what_is_sustained():
    """The same kernels over and over for half a minute: no cool card, and they count for more."""
    short = read_profile(TRACE)
    long = replace(short, window_s=30.0, busy_s=25.0)
    cluster = load_cluster("dgx-h100")
    cool, hot = (fit_profiles(cluster, [one], "any")[1].stacks["any"].gemm for one in (short, long))
    derate = cluster.accelerator.gemm.derate
    assert hot > cool / derate**0.5


def test_kernels_faster_than_the_gpu_are_refused():
    short = read_profile(TRACE)
    fast = replace(short, kernels=tuple(replace(k, seconds=k.seconds / 3) for k in short.kernels))
    found, after = fit_profiles(load_cluster("dgx-h100"), [fast], "any")
    assert "gemm" not in (after.stacks["any"].numbers if after.stacks else {})
    assert any("impossible" in warning for warning in found.warnings)


def test_cudnn_kernels_under_a_stack_that_has_others_are_said():
    found, _ = fit_profiles(load_cluster("dgx-h100"), [read_profile(TRACE)], "torchtitan")
    assert "--stack torchtitan+cudnn" in found.warnings[0]


def test_a_packed_trace_is_the_same_trace(tmp_path):
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(TRACE.read_bytes()))
    assert read_profile(path).kernels == read_profile(TRACE).kernels


def test_a_trace_without_shapes_still_shows_where_time_went(tmp_path):
    data = json.loads(TRACE.read_text())
    data["traceEvents"] = [e for e in data["traceEvents"] if e["cat"] != "cpu_op"]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(data))
    found, after = fit_profiles(load_cluster("dgx-h100"), [read_profile(path)], "any")
    assert not found.figures
    assert not after.stacks
    assert "multiplies" in found.facts[0]
    assert any("record_shapes=True" in fact for fact in found.facts)


def nsys(path, *, view=False):
    """Write what `nsys export --type sqlite` holds of two kernels."""
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT)")
    database.executemany("INSERT INTO StringIds VALUES (?, ?)", [(1, "nvjet"), (2, "ncclKernel")])
    if view:
        endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c)"
        database.execute(
            f"CREATE VIEW CUPTI_ACTIVITY_KIND_KERNEL AS {endless} SELECT n AS start, n + 1 AS end,"
            " 0 AS deviceId, 1 AS demangledName FROM c WHERE n < 0"
        )
    else:
        database.execute(
            "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL"
            " (start INTEGER, end INTEGER, deviceId INTEGER, demangledName INTEGER)"
        )
        rows = [(0, 2_000_000, 0, 1), (1_000_000, 4_000_000, 0, 2), (5_000_000, 6_000_000, 0, 1)]
        database.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    return path


def test_an_export_of_nsys_is_added_up(tmp_path):
    found = read_profile(nsys(tmp_path / "report.sqlite"))
    assert found.by_class["multiplies"] == pytest.approx(3e-3)
    assert found.exposed_s == pytest.approx(2e-3)
    assert found.busy_s == pytest.approx(5e-3)


def test_a_view_in_the_place_of_the_table_is_not_run(tmp_path):
    with pytest.raises(SpecError, match="no table of kernels"):
        read_profile(nsys(tmp_path / "report.sqlite", view=True))


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[", b"{}", b"[1, 2]", b'{"traceEvents": 3}', b"\xff\xfe", b"[" * 100_000),
        *(b"\x1f\x8b broken", b"SQLite format 3\0 broken", b'{"traceEvents": [{"cat": "kernel"}]}'),
        b'{"traceEvents": [{"cat": "kernel", "name": "x", "ts": 1e400, "dur": "nan"}]}',
        b'{"traceEvents": [{"cat": "kernel", "name": "x", "ts": 1, "dur": 0}]}',
    ],
)
def test_what_is_no_profile_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=r"odd\.json"):
        read_profile(path)

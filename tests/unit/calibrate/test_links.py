"""Links from logs: known latency and bandwidth are found again, published figures too."""

from __future__ import annotations

import numpy as np
import pytest
from logs import EXAMPLES, MEASURED, log_text

from planner.calibrate.between import across_s
from planner.calibrate.links import fit_links
from planner.calibrate.nccl import Log, Timing, read_logs
from planner.specs.catalog import load_cluster
from planner.specs.links import CollectiveFit

SIZES = [2**p for p in range(10, 34)]


def spoilt(seconds, seed):
    """Return times with 2 % of noise, every tenth a few times too long."""
    random = np.random.default_rng(seed)
    out = np.asarray(seconds) * np.exp(random.normal(0, 0.02, len(seconds)))
    for i in random.permutation(len(out))[: len(out) // 10]:
        out[i] *= random.uniform(2, 10)
    return out


def read_back(tmp_path, op, ranks, seconds, *, sizes=SIZES):
    path = tmp_path / f"{op}_{ranks}.log"
    path.write_text(log_text(op, ranks, 1, list(zip(sizes, seconds * 1e6, strict=True))))
    return read_logs(path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("op", "ours", "factor"),
    [("all_reduce", "all_reduce", 1.75), ("alltoall", "all_to_all", 0.875)],
)
def test_latency_and_bandwidth_in_a_node_are_found_within_five_percent(
    tmp_path, op, ours, factor, seed
):
    seconds = 31e-6 + np.array(SIZES) * factor / 222e9
    logs = read_back(tmp_path, op, 8, spoilt(seconds, seed))
    found, cluster = fit_links(load_cluster("dgx-h100"), logs)
    (fit,) = [f for f in cluster.scale_up.collectives if (f.op, f.gpus) == (ours, 8)]
    assert fit.alpha_us == pytest.approx(31, rel=0.05)
    assert fit.gb_per_s == pytest.approx(222, rel=0.05)
    assert found.figures[0].quality.dropped >= 2


def test_only_the_measured_collective_and_group_size_change():
    before = load_cluster("dgx-h100")
    logs = read_logs(EXAMPLES / "h100_all_reduce.log")
    _, after = fit_links(before, logs)
    kept = [f for f in before.scale_up.collectives if (f.op, f.gpus) != ("all_reduce", 8)]
    assert set(map(CollectiveFit.model_dump_json, kept)) < set(
        map(CollectiveFit.model_dump_json, after.scale_up.collectives)
    )
    assert len(after.scale_up.collectives) == len(before.scale_up.collectives)
    assert after.fabric == before.fabric


def fabric_log(cluster, op, nodes, seed, **values):
    """Return a log of a cluster whose fabric has these values."""
    truth = cluster.model_copy(update={"fabric": cluster.fabric.model_copy(update=values)})
    sizes = np.array([float(2**p) for p in range(12, 34)])
    bare = Log("made.log", op, 8 * nodes, nodes, ())
    seconds = spoilt(across_s(truth, bare, sizes), seed)
    timings = tuple(Timing(b, t, i) for i, (b, t) in enumerate(zip(sizes, seconds, strict=True)))
    return Log("made.log", op, 8 * nodes, nodes, timings)


@pytest.mark.parametrize("seed", range(3))
def test_a_networks_efficiency_and_step_latency_are_found_within_five_percent(seed):
    cluster = load_cluster("dgx-h100")
    truth = {"efficiency": 0.61, "latency_us": 40.0, "step_latency_us": 17.0}
    logs = [
        fabric_log(cluster, op, nodes, seed + 10 * i, **truth)
        for i, (op, nodes) in enumerate([("all_reduce", 4), ("all_gather", 16), ("all_gather", 64)])
    ]
    _, after = fit_links(cluster, logs)
    assert after.fabric.efficiency == pytest.approx(0.61, rel=0.05)
    assert after.fabric.step_latency_us == pytest.approx(17, rel=0.05)


def test_all_to_all_has_an_efficiency_of_its_own():
    cluster = load_cluster("dgx-h100")
    log = fabric_log(cluster, "all_to_all", 8, 0, all_to_all_efficiency=0.5)
    _, after = fit_links(cluster, [log])
    assert after.fabric.all_to_all_efficiency == pytest.approx(0.5, rel=0.05)
    assert after.fabric.efficiency == cluster.fabric.efficiency


@pytest.mark.parametrize(
    ("cluster", "file", "of_nic_rate"),
    [
        # 4 nodes of A100 on 100 GB/s: 91.7 GB/s; the shipped file says 200 GB/s a node
        ("selene", "a100_all_reduce_4_nodes.log", 0.917 * 100 / 200),
        # 4 nodes of p6-b200: 2.27.7, EFA v4; the table's own large messages reach .955
        ("aws-p6-b200", "p6_b200_all_reduce_4_nodes.log", 0.955),
    ],
)
def test_published_tables_between_nodes_give_the_efficiency_that_they_show(
    cluster, file, of_nic_rate
):
    found, after = fit_links(load_cluster(cluster), read_logs(MEASURED / file))
    assert after.fabric.efficiency == pytest.approx(of_nic_rate, rel=0.03)
    quality = found.figures[0].quality
    assert quality.median_after < 0.03 < quality.median_before


def test_trees_over_two_nodes_do_not_speak_for_rings_over_many():
    cluster = load_cluster("dgx-h100")
    tree = fabric_log(cluster, "all_reduce", 2, 0, efficiency=1.0)
    ring = fabric_log(cluster, "all_gather", 16, 1, efficiency=0.6)
    found, after = fit_links(cluster, [tree, ring])
    assert after.fabric.efficiency == pytest.approx(0.6, rel=0.05)
    assert any("trees" in fact for fact in found.facts)
    alone, _ = fit_links(cluster, [tree])
    assert any("measure 4 nodes or more" in warning for warning in alone.warnings)


def test_logs_that_this_cluster_cannot_have_run_are_said_and_left_out(tmp_path):
    logs = read_back(tmp_path, "all_reduce", 16, np.array(SIZES) / 1e9)
    found, after = fit_links(load_cluster("dgx-h100"), logs)
    assert after == load_cluster("dgx-h100")
    assert "16 ranks a node" in found.warnings[0]


def test_small_messages_alone_do_not_make_a_bandwidth(tmp_path):
    sizes = [2**p for p in range(3, 14)]
    logs = read_back(tmp_path, "all_reduce", 8, 2e-5 + np.array(sizes) / 1e12, sizes=sizes)
    found, _ = fit_links(load_cluster("dgx-h100"), logs)
    assert any("bound by latency" in warning for warning in found.warnings)


def test_too_few_sizes_are_left_out_and_said(tmp_path):
    logs = read_back(tmp_path, "all_reduce", 8, np.array([1e-4, 2e-4]), sizes=[2**20, 2**21])
    found, after = fit_links(load_cluster("dgx-h100"), logs)
    assert after == load_cluster("dgx-h100")
    assert "2 sizes" in found.warnings[0]

"""The torchrun bundle for real: PyTorch on CPU, gloo, one process a rank."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plans import plan_of

from planner.emit import bundle
from planner.emit.base import write_bundle
from planner.estimate.sync import gradient_sync
from planner.plan import Plan

pytest.importorskip("torch")
pytestmark = pytest.mark.frameworks

LINE = re.compile(
    r"^rank (\d+) coordinates tp=(\d+) cp=(\d+) dp=(\d+) pp=(\d+) ep=(\d+) loss=(\S+)$", re.M
)
EXPERTS = {"experts": {"count": 8, "top_k": 2, "ffn": 512}}


@contextlib.contextmanager
def started(folder: Path, port: int, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Start the bundle's run.sh in a process group of its own, and leave nothing running."""
    process = subprocess.Popen(
        ["bash", "run.sh"],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "MASTER_PORT": str(port),
            "CUDA_VISIBLE_DEVICES": "",
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            # torchrun ends its ranks on SIGTERM; killed outright it would leave them running
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(folder: Path, **env: str) -> tuple[int, str]:
    with started(folder, free_port(), **env) as process:
        out, _ = process.communicate(timeout=120)
        return process.returncode, out


def written(folder: Path, plan: Plan) -> Path:
    write_bundle(folder, bundle(plan, "torchrun"), force=False)
    return folder


def losses_of(out: str) -> list[float]:
    (line,) = re.findall(r"^losses (.*)$", out, re.M)
    return [float(word) for word in line.split()]


def assert_ranks_stand_as_planned(out: str, plan: Plan) -> None:
    assert plan.placement
    seen = {int(rank): tuple(map(int, place)) for rank, *place, _ in LINE.findall(out)}
    assert seen == {r.rank: (r.tp, r.cp, r.dp, r.pp, r.ep) for r in plan.placement.ranks}, out
    assert all(math.isfinite(float(loss)) for *_, loss in LINE.findall(out))


LAYOUTS: dict[str, dict[str, Any]] = {
    "tp-sp-fsdp": {"tp": 2, "sp": True, "dp": 2, "zero": 3, "num_microbatches": 2},
    "pp-zero1": {"pp": 2, "dp": 2, "zero": 1, "num_microbatches": 2, "schedule": "1f1b"},
    "hsdp-recompute": {"dp": 4, "dp_replicate": 2, "zero": 3, "recompute": "full"},
    "replicas": {"dp": 4},
    "parameter-server": {"dp": 4, "dp_sync": "parameter-server"},
    "cp-zero2": {"cp": 2, "zero": 2, "recompute": "selective", "num_microbatches": 4},
}


def forked(folder: Path, plans: dict[str, Plan]) -> dict[str, str]:
    """Return what the ranks of each bundle said, all started from one process that holds torch."""
    folders = {name: written(folder / name, plan) for name, plan in plans.items()}
    script = Path(__file__).with_name("forked_ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), *map(str, folders.values())],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    said = {
        name: "".join(p.read_text() for p in sorted(where.glob("said.*")))
        for name, where in folders.items()
    }
    assert done.returncode == 0, done.stderr + "".join(said.values())[-4000:]
    return said


def assert_all_train_as_one_rank_does(folder: Path, plans: dict[str, Plan]) -> None:
    """Check coordinates and losses; the plan called `alone` has no collective and no split."""
    said = forked(folder, plans)
    alone = losses_of(said["alone"])
    assert alone[0] != pytest.approx(alone[-1], rel=1e-3)  # the steps do change the model
    for name, out in said.items():
        assert_ranks_stand_as_planned(out, plans[name])
        assert losses_of(out) == pytest.approx(alone, rel=1e-5), name


ALONE = {"num_microbatches": 4}


def test_every_layout_has_its_coordinates_and_trains_as_one_rank_does(tmp_path):
    rows = {"alone": ALONE} | LAYOUTS
    assert_all_train_as_one_rank_does(tmp_path, {name: plan_of(**rows[name]) for name in rows})


def test_run_starts_the_ranks_under_torchrun_wherever_the_bundle_is(tmp_path):
    plan = plan_of(**LAYOUTS["tp-sp-fsdp"])
    code, out = run(written(tmp_path / "a 'bundle'", plan))
    assert code == 0, out
    assert_ranks_stand_as_planned(out, plan)
    assert losses_of(out)[0] > losses_of(out)[-1]


EXPERT_LAYOUTS: dict[str, dict[str, Any]] = {
    "ep-fsdp": {"dp": 4, "ep": 2, "zero": 3},
    "ep-hsdp": {"dp": 4, "ep": 2, "dp_replicate": 2, "zero": 3, "recompute": "full"},
    "ep-replicas": {"dp": 4, "ep": 4},
    "ep-zero1": {"dp": 4, "ep": 2, "zero": 1},
    "ep-over-tp": {"tp": 2, "sp": True, "dp": 2, "ep": 4, "zero": 2, "num_microbatches": 2},
    "ep-in-tp": {"tp": 2, "sp": True, "dp": 2, "ep": 2, "num_microbatches": 2},
    "ep-pipeline": {"pp": 2, "dp": 2, "ep": 2, "num_microbatches": 2, "schedule": "1f1b"},
    "ep-cp": {"cp": 2, "dp": 2, "ep": 4, "zero": 3, "num_microbatches": 2},
    "slices": {"tp": 2, "etp": 2, "dp": 2, "zero": 3, "num_microbatches": 2},
    "slices-sp": {"tp": 2, "etp": 2, "sp": True, "dp": 2, "num_microbatches": 2},
}


def test_experts_train_as_on_one_rank_wherever_they_are(tmp_path):
    rows = {"alone": ALONE} | EXPERT_LAYOUTS
    plans = {name: plan_of(model=EXPERTS, **rows[name]) for name in rows}
    assert_all_train_as_one_rank_does(tmp_path, plans)


def counted(folder: Path, plan: Plan) -> tuple[float, dict[int, tuple[float, float]]]:
    """Return the parameters of the stand-in, and (sent, received) bytes of each rank in a step."""
    bundle = written(folder / "out", plan)
    code, out = run(
        bundle,
        TRAIN_SCRIPT=str(Path(__file__).with_name("count_traffic.py")),
        SKIP_PREFLIGHT="1",
        MESHWRIGHT_BUNDLE=str(bundle),
    )
    assert code == 0, out
    (held,) = set(re.findall(r"^parameters (\d+)$", out, re.M))
    rows = re.findall(r"^traffic (\d+) (\d+) (\d+)$", out, re.M)
    return float(held), {int(rank): (float(sent), float(got)) for rank, sent, got in rows}


HEADERS = 0.04
"""Share that gloo's own headers, the barrier and the loss may add for a model this small."""


def test_a_parameter_server_moves_the_bytes_that_the_estimate_says(tmp_path):
    plan = plan_of(dp=4, dp_sync="parameter-server")
    parameters, seen = counted(tmp_path, plan)
    server, *_ = gradient_sync(parameters, 3, 4)  # rank 0 serves three others
    assert server.scheme == "parameter server"
    for bytes_seen in seen[0]:  # its link, each way
        assert bytes_seen == pytest.approx(server.busiest_link_bytes, rel=HEADERS)
    for worker in (1, 2, 3):
        assert seen[worker] == pytest.approx((server.per_gpu_sent_bytes,) * 2, rel=HEADERS)
    assert sum(sent for sent, _ in seen.values()) == pytest.approx(server.total_bytes, rel=HEADERS)


def test_a_ring_moves_the_bytes_that_the_estimate_says(tmp_path):
    parameters, seen = counted(tmp_path, plan_of(dp=4))
    _, ring, *_ = gradient_sync(parameters, 4, 4)
    assert ring.scheme == "ring all-reduce"
    assert set(seen) == {0, 1, 2, 3}
    for sent, received in seen.values():
        assert (sent, received) == pytest.approx((ring.per_gpu_sent_bytes,) * 2, rel=HEADERS)
    assert sum(sent for sent, _ in seen.values()) == pytest.approx(ring.total_bytes, rel=HEADERS)


def test_two_nodes_find_their_ranks_by_host_and_interleave_a_pipeline(tmp_path):
    plan = plan_of(
        nodes=2,
        hosts=["zeta", "alpha.test"],
        **{"pp": 2, "vpp": 2, "dp": 2, "zero": 3, "num_microbatches": 2, "schedule": "interleaved"},
    )
    folder, port = written(tmp_path / "out", plan), free_port()
    with (
        started(folder, port, MASTER_ADDR="127.0.0.1", MESHWRIGHT_HOSTNAME="alpha") as second,
        started(folder, port, MASTER_ADDR="127.0.0.1", MESHWRIGHT_HOSTNAME="zeta") as first,
    ):
        outs = [node.communicate(timeout=120)[0] for node in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), "".join(outs)
    assert_ranks_stand_as_planned("".join(outs), plan)
    assert {int(rank) for rank, *_ in LINE.findall(outs[0])} == {0, 1}


def says_once(out: str) -> str:
    (said,) = re.findall(r"^preflight: (.*)$", out, re.M)
    assert 'preflight.py", line' not in out  # torchrun has a traceback of its own, ours has none
    assert not LINE.findall(out)
    return str(said)


def test_two_ranks_swapped_in_the_map_stop_the_job(tmp_path):
    folder = written(tmp_path / "out", plan_of(dp=2))
    rank_map = json.loads((folder / "rank_map.json").read_text())
    one, two = rank_map["ranks"]
    one["dp"], two["dp"] = two["dp"], one["dp"]
    (folder / "rank_map.json").write_text(json.dumps(rank_map))
    code, out = run(folder)
    assert code != 0
    assert "rank 0 expected coordinates dp=1, saw dp=0 (and 1 more)" in says_once(out)


@pytest.mark.parametrize(
    ("hosts", "names", "says"),
    [
        (["zeta", "alpha"], ["alpha", "zeta"], "rank 0 expected host zeta, saw alpha"),
        (None, ["same", "same"], "rank 1 expected another host than rank 0"),
    ],
)
def test_nodes_that_stand_elsewhere_stop_the_job(tmp_path, hosts, names, says):
    folder, port = written(tmp_path / "out", plan_of(nodes=2, hosts=hosts, dp=2)), free_port()
    script = {"TRAIN_SCRIPT": str(folder / "preflight.py"), "SKIP_PREFLIGHT": "1"}
    env = [
        {"NODE_RANK": str(i), "MASTER_ADDR": "127.0.0.1", "MESHWRIGHT_HOSTNAME": n, **script}
        for i, n in enumerate(names)
    ]
    with started(folder, port, **env[0]) as first, started(folder, port, **env[1]) as second:
        outs = [node.communicate(timeout=120)[0] for node in (first, second)]
    assert first.returncode != 0
    assert second.returncode != 0
    assert says in says_once("".join(outs))

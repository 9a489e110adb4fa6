"""The torchrun bundle for real: PyTorch on CPU, gloo, one process a rank.

Launchers and ranks are forks of a process that holds PyTorch (rig/warm.py); one that starts from
nothing is in architecture/test_tutorial.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plans import plan_of
from ports import free_port
from warm import Warm

from planner.emit import bundle
from planner.emit.base import write_bundle
from planner.estimate.sync import gradient_sync
from planner.plan import Plan

pytest.importorskip("torch")
pytestmark = pytest.mark.frameworks

LINE = re.compile(
    r"^rank (\d+) coordinates tp=(\d+) cp=(\d+) dp=(\d+) pp=(\d+) ep=(\d+) loss=(\S+)$", re.M
)
PATIENCE_S = 500
"""More than any start takes on a machine that does much else."""
EXPERTS = {"experts": {"count": 8, "top_k": 2, "ffn": 512}}


@pytest.fixture
def env(warm: Warm) -> dict[str, str]:
    return warm.env("torch")


@contextlib.contextmanager
def started(folder: Path, port: int, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start the bundle's run.sh in a process group of its own, and leave nothing running."""
    process = subprocess.Popen(
        ["bash", "run.sh"],
        cwd=folder,
        env=env | {"MASTER_PORT": str(port)},
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


def run(folder: Path, env: dict[str, str]) -> tuple[int, str]:
    with started(folder, free_port(2), env) as process:
        out, _ = process.communicate(timeout=PATIENCE_S)
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


def train(folder: Path, plan: Plan, env: dict[str, str]) -> str:
    """Start every rank of a bundle as torchrun would, and return what they said."""
    assert plan.placement
    world, port = len(plan.placement.ranks), str(free_port())
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    files = [folder / f"said.{rank}" for rank in range(world)]
    ranks = []
    for rank, file in enumerate(files):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with file.open("wb") as said:
            ranks.append(
                subprocess.Popen(
                    ["python", "train.py", "--steps", "2"],
                    cwd=folder, env=env | shared | own, stdout=said, stderr=said,
                )
            )  # fmt: skip
    codes = [rank.wait(PATIENCE_S) for rank in ranks]
    out = "".join(file.read_text("utf-8") for file in files)
    assert not any(codes), out[-4000:]
    return out


def assert_all_train_as_one_rank_does(
    folder: Path, plans: dict[str, Plan], env: dict[str, str]
) -> None:
    """Check coordinates and losses; the plan called `alone` has no collective and no split."""
    said = {name: train(written(folder / name, p), p, env) for name, p in plans.items()}
    alone = losses_of(said["alone"])
    assert alone[0] != pytest.approx(alone[-1], rel=1e-3)  # the steps do change the model
    for name, out in said.items():
        assert_ranks_stand_as_planned(out, plans[name])
        assert losses_of(out) == pytest.approx(alone, rel=1e-5), name


ALONE = {"num_microbatches": 4}


def test_every_layout_has_its_coordinates_and_trains_as_one_rank_does(tmp_path, env):
    rows = {"alone": ALONE} | LAYOUTS
    plans = {name: plan_of(**rows[name]) for name in rows}
    assert_all_train_as_one_rank_does(tmp_path, plans, env)


def test_run_starts_the_ranks_under_torchrun_wherever_the_bundle_is(tmp_path, env):
    plan = plan_of(**LAYOUTS["tp-sp-fsdp"])
    code, out = run(written(tmp_path / "a 'bundle'", plan), env)
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


def test_experts_train_as_on_one_rank_wherever_they_are(tmp_path, env):
    rows = {"alone": ALONE} | EXPERT_LAYOUTS
    plans = {name: plan_of(model=EXPERTS, **rows[name]) for name in rows}
    assert_all_train_as_one_rank_does(tmp_path, plans, env)


def counted(
    folder: Path, plan: Plan, env: dict[str, str]
) -> tuple[float, dict[int, tuple[float, float]]]:
    """Return the parameters of the stand-in, and (sent, received) bytes of each rank in a step."""
    bundle = written(folder / "out", plan)
    script = str(Path(__file__).with_name("count_traffic.py"))
    own = {"TRAIN_SCRIPT": script, "SKIP_PREFLIGHT": "1", "MESHWRIGHT_BUNDLE": str(bundle)}
    code, out = run(bundle, env | own)
    assert code == 0, out
    (held,) = set(re.findall(r"^parameters (\d+)$", out, re.M))
    rows = re.findall(r"^traffic (\d+) (\d+) (\d+)$", out, re.M)
    return float(held), {int(rank): (float(sent), float(got)) for rank, sent, got in rows}


HEADERS = 0.04
"""Share that gloo's own headers, the barrier and the loss may add for a model this small."""


def test_a_parameter_server_moves_the_bytes_that_the_estimate_says(tmp_path, env):
    plan = plan_of(dp=4, dp_sync="parameter-server")
    parameters, seen = counted(tmp_path, plan, env)
    server, *_ = gradient_sync(parameters, 3, 4)  # rank 0 serves three others
    assert server.scheme == "parameter server"
    for bytes_seen in seen[0]:  # its link, each way
        assert bytes_seen == pytest.approx(server.busiest_link_bytes, rel=HEADERS)
    for worker in (1, 2, 3):
        assert seen[worker] == pytest.approx((server.per_gpu_sent_bytes,) * 2, rel=HEADERS)
    assert sum(sent for sent, _ in seen.values()) == pytest.approx(server.total_bytes, rel=HEADERS)


def test_a_ring_moves_the_bytes_that_the_estimate_says(tmp_path, env):
    parameters, seen = counted(tmp_path, plan_of(dp=4), env)
    _, ring, *_ = gradient_sync(parameters, 4, 4)
    assert ring.scheme == "ring all-reduce"
    assert set(seen) == {0, 1, 2, 3}
    for sent, received in seen.values():
        assert (sent, received) == pytest.approx((ring.per_gpu_sent_bytes,) * 2, rel=HEADERS)
    assert sum(sent for sent, _ in seen.values()) == pytest.approx(ring.total_bytes, rel=HEADERS)


def test_two_nodes_find_their_ranks_by_host_and_interleave_a_pipeline(tmp_path, env):
    plan = plan_of(
        nodes=2,
        hosts=["zeta", "alpha.test"],
        **{"pp": 2, "vpp": 2, "dp": 2, "zero": 3, "num_microbatches": 2, "schedule": "interleaved"},
    )
    names = ("zeta", "alpha")
    codes, outs = on_two_nodes(
        written(tmp_path / "out", plan), [env | {"MESHWRIGHT_HOSTNAME": name} for name in names]
    )
    assert codes == [0, 0], "".join(outs)
    assert_ranks_stand_as_planned("".join(outs), plan)
    assert {int(rank) for rank, *_ in LINE.findall(outs[0])} == {0, 1}


def on_two_nodes(folder: Path, envs: list[dict[str, str]]) -> tuple[list[int], list[str]]:
    """Start a bundle twice, as two nodes do; return their exit codes and what they said."""
    port, here = free_port(2), {"MASTER_ADDR": "127.0.0.1"}
    with (
        started(folder, port, envs[1] | here) as second,
        started(folder, port, envs[0] | here) as first,
    ):
        outs = [node.communicate(timeout=PATIENCE_S)[0] for node in (first, second)]
    return [first.returncode, second.returncode], outs


def says_once(out: str) -> str:
    (said,) = re.findall(r"^preflight: (.*)$", out, re.M)
    assert 'preflight.py", line' not in out  # torchrun has a traceback of its own, ours has none
    assert not LINE.findall(out)
    return str(said)


def test_two_ranks_swapped_in_the_map_stop_the_job(tmp_path, env):
    folder = written(tmp_path / "out", plan_of(dp=2))
    rank_map = json.loads((folder / "rank_map.json").read_text())
    one, two = rank_map["ranks"]
    one["dp"], two["dp"] = two["dp"], one["dp"]
    (folder / "rank_map.json").write_text(json.dumps(rank_map))
    code, out = run(folder, env)
    assert code != 0
    assert "rank 0 expected coordinates dp=1, saw dp=0 (and 1 more)" in says_once(out)


@pytest.mark.parametrize(
    ("hosts", "names", "says"),
    [
        (["zeta", "alpha"], ["alpha", "zeta"], "rank 0 expected host zeta, saw alpha"),
        (None, ["same", "same"], "rank 1 expected another host than rank 0"),
    ],
)
def test_nodes_that_stand_elsewhere_stop_the_job(tmp_path, hosts, names, says, env):
    folder = written(tmp_path / "out", plan_of(nodes=2, hosts=hosts, dp=2))
    env |= {"TRAIN_SCRIPT": str(folder / "preflight.py"), "SKIP_PREFLIGHT": "1"}
    own = [{"NODE_RANK": str(i), "MESHWRIGHT_HOSTNAME": n} for i, n in enumerate(names)]
    codes, outs = on_two_nodes(folder, [env | one for one in own])
    assert 0 not in codes
    assert says in says_once("".join(outs))

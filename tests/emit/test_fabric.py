"""NCCL's and RCCL's environment by the cluster's network, each setting with its reason."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from plan_grid import MODELS, plan

from planner.emit import EMITTER_NAMES, emitter_named
from planner.emit.fabric import fabric_text, settings, transport_of
from planner.emit.k8s import train_job
from planner.plan import Plan
from planner.specs.catalog import cluster_names, load_cluster

NETWORKS = {
    "aws-p5": ("efa", {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}),
    "aws-p3dn": ("efa", {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": None}),
    "meta-24k-roce": ("roce", {"NCCL_IB_TIMEOUT": "22", "NCCL_IB_GID_INDEX": None}),
    "dgx-h100": ("ib", {"NCCL_CROSS_NIC": "0", "FI_PROVIDER": None}),
    "gb200-nvl72": ("ib", {"NCCL_MNNVL_ENABLE": "1"}),
    "mi300x-8x400g": ("roce", {"NCCL_MIN_NCHANNELS": "112", "GPU_MAX_HW_QUEUES": "2"}),
    "frontier": ("slingshot", {"NCCL_SOCKET_IFNAME": "hsn", "NCCL_MIN_NCHANNELS": None}),
    "lambda-h100-ethernet": ("tcp", {"NCCL_SOCKET_NTHREADS": "4"}),
}


def on(name: str, nodes: int = 2) -> Plan:
    """Return a plan on a shipped cluster's hardware and network."""
    answer = plan(MODELS["dense"], dp=8 * nodes, zero=3)
    cluster = load_cluster(name)
    like = answer.request.cluster.model_copy(
        update={k: getattr(cluster, k) for k in ("accelerator", "scale_up", "fabric")}
    )
    request = answer.request.model_copy(update={"cluster": like})
    return answer.model_copy(update={"request": request})


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_needs_is_set_with_its_reason(name):
    kind, wanted = NETWORKS[name]
    answer = on(name)
    found = {s.name: s.value for s in settings(answer) if not s.suggested}
    assert transport_of(answer.request.cluster) == kind
    assert {key: found.get(key) for key in wanted} == wanted
    lines = fabric_text(answer).splitlines()
    for number, line in enumerate(lines):
        if re.match(r"(# )?export ", line):
            assert re.match(r"# \w", lines[number - 1]), line


@pytest.mark.parametrize("name", sorted(cluster_names()))
def test_the_lines_source_on_every_shipped_cluster_and_what_is_set_wins(name):
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    answer = on(name)
    names = {s.name for s in settings(answer) if not s.suggested}
    env = {"PATH": os.environ["PATH"], **dict.fromkeys(names, "mine")}
    text = fabric_text(answer)
    for given in ({"PATH": os.environ["PATH"]}, env):
        done = subprocess.run(
            [bash, "-euc", f"{text}\nenv"], env=given, capture_output=True, text=True, check=True
        )
        seen = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        assert names <= set(seen)
        assert given is not env or {seen[n] for n in names} <= {"mine"}


def test_one_node_has_no_network_to_set():
    assert settings(on("aws-p5", nodes=1)) == []
    alone = {s.name for s in settings(on("mi300x-8x400g", nodes=1))}
    assert "NCCL_MIN_NCHANNELS" in alone
    assert "NCCL_IB_TIMEOUT" not in alone


def test_pods_on_efa_ask_for_its_adapters():
    files = {a.path: a.text for a in emitter_named("k8s").emit(on("aws-p5"))}
    assert 'vpc.amazonaws.com/efa: "8"' in files["jobset.yaml"]  # of the plan's own node
    assert "IPC_LOCK" in files["jobset.yaml"]
    assert "IPC_LOCK" in str(train_job(on("aws-p5")))
    assert "IPC_LOCK" not in str(train_job(on("lambda-h100-ethernet")))
    alone = {a.path: a.text for a in emitter_named("k8s").emit(on("aws-p5", nodes=1))}
    assert "efa" not in alone["jobset.yaml"]


@pytest.mark.parametrize("target", sorted(set(EMITTER_NAMES) - {"dataparallel"}))
def test_every_target_of_several_nodes_carries_them(target):
    answer = on("aws-p5")
    if target == "nanotron":
        row = plan(MODELS["dense"], dp=16, zero=1)
        answer = answer.model_copy(update={"plans": row.plans})
    text = "".join(a.text for a in emitter_named(target).emit(answer) if a.path != "plan.json")
    assert "FI_PROVIDER" in text
    assert "libfabric takes the adapters for EFA" in text

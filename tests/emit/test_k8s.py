from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_grid import MODELS, model, plan, renamed

from planner.emit.base import write_bundle
from planner.emit.k8s import EMITTER, object_name
from planner.errors import SpecError
from planner.plan import Plan

DENSE = MODELS["dense"]
KUEUE = "kueue.x-k8s.io/podset"
RACK = "cloud.provider.com/topology-rack"


def manifests(answer: Plan) -> dict[str, Any]:
    files = EMITTER.emit(answer)
    return {a.path: yaml.safe_load(a.text) for a in files if a.path.endswith(".yaml")}


def job(answer: Plan) -> dict[str, Any]:
    return manifests(answer)["jobset.yaml"]["spec"]["replicatedJobs"][0]["template"]["spec"]


def under(answer: Plan, leafs: str) -> Plan:
    assert answer.placement
    ranks = [r.model_copy(update={"leaf": leafs[r.rank // 8]}) for r in answer.placement.ranks]
    placement = answer.placement.model_copy(update={"ranks": ranks})
    return answer.model_copy(update={"placement": placement})


def test_listed_hosts_are_the_only_ones_and_each_takes_one_pod():
    made = job(plan(DENSE, dp=16, hosts=("B2", "a10")))
    spec = made["template"]["spec"]
    assert (made["completions"], made["parallelism"], made["completionMode"]) == (2, 2, "Indexed")
    affinity = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert affinity["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] == ["b2", "a10"]
    assert "requiredDuringSchedulingIgnoredDuringExecution" in spec["affinity"]["podAntiAffinity"]
    assert spec["hostNetwork"] is True  # so that the name of the node is the address of the pod
    env = {e["name"]: e.get("value") for e in spec["containers"][0]["env"]}
    assert env["MASTER_ADDR"] == "b2"
    assert spec["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert "trainjob.yaml" not in manifests(plan(DENSE, dp=16))


def test_other_pods_find_the_first_by_the_name_that_the_job_set_gives_it():
    spec = job(plan(DENSE, dp=16, placeholders=True))["template"]["spec"]
    env = {e["name"]: e.get("value") for e in spec["containers"][0]["env"]}
    assert env["MASTER_ADDR"] == "dense-node-0-0.dense"
    assert "hostNetwork" not in spec


@pytest.mark.parametrize(
    ("leafs", "expected"),
    [
        ("aaaa", {f"{KUEUE}-required-topology": RACK}),
        ("abab", {f"{KUEUE}-preferred-topology": RACK, f"{KUEUE}-slice-required-topology": RACK,
                  f"{KUEUE}-slice-size": "2"}),
        ("aaab", {f"{KUEUE}-preferred-topology": RACK}),
    ],
)  # fmt: skip
def test_what_the_plan_has_under_one_leaf_stays_together(leafs, expected):
    answer = under(plan(DENSE, dp=32, placeholders=True), leafs)
    assert job(answer)["template"]["metadata"]["annotations"] == expected
    patch = manifests(answer)["trainjob.yaml"]["spec"]["runtimePatches"][0]
    inner = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    assert inner["template"]["spec"]["template"]["metadata"]["annotations"] == expected


def test_kubeflow_sets_its_own_variables_and_refuses_a_job_that_does():
    spec = manifests(plan(DENSE, dp=16, placeholders=True))["trainjob.yaml"]["spec"]
    assert not [e for e in spec["trainer"]["env"] if e["name"].startswith("PET_")]
    assert (spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (2, 8)


def test_other_gpus_have_other_names_and_unknown_ones_are_refused():
    answer = plan(DENSE, dp=8)
    for vendor, expected in (("amd", []), ("intel", ["No device plugin is known for intel."])):
        chip = answer.request.cluster.accelerator.model_copy(update={"vendor": vendor})
        cluster = answer.request.cluster.model_copy(update={"accelerator": chip})
        request = answer.request.model_copy(update={"cluster": cluster})
        other = answer.model_copy(update={"request": request})
        assert EMITTER.unsupported(other) == expected
        if not expected:
            container = job(other)["template"]["spec"]["containers"][0]
            assert container["resources"]["limits"] == {"amd.com/gpu": "8"}


@pytest.mark.parametrize(
    "name", ["x$(touch owned)", "Llama-3.1_70B", "größe " * 30, "  ", "-x-", "7b", "no", "a\nb: c"]
)
def test_any_model_name_becomes_a_dns_label(name):
    answer = plan(model(name=name), dp=16, placeholders=True)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,43}[a-z0-9])?", object_name(answer))
    assert manifests(answer)["jobset.yaml"]["metadata"]["name"] == object_name(answer)


def test_a_host_that_is_no_node_name_is_refused():
    with pytest.raises(SpecError, match="not a host name"):
        EMITTER.emit(renamed(plan(DENSE, dp=16), "a b"))
    long = renamed(plan(DENSE, dp=16), ".".join(["a" * 40] * 3))
    assert [s for s in EMITTER.unsupported(long) if "63 letters" in s]


def run(folder: Path, answer: Plan, **variables: str) -> subprocess.CompletedProcess[str]:
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not installed")
    bundle = folder / "a bundle"
    write_bundle(bundle, EMITTER.emit(answer), force=True)
    (bundle / "run.sh").write_text(
        'echo "${NODE_RANK:-by name} $MASTER_ADDR $MASTER_PORT $MESHWRIGHT_HOSTNAME"\n'
        "env | grep ^PET_ || true\n"
    )
    env = {"PATH": os.environ["PATH"], "NODE_NAME": "n1", **variables}
    command = [bash, str(bundle / "node.sh")]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_indexes_become_node_ranks_leaf_by_leaf(tmp_path):
    answer = under(plan(DENSE, dp=32, placeholders=True), "abab")
    for index, rank in enumerate("0213"):
        done = run(tmp_path, answer, JOB_COMPLETION_INDEX=str(index), MASTER_ADDR="m")
        assert done.stdout == f"{rank} m 29500 n1\n", done.stderr


def test_what_kubeflow_sets_is_taken_over_and_kept_from_torchrun(tmp_path):
    answer = plan(DENSE, dp=16, placeholders=True)
    pet = {"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "k", "PET_MASTER_PORT": "1", "PET_NNODES": "2"}
    assert run(tmp_path, answer, **pet).stdout == "1 k 1 n1\n"
    done = run(tmp_path, answer, MASTER_ADDR="m")
    assert done.returncode != 0
    assert "neither a JobSet nor a TrainJob" in done.stderr


def test_on_listed_hosts_the_node_names_the_rank(tmp_path):
    done = run(
        tmp_path, plan(DENSE, dp=16), JOB_COMPLETION_INDEX="1", MASTER_ADDR="m", NODE_RANK="9"
    )
    assert done.stdout == "by name m 29500 n1\n"

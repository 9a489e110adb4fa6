"""Kubernetes: a JobSet, and a Kubeflow TrainJob, that give every pod the node rank of its place.

Pods are numbered by completion index, wherever they land. Where the cluster lists its hosts, a pod
learns its rank from the node that it is on; elsewhere Kueue is asked to fill leafs as the plan
does, and indexes become ranks leaf by leaf. Names are refused or made rather than quoted: the
schemas take names that the API server then rejects.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from planner.emit.base import Artifact, hosts_are_placeholders, placed
from planner.emit.capabilities import ANYTHING
from planner.emit.fabric import transport_of
from planner.emit.wrapped import (
    inner_of,
    inner_problems,
    leaf_of_node,
    never_inside,
    node_ranks_by_leaf,
    wrapped,
)
from planner.emit.yaml_text import yaml_text
from planner.plan import Plan
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload

GPU_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
"""What the vendors' device plugins call a GPU."""
IMAGE = "your-registry/your-image:your-tag"
CLAIM = "your-claim"
QUEUE = "your-queue"
LEAF_LABEL = "cloud.provider.com/topology-rack"
"""The node label that names a leaf, as in Kueue's own examples."""
FOLDER = "/bundle"
PORT = 29500


class Kubernetes:
    """jobset.yaml, and trainjob.yaml where pods may stand by their index."""

    name = "k8s"
    stack = "any"
    tested_with = "JobSet v1alpha2, Kubeflow Trainer 2.3.0, Kubernetes 1.31"
    can = ANYTHING

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return, for each framework that Kubernetes could start, why it never can."""
        return never_inside(model, work)

    def unsupported(self, plan: Plan) -> list[str]:
        """Return why no framework can run the plan, and what no device plugin is known for."""
        vendor = plan.request.cluster.accelerator.vendor
        known = [] if vendor in GPU_RESOURCES else [f"No device plugin is known for {vendor}."]
        long = [h for h in node_names(plan) if len(h) > 63]
        known += [f"The host name {h} is longer than the 63 letters of a label." for h in long[:1]]
        return [*known, *inner_problems(plan)]

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return the manifests, node.sh and the bundle of the framework that they start."""
        shared = wrapped(plan, target=self.name, title="Kubernetes", start=start_text(plan))
        out = [*shared, Artifact("jobset.yaml", OWN + yaml_text(job_set(plan)))]
        if hosts_are_placeholders(plan):
            out.append(Artifact("trainjob.yaml", OWN + yaml_text(train_job(plan))))
        return [*out, Artifact("node.sh", node_text(plan), executable=True)]


OWN = f"""\
# Yours to set, each to be found below:
#   {IMAGE}  an image with the framework in it
#   {CLAIM}  a volume claim that holds this folder, to be read by many nodes
#   {QUEUE}  a local queue of Kueue; without Kueue leave the label and annotations out
#   {LEAF_LABEL}  the label that names a node's leaf (where it is used)
# InfiniBand and RoCE: add under `limits` what your device plugin calls the adapters, such as
# rdma/hca_shared_devices_a; without them NCCL takes sockets, many times slower.
"""


def object_name(plan: Plan) -> str:
    """Return the model's name as a DNS label, short enough for the suffixes of pods."""
    word = re.sub(r"[^a-z0-9]+", "-", plan.request.model.name.lower())[:40].strip("-")
    return word if re.match(r"[a-z]", word) else f"job-{word}".rstrip("-")


def node_names(plan: Plan) -> list[str]:
    """Return the hosts as Kubernetes names nodes: in lower case."""
    return [host.lower() for host in placed(plan).hosts] if plan.placement else []


def job_set(plan: Plan) -> dict[str, Any]:
    """Return a JobSet of one indexed job, a pod a node."""
    nodes = len(placed(plan).hosts)
    job = {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"metadata": {"annotations": topology(plan)}, "spec": pod(plan)},
    }
    if not topology(plan):
        del job["template"]["metadata"]  # type: ignore[attr-defined]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": object_name(plan), "labels": {"kueue.x-k8s.io/queue-name": QUEUE}},
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": 3},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}],
        },
    }


def topology(plan: Plan) -> dict[str, str]:
    """Return Kueue's annotations that keep together what the plan has under one leaf.

    Pods of a slice have consecutive indexes, which `node_ranks_by_leaf` turns into node ranks.
    """
    sizes = set(Counter(leaf_of_node(plan)).values())
    leafs = len(set(leaf_of_node(plan)))
    prefix = "kueue.x-k8s.io/podset"
    if not hosts_are_placeholders(plan):
        return {}
    if leafs == 1:
        return {f"{prefix}-required-topology": LEAF_LABEL}
    if len(sizes) > 1:  # slices are of one size
        return {f"{prefix}-preferred-topology": LEAF_LABEL}
    return {  # slices alone would do, but older Kueues leave such pods gated
        f"{prefix}-preferred-topology": LEAF_LABEL,
        f"{prefix}-slice-required-topology": LEAF_LABEL,
        f"{prefix}-slice-size": str(sizes.pop()),
    }


def gpus(plan: Plan) -> dict[str, Any]:
    """Return the GPUs of one pod, and the adapters of EFA, which pods do not get unasked."""
    cluster, place = plan.request.cluster, placed(plan)
    limits = {GPU_RESOURCES[cluster.accelerator.vendor]: str(place.gpus_per_node)}
    if transport_of(cluster) == "efa" and len(place.hosts) > 1:
        limits["vpc.amazonaws.com/efa"] = str(cluster.node.nics)
    return {"limits": limits}


def environment(plan: Plan, *, master: str) -> list[dict[str, Any]]:
    """Return the variables of a pod; values are strings, always."""
    return [
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "MASTER_ADDR", "value": master},
        {"name": "MASTER_PORT", "value": str(PORT)},
    ]


def volumes() -> list[dict[str, Any]]:
    """Return the bundle, and shared memory: containers get 64 MB, NCCL wants more."""
    return [
        {"name": "bundle", "persistentVolumeClaim": {"claimName": CLAIM}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def mounts() -> list[dict[str, Any]]:
    """Return where the volumes go."""
    return [{"name": "bundle", "mountPath": FOLDER}, {"name": "shm", "mountPath": "/dev/shm"}]


def pod(plan: Plan) -> dict[str, Any]:
    """Return the pod of one node."""
    name, hosts = object_name(plan), node_names(plan)
    listed = not hosts_are_placeholders(plan)
    master = hosts[0] if listed else f"{name}-node-0-0.{name}"
    out: dict[str, Any] = {"restartPolicy": "Never"}
    if listed:
        # the address of the node is then that of the pod, whichever pod lands there
        out |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
        out["affinity"] = {"nodeAffinity": only(hosts), "podAntiAffinity": alone(name)}
    container: dict[str, Any] = {
        "name": "node",
        "image": IMAGE,
        "command": ["bash", f"{FOLDER}/node.sh"],
        "env": environment(plan, master=master),
        "resources": gpus(plan),
        "volumeMounts": mounts(),
        **pinning(plan),
    }
    return out | {"containers": [container], "volumes": volumes()}


def pinning(plan: Plan) -> dict[str, Any]:
    """Return the right to pin memory, which RDMA does with its buffers."""
    if transport_of(plan.request.cluster) not in ("efa", "ib", "roce"):
        return {}
    return {"securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}


def only(hosts: list[str]) -> dict[str, Any]:
    """Return the affinity to exactly these nodes."""
    names = {"key": "kubernetes.io/hostname", "operator": "In", "values": hosts}
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [names]}]
        }
    }


def alone(name: str) -> dict[str, Any]:
    """Return the affinity against a second pod of the job on a node."""
    mine = {"matchLabels": {"jobset.sigs.k8s.io/jobset-name": name}}
    term = {"labelSelector": mine, "topologyKey": "kubernetes.io/hostname"}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def train_job(plan: Plan) -> dict[str, Any]:
    """Return a TrainJob on the runtime `torch-distributed`, which names its job and container node.

    Kubeflow sets PET_* itself and refuses a job that sets them; node.sh reads them.
    """
    place = placed(plan)
    spec = {
        "containers": [{"name": "node", "volumeMounts": mounts(), **pinning(plan)}],
        "volumes": volumes(),
    }
    template = {"metadata": {"annotations": topology(plan)}, "spec": spec}
    patch = {"name": "node", "template": {"spec": {"template": template}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": object_name(plan), "labels": {"kueue.x-k8s.io/queue-name": QUEUE}},
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": {
                "image": IMAGE,
                "command": ["bash", f"{FOLDER}/node.sh"],
                "env": [environment(plan, master="")[0]],
                "numNodes": len(place.hosts),
                "numProcPerNode": place.gpus_per_node,
                "resourcesPerNode": gpus(plan),
            },
            "runtimePatches": [
                {
                    "manager": "meshwright.dev/plan",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [patch]}}},
                }
            ],
        },
    }


def node_text(plan: Plan) -> str:
    """Return `node.sh`: a pod's node rank, then the framework's own run.sh."""
    if not hosts_are_placeholders(plan):
        rank = """\
# run.sh finds the rank by this name in hosts.txt
unset NODE_RANK"""
    else:
        order = " ".join(map(str, node_ranks_by_leaf(plan)))
        rank = f"""\
# Indexes of pods under one leaf are consecutive; the plan may have them under every other rank.
BY_LEAF=({order})
index="${{JOB_COMPLETION_INDEX:-${{PET_NODE_RANK:?neither a JobSet nor a TrainJob set the index}}}}"
export NODE_RANK="${{BY_LEAF[index]}}\""""
    return f"""\
#!/usr/bin/env bash
# The command of every pod: finds its node rank and starts its share.
set -euo pipefail

HERE="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
export MESHWRIGHT_HOSTNAME="${{NODE_NAME:?spec.nodeName, set in the manifest}}"
{rank}
export MASTER_ADDR="${{MASTER_ADDR:-${{PET_MASTER_ADDR:?set by the manifest or by Kubeflow}}}}"
export MASTER_PORT="${{MASTER_PORT:-${{PET_MASTER_PORT:-{PORT}}}}}"
# torchrun would take these for options that run.sh gives already
unset PET_NNODES PET_NPROC_PER_NODE PET_NODE_RANK PET_MASTER_ADDR PET_MASTER_PORT
exec bash "$HERE/run.sh" "$@"
"""


def start_text(plan: Plan) -> str:
    """Return the README's section on how to start."""
    inner = inner_of(plan)
    name = inner.name if inner else ""
    parts = [
        "Copy this folder into a volume that all nodes can read, set what stands at the top of\n"
        "`jobset.yaml`, and:\n\n```\nkubectl apply -f jobset.yaml\n```",
        f"Each pod runs `node.sh`, and that the `run.sh` of a {name} bundle; `FRAMEWORK.md` says "
        "what it trains\nand what it needs in the environment (add it under `env`).",
    ]
    if hosts_are_placeholders(plan):
        parts.append(
            "The cluster lists no hosts, so ranks follow the index of the pods; Kueue's topology\n"
            "annotations keep together what the plan has under one leaf. `trainjob.yaml` is the\n"
            "same as a Kubeflow TrainJob: apply one of the two."
        )
    else:
        parts.append(
            "Pods run on the plan's hosts, with their network, and each finds its rank by its\n"
            "node's name in `hosts.txt`. The names must be those of `kubectl get nodes`, and "
            "resolve.\nA TrainJob cannot do that (it has no host network), so there is none here."
        )
    return "\n\n".join(parts)


EMITTER = Kubernetes()

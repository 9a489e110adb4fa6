"""Health as schedulers print it. The texts are cut from what the tools write, names changed."""

import json

import pytest

from planner.errors import SpecError
from planner.topology import node_states

SCONTROL = """
NodeName=gpu01 Arch=x86_64 CoresPerSocket=56
   CPUAlloc=0 CPUEfctv=112 CPUTot=112 CPULoad=0.10
   Gres=gpu:h100:8(S:0-1),nvme:1
   NodeAddr=gpu01 NodeHostName=gpu01 Version=24.05.4
   State={state} ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A
   CfgTRES=cpu=112,mem=2000000M,billing=112,gres/gpu=8
   Reason=bad State=made up [root@2026-01-01T00:00:00]
"""


@pytest.mark.parametrize(
    ("written", "state"),
    [
        ("IDLE", "free"),
        ("IDLE+PLANNED", "free"),
        ("IDLE+CLOUD", "free"),
        ("ALLOCATED", "busy"),
        ("MIXED", "busy"),
        ("MIXED+COMPLETING", "busy"),
        ("RESERVED", "busy"),
        ("DOWN", "down"),
        ("DOWN*", "down"),
        ("IDLE*", "down"),
        ("IDLE~", "down"),
        ("IDLE$", "down"),
        ("IDLE+DRAIN", "down"),
        ("ALLOCATED+DRAIN", "down"),
        ("MIXED+MAINTENANCE", "down"),
        ("IDLE+NOT_RESPONDING", "down"),
        ("IDLE*+POWERED_DOWN", "down"),
        ("UNKNOWN", "down"),
    ],
)
def test_slurm_states_are_free_busy_or_down(written, state):
    (node,) = node_states(SCONTROL.format(state=written), "n.txt")
    assert (node.host, node.state, node.gpus) == ("gpu01", state, 8)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:8", 8),
        ("gpu:h100:8(S:0-1)", 8),
        ("gpu:a100:4,gpu:v100:2", 6),
        ("gpu", 1),
        ("gpu:h100", 1),
        ("nvme:4", 0),
        ("(null)", 0),
        ("lustre:1,gpu:h100_80gb:7(IDX:0-6)", 7),
    ],
)
def test_gpus_are_counted_from_gres(gres, gpus):
    text = f"NodeName=a State=IDLE Gres={gres} NodeAddr=a"
    assert node_states(text, "n.txt")[0].gpus == gpus


@pytest.mark.parametrize(
    ("gres", "kind"),
    [("gpu:8", ""), ("gpu:h100:8(S:0-1)", "h100"), ("nvme:4,gpu:a100_80gb:4", "a100_80gb")],
)
def test_the_type_of_gpus_comes_from_gres(gres, kind):
    assert node_states(f"NodeName=a State=IDLE Gres={gres}", "n.txt")[0].kind == kind


def test_the_type_of_gpus_comes_from_labels():
    item = kubernetes("a", {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"})
    assert node_states(json.dumps(item), "n.json")[0].kind == "NVIDIA-H100-80GB-HBM3"


def test_one_line_a_node_is_read_too():
    text = "NodeName=a State=IDLE Gres=gpu:8\nNodeName=b NodeHostName=b State=DOWN Gres=gpu:8\n"
    assert [(n.host, n.state) for n in node_states(text, "n")] == [("a", "free"), ("b", "down")]


def kubernetes(name, labels=None, ready="True", gpus="8", **spec):
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "100"} | ({"nvidia.com/gpu": gpus} if gpus else {}),
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": ready},
            ],
        },
    }


def listed(*nodes):
    return node_states(json.dumps({"kind": "List", "items": list(nodes)}), "k.json")


def test_kubernetes_health_comes_from_conditions_cordons_and_allocatable_gpus():
    found = listed(
        kubernetes("a"),
        kubernetes("b", ready="Unknown"),
        kubernetes("c", unschedulable=True),
        kubernetes("d", gpus="7"),
        kubernetes("e", gpus=None),
    )
    assert [(n.host, n.state, n.gpus) for n in found] == [
        ("a", "free", 8),
        ("b", "down", 8),
        ("c", "down", 8),
        ("d", "free", 7),
        ("e", "free", 0),
    ]
    assert [n.why for n in found[:3]] == ["", "not ready", "unschedulable"]


@pytest.mark.parametrize(
    ("labels", "switches"),
    [
        (
            {
                "network.topology.nvidia.com/leaf": "s1",
                "network.topology.nvidia.com/spine": "s2",
                "network.topology.nvidia.com/core": "s3",
            },
            ("s1", "s2"),
        ),
        ({"fabric.topograph.run/tier-0": "s1", "fabric.topograph.run/tier-1": "s2"}, ("s1", "s2")),
        (
            {
                "topology.k8s.aws/network-node-layer-1": "top",
                "topology.k8s.aws/network-node-layer-2": "middle",
                "topology.k8s.aws/network-node-layer-3": "bottom",
            },
            ("bottom", "middle"),
        ),
        (
            {
                "cloud.google.com/gce-topology-block": "b",
                "cloud.google.com/gce-topology-subblock": "s",
            },
            ("s", "b"),
        ),
        ({"topology.kubernetes.io/zone": "z"}, (None, "")),
    ],
)
def test_kubernetes_labels_name_leaf_and_pod(labels, switches):
    (node,) = listed(kubernetes("a", labels))
    assert (node.leaf, node.pod) == switches


def test_a_single_kubernetes_node_is_read():
    (node,) = node_states(json.dumps(kubernetes("a")), "k.json")
    assert node.host == "a"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither `scontrol show nodes` text nor"),
        ("a b c", "neither `scontrol show nodes` text nor"),
        ("NodeName=a Gres=gpu:8", "'a') has no State="),
        ("NodeName=a State=IDLE\nNodeName=a State=IDLE", "node 'a' is listed twice"),
        ("NodeName=$(x) State=IDLE", "is not a hostname"),
        ("{", "is not valid JSON"),
        ('{"items": 3}', "'items' must be a list"),
        ('{"items": []}', "lists no node"),
        ('{"items": [{"metadata": {}}]}', "no metadata.name"),
        ('{"items": [7]}', "no metadata.name"),
        (json.dumps(kubernetes("a", gpus="-1")), "nvidia.com/gpu is -1"),
        (json.dumps(kubernetes("a;b")), "is not a hostname"),
    ],
)
def test_other_text_is_refused_with_its_file(text, said):
    with pytest.raises(SpecError) as error:
        node_states(text, "n.txt")
    assert said in str(error.value)
    assert "n.txt" in error.value.message

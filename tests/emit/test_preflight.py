"""The preflight without a process group: what one rank sees, and what rank 0 makes of all."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from plans import plan_of

from planner.emit.shared import example, shared_artifacts
from planner.files import data_folder


@pytest.fixture
def preflight() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pf", data_folder("examples") / "preflight.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def laid_out(folder: Path, **plan: Any) -> dict[str, Any]:
    for artifact in shared_artifacts(plan_of(**plan), target="torchrun", framework="x", start="x"):
        (folder / artifact.path).write_text(artifact.text)
    return json.loads((folder / "rank_map.json").read_text())


def alone(folder: Path, code: str = "", **env: object) -> subprocess.CompletedProcess[str]:
    """Run the preflight as one rank that no rendezvous joins to the others."""
    words = ["-c", code] if code else ["preflight.py"]
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **{k: str(v) for k, v in env.items()}},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_rank_that_stands_as_planned_passes(tmp_path):
    laid_out(tmp_path, nodes=2, hosts=["a.x", "b.x"], dp=4)
    done = alone(tmp_path, RANK=3, LOCAL_RANK=1, WORLD_SIZE=4, MESHWRIGHT_HOSTNAME="B")
    assert (done.returncode, done.stderr) == (0, "")
    done = alone(tmp_path, RANK=0, LOCAL_RANK=0, WORLD_SIZE=4, MESHWRIGHT_HOSTNAME="a.x")
    assert done.stdout == "preflight: all 4 ranks stand as planned\n"


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ({"WORLD_SIZE": 8}, "rank 3 expected WORLD_SIZE 4, saw 8"),
        ({"LOCAL_RANK": 0}, "rank 3 expected GPU 1 of its host, saw LOCAL_RANK 0"),
        ({"MESHWRIGHT_HOSTNAME": "a.x"}, "rank 3 expected host b.x, saw a.x"),
        ({"MESHWRIGHT_HOSTNAME": "b.y"}, "rank 3 expected host b.x, saw b.y"),
        ({"RANK": ""}, "RANK is not set"),
        ({"RANK": "three"}, "RANK is 'three'"),
    ],
)
def test_a_rank_elsewhere_says_what_it_expected_and_saw_and_ends(tmp_path, seen, says):
    laid_out(tmp_path, nodes=2, hosts=["a.x", "b.x"], dp=4)
    right = {"RANK": 3, "LOCAL_RANK": 1, "WORLD_SIZE": 4, "MESHWRIGHT_HOSTNAME": "b.x"}
    done = alone(tmp_path, **{**right, **seen})
    assert done.returncode == 3
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_placeholder_hosts_are_not_compared_by_name(tmp_path):
    laid_out(tmp_path, nodes=2, dp=4)
    done = alone(tmp_path, RANK=3, LOCAL_RANK=1, WORLD_SIZE=4, MESHWRIGHT_HOSTNAME="anything")
    assert done.returncode == 0


@pytest.mark.parametrize("spoilt", ["", "{", '{"schema": "other"}', "[]", None])
def test_a_rank_map_that_is_not_one_is_said_so(tmp_path, spoilt):
    laid_out(tmp_path, dp=1)
    (tmp_path / "rank_map.json").unlink()
    if spoilt is not None:
        (tmp_path / "rank_map.json").write_text(spoilt)
    done = alone(tmp_path, RANK=0, LOCAL_RANK=0, WORLD_SIZE=1)
    assert done.returncode == 3
    assert "rank_map.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("coordinates", "says"),
    [("{'tp': 1, 'dp': 1}", ""), ("{'tp': 0, 'dp': 1}", "coordinates tp=1, saw tp=0"),
     ("{'sp': 0}", "coordinates sp=None, saw sp=0")],
)  # fmt: skip
def test_coordinates_are_compared_axis_by_axis(tmp_path, coordinates, says):
    laid_out(tmp_path, tp=2, dp=2)
    code = f"import preflight; preflight.check_groups({coordinates})"
    done = alone(tmp_path, code, RANK=3, LOCAL_RANK=3, WORLD_SIZE=4)
    assert done.returncode == (3 if says else 0)
    assert says in done.stderr


def reports(hosts: str) -> list[dict[str, Any]]:
    return [
        {"rank": r, "local_rank": r % 2, "world_size": 4, "host": h, "bundle": "same"}
        for r, h in enumerate(hosts)
    ]


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        ("xxyy", ""),
        ("yyxx", ""),  # which node is which cannot be told from placeholders
        ("xyyx", "rank 1 expected to share a host with rank 0"),
        ("xxyz", "rank 3 expected to share a host with rank 2"),
        ("xxxx", "rank 2 expected another host than rank 0"),
    ],
)
def test_ranks_share_hosts_as_planned_whatever_the_hosts_are_called(
    tmp_path, preflight, hosts, says
):
    plan = laid_out(tmp_path, nodes=2, dp=4)
    found = preflight._scattered(plan, reports(hosts))
    assert says in found
    assert bool(found) is bool(says)


def test_a_node_with_another_bundle_is_named(tmp_path, preflight):
    plan = laid_out(tmp_path, nodes=2, dp=4)
    seen = reports("xxyy")
    seen[3]["bundle"] = "other"
    assert "rank 3 expected the bundle that rank 0 has" in preflight._scattered(plan, seen)


@pytest.mark.parametrize(
    ("planned", "seen", "same"),
    [
        ("node1", "node1", True),
        ("Node1", "nODE1", True),
        ("node1", "node1.example.org", True),
        ("node1.example.org", "node1", True),
        ("node1.a.org", "node1.b.org", False),
        ("node1", "node10", False),
        ("node1.", "node1", True),
    ],
)
def test_two_names_of_one_host(preflight, planned, seen, same):
    assert preflight.same_host(planned, seen) is same


def test_the_script_needs_nothing_but_the_standard_library():
    imported = [
        line for line in example("preflight.py").splitlines() if line.startswith(("import", "from"))
    ]
    names = {line.split()[1].split(".")[0] for line in imported}
    assert names <= set(sys.stdlib_module_names)

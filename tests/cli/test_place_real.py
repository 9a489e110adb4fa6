"""`place` on clusters as schedulers describe them: the whole road, nothing replaced."""

import json
import os
import subprocess
import sys

import pytest

from planner.cli import app as cli

TOPOLOGY = """
SwitchName=tor1 Nodes=gpu[01-04]
SwitchName=tor2 Nodes=gpu[05-08]
SwitchName=tor3 Nodes=gpu[09-12]
SwitchName=top Switches=tor[1-3]
"""
MODEL, CLUSTER = "llama-3.1-8b", "dgx-h100"
LAYOUT = "tp=8,pp=2,dp=5"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "topology.conf").write_text(TOPOLOGY)
    state = {2: "IDLE+DRAIN", 7: "ALLOCATED"}
    (tmp_path / "nodes.txt").write_text(
        "".join(
            f"NodeName=gpu{n:02d} Gres=gpu:8 State={state.get(n, 'IDLE')}\n" for n in range(1, 13)
        )
    )
    (tmp_path / "hosts").write_text("gpu[01,03-12]\n")
    return tmp_path


def run(capsys, *words):
    code = cli.main(["place", MODEL, CLUSTER, "--layout", LAYOUT, "--global-batch", "40", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


FILES = ("--slurm-topology", "topology.conf", "--node-state", "nodes.txt")


def test_leafs_and_health_come_from_slurm(files, capsys):
    code, out, _ = run(capsys, *FILES, "--json")
    found = json.loads(out)
    assert code == 0
    hosts = {rank["host"]: rank["leaf"] for rank in found["ranks"]}
    assert not {"gpu02", "gpu07"} & hosts.keys()
    assert {hosts[h] for h in ("gpu01", "gpu03", "gpu04")} == {"tor1"}
    # three, three and four free: pipelines of two nodes leave one each in two leafs
    assert (found["splits"], found["status"], found["gap"]) == (1, "optimal", 0)
    assert "1 node busy with other jobs (gpu07) avoided" in found["notes"]
    assert "1 node down or drained (gpu02: IDLE+DRAIN) avoided" in found["notes"]
    assert not any("left out" in note for note in found["notes"])  # which would say it twice
    assert found["question"] == "fewest-splits"
    assert found["step_time_s"] > 0


def test_an_allocation_uses_nodes_that_are_busy_with_it(files, capsys):
    code, out, _ = run(capsys, *FILES, "--nodes-file", "hosts", "--json")
    assert code == 0
    found = json.loads(out)
    assert {rank["host"] for rank in found["ranks"]} <= {f"gpu{n:02d}" for n in range(1, 13)}
    assert "1 spare node" in found["notes"]
    assert found["splits"] == 0


def test_slow_nodes_are_avoided(files, capsys):
    code, out, _ = run(capsys, "--slurm-topology", "topology.conf", "--slow", "gpu03", "--json")
    assert code == 0
    assert "gpu03" not in {rank["host"] for rank in json.loads(out)["ranks"]}
    code, _, err = run(capsys, *FILES, "--slow", "gpu03")
    assert code == 1
    assert "short by 1" in err
    assert "the slow node used all the same" in err


def test_the_same_files_give_the_same_bytes(files, capsys):
    assert run(capsys, *FILES, "--json") == run(capsys, *FILES, "--json")


SEEDED = (
    "import sys; from planner.cli.app import main; "
    "sys.exit(main(['place', 'llama-3.1-8b', 'h100-tor-2to1:24', '--layout', "
    "'tp=8,pp=4,dp=5,zero=1', '--global-batch', '40', '--pipelines', 'fastest', '--unhealthy', "
    "'node00003,node00009,node00010', '--json']))"
)


def test_processes_of_any_hash_seed_say_the_same_bytes():
    told = {
        subprocess.run(
            [sys.executable, "-c", SEEDED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "5")
    }
    assert len(told) == 1
    found = json.loads(told.pop())
    assert found["question"] == "least-step-time"
    assert found["splits"] > 0


def test_too_few_nodes_is_said_with_what_would_do(files, capsys):
    (files / "nodes.txt").write_text((files / "nodes.txt").read_text().replace("IDLE\n", "DOWN\n"))
    code, _, err = run(capsys, *FILES)
    assert code == 1
    assert "no node to use: all are unhealthy" in err
    state = "".join(
        f"NodeName=gpu{n:02d} Gres=gpu:8 State={'DOWN' if n < 5 else 'IDLE'}\n"
        for n in range(1, 13)
    )
    (files / "nodes.txt").write_text(state)
    code, _, err = run(capsys, *FILES)
    assert code == 1
    assert "needs 10 nodes with 8 healthy GPUs; 8 of 12 have them; short by 2" in err
    assert "2 of the 4 unhealthy nodes repaired" in err


def test_fastest_answers_the_other_question(files, capsys):
    code, out, _ = run(capsys, *FILES, "--pipelines", "fastest", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["question"] == "least-step-time"
    assert found["objective"] == found["step_time_s"]
    code, out, _ = run(capsys, *FILES, "--pipelines", "fastest")
    assert "a step on these links" in out


def test_plan_takes_the_same_files(files, capsys):
    words = ["plan", MODEL, CLUSTER, *FILES, "--fix", "tp=8,pp=2", "--global-batch", "40"]
    assert cli.main([*words, "--pipelines", "fastest", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {rank["leaf"] for rank in found["placement"]["ranks"]} == {"tor1", "tor2", "tor3"}
    assert [leaf["name"] for leaf in found["request"]["cluster"]["leafs"]] == [
        "tor1",
        "tor2",
        "tor3",
    ]
    assert found["placement"]["question"] == "least-step-time"
    took = found["plans"][0]["estimate"]["step_time_s"]
    assert found["placement"]["step_time_s"] == pytest.approx(took)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--slurm-topology", "none"), "none: no such file"),
        (("--slurm-topology", "hosts"), "neither topology.conf lines nor"),
        (("--node-state", "hosts"), "neither `scontrol show nodes` text nor"),
        (("--nodes-file", "none"), "none: no such file"),
        (("--pipelines", "quickest"), "--pipelines: 'quickest' is not a rule"),
        (("--node-state", "nodes.txt", "--unhealthy", "gpu99"), "--unhealthy: host 'gpu99'"),
        (("--node-state", "nodes.txt", "--slow", "gpu99"), "--slow: host 'gpu99'"),
    ],
)
def test_what_cannot_be_read_is_refused(files, capsys, words, said):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err


def test_after_a_failure_few_ranks_move(files, capsys):
    _, out, _ = run(capsys, "--slurm-topology", "topology.conf", "--json")
    old = json.loads(out)
    (files / "old.json").write_text(out)
    lost = old["ranks"][0]["host"]
    again = ("--slurm-topology", "topology.conf", "--moved-from", "old.json", "--unhealthy", lost)
    code, out, err = run(capsys, *again, "--json")
    assert (code, err.count("error")) == (0, 0)
    new = json.loads(out)
    assert new["moved_ranks"] == 8
    assert f"ranks 0 to 7 move from {lost} to {new['ranks'][0]['host']}" in new["notes"]
    assert {r["host"] for r in new["ranks"]} >= {r["host"] for r in old["ranks"]} - {lost}
    (files / "old.json").write_text("{}")
    code, _, err = run(capsys, *again)
    assert code == 2
    assert "old.json: holds no placement" in err

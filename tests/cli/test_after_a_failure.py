"""A node fails: plan, place again, write the launch files of the new map, check them."""

import json

import pytest

from planner.cli import app as cli

JOB = ("llama-3.1-8b", "cluster.yaml", "--seq", "4096", "--global-batch", "32")
FIX = "tp=8,pp=2,dp=2"


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A plan for four of six nodes, two a leaf, and the map after its second node failed."""
    monkeypatch.chdir(tmp_path)
    hosts = ", ".join(f"gpu{n}" for n in range(1, 7))
    (tmp_path / "cluster.yaml").write_text(
        f"extends: dgx-h100\nnodes: 6\nhosts: [{hosts}]\nfabric: {{nodes_per_leaf: 2}}\n"
    )
    saved(capsys, "plan.json", "plan", *JOB, "--fix", FIX, "--gpus", "32", "--stack", "torchtitan")
    plan = json.loads((tmp_path / "plan.json").read_text())
    lost = plan["placement"]["ranks"][8]["host"]
    layout = ",".join(f"{k}={plan['plans'][0]['layout'][k]}" for k in ("tp", "pp", "dp", "zero"))
    moved = ("--layout", layout, "--moved-from", "plan.json", "--unhealthy", lost)
    saved(capsys, "moved.json", "place", *JOB, "--stack", "torchtitan", *moved)
    return tmp_path, lost


def saved(capsys, name, *words):
    assert cli.main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    with open(name, "w", encoding="utf-8") as file:
        file.write(out)


def test_the_launch_files_start_the_moved_ranks_where_they_are_now(folder, capsys):
    path, lost = folder
    words = ("--placement", "moved.json", "--target", "torchrun,slurm", "-o", "job")
    assert cli.main(["emit", "plan.json", *words]) == 0
    moved = json.loads((path / "moved.json").read_text())
    hosts = (path / "job" / "torchrun" / "hosts.txt").read_text().split()
    assert hosts == [rank["host"] for rank in moved["ranks"][::8]]
    assert lost not in hosts
    assert moved["moved_ranks"] == 8
    kept = json.loads((path / "job" / "plan.json").read_text())
    assert moved.items() >= kept["placement"].items()
    assert any("8 of them elsewhere than before" in note for note in kept["notes"])
    capsys.readouterr()
    assert cli.main(["emit", "--check", "job"]) == 0
    assert "agrees with its plan" in capsys.readouterr().out


def test_a_map_that_does_not_say_what_it_is_of_is_read_as_before(folder, capsys):
    path, lost = folder
    moved = json.loads((path / "moved.json").read_text())
    said = ("schema", "request", "layout")
    assert moved.keys() >= {*said}
    old = {name: value for name, value in moved.items() if name not in said}
    (path / "old.json").write_text(json.dumps(old))
    words = ("--placement", "old.json", "--target", "torchrun", "-o", "job")
    assert cli.main(["emit", "plan.json", *words]) == 0
    capsys.readouterr()
    layout = ",".join(f"{k}={moved['layout'][k]}" for k in ("tp", "pp", "dp", "zero"))
    again = ("--layout", layout, "--moved-from", "old.json", "--unhealthy", lost)
    saved(capsys, "again.json", "place", *JOB, "--stack", "torchtitan", *again)
    assert json.loads((path / "again.json").read_text())["moved_ranks"] == 0


def test_a_map_of_another_layout_or_cluster_is_refused(folder, capsys):
    path, _ = folder
    moved = json.loads((path / "moved.json").read_text())
    strange = {**moved, "ranks": [{**r, "host": f"x{r['host']}"} for r in moved["ranks"]]}
    half = {**moved, "ranks": moved["ranks"][:16]}
    for other, why in ((strange, "hosts the cluster does not have"), (half, "ranks are not 0 to")):
        (path / "other.json").write_text(json.dumps(other))
        words = ("--placement", "other.json", "--target", "torchrun", "-o", "no")
        assert cli.main(["emit", "plan.json", *words]) == 2
        assert why in capsys.readouterr().err
        assert not (path / "no").exists()

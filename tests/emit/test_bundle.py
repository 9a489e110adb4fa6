"""What every bundle carries, and what keeps a bundle from being made."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from plans import plan_of

from planner.emit import EMITTER_NAMES, bundle, emitter_named
from planner.emit.base import placed
from planner.emit.shared import shared_artifacts
from planner.errors import SpecError
from planner.plan import Plan


def texts(plan: Plan) -> dict[str, str]:
    made = shared_artifacts(plan, target="torchrun", framework="x 1.0", start="Go.")
    return {a.path: a.text for a in made}


def test_the_plan_in_the_bundle_is_the_plan(tmp_path):
    plan = plan_of(tp=2, dp=2, zero=3)
    (tmp_path / "plan.json").write_text(texts(plan)["plan.json"])
    assert Plan.read(tmp_path / "plan.json") == plan


def test_the_rank_map_counts_tp_fastest_then_cp_dp_pp():
    plan = plan_of(nodes=2, tp=2, cp=2, dp=3, pp=2)
    rows = json.loads(texts(plan)["rank_map.json"])["ranks"]
    digits = itertools.product(range(2), range(3), range(2), range(2))  # pp dp cp tp
    for rank, (row, (pp, dp, cp, tp)) in enumerate(zip(rows, digits, strict=True)):
        host = "node00001" if rank < 12 else "node00002"
        place = {"rank": rank, "host": host, "gpu": rank % 12}
        assert row == {**place, "tp": tp, "cp": cp, "ep": 0, "dp": dp, "pp": pp}


@pytest.mark.parametrize(("hosts", "made_up"), [(None, True), (["b.net", "a.net"], False)])
def test_hosts_stand_in_node_order_and_placeholders_are_said_to_be_such(hosts, made_up):
    files = texts(plan_of(nodes=2, hosts=hosts, dp=4))
    rank_map = json.loads(files["rank_map.json"])
    assert files["hosts.txt"].split() == (hosts or ["node00001", "node00002"])
    assert rank_map["hosts"] == files["hosts.txt"].split()
    assert rank_map["hosts_are_placeholders"] is made_up
    assert ("placeholders" in files["README.md"]) is made_up


def test_the_readme_tells_time_memory_and_start():
    readme = texts(plan_of(pp=2, num_microbatches=2, schedule="1f1b"))["README.md"]
    for text in ("1.50 s", "44.0%", "9.50 GiB", "| 1 |", "Go.", "x 1.0", "pp=2", "| compute | 1.2"):
        assert text in readme
    assert "`meshwright emit plan.json --target torchrun -o DIR`" in readme
    assert "| tp |" not in readme  # it costs nothing here


@pytest.mark.parametrize("target", EMITTER_NAMES)
def test_the_first_loss_is_that_of_the_model_that_is_run(target):
    stand_in = target in ("torchrun", "deepspeed", "accelerate", "dataparallel", "slurm", "k8s")
    answer = plan_of(dp=2)
    files = {a.path: a.text for a in emitter_named(target).emit(answer)}
    own = f"ln(32000) = {math.log(32000):.1f}"
    first = f"ln(256) = {math.log(256):.1f}" if stand_in else own
    assert f"the loss starts near {first}" in files["README.md"]
    assert own in files["README.md"]


def test_the_readme_keeps_a_hostile_name_on_its_line():
    readme = texts(plan_of(model={"name": "x\n\n# y"}))["README.md"]
    assert readme.startswith("# x # y on 1 GPUs of test cluster\n")


def without_placement(plan: dict) -> None:
    plan["placement"] = None


def one_rank_less(plan: dict) -> None:
    plan["placement"]["ranks"].pop()


def hosts_interleaved(plan: dict) -> None:
    ranks = plan["placement"]["ranks"]
    ranks[1]["host"], ranks[2]["host"] = ranks[2]["host"], ranks[1]["host"]


def gpus_swapped(plan: dict) -> None:
    ranks = plan["placement"]["ranks"]
    ranks[0]["gpu"], ranks[1]["gpu"] = 1, 0


def ranks_swapped(plan: dict) -> None:
    ranks = plan["placement"]["ranks"]
    ranks[0], ranks[1] = ranks[1], ranks[0]


def three_on_one_host(plan: dict) -> None:
    plan["placement"]["ranks"][2]["host"] = "node00001"


def host_is_a_command(plan: dict) -> None:
    for row in plan["placement"]["ranks"][:2]:
        row["host"] = "a$(touch pwned)"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_placement, "no placement"),
        (one_rank_less, "3 ranks, the layout uses 4"),
        (hosts_interleaved, "out of order"),
        (gpus_swapped, "out of order"),
        (ranks_swapped, "out of order"),
        (three_on_one_host, "out of order"),
        (host_is_a_command, "not a host name"),
    ],
)
def test_a_placement_that_no_launcher_can_keep_is_refused(spoil, says):
    data = json.loads(plan_of(nodes=2, dp=4).to_json())
    spoil(data)
    with pytest.raises(SpecError, match=says):
        placed(Plan.model_validate(data))


def test_an_unknown_target_names_the_nearest_and_all():
    with pytest.raises(SpecError) as caught:
        emitter_named("torchrunn")
    assert "torchrun, deepspeed, megatron" in caught.value.message
    assert caught.value.hint == "did you mean 'torchrun'?"


@pytest.mark.parametrize("name", EMITTER_NAMES)
def test_every_target_has_its_emitter(name):
    emitter = emitter_named(name)
    assert emitter.name == name
    assert emitter.tested_with


def test_a_layout_that_the_target_cannot_express_makes_no_bundle():
    with pytest.raises(SpecError, match=r"ep=2") as caught:
        bundle(plan_of(dp=2, ep=2), "torchrun")
    assert "--target torchrun" in caught.value.hint

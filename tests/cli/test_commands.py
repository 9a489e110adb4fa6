"""What the commands hand to the workflow and print of its answers; the workflow is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner import workflow
from planner.cli import app as cli
from planner.cli import bundles
from planner.emit.base import Artifact
from planner.errors import InfeasibleError, SpecError
from planner.explanation import Explanation, SyncRow, TermValue
from planner.plan import Plan


@pytest.fixture
def asked(monkeypatch, tmp_path, plan, placement):
    """Replace the workflow; return the requests that it gets. Specs lie in the current folder."""
    requests = []

    def answer(result):
        def go(request, *more, **_):
            requests.append((request, *more))
            return result

        return go

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workflow, "plan", answer(plan))
    monkeypatch.setattr(workflow, "place", answer(placement))
    Path("m.json").write_text(plan.request.model.model_dump_json())
    Path("c.json").write_text(plan.request.cluster.model_dump_json())
    return requests


@pytest.fixture
def emits(monkeypatch):
    """Make every target's bundle one file, and torchrun unable to express anything."""

    class Emitter:
        def __init__(self, name: str) -> None:
            self.name = name

        def never(self, *_: object) -> list[str]:
            return []

        def unsupported(self, plan: Plan) -> list[str]:
            bad = self.name == "torchrun" and plan.best.layout.tp > 1
            return ["no tensor parallelism."] if bad else []

    def bundle(plan: Plan, target: str) -> list[Artifact]:
        if Emitter(target).unsupported(plan):
            raise SpecError(f"{target} cannot run it")
        return [Artifact("launch.sh", plan.best.layout.short(), executable=True)]

    monkeypatch.setattr("planner.emit.emitter_named", Emitter)
    monkeypatch.setattr("planner.emit.bundle", bundle)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_plan_hands_over_what_was_typed(asked):
    words = "plan m.json c.json --seq 4096 --global-batch 64 --fix tp=8,pp=2|4 --top 3 --gpus 16"
    assert cli.main([*words.split(), "--unhealthy", "node00001,node00002:3"]) == 0
    (request,) = asked[0]
    assert (request.workload.seq_tokens, request.workload.global_batch) == (4096, 64)
    assert dict(request.fix) == {"tp": "8", "pp": "2|4"}
    assert (request.top, request.gpus) == (3, 16)
    assert tuple(request.unhealthy) == ("node00001", "node00002:3")
    assert request.cluster.nodes == 5


def test_the_plan_report_says_what_matters_within_80_columns(asked, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["plan", "m.json", "c.json"]) == 0
    out = capsys.readouterr().out
    assert "tiny-70b on lab: 32 of 40 GPUs" in out
    assert "12,345 layouts enumerated, 2,345 legal, 345 fit" in out
    assert "The winner\n  tp=8,pp=2,dp=2,zero=1,micro_batch=1\n" in out
    assert "77.9*" in out  # at risk
    assert "130.4!" in out  # does not fit
    assert "#7 is plain data parallelism" in out
    assert "compute +500.00 ms" in out  # why the runner-up lost
    assert "32 ranks on 4 hosts under 1 leaf; 3 pipeline edges between leafs (7 with" in out
    assert "1 spare node" in out
    assert "cp groups" not in out  # one GPU each
    assert "10,000  tp does not divide the heads" in out
    assert "calibration covers H100" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


@pytest.mark.parametrize("columns", ["20", "80", "120", "250"])
def test_no_figure_is_cut_at_any_width(asked, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.main(["plan", "m.json", "c.json"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert "77.9*" in out
    assert "50%" not in out


def test_plan_json_is_one_document_and_nothing_else(asked, capsys, plan):
    assert cli.main(["plan", "m.json", "c.json", "--json"]) == 0
    assert capsys.readouterr().out == plan.to_json()


def test_plan_writes_the_plan_and_a_folder_a_target(asked, emits, monkeypatch, plan, capsys):
    instead = plan.model_copy(update={"plans": plan.plans[2:]})
    monkeypatch.setattr(workflow, "plan_for_target", lambda request, target: instead)
    words = ["plan", "m.json", "c.json", "-o", "out", "--target", "megatron,torchrun", "--json"]
    assert cli.main(words) == 0
    found = [f for f in files(Path("out")) if f != "bundle.json"]
    assert found == ["megatron/launch.sh", "plan.json", "torchrun/launch.sh"]
    assert Plan.read(Path("out/plan.json")) == plan
    for target in ("megatron", "torchrun"):  # a plan for any stack is no target's own
        assert Path(f"out/{target}/launch.sh").read_text() == instead.best.layout.short()
    captured = capsys.readouterr()
    assert captured.out == plan.to_json()
    assert "the torchrun bundle has the best layout that torchrun can run" in captured.err
    assert cli.main(words) == 2  # not again over it
    assert cli.main([*words, "--force"]) == 0


def test_a_plan_for_a_real_stack_is_the_bundle_of_targets_that_can_run_it(emits, plan, tmp_path):
    workload = plan.request.workload.model_copy(update={"stack": "megatron"})
    request = plan.request.model_copy(update={"workload": workload})
    own = plan.model_copy(update={"request": request})
    instead = own.model_copy(update={"plans": plan.plans[2:]})
    folder = tmp_path / "out"
    bundles.write(folder, own, ("megatron", "torchrun"), force=False, instead=lambda _: instead)
    assert (folder / "megatron/launch.sh").read_text() == own.best.layout.short()
    assert (folder / "torchrun/launch.sh").read_text() == instead.best.layout.short()


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "m.json"],
        ["-o", "full"],
        ["-o", "out", "--target", "torchrum"],
        ["--target", "torchrun"],
        ["-o", "m.json/x"],
        ["-o", "x" * 5000],
    ],
    ids=lambda words: words[1][:12],
)
def test_refusals_come_before_the_search_and_write_nothing(asked, capsys, words):
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    before = files(Path())
    assert cli.main(["plan", "m.json", "c.json", *words]) == 2
    assert asked == []
    assert files(Path()) == before
    assert capsys.readouterr().err.count("error:") == 1


def test_a_failing_target_takes_no_other_with_it(asked, emits, monkeypatch, plan, capsys):
    def only_megatron(_, target):
        if target == "torchrun":
            raise InfeasibleError("torchrun expresses no layout", hint="fix less")
        return plan

    monkeypatch.setattr(workflow, "plan_for_target", only_megatron)
    words = ["plan", "m.json", "c.json", "-o", "out", "--target", "torchrun,megatron"]
    assert cli.main([*words, "--json"]) == 1
    found = [f for f in files(Path("out")) if f != "bundle.json"]
    assert found == ["megatron/launch.sh", "plan.json"]
    out, err = capsys.readouterr()
    assert "no files for torchrun: torchrun expresses no layout\n  hint: fix less\n" in err
    assert err.endswith("error: no files for torchrun; the rest is written\n")
    assert out == plan.to_json()
    assert cli.main([*words, "--force"]) == 1
    assert "The winner" in capsys.readouterr().out


def test_what_no_layout_mends_is_refused_before_the_search(asked, capsys):
    words = ["plan", "m.json", "c.json", "-o", "out", "--optimizer", "muon", "--target"]
    assert cli.main([*words, "accelerate,nanotron"]) == 1
    assert asked == []
    assert not Path("out").exists()
    err = capsys.readouterr().err
    assert (
        "no files for accelerate: accelerate can run no layout of this job: optimizer=muon" in err
    )
    assert err.endswith("error: no files for accelerate, nanotron; nothing is written\n")


def test_of_several_targets_those_foreseen_are_told_and_the_others_written(
    asked, monkeypatch, plan, capsys
):
    monkeypatch.setattr(workflow, "plan_for_target", lambda request, target: plan)
    words = ["plan", "m.json", "c.json", "-o", "out", "--fix", "tp=8", "--target"]
    assert cli.main([*words, "accelerate,megatron"]) == 1
    assert len(asked) == 1
    assert sorted(p.name for p in Path("out").iterdir()) == ["bundle.json", "megatron", "plan.json"]
    err = capsys.readouterr().err
    assert err.count("no files for accelerate: accelerate can run no layout of this job: tp=8") == 1
    assert "another --target, or --fix without tp" in err


def test_force_keeps_what_others_wrote(asked, emits):
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    assert cli.main(["plan", "m.json", "c.json", "-o", "full", "--force"]) == 2
    assert files(Path("full")) == ["mine"]


def test_emit_writes_the_launch_files_of_a_saved_plan(asked, emits, plan, capsys):
    Path("p.json").write_text(plan.to_json())
    assert cli.main(["emit", "p.json", "--target", "megatron", "-o", "out", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert written == ["out/plan.json", "out/megatron"]
    assert Path("out/megatron/launch.sh").stat().st_mode & 0o111


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff\xfe", b'{"schema": "meshwright.plan/1"}', b"[" * 100_000, None]
)
def test_emit_refuses_what_is_no_plan(asked, emits, capsys, content):
    if content is not None:
        Path("p.json").write_bytes(content)
    assert cli.main(["emit", "p.json", "--target", "megatron", "-o", "out"]) == 2
    err = capsys.readouterr().err
    assert "p.json" in err
    assert "Traceback" not in err
    assert not Path("out").exists()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "."])
def test_emit_reads_no_device_and_no_folder(asked, emits, capsys, path):
    assert cli.main(["emit", path, "--target", "megatron", "-o", "out"]) == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_emit_writes_those_that_can_and_refuses_each_other_by_itself(asked, plan, capsys):
    Path("p.json").write_text(plan.to_json())
    words = [
        "emit",
        "p.json",
        "--target",
        "dataparallel,megatron,accelerate",
        "-o",
        "out",
        "--json",
    ]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["written"] == ["out/plan.json", "out/megatron"]
    assert [row["target"] for row in answer["refused"]] == ["dataparallel", "accelerate"]
    assert "tp=8: Accelerate leaves tensor parallelism" in answer["refused"][1]["reason"]
    assert "no files for dataparallel: dataparallel cannot run" in err
    assert Path("out/megatron/megatron.args").is_file()


def test_emit_writes_nothing_where_no_target_can(asked, plan, capsys):
    Path("p.json").write_text(plan.to_json())
    assert cli.main(["emit", "p.json", "--target", "dataparallel,accelerate", "-o", "out"]) == 2
    assert not Path("out").exists()
    assert capsys.readouterr().err.count("error:") == 1


def test_emit_refuses_a_plan_that_the_target_cannot_express(asked, emits, plan):
    Path("p.json").write_text(plan.to_json())
    assert cli.main(["emit", "p.json", "--target", "torchrun", "-o", "out"]) == 2
    assert not Path("out").exists()


@pytest.fixture
def explained(plan) -> Explanation:
    zero = "Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054 sec. 5-7)"
    sync = dict(formula="2·(n-1)/n·V", source=zero, total_bytes=8e9, busiest_link_bytes=5e8)
    return Explanation(
        legal=True,
        feasible=False,
        reasons=["94.0 GiB needed on stage 0, 79.1 GiB usable"],
        mends=["recompute=full saves 31.0 GiB"],
        assumed={"micro_batch": 1, "zero": 1},
        layout=plan.best.layout,
        estimate=plan.plans[2].estimate,
        terms=[
            TermValue(name="optimizer", value=2**30, unit="bytes", formula="12·P/tp", source=zero),
            TermValue(name="tp_time", value=0.5, unit="s", formula="V/B", source="elsewhere"),
            TermValue(name="cp_time", value=0, unit="s", formula="0·V", source="elsewhere"),
            TermValue(name="weights", value=2**31, unit="bytes", formula="2·P/tp", source=zero),
        ],
        compared=["2.1 s slower than tp=8,pp=4"],
        gradient_sync=[SyncRow(scheme="all-reduce", per_gpu_sent_bytes=2.5e8, **sync)],
    )


def test_explain_says_what_is_wrong_first_and_opens_every_term(
    asked, explained, monkeypatch, capsys
):
    monkeypatch.setattr(workflow, "explain", lambda request, layout, **_: explained)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["explain", "m.json", "c.json", "--layout", "tp=8"]) == 0
    out = capsys.readouterr().out
    order = [
        "is legal, but does not fit",
        "94.0 GiB needed on stage 0",
        "recompute=full saves 31.0 GiB",
        "micro_batch=1, zero=1",
        "2.1 s slower than",
        "1.00 GiB",
        "12·P/tp",
        "[1] Rajbhandari",
        "[2] elsewhere",
    ]
    places = [out.find(words) for words in order]
    assert -1 not in places
    assert places == sorted(places)
    assert out.count("Rajbhandari") == 1
    assert "zero here: cp_time" in out
    assert "250.00 MB" in out  # a decimal unit, as link speeds are
    assert max(map(len, out.splitlines())) <= 80


def test_explain_json_is_the_record(asked, explained, monkeypatch, capsys):
    monkeypatch.setattr(workflow, "explain", lambda request, layout, **_: explained)
    assert cli.main(["explain", "m.json", "c.json", "--layout", "tp=8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "meshwright.explain/1"
    assert found["terms"][1]["value"] == 0.5


def test_an_illegal_layout_is_explained_without_figures(asked, monkeypatch, capsys):
    answer = Explanation(legal=False, feasible=False, reasons=["tp=7 does not divide 64 heads"])
    monkeypatch.setattr(workflow, "explain", lambda request, layout, **_: answer)
    assert cli.main(["explain", "m.json", "c.json", "--layout", "tp=7"]) == 0
    out = capsys.readouterr().out
    assert "is not legal" in out
    assert "tp=7 does not divide 64 heads" in out


def test_place_prints_the_placement(asked, capsys, placement):
    words = ["place", "m.json", "c.json", "--layout", "tp=8,pp=2"]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == placement.model_dump(mode="json")
    assert asked[0][1] == {"tp": "8", "pp": "2"}
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "proved fewest" in out
    assert "pp groups: 16 under one leaf (hosts in name order: 9 under one leaf, 7 acr" in out
    assert "node00004" in out
    assert "24-31" in out


def test_place_takes_the_hosts_from_a_file(asked):
    Path("hosts").write_text("b1\nb2\n# spare\nb3\n")
    words = ["place", "m.json", "c.json", "--layout", "tp=8", "--nodes-file", "hosts"]
    assert cli.main(words) == 0
    assert asked[0][0].cluster.hosts == ("b1", "b2", "b3")


def test_names_from_a_spec_cannot_steer_the_terminal(asked, capsys, model, plan, monkeypatch):
    evil = model.model_copy(update={"name": "\x1b]0;owned\x07[bold red]x[/]"})
    request = plan.request.model_copy(update={"model": evil})
    odd = plan.model_copy(update={"request": request, "notes": ["\x1b[2J"]})
    monkeypatch.setattr(workflow, "plan", lambda request, **_: odd)
    assert cli.main(["plan", "m.json", "c.json"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold red]x[/]" in out


def test_early_refusals_need_a_folder_only_for_targets():
    bundles.refuse_early(None, (), force=False)
    with pytest.raises(SpecError, match="no folder"):
        bundles.refuse_early(None, ("torchrun",), force=False)

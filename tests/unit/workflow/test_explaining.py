"""One layout opened, completed, compared, or mended."""

from __future__ import annotations

import json
import re

import pytest

from planner.errors import SpecError
from planner.estimate.record import TERMS
from planner.layouts.ranges import FIXABLE
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload
from planner.workflow import PlanRequest, place, plan
from planner.workflow.explaining import explain


def request(model="llama-3.1-8b", cluster="dgx-h100:2", *, seq=4096, batch=64, **more):
    asked = {
        name: more.pop(name) for name in ("gpus", "unhealthy", "pipelines", "notes") if name in more
    }
    workload = Workload(seq_tokens=seq, global_batch=batch, **more)
    return PlanRequest(load_model(model), load_cluster(cluster), workload, **asked)


def test_fields_left_out_are_completed_and_said():
    told = explain(request(), {"tp": "2", "pp": "2"})
    assert told.legal
    assert told.feasible
    assert set(told.assumed) == set(FIXABLE) - {"tp", "pp"}
    for name, value in told.assumed.items():
        assert getattr(told.layout, name) == value
    assert (told.layout.tp, told.layout.pp, told.layout.gpus) == (2, 2, 16)


def test_every_term_is_shown_with_formula_and_source():
    told = explain(request(), {"tp": "2"})
    assert {t.name for t in told.terms} == {t.name for t in TERMS}
    assert all(t.formula and t.source and t.unit for t in told.terms)
    assert sum(told.estimate.time_s.values()) == pytest.approx(told.estimate.step_time_s)


def test_json_keeps_its_keys_and_opens_memory_by_stage():
    told = json.loads(explain(request("llama-3.1-70b"), {"tp": "8", "pp": "2"}).to_json())
    contract = {"schema", "legal", "feasible", "reasons", "layout", "estimate", "terms"}
    before = {"mends", "assumed", "stage_layers", "compared", "gradient_sync", "notes"}
    before |= {"memory_terms", "mend_layouts", "peak_points"}
    assert contract | before | {"against", "broken_rules", "on_map"} == {*told}
    assert all(isinstance(mend, str) for mend in told["mends"])
    stages = told["estimate"]["memory"]["stages"]
    rows = told["memory_terms"]
    assert {row["name"] for row in rows} == {*stages[0]}
    for row in rows:
        assert {"name", "unit", "formula", "source", "stages", "parts"} <= {*row}
        assert row["unit"] == "bytes"
        assert row["stages"] == [stage[row["name"]] for stage in stages]
    known = {term["name"] for term in told["terms"]}
    assert all(known.issuperset(row["terms"]) for row in rows)


def test_the_best_is_told_in_figures_that_agree_with_the_lines():
    told = explain(request(), {"tp": "2", "pp": "2"})
    took = told.against.best_step_time_s
    assert told.against.slower == pytest.approx(told.estimate.step_time_s / took - 1)
    assert told.compared[0].startswith(f"{told.against.slower:.1%} slower")
    fields = told.against.best.model_dump(mode="json", exclude={"num_microbatches"})
    words = {n: str(int(v) if isinstance(v, bool) else v) for n, v in fields.items()}
    best = explain(request(), words)
    assert best.against.slower == 0
    assert best.estimate.step_time_s == took


def test_a_layout_that_cannot_fit_is_opened_at_its_fastest_and_its_lightest_is_told():
    told = explain(request("llama-3.1-70b"), {"tp": "2", "pp": "1", "zero": "0"})
    assert told.legal
    assert not told.feasible
    assert told.layout.recompute == "none"
    needs, least = told.reasons
    assert "out of memory: needs" in needs
    least_gib = float(re.search(r"nothing needs less than ([\d.]+) GiB", least)[1])
    assert least_gib * 2**30 < told.estimate.memory.peak_bytes
    lightest = explain(
        request("llama-3.1-70b"),
        {"tp": "2", "pp": "1", "zero": "0"}
        | {
            n: v
            for n, v in (pair.split("=") for pair in least[least.index("(") + 1 : -1].split(","))
        },
    )
    assert lightest.estimate.memory.peak_bytes == pytest.approx(least_gib * 2**30, rel=1e-3)
    assert lightest.estimate.step_time_s > told.estimate.step_time_s


@pytest.mark.parametrize("risk", [0.2, 0.96])
def test_a_layout_above_the_share_at_risk_says_so(risk):
    memory = explain(request(risk_memory=risk), {"tp": "2"}).estimate.memory
    assert memory.at_risk == (memory.peak_bytes > risk * memory.limit_bytes)
    assert memory.at_risk == (risk < 0.5)


def test_the_fastest_is_told_so_and_others_lose_what_their_parts_lose():
    best = plan(request()).best
    told = explain(request(), dict(p.split("=") for p in best.layout.short().split(",")))
    assert told.compared[0].startswith("this is the fastest of")
    slower = explain(request(), {"tp": "8"})
    first = slower.compared[0]
    share = slower.estimate.step_time_s / best.estimate.step_time_s - 1
    assert first.startswith(f"{share:.1%} slower than the best that fits")
    ranked = r"; number ([\d,]+) of the ([\d,]+) that fit, fastest first$"
    place, of = re.search(ranked, first).groups()
    assert 1 < int(place.replace(",", "")) <= int(of.replace(",", ""))
    assert any(line.startswith("tp: +") for line in slower.compared[1:])


def test_an_illegal_layout_names_every_rule_it_breaks_and_what_would_do():
    told = explain(request(), {"tp": "16", "pp": "1", "dp": "1", "vpp": "3"})
    assert not told.legal
    assert not told.feasible
    assert told.estimate is None
    text = " ".join(told.reasons)
    assert "tp=16 does not fit the node of 8 GPUs" in text
    assert "vpp=3 needs pp > 1" in text
    assert 1 <= len(told.mends) <= 3
    assert all("fits (" in mend for mend in told.mends)
    assert "tp=16 -> " in told.mends[0]


def test_degrees_that_do_not_make_the_gpus_are_said_with_the_product():
    told = explain(request(), {"tp": "8", "pp": "2", "dp": "4"})
    assert not told.legal
    assert told.reasons[0] == "tp*pp*cp*dp = 64 is not the 16 GPUs there are"


def test_what_was_given_leads_and_not_what_was_filled_in():
    """dp was not asked for, so no sentence about its value may come first."""
    told = explain(request(), {"tp": "3"})
    assert told.reasons[0] == "tp=3 does not divide the 16 GPUs there are"
    assert not any("tp*pp*cp*dp" in reason for reason in told.reasons)
    both = explain(request(), {"tp": "3", "pp": "2"})
    assert both.reasons[0] == "tp=3*pp=2 = 6 does not divide the 16 GPUs there are"
    batch = explain(request(), {"micro_batch": "7", "tp": "16"})
    assert batch.reasons[0].startswith("tp=16")


def test_fewer_gpus_than_there_are_is_allowed_and_noted():
    told = explain(request(), {"tp": "2", "pp": "2", "dp": "2"})
    assert told.legal
    assert told.layout.gpus == 8
    assert "uses 8 of 16 GPUs" in told.notes


def test_out_of_memory_says_by_how_much_and_what_would_fit():
    asked = request()
    told = explain(asked, {"tp": "1", "pp": "1", "dp": "16", "zero": "0", "recompute": "none"})
    assert told.legal
    assert not told.feasible
    pattern = r"needs ([\d.]+) GiB per GPU, ([\d.]+) GiB may be used .*; ([\d.]+) GiB short"
    needs, may, short = map(float, re.search(pattern, told.reasons[0]).groups())
    assert needs - may == pytest.approx(short, abs=0.2)
    assert needs * 2**30 == pytest.approx(told.estimate.memory.peak_bytes, rel=0.01)
    assert told.mends
    assert "zero=0 -> " in told.mends[0]
    assert told.compared[0].startswith("the best that fits is ")


def test_one_that_does_not_fit_is_never_called_the_fastest_that_fits():
    given = {"tp": "1", "pp": "1", "cp": "1", "zero": "3", "micro_batch": "4", "recompute": "none"}
    told = explain(request("llama-3.1-70b", "dgx-h100:8", batch=512, stack="torchtitan"), given)
    assert not told.feasible
    assert told.mend_layouts[0].slower > 0  # faster than all that fit
    assert told.compared[0].startswith("the best that fits is ")


def test_mends_of_one_that_is_too_big_are_the_cheapest_first_and_of_different_kinds():
    told = explain(request(), {"tp": "1", "pp": "1", "zero": "0", "recompute": "none"})
    unit = {"ms": 1e-3, "s": 1.0}
    took = [
        float(number) * unit[name]
        for number, name in re.findall(r"([\d.]+) (ms|s) a step", " ".join(told.mends))
    ]
    assert len(took) == len(told.mends) > 1
    assert took == sorted(took)
    fixed = ("tp", "pp", "zero", "recompute")
    kinds = [{name for name in fixed if f"{name}=" in mend} for mend in told.mends]
    assert len({frozenset(kind) for kind in kinds}) == len(kinds)


def test_a_mend_that_is_followed_works():
    asked = request()
    told = explain(asked, {"tp": "1", "pp": "1", "dp": "16", "zero": "0", "recompute": "none"})
    changes = dict(re.findall(r"(\w+)=\S+ -> (\S+?)[,:]", told.mends[0]))
    given = {"tp": "1", "pp": "1", "dp": "16", "zero": "0", "recompute": "none", **changes}
    again = explain(asked, given)
    assert again.legal
    assert again.feasible


def test_where_nothing_fits_the_lightest_is_opened():
    told = explain(request("llama-3.1-405b"), {"tp": "8"})
    assert told.legal
    assert not told.feasible
    assert "no layout of 16 GPUs fits" in told.mends[0]


def test_gradient_synchronisation_is_of_what_a_gpu_holds():
    told = explain(request(), {"tp": "1", "pp": "1", "dp": "16"})
    rows = {row.scheme: row for row in told.gradient_sync}
    gradient = 8_030_261_248 * 4  # reduced in fp32
    assert rows["ring all-reduce"].per_gpu_sent_bytes == pytest.approx(2 * 15 / 16 * gradient)
    assert rows["parameter server"].busiest_link_bytes == pytest.approx(16 * gradient)
    assert rows["ZeRO-3"].per_gpu_sent_bytes == pytest.approx(3 * 15 / 16 * gradient)
    assert explain(request(), {"tp": "8", "pp": "2", "dp": "1"}).gradient_sync == []
    split = explain(request(), {"tp": "4", "pp": "1", "dp": "4"}).gradient_sync
    held = {row.scheme: row for row in split}["ring all-reduce"].per_gpu_sent_bytes
    assert held == pytest.approx(2 * 3 / 4 * gradient / 4, rel=1e-3)  # norms stay whole


def test_a_parameter_server_waits_for_its_own_link():
    """Its one link takes in a gradient and gives out the parameters for each other replica."""
    asked = request("gpt2", "dgx-h100", seq=512, batch=64)
    given = {"tp": "1", "pp": "1", "cp": "1", "dp": "8", "zero": "0", "micro_batch": "8"}
    server = explain(asked, {**given, "dp_sync": "parameter-server", "recompute": "none"})
    ring = explain(asked, {**given, "dp_sync": "all-reduce", "recompute": "none"})
    assert server.legal
    assert server.feasible
    terms = {t.name: t.value for t in server.terms}
    link = 450e9
    parameters = 124_439_808
    least = 7 * 2 * 4 * parameters / link
    assert terms["parameter_server_s"] > least
    assert server.estimate.time_s["dp"] == pytest.approx(terms["parameter_server_s"])
    assert server.estimate.time_s["dp"] > 4 * ring.estimate.time_s["dp"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"tp": "1..2"}, "tp=1..2: --layout takes one value a field"),
        ({"tp": "1|2"}, "one value a field"),
        ({"tp": "1..999999999"}, "one value a field"),
        ({"width": "1"}, "'width' is not known"),
        ({"recompute": "some"}, "allowed: none, selective, full"),
        ({"sp": "maybe"}, "allowed: true, false"),
        ({"pp": "0"}, "pp=0: 0 is not allowed"),
    ],
)
def test_what_is_no_single_layout_is_refused(given, named):
    with pytest.raises(SpecError, match=re.escape(named)):
        explain(request(), given)


def test_two_runs_give_the_same_bytes():
    texts = {explain(request(), {"tp": "2"}).to_json() for _ in range(2)}
    assert len(texts) == 1
    assert json.loads(texts.pop())["schema"] == "meshwright.explain/1"


# --- why not


def test_what_a_layout_loses_is_told_term_by_term_and_adds_up():
    told = explain(request(), {"tp": "8"})
    against, best = told.against, plan(request()).best
    assert against.best == best.layout
    assert against.best_step_time_s == best.estimate.step_time_s
    assert sum(against.time_s.values()) == pytest.approx(against.slower_s)
    assert against.slower_s == told.estimate.step_time_s - best.estimate.step_time_s > 0
    assert sum(against.memory_bytes.values()) == pytest.approx(against.larger_bytes)
    peaks = (told.estimate.memory.peak_bytes, best.estimate.memory.peak_bytes)
    assert against.larger_bytes == peaks[0] - peaks[1]
    assert not against.tie
    assert any(line.startswith("peak memory: ") for line in told.compared)


def test_the_fastest_loses_nothing_and_one_just_behind_it_is_a_tie():
    rows = plan(request()).plans
    first, second = (
        explain(request(), dict(p.split("=") for p in row.layout.short().split(",")))
        for row in rows[:2]
    )
    assert first.against.place == 1
    assert first.against.slower_s == pytest.approx(0, abs=1e-12)
    share = rows[1].estimate.step_time_s / rows[0].estimate.step_time_s - 1
    assert second.against.slower == pytest.approx(share)
    assert second.against.tie == rows[1].tie == (share <= 0.03)


def test_what_does_not_fit_has_no_place():
    told = explain(request("llama-3.1-70b", "dgx-h100:4"), {"tp": "8", "pp": "1", "zero": "0"})
    assert not told.feasible
    assert told.against.place is None
    assert told.against.larger_bytes > 0


def test_the_rules_that_are_broken_are_named_the_first_one_first():
    told = explain(request(), {"tp": "16", "pp": "1", "dp": "1", "vpp": "3"})
    assert [rule.sentence for rule in told.broken_rules] == told.reasons
    assert "tp does not fit the node" in {rule.name for rule in told.broken_rules}
    assert explain(request(), {"tp": "3"}).broken_rules


def test_the_budget_of_max_memory_is_told():
    memory = explain(request(max_memory=0.5), {"tp": "8", "pp": "2"}).estimate.memory
    assert memory.budget_bytes == 0.5 * memory.limit_bytes
    assert (memory.peak_bytes <= memory.budget_bytes) == memory.fits(0.5)


def test_the_two_terabytes_come_only_where_they_are_asked_for():
    assert not any("2 TB" in note for note in explain(request(), {"tp": "2"}).notes)


# --- options that do nothing


def test_recompute_options_that_the_layout_does_not_use_are_said():
    asked = request(recompute_modules=("mlp",), recompute_layers=2)
    none = explain(asked, {"tp": "8", "recompute": "none"}).notes
    assert sum("does nothing here" in note for note in none) == 2
    full = explain(asked, {"tp": "8", "recompute": "full"}).notes
    (said,) = [n for n in full if "does nothing here" in n]
    assert said.startswith("--recompute-modules")
    some = explain(request(recompute_modules=("mlp",)), {"tp": "8", "recompute": "selective"})
    assert not any("--recompute" in note for note in some.notes)


def test_more_layers_than_a_chunk_has_are_said():
    told = explain(request(recompute_layers=20), {"pp": "2", "vpp": "2", "recompute": "full"})
    most = max(n for chunks in told.stage_layers for n in chunks)
    assert 0 < most < 20
    assert any(f"--recompute-layers 20 is as {most} here" in note for note in told.notes)
    few = explain(request(recompute_layers=2), {"pp": "2", "vpp": "2", "recompute": "full"})
    assert not any("--recompute" in note for note in few.notes)


def test_a_plan_says_so_too():
    notes = plan(request(recompute_layers=2)).notes
    assert any("--recompute-layers does nothing here" in note for note in notes)


# --- on its map


NARROW = {"model": "llama-3.2-1b", "cluster": "h100-tor-4to1:12", "batch": 12, "seq": 1024}


@pytest.mark.parametrize("rule", ["under-leaf", "fastest"])
def test_times_are_those_of_the_map_that_the_layout_gets(rule):
    asked = request(**NARROW, pipelines=rule)
    layout = {"tp": "8", "pp": "6"}
    told = explain(asked, layout)
    spot = place(asked, layout)
    assert told.on_map.splits == spot.splits
    assert told.on_map.tiers == spot.tiers
    assert told.estimate.step_time_s == pytest.approx(spot.step_time_s, rel=1e-6)
    assert told.on_map.step_time_s == told.estimate.step_time_s
    assert sum(told.estimate.time_s.values()) == pytest.approx(spot.step_time_s, rel=1e-5)
    paper = explain(asked, layout, mapped=False)
    assert told.on_map.on_paper_s == paper.estimate.step_time_s
    assert told.on_map.on_paper_s != pytest.approx(told.on_map.step_time_s, rel=1e-3)
    terms = {t.name: t.value for t in told.terms}
    assert any(terms[t.name] != t.value for t in paper.terms)
    (said,) = (note for note in told.notes if note.startswith("timed where"))
    assert f"--pipelines {rule} places it on this 4:1 fabric" in said


def test_the_best_that_a_layout_is_compared_with_is_the_plan_placed_too():
    asked = request(**NARROW)
    best = plan(asked).best
    told = explain(asked, {"tp": "8", "pp": "6"})
    assert told.against.best_step_time_s == pytest.approx(best.estimate.step_time_s)
    slower = told.estimate.step_time_s / best.estimate.step_time_s - 1
    assert told.compared[0].startswith(f"{slower:.1%} slower than the best that fits")
    fields = {
        name: str(int(value)) if isinstance(value, bool) else str(value)
        for name, value in best.layout.model_dump().items()
        if name in FIXABLE
    }
    assert explain(asked, fields).compared[0].startswith("this is the fastest of")


def test_on_a_wide_fabric_a_map_changes_nothing_and_nothing_is_said():
    told = explain(request(notes=("a note",)), {"tp": "8"})
    assert told.on_map.step_time_s == told.on_map.on_paper_s == told.estimate.step_time_s
    assert told.notes[0] == "a note"
    assert not any("timed where" in note for note in told.notes)


def test_a_layout_without_room_is_opened_on_paper_and_that_is_said():
    """Two racks of 15 healthy trays hold six groups of four trays, not seven."""
    down = tuple(f"node{n:05d}" for n in (1, 2, 3, 34, 35, 36))
    asked = request(cluster="gb200-nvl72:36", batch=56, unhealthy=down)
    told = explain(asked, {"tp": "16", "pp": "1", "dp": "7"})
    assert told.legal
    assert told.on_map is None
    assert told.estimate
    (said,) = (note for note in told.notes if note.startswith("cannot be placed"))
    assert "short by 1" in said


def test_a_layout_that_fits_by_its_own_cut_only_is_told_to_fit():
    asked = request("mixtral-8x7b", "dgx-h100:8", seq=8192, batch=256)
    words = "tp=1,pp=4,vpp=1,cp=1,ep=8,etp=1,micro_batch=1,zero=1,recompute=none,schedule=1f1b"
    told = explain(asked, dict(pair.split("=") for pair in words.split(",")))
    assert told.feasible
    assert told.estimate.memory.peak_bytes <= told.estimate.memory.limit_bytes
    assert len(set(map(tuple, told.stage_layers))) > 1

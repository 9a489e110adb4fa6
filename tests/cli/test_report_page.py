"""The page: whole, self-contained, safe with hostile names, and alive in a real browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from hostile_pages import HOSTILE, ROWS, pages, row

from planner.cli import app as cli
from planner.plan import Plan, RankPlace
from planner.report.page import plan_page, sweep_page
from planner.report.page.axes import merged, series, varying
from planner.report.page.figures import front, front_chart, memory_chart, time_chart
from planner.report.page.markup import VOID
from planner.report.page.placement import leafs_of, nodes_of, placement_map, runs, span
from planner.report.page.sweep_figures import METRICS, curves
from planner.report.page.sweep_figures import time_chart as points_chart
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

pytest.importorskip("plotly")


class Page(HTMLParser):
    """Reads a page strictly: every element closes, and keeps what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def test_hostile_names_are_text_and_nothing_else(hostile):
    for text in pages(hostile).values():
        page = Page(text)
        assert {"img", "iframe", "object", "link", "a"} & {t for t, _ in page.tags} <= {"a"}
        assert [a for _, a in page.tags if any(name.startswith("on") for name in a)] == []
        assert sum(t == "script" and "type" not in a for t, a in page.tags) == 1
        assert "\x1b" not in text
        assert "<img src=x onerror=alert(1)>" in "".join(page.text)
        own = text[text.rindex("</footer>") :]
        assert HOSTILE[:20] not in text.replace(own, "")


def test_nothing_is_fetched(plan):
    for text in pages(plan).values():
        page = Page(text)
        loads = [a for _, a in page.tags if {"src", "srcset", "data", "action"} & set(a)]
        assert loads == []
        assert all(a["href"].startswith("#") for t, a in page.tags if t == "a")
        (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
        assert "url(" not in text[: text.index("</style>")]


def test_the_library_is_packed_whole_and_runs_only_if_it_is_what_it_was(plan):
    offline = pytest.importorskip("plotly.offline")
    for text in pages(plan).values():
        packed = re.search(r'<script type="application/gzip" id="library">([^<]+)</script>', text)
        library = gzip.decompress(base64.b64decode(packed[1]))
        assert library.decode() == offline.get_plotlyjs()
        allowed = base64.b64encode(hashlib.sha256(library).digest()).decode()
        assert f"sha256-{allowed}" in text


def test_a_page_of_64_points_is_less_than_half_of_what_draws_it():
    offline = pytest.importorskip("plotly.offline")
    rows = [
        row(number, gpus, global_batch=batch, layout="tp=8,pp=4,vpp=2,dp=2,zero=1,micro_batch=2",
            **{"cluster.fabric.leaf_oversubscription": over})
        for number, (gpus, batch, over) in enumerate(
            (g, b, o) for g in (8, 16, 32, 64) for b in (64, 128, 256, 512) for o in (1, 2, 4, 8))
    ]  # fmt: skip
    assert len(rows) == 64
    assert len(sweep_page(rows, "out.csv", [])) < 0.5 * len(offline.get_plotlyjs())


def test_every_link_and_tab_leads_somewhere(plan):
    for text in pages(plan).values():
        page = Page(text)
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(ids) == len(set(ids))
        wanted = [a["href"][1:] for t, a in page.tags if t == "a"]
        wanted += [a["aria-controls"] for _, a in page.tags if "aria-controls" in a]
        wanted += [f"{a['id']}-data" for _, a in page.tags if a.get("class") == "chart"]
        assert set(wanted) <= set(ids)


def test_the_page_has_the_figures_of_the_plan(plan):
    text = "".join(Page(plan_page(plan, [], tie=0.13)).text)
    for told in ("4.00 s", "43.6%", "12,345 layouts", "plain data parallelism", "+12.5% \u2248"):
        assert told in text
    assert "what the busiest stage waits" in text
    assert "3 pipeline edges between leafs (7 with hosts in name order), proved fewest" in text


def test_charts_are_what_plotly_takes_and_hold_the_figures(plan):
    objects = pytest.importorskip("plotly.graph_objects")
    charts = [memory_chart(p)[0] for p in plan.plans] + [time_chart(plan.plans)[0]]
    charts += [front_chart(plan.plans), points_chart(ROWS, varying(ROWS))[0]]
    names = varying(ROWS)
    charts += [curves(ROWS, axis, names, m)[0] for axis in names for m in METRICS]
    for chart in charts:
        objects.Figure(chart)  # refuses properties that do not exist
        json.dumps(chart, allow_nan=False)
    memory = charts[0]
    best = plan.best.estimate.memory
    total = sum(trace["x"][0] for trace in memory["data"]) * 2**30
    assert total == pytest.approx(best.stages[0].total)
    bars = [t for t in time_chart(plan.plans)[0]["data"] if t["type"] == "bar"]
    steps = [sum(t["x"][i] for t in bars) for i in range(2)]
    assert steps == pytest.approx([p.estimate.step_time_s for p in plan.plans[:2]])


def test_the_page_says_how_sure_a_step_time_is(plan):
    sure = plan.best.estimate.model_copy(update={"step_time_low_s": 3.0, "step_time_high_s": 5.5})
    rows = [plan.best.model_copy(update={"estimate": sure}), *plan.plans[1:]]
    (whiskers,) = [t for t in time_chart(rows)[0]["data"] if t["type"] == "scatter"]
    assert whiskers["x"][0] == sure.step_time_s
    assert whiskers["x"][0] - whiskers["error_x"]["arrayminus"][0] == pytest.approx(3.0)
    assert whiskers["x"][0] + whiskers["error_x"]["array"][0] == pytest.approx(5.5)
    assert whiskers["error_x"]["array"][1] == 0  # a plan that says no range gets none
    text = plan_page(plan.model_copy(update={"plans": rows}), [], tie=0.03)
    assert "would take 3.00 s to 5.50 s" in "".join(Page(text).text)
    assert [t for t in time_chart(plan.plans)[0]["data"] if t["type"] == "scatter"] == []


def test_the_pipeline_s_bars_are_the_busy_time_of_each_stage():
    from planner.report.page.gantt import gantt, gantt_chart, window_s
    from planner.workflow import PlanRequest, SimulationRequest, plan, simulate

    request = PlanRequest(
        load_model("llama-3.1-8b"),
        load_cluster("dgx-h100:1"),
        Workload(seq_tokens=4096, global_batch=64),
        fix={"pp": "4", "vpp": "1"},
        top=1,
    )
    found = simulate(SimulationRequest(plan(request)))
    assert window_s(found) == found.record.makespan_s
    busy = dict.fromkeys((f"stage {n}" for n in range(4)), 0.0)
    for trace in gantt_chart(found, found.record.makespan_s)["data"]:
        for stage, width in zip(trace["y"], trace["x"], strict=True):
            busy[stage] += width
    assert list(busy.values()) == pytest.approx([r.busy_s for r in found.record.ranks])
    first = gantt_chart(found, found.record.makespan_s / 3)["data"]
    ends = [b + x for t in first for b, x in zip(t["base"], t["x"], strict=True)]
    assert max(ends) <= found.record.makespan_s / 3 * (1 + 1e-9)
    told = "".join(Page(str(gantt(found))).text)
    assert f"the bubble ({found.record.bubble_fraction:.1%} of the step)" in told
    assert f"on average ({found.record.idle_fraction:.1%} of the pipeline's time)" in told


@pytest.mark.parametrize(
    ("stack", "own"),
    [
        ("any", "torchrun"),
        ("megatron", "megatron"),
        ("megatron-2021", "megatron"),
        ("torchtitan", "torchtitan"),
        ("deepspeed", "deepspeed"),
        ("transformers", "accelerate"),
    ],
)
def test_commands_open_on_the_target_of_the_plan_s_stack(plan, stack, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    work = plan.request.workload.model_copy(update={"stack": stack})
    request = plan.request.model_copy(update={"workload": work})
    (tmp_path / "plan.json").write_text(plan.model_copy(update={"request": request}).to_json())
    assert cli.main(["report", "plan.json", "-o", "page.html"]) == 0
    page = (tmp_path / "page.html").read_text()
    first = re.search(r'<button[^>]*id="commands-tab-0"[^>]*>([^<]*)<', page)
    assert first
    assert first[1] == own


def test_the_front_holds_what_nothing_beats_in_both(plan):
    fits = [p for p in plan.plans if p.feasible]
    on = front(fits)

    def beats(a, b):
        ours = (a.estimate.step_time_s, a.estimate.memory.peak_bytes)
        theirs = (b.estimate.step_time_s, b.estimate.memory.peak_bytes)
        return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))

    for one in fits:
        assert (one in on) == (not any(beats(other, one) for other in fits))


def test_axes_are_what_varies_and_what_goes_with_it_is_no_axis_of_its_own():
    assert varying(ROWS) == ["gpus", "cluster.fabric.leaf_oversubscription"]
    lines = series(ROWS, "gpus", varying(ROWS))
    assert list(lines) == ["leaf oversubscription 1", "leaf oversubscription 4"]
    assert [r["gpus"] for r in lines["leaf oversubscription 1"]] == [8, 16, 64]
    weak = [row(i, gpus, global_batch=8 * gpus, fix=f) for i, (gpus, f) in
            enumerate((g, f) for g in (8, 16) for f in ("a", "b"))]  # fmt: skip
    assert varying(weak) == ["gpus", "fix"]


def test_series_of_the_same_figures_are_one_line_and_named_for_it():
    """At 8 GPUs the network makes no difference, at 64 it does; no point is lost."""
    rows = [
        row(number, gpus, model=model, **{"cluster.fabric.leaf_oversubscription": over})
        | {"step_time_s": 1.0 + (over if gpus == 64 else 0)}
        for number, (model, gpus, over) in enumerate(
            (m, g, o) for m in "ab" for g in (8, 64) for o in (1, 4)
        )
    ]
    lines = merged(rows, "model", varying(rows), "step_time_s")
    assert list(lines) == ["8, any leaf oversubscription", "64, 1", "64, 4"]
    assert all([r["model"] for r in line] == ["a", "b"] for line in lines.values())
    (step,) = [m for m in METRICS if m.column == "step_time_s"]
    chart, drawn, more = curves(rows, "model", varying(rows), step)
    assert (drawn, more) == (3, 0)
    assert [trace["y"] for trace in chart["data"]] == [[1.0, 1.0], [2.0, 2.0], [5.0, 5.0]]


def page_of_a_network(models, over_8_s, over_64_s):
    """Return a sweep's page and its text; 4:1 costs a step of 8 and of 64 GPUs so many seconds."""
    rows = [
        row(number, gpus, model=model, **{"cluster.fabric.leaf_oversubscription": over})
        | {"step_time_s": 8 / gpus + (over == 4) * (over_8_s if gpus == 8 else over_64_s)}
        for number, (model, gpus, over) in enumerate(
            (m, g, o) for m in models for g in (8, 64) for o in (1, 4)
        )
    ]
    page = sweep_page(rows, "out.csv", [])
    return page, "".join(Page(page).text)


def test_a_sweep_s_text_names_only_series_that_a_legend_has():
    _, flat = page_of_a_network("a", 0.0, 0.0)
    assert "One line: the figures are the same at any leaf oversubscription." in flat
    assert "Under 'any" not in flat
    assert "Flat: no step here waits for what leaf oversubscription changes." in flat
    page, told = page_of_a_network("a", 0.5, 0.5)
    assert "The series, by leaf oversubscription." in told
    assert "Under 'any" not in told
    assert "Flat:" not in told
    assert "The bars, by point, gpus, leaf oversubscription." in told
    assert "0: 8, 1" in page
    page, mixed = page_of_a_network("ab", 0.0, 0.5)
    assert "Under 'any leaf oversubscription' the figures are the same whatever it is." in mixed
    assert '"8, any leaf oversubscription"' in page


def test_an_alike_set_that_is_no_product_keeps_its_own_names():
    rows = [
        row(number, 8, model=model, fix=fix, global_batch=batch)
        | {"step_time_s": 1.0 + (batch == 32 and fix == "y")}
        for number, (model, fix, batch) in enumerate(
            (m, f, b) for m in "ab" for f in "xy" for b in (32, 64)
        )
    ]
    lines = merged(rows, "model", varying(rows), "step_time_s")
    assert set(lines) == {"32, x", "64, x", "32, y", "64, y"}


def test_the_pipeline_is_drawn_until_its_bars_would_run_together():
    from planner.report.page.gantt import BARS_A_STAGE, gantt_chart, window_s
    from planner.workflow import PlanRequest, SimulationRequest, plan, simulate

    request = PlanRequest(
        load_model("llama-3.1-8b"),
        load_cluster("dgx-h100:1"),
        Workload(seq_tokens=4096, global_batch=1024),
        fix={"pp": "8", "vpp": "1", "micro_batch": "1"},
        top=1,
    )
    found = simulate(SimulationRequest(plan(request)))
    until = window_s(found)
    assert until < found.record.makespan_s / 2
    traces = gantt_chart(found, until)["data"]
    first = [trace["y"].count("stage 0") for trace in traces]
    assert sum(first) == BARS_A_STAGE


def big(nodes: int, per_leaf: int, stages: int, plan: Plan) -> Any:
    """Return a placement of many nodes of 8 GPUs, one stage a run of equal leafs."""
    ranks = [
        RankPlace(rank=8 * n + g, host=f"n{n:05d}", gpu=g, leaf=f"leaf{n // per_leaf:04d}",
                  tp=g, cp=0, ep=0, dp=n, pp=n * stages // nodes)
        for n in range(nodes) for g in range(8)
    ]  # fmt: skip
    return plan.placement.model_copy(update={"ranks": ranks})


def test_alike_leafs_are_drawn_once_and_none_is_lost(plan):
    placement = big(2048, 32, 8, plan)
    drawn = runs(leafs_of(nodes_of(placement)))
    assert [len(run) for run in drawn] == [8] * 8
    assert sum(len(leaf.nodes) for run in drawn for leaf in run) == 2048
    text = str(placement_map(placement))
    assert len(text) < 100_000
    assert "8 leafs alike, 32 nodes each" in text


@pytest.mark.parametrize(
    ("values", "text"),
    [([3], "3"), ([0, 1, 2], "0-2"), ([0, 2, 4], "0,2,4"), (list(range(0, 99, 3)), "0..96 (33)")],
)
def test_ranges_are_short(values, text):
    assert span(values) == text


def test_the_command_writes_a_page_of_a_plan_and_of_each_kind_of_table(
    plan, tmp_path, monkeypatch, capsys
):
    from planner.sweep.tables import write_rows

    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").write_text(plan.to_json())
    sources = ["plan.json", "out.jsonl", "out.csv"]
    for name in sources[1:]:
        write_rows(tmp_path / name, ROWS)
    written = set()
    for name in sources:
        assert cli.main(["report", name, "-o", "page.html", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["written"] == "page.html"
        Page((tmp_path / "page.html").read_text())
        written.add(re.sub("out.(csv|jsonl)", "out", (tmp_path / "page.html").read_text()))
    assert len(written) == 2  # a table is the same page whatever its format
    assert cli.main(["report", "plan.json", "-o", "again.html"]) == 0
    assert cli.main(["report", "plan.json", "-o", "page.html"]) == 0
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("missing.json", "-o", "p.html"), "missing.json"),
        (("missing.csv", "-o", "p.html"), "no such file"),
        (("empty.json", "-o", "p.html"), "not a meshwright.plan/1 document"),
        (("/dev/zero", "-o", "p.html"), "a report is of a plan"),
        (("plan.txt", "-o", "p.html"), "a report is of a plan"),
        (("empty.json", "-o", "p.txt"), "does not end in .html"),
        (("empty.json", "-o", "none/p.html"), "none is no folder"),
        (("empty.json", "-o", "full.html"), "not a regular file"),
        (("empty.json",), "-o"),
    ],
)
def test_what_cannot_be_reported_is_refused_and_nothing_is_written(
    words, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "full.html").symlink_to("/dev/full")
    assert cli.main(["report", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert {p.name for p in tmp_path.iterdir()} == {"empty.json", "full.html"}


def numbers(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every number and list in a document."""
    if isinstance(data, dict | list):
        if isinstance(data, list) and path:
            yield path
        for key, value in data.items() if isinstance(data, dict) else enumerate(data[:3]):
            yield from numbers(value, (*path, key))
    elif isinstance(data, int | float):
        yield path


def test_a_plan_with_any_figure_changed_is_drawn_or_refused(plan, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = plan.to_json()
    paths = list(numbers(json.loads(whole)))
    random_, refused = random.Random(3), 0
    for path in random_.sample(paths, 30):
        data = here = json.loads(whole)
        for key in path[:-1]:
            here = here[key]
        odd = [0, -1, 1e308, 10**30, True, "x", None]
        here[path[-1]] = [] if isinstance(here[path[-1]], list) else random_.choice(odd)
        (tmp_path / "plan.json").write_text(json.dumps(data))
        (tmp_path / "page.html").unlink(missing_ok=True)
        code = cli.main(["report", "plan.json", "-o", "page.html"])
        said = capsys.readouterr().err
        assert code in (0, 2), (path, here[path[-1]], said)
        assert (tmp_path / "page.html").exists() == (code == 0)
        refused += code == 2
    assert refused > 5


def test_without_plotly_it_says_what_to_install(plan, tmp_path, monkeypatch, capsys):
    from planner.report.page import document

    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    document._library.cache_clear()
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert cli.main(["report", str(tmp_path / "plan.json"), "-o", str(tmp_path / "p.html")]) == 2
    assert "pip install 'meshwright[report]'" in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()

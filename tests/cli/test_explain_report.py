"""The report of `explain` as people see it: memory as a table, mends as a table."""

from __future__ import annotations

import json
import re

import pytest

from planner.cli import app as cli

OVER = "explain llama-3.1-405b dgx-h100:64 --seq 8192 --global-batch 512 "
OVER += "--layout tp=8,pp=4,zero=1,recompute=none,micro_batch=2"
FSDP = "explain llama-3.1-70b dgx-h100:8 --stack torchtitan --seq 8192 --global-batch 512 "
FSDP += "--layout tp=8,pp=4,recompute=selective,zero=3"
SMALL = "explain llama-3.2-1b dgx-h100:1 --seq 4096 --global-batch 32 "
SMALL += "--layout tp=2,pp=2,vpp=1,cp=1,zero=1,micro_batch=1,recompute=none"
MANY = OVER.replace("pp=4", "pp=16,vpp=1,cp=1")


TOLD: dict[tuple[str, int], str] = {}
"""What was printed, by command and columns: several tests look at the same."""


def told(words, capsys, monkeypatch, columns):
    if (words, columns) not in TOLD:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert cli.main(words.split()) == 0
        TOLD[words, columns] = capsys.readouterr().out
    return TOLD[words, columns]


@pytest.mark.parametrize("words", [OVER, FSDP, MANY], ids=["over", "fsdp", "many stages"])
@pytest.mark.parametrize("columns", [80, 120])
def test_every_row_of_memory_is_whole_and_within_the_width(words, columns, capsys, monkeypatch):
    out = told(words, capsys, monkeypatch, columns)
    assert max(map(len, out.splitlines())) <= columns
    assert "…" not in out
    table = out.partition("What that memory is made of")[2].partition("\nTerms\n")[0]
    heading = table.strip().splitlines()[0]
    shown = re.findall(r"\d+(?:-\d+)?", heading.partition("on stage")[2].partition("formula")[0])
    assert 1 <= len(shown) <= 6
    for name in ("weights", "gradients", "optimizer", "activations", "overhead", "total"):
        (row,) = re.findall(rf"^{name} +(.+)$", table, re.MULTILINE)
        assert len(re.findall(r"\d+\.\d\d(?= |$)", row)) >= len(shown)
    assert re.search(r"^  microbatches in flight", table, re.MULTILINE)
    assert re.search(r"\[\d+\]", table)


def test_columns_of_the_table_sum_to_its_total(capsys, monkeypatch):
    out = told(OVER, capsys, monkeypatch, 80)
    table = out.partition("What that memory is made of")[2].partition("\nTerms\n")[0]
    rows = re.findall(r"^(\w+)((?: +\d+\.\d\d)+) *$", table, re.MULTILINE)
    figures = {name: [float(word) for word in words.split()] for name, words in rows}
    total = figures.pop("total")
    assert len(figures) == 7
    for stage, whole in enumerate(total):
        assert sum(row[stage] for row in figures.values()) == pytest.approx(whole, abs=0.04)


def test_terms_that_the_table_shows_are_not_told_again(capsys, monkeypatch):
    out = told(OVER, capsys, monkeypatch, 120)
    terms = out.partition("\nTerms\n")[2].partition("Sources")[0]
    assert "stage_microbatch_s" in terms
    for name in ("weights_bytes", "activations_bytes", "microbatches_in_flight", "overhead_bytes"):
        assert not re.search(rf"^{name} ", terms, re.MULTILINE)


def test_formulas_stand_in_the_table_where_there_is_room_and_below_it_elsewhere(
    capsys, monkeypatch
):
    wide = told(OVER, capsys, monkeypatch, 120)
    assert re.search(r"^GiB of a GPU on stage .*formula \[source\]$", wide, re.MULTILINE)
    narrow = told(OVER, capsys, monkeypatch, 80)
    assert not re.search(r"^GiB of a GPU on stage .*formula", narrow, re.MULTILINE)
    assert re.search(r"^  optimizer = \(master", narrow, re.MULTILINE)


def test_stages_left_out_are_counted(capsys, monkeypatch):
    out = told(MANY, capsys, monkeypatch, 120)
    heading = re.search(r"on stage (.*?) formula", out).group(1).split()
    ends = [[int(n) for n in run.split("-")] for run in heading]
    shown = sum(run[-1] - run[0] + 1 for run in ends)
    left = re.search(r"(\d+) stages between these are left out", out)
    assert shown + int(left.group(1) if left else 0) == 16


def test_fsdp_says_where_each_stage_peaks(capsys, monkeypatch):
    out = told(FSDP, capsys, monkeypatch, 80)
    assert re.search(r"^  stages 0-2 peak at: backward of", out, re.MULTILINE)
    assert "stage 3 peaks at: loss" in out


def test_mends_are_a_table_with_the_cost_of_each(capsys, monkeypatch):
    out = told(OVER, capsys, monkeypatch, 80)
    assert "is legal, but does not fit" in out
    table = out.partition("What would mend it")[2].partition("Left out")[0]
    assert re.search(r"^  larger pp: pp=4 -> \d+", table, re.MULTILINE)
    assert re.search(r" \d+\.\d\*? +\d+\.\d\d s +[+-]\d+\.\d%$", table, re.MULTILINE)
    assert "cost: step time against the layout asked for" in table


def test_the_mark_of_risk_moves_with_the_option(capsys, monkeypatch):
    words = "explain llama-3.1-8b dgx-h100:2 --seq 4096 --global-batch 64 --layout tp=2"
    assert "at risk" in told(f"{words} --risk-memory 0.2", capsys, monkeypatch, 80)
    assert "at risk" not in told(f"{words} --risk-memory 1", capsys, monkeypatch, 80)
    assert cli.main([*words.split(), "--risk-memory", "1.5"]) == 2
    assert "--risk-memory" in capsys.readouterr().err


def test_terms_of_what_the_layout_does_not_have_are_left_out(capsys, monkeypatch):
    """Nothing is offloaded and there are no experts; the JSON has every term, and says so."""
    out = told(SMALL, capsys, monkeypatch, 120)
    for name in ("host_step_s", "parameter_server_s", "busiest_rank", "moe_layer_s", "autocast_s"):
        assert name not in out
    assert "pp_microbatch_s" in out
    assert cli.main([*SMALL.split(), "--json"]) == 0
    terms = {term["name"]: term for term in json.loads(capsys.readouterr().out)["terms"]}
    assert not terms["host_step_s"]["applies"]
    assert terms["host_step_s"]["value"] > 0
    assert terms["pp_microbatch_s"]["applies"]

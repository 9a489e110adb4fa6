"""What README and docs say about the code is what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from planner.cli.app import app
from planner.estimate.memory import ALL_TO_ALL_BYTES, COMMUNICATOR_BYTES, CONTEXT_BYTES
from planner.estimate.record import TERMS
from planner.estimate.step import DP_FLOOR
from planner.layouts.rules import RULES
from planner.specs.workload import AT_RISK, Workload
from planner.units import GIB
from planner.workflow.remarks import NEAR_TIE

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
STANDS_FOR = {"MODEL": "llama-3.1-8b", "CLUSTER": "dgx-h100:2", "NAME": "llama-3.1-8b"}
COMMAND = re.compile(r"(?:^ *|`|\$ |bin/)(meshwright [^`\n]+)", re.MULTILINE)
NO_CALLS = {"meshwright plan --json"}
"""Inline code that names an option and is no call."""


def commands() -> list[tuple[str, str]]:
    """Return (page, command line) of every complete call of meshwright in the docs."""
    found = {}
    for page in PAGES:
        for line in COMMAND.findall(page.read_text(encoding="utf-8")):
            call = re.split(r" [>|] |&&|<!--| -->", line)[0].strip()
            if not re.search(r"[\[{]|--help", call) and call not in NO_CALLS:
                found[call] = page.name
    return [(page, call) for call, page in found.items()]


@pytest.mark.parametrize(("page", "call"), commands(), ids=lambda value: value)
def test_every_command_in_the_docs_is_accepted(page, call):
    words = [STANDS_FOR.get(word, word) for word in shlex.split(call)[1:]]
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if not hasattr(command, "commands"):
        command.make_context("meshwright", words)
    else:
        assert not words, f"{page}: no such command"


def test_readme_tells_of_every_command():
    told = {call.split()[1] for call in COMMAND.findall((ROOT / "README.md").read_text())}
    assert told >= set(typer.main.get_command(app).commands)


def test_generated_blocks_are_fresh():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_formula_and_every_rule_is_in_the_docs():
    model, rules = ((ROOT / "docs" / page).read_text() for page in ("model.md", "rules.md"))
    assert [t.name for t in TERMS if f"| `{t.name}` |" not in model] == []
    assert [r.name for r in RULES if r.sentence.replace("|", "\\|") not in rules] == []


def test_every_formula_has_a_unit_a_text_and_a_source():
    for term in TERMS:
        assert all((term.unit, term.formula, term.doc, term.source.name, term.source.where)), term


@pytest.mark.parametrize(
    ("page", "sentence", "figure"),
    [
        ("model.md", "{:g} GiB for the CUDA context", CONTEXT_BYTES / GIB),
        ("model.md", "{:g} GiB for the buffers of each NCCL", COMMUNICATOR_BYTES / GIB),
        ("model.md", "{:g} GiB once all-to-all runs", ALL_TO_ALL_BYTES / GIB),
        ("model.md", "above {:g} % is marked", AT_RISK * 100),
        ("model.md", "never less than {:g} % of it", DP_FLOOR * 100),
        ("model.md", "within {:g} % of the winner", NEAR_TIE * 100),
        ("model.md", "load of the busiest rank over the mean ({:g} by default)", "imbalance"),
        ("decisions/0005-memory-share.md", "layouts above {:g} % of the limit", AT_RISK * 100),
    ],
    ids=lambda value: value if isinstance(value, str) and "{" in value else "",
)
def test_figures_quoted_in_prose_are_the_code_s(page, sentence, figure):
    if figure == "imbalance":
        figure = Workload.model_fields["expert_imbalance"].default
    text = " ".join((ROOT / "docs" / page).read_text().split())
    assert sentence.format(figure) in text


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)]*)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {t.lower().replace(" ", "-") for t in titles}, target


def test_ci_runs_the_test_command_that_readme_gives():
    blocks = re.findall(r"```bash\n(.+?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    (given,) = [block for block in blocks if "pytest" in block]
    assert given in (ROOT / ".ci/run").read_text().splitlines()

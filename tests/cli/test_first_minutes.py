"""The first five minutes: a word of welcome, completion, search, and what was meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from planner.cli import app as cli
from planner.cli import completing
from planner.layouts.ranges import FIXABLE
from planner.specs.catalog import accelerator_names, cluster_names, model_names
from planner.specs.stack import STACKS

ROOT = Path(__file__).resolve().parents[2]


def test_without_arguments_it_says_where_to_start_on_one_screen(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert 10 <= len(out.splitlines()) <= 24
    assert max(map(len, out.splitlines())) <= 100
    calls = [line.split("  ")[1].split() for line in out.splitlines() if "  meshwright" in line]
    assert {words[1] for words in calls if len(words) > 1} >= {"plan", "import", "specs", "--help"}


def test_every_command_stands_in_the_list_with_a_line_of_its_own(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, (_, _, about) in cli.COMMANDS.items():
        assert f"  {name}" in out
        assert about in out
    assert set(typer.main.get_command(cli.build()).commands) == set(cli.COMMANDS)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_a_command_alone_is_the_command_among_all(name):
    whole = typer.main.get_command(cli.build()).commands[name]
    alone = typer.main.get_command(cli.build(name)).commands[name]
    assert [p.name for p in alone.params] == [p.name for p in whole.params]
    assert alone.help == whole.help


def complete(*words: str) -> list[str]:
    """Return what bash is offered for the last word."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py")],
        env=os.environ
        | {
            completing.VARIABLE: "complete_bash",
            "COMP_WORDS": "\n".join(("meshwright", *words)),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_offers_commands_names_and_fields():
    assert complete("ex") == ["explain"]
    assert complete("plan", "llama-3.1") == [n for n in model_names() if n.startswith("llama-3.1")]
    assert complete("plan", "x", "dgx-h") == [n for n in cluster_names() if n.startswith("dgx-h")]
    assert complete("plan", "x", "y", "--fix", "tp=8,rec") == ["tp=8,recompute="]
    assert complete("plan", "x", "y", "--glo") == ["--global-batch"]
    assert complete("emit", "p.json", "--target", "torchrun,sl") == ["torchrun,slurm"]
    assert complete("specs", "show", "h100-sxm") == [
        n for n in accelerator_names() if n.startswith("h100-sxm")
    ]


def test_completion_knows_what_there_is():
    assert completing.names("model") == list(model_names())
    assert completing.names("cluster") == list(cluster_names())
    assert completing.names("accelerator") == list(accelerator_names())
    assert completing.stacks("") == sorted(STACKS)
    assert completing.layout_fields("") == [f"{name}=" for name in FIXABLE]


def test_completion_loads_nothing_heavy():
    script = (
        "import sys; from planner.cli import completing as c; c.models(''); c.clusters('');"
        "c.targets(''); print([m for m in ('numpy', 'pydantic', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_that_of_the_shell(shell, monkeypatch, capsys):
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: None)
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    assert cli.main(["--show-completion"]) == 0
    assert completing.VARIABLE in capsys.readouterr().out


def test_completion_is_installed_where_the_shell_looks(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: "bash")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["--install-completion"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    assert "meshwright" in (tmp_path / ".bashrc").read_text()


def test_a_shell_that_is_not_known_is_said(monkeypatch, capsys):
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: None)
    monkeypatch.setenv("SHELL", "/bin/oddsh")
    assert cli.main(["--show-completion"]) == 2
    assert "oddsh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["pln"], "plan"),
        (["specs", "lst"], "list"),
        (["plan", "a", "b", "--sek", "3"], "--seq"),
        (["plan", "llama-3.1-70", "dgx-h100"], "llama-3.1-70b"),
        (["plan", "llama-3.1-8b", "dgx-h10"], "dgx-h100"),
        (["plan", "llama-3.1-8b", "dgx-h100", "--stack", "megatrn"], "megatron"),
        (["plan", "llama-3.1-8b", "dgx-h100", "--fix", "recompte=full"], "recompute"),
        (["explain", "llama-3.1-8b", "dgx-h100", "--layout", "recompute=ful"], "full"),
        (["emit", "x.json", "--target", "megatorn", "-o", "y"], "megatron"),
        (["specs", "schema", "clster"], "cluster"),
    ],
    ids=lambda v: " ".join(v)[-30:] if isinstance(v, list) else "",
)
def test_what_was_meant_is_said(words, meant, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "id you mean" in said or "ossible option" in said
    assert meant in said


def test_specs_alone_is_the_list(capsys):
    assert cli.main(["specs"]) == 0
    alone = capsys.readouterr().out
    assert cli.main(["specs", "list"]) == 0
    assert alone == capsys.readouterr().out


def test_list_takes_several_words(capsys):
    assert cli.main(["specs", "list", "llama", "70B"]) == 0
    found = capsys.readouterr().out.split()
    assert "llama-3.1-70b" in found
    assert "llama-3.1-8b" not in found
    assert cli.main(["specs", "list", "lama3.1-7b"]) == 0
    assert "did you mean" in capsys.readouterr().err

"""What every invocation promises: fast help, one message an error, no traceback, no colours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from planner import __version__
from planner.cli import app as cli
from planner.errors import InfeasibleError, SpecError

Run = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"numpy", "pydantic", "ortools", "pandas", "rich", "yaml"}
COMMANDS = [
    ("plan",),
    ("explain",),
    ("place",),
    ("emit",),
    ("import",),
    ("sweep",),
    ("report",),
    ("simulate",),
    ("specs", "list"),
    ("specs", "show"),
    ("specs", "check"),
    ("specs", "schema"),
]


def loaded_by(*words: str) -> set[str]:
    """Return the top-level modules that a run of `words` loads."""
    script = (
        "import sys; from planner.cli.app import main; code = main(sys.argv[1:]); "
        "print('\\n' + ' '.join({m.split('.')[0] for m in sys.modules})); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("plan", "--help")])
def test_help_loads_nothing_heavy(words):
    assert loaded_by(*words) & HEAVY == set()


def test_listing_specs_loads_neither_numpy_nor_the_solver():
    assert loaded_by("specs", "list") & {"numpy", "ortools", "pandas", "rich"} == set()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command, capsys):
    assert cli.main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Example" in out
    assert f"  meshwright {' '.join(command)}" in out
    assert "--json" in out


def test_without_arguments_it_shows_short_help_with_an_example(capsys):
    assert cli.main([]) == 0
    assert "meshwright plan llama" in capsys.readouterr().out


def test_version_is_the_package_s(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"meshwright {__version__}\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["plan"], "MODEL"),
        (["plan", "llama-3.1-8b"], "CLUSTER"),
        (["plan", "a", "b", "--frobnicate"], "--frobnicate"),
        (["plan", "a", "b", "--top", "0"], "--top"),
        (["plan", "a", "b", "--seq", "many"], "--seq"),
        (["explain", "a", "b"], "--layout"),
        (["emit", "plan.json", "-o", "x"], "--target"),
        (["frobnicate"], "frobnicate"),
        (["specs", "schema", "layout"], "layout"),
        (["plan", "a", "b", "--target", "torchrun"], "--target"),
        (["plan", "a", "b", "-o", "x", "--target", "torchrum"], "torchrun"),
        (["plan", "a", "b", "--fix", "tpp=3"], "'tp'"),
        (["plan", "a", "b", "--fix", "tp="], "no value"),
        (["plan", "a", "b", "--fix", "tp=1,tp=2"], "twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_exits_2_with_one_message_that_names_it(
    words, named, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error:") == 1
    assert named in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (SpecError("no", hint="yes"), 2, "error: no\nhint: yes\n"),
        (InfeasibleError("full"), 1, "error: full\n"),
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied\n"),
        (MemoryError(), 2, None),
        (ZeroDivisionError("x"), 70, None),
        (SpecError("\x1b[31mred\x07"), 2, "error: ?[31mred?\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_become_one_message_and_their_exit_code(raised, code, said, monkeypatch, capfd):
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("planner.specs.catalog.model_names", fail)
    monkeypatch.setattr(cli, "_drop_output", lambda: None)
    assert cli.main(["specs", "list"]) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    if said is not None:
        assert captured.err == said


def test_debug_shows_where_an_internal_error_arose(monkeypatch, capsys):
    def fail() -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr("planner.specs.catalog.model_names", fail)
    monkeypatch.setenv("MESHWRIGHT_DEBUG", "1")
    assert cli.main(["specs", "list"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="pty is POSIX")
@pytest.mark.parametrize(("settings", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_only_on_a_terminal_that_wants_them(settings, coloured, tmp_path):
    import pty

    script = "from planner.cli.talk import show; from rich.text import Text; show(Text('x', 'red'))"
    clean = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as reader:
        subprocess.run(
            [sys.executable, "-c", script],
            stdout=theirs,
            env=clean | {"TERM": "xterm-256color"} | settings,
            cwd=ROOT,
            check=True,
            timeout=60,
        )
        shown = os.read(reader.fileno(), 1000)
        os.close(theirs)
    assert (b"\x1b[31m" in shown) == coloured
    assert b"x" in shown


def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, str(ROOT / "cli.py"), "specs", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
        process.stderr.close()
        assert process.wait(60) == 141
    assert said == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), "specs", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_launcher_works_from_any_folder(run, tmp_path):
    done = run("specs", "list", "--search", "dgx-h100", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clusters"] == ["dgx-h100"]
    assert os.listdir(tmp_path) == []

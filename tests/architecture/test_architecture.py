"""Who may import whom, one version, and a wheel that works without the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from planner import __version__
from planner.specs.catalog import model_names

ROOT = Path(__file__).resolve().parents[2]


def python(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter; the output is captured, the exit code is the caller's to judge."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_imports_go_one_way():
    done = python("-c", "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: \d+ kept, 0 broken", done.stdout)


def test_the_changelog_starts_with_the_version_of_the_package():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == __version__


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Return the wheel of this checkout."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    done = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(out))
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_spec_and_example(wheel):
    held = set(wheel.namelist())
    for folder in ("model_specs", "hardware_specs", "examples"):
        files = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".yaml", ".py", ".sh")]
        assert files
        missing = {f"planner/_data/{p.relative_to(ROOT)}" for p in files} - held
        assert not missing


def test_the_wheel_holds_the_command_the_types_and_no_tests(wheel):
    held = wheel.namelist()
    (entry_points,) = [name for name in held if name.endswith("entry_points.txt")]
    assert "meshwright = planner.cli.start:main" in wheel.read(entry_points).decode()
    assert "planner/py.typed" in held
    metadata = f"meshwright-{__version__}.dist-info"
    assert {name.split("/")[0] for name in held} == {"planner", metadata}


def test_an_installed_wheel_finds_its_specs_from_any_folder(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    (tmp_path / "elsewhere").mkdir()
    script = (
        "import sys, planner; from planner.cli.app import main; "
        "print(planner.__file__, file=sys.stderr); sys.exit(main(sys.argv[1:]))"
    )
    done = python(
        *("-c", script, "specs", "list", "--json"),
        cwd=tmp_path / "elsewhere",
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stderr
    for name in model_names():
        assert f'"{name}"' in done.stdout

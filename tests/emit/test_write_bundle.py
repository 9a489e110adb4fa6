from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from planner.emit.base import Artifact, one_line, safe_host, shell_line, write_bundle
from planner.errors import SpecError

FIRST = [Artifact("a.txt", "one\n"), Artifact("deep/run.sh", "#!/bin/sh\n", executable=True)]
SECOND = [Artifact("b.txt", "two\n")]


def tree(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def test_files_stand_with_their_text_and_mode_and_nothing_is_left_beside(tmp_path):
    write_bundle(tmp_path / "new" / "out", FIRST, force=False)
    files = tree(tmp_path / "new" / "out")
    assert files.pop("bundle.json")
    assert files == {"a.txt": "one\n", "deep/run.sh": "#!/bin/sh\n"}
    assert os.access(tmp_path / "new/out/deep/run.sh", os.X_OK)
    assert not os.access(tmp_path / "new/out/a.txt", os.X_OK)
    assert os.listdir(tmp_path / "new") == ["out"]


def test_an_empty_folder_is_filled_without_force(tmp_path):
    (tmp_path / "out").mkdir()
    write_bundle(tmp_path / "out", FIRST, force=False)
    assert (tmp_path / "out/a.txt").read_text() == "one\n"


def test_a_folder_that_is_not_empty_is_left_alone_without_force(tmp_path):
    write_bundle(tmp_path, FIRST, force=False)
    before = tree(tmp_path)
    with pytest.raises(SpecError, match="not empty"):
        write_bundle(tmp_path, SECOND, force=False)
    assert tree(tmp_path) == before


def test_force_replaces_an_earlier_bundle_whole(tmp_path):
    write_bundle(tmp_path / "out", FIRST, force=False)
    (tmp_path / "out/__pycache__").mkdir()
    (tmp_path / "out/__pycache__/a.pyc").write_text("")
    write_bundle(tmp_path / "out", SECOND, force=True)
    assert set(tree(tmp_path / "out")) == {"b.txt", "bundle.json"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("marked", [True, False])
def test_force_never_deletes_a_file_that_we_did_not_write(tmp_path, marked):
    out = tmp_path / "out"
    if marked:
        write_bundle(out, FIRST, force=False)
    out.mkdir(exist_ok=True)
    (out / "thesis.tex").write_text("years of work")
    before = tree(out)
    with pytest.raises(SpecError, match=r"thesis\.tex"):
        write_bundle(out, SECOND, force=True)
    assert tree(out) == before


def test_force_refuses_a_folder_that_only_holds_folders(tmp_path):
    (tmp_path / "out/checkpoints").mkdir(parents=True)
    with pytest.raises(SpecError, match="not replaced"):
        write_bundle(tmp_path / "out", FIRST, force=True)
    assert (tmp_path / "out/checkpoints").is_dir()


def test_a_link_inside_an_earlier_bundle_is_a_stranger(tmp_path):
    write_bundle(tmp_path / "out", FIRST, force=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "out/data").symlink_to(tmp_path / "data")
    with pytest.raises(SpecError, match="not replaced"):
        write_bundle(tmp_path / "out", SECOND, force=True)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_path_that_is_a_file_or_lies_below_one_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SpecError, match="file"):
        write_bundle(tmp_path / name, FIRST, force=True)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("where", [".", "deep"])
def test_whoever_stands_in_the_folder_keeps_the_ground(where, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_bundle(out, [*FIRST, Artifact("old/x.py", "")], force=False)
    (out / "old/__pycache__").mkdir()
    monkeypatch.chdir(out / where)
    here = os.stat(".").st_ino
    write_bundle(out if where == "deep" else Path(), [*SECOND, *FIRST[1:]], force=True)
    assert os.stat(".").st_ino == here
    assert Path.cwd() == out / where
    assert tree(out).keys() == {"b.txt", "deep/run.sh", "bundle.json"}
    assert not (out / "old").exists()
    assert os.access(out / "deep/run.sh", os.X_OK)
    assert os.listdir(tmp_path) == ["out"]
    write_bundle(out, FIRST, force=True)  # and so can be done again


def test_what_stands_in_the_current_folder_and_is_not_ours_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SpecError, match="is not empty"):
        write_bundle(Path(), FIRST, force=False)
    with pytest.raises(SpecError, match="holds what no bundle of ours wrote"):
        write_bundle(Path(), FIRST, force=True)
    assert tree(tmp_path) == {"mine": "mine"}


def test_cut_short_in_the_current_folder_it_can_be_repeated(tmp_path, monkeypatch):
    write_bundle(tmp_path / "out", FIRST, force=False)
    monkeypatch.chdir(tmp_path / "out")
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if self.name == "c.txt":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(SpecError, match="No space left"):
            write_bundle(Path(), [*SECOND, Artifact("c.txt", "")], force=True)
    assert (tmp_path / "out/a.txt").read_text() == "one\n"  # not yet taken away
    write_bundle(Path(), SECOND, force=True)
    assert tree(tmp_path / "out").keys() == {"b.txt", "bundle.json"}


def test_the_folder_of_one_target_says_how_to_write_them_all(tmp_path):
    write_bundle(tmp_path / "out", FIRST, force=False)
    with pytest.raises(SpecError) as caught:
        write_bundle(tmp_path / "out/deep", SECOND, force=True)
    assert "a part of the bundle one folder up" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_may_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SpecError, match="cannot be written"):
        write_bundle(tmp_path / "out", FIRST, force=False)


@pytest.mark.parametrize("folder", ["/proc/nothing", "x" * 300])
def test_what_the_file_system_refuses_is_said_in_one_sentence(tmp_path, folder):
    with pytest.raises(SpecError, match="cannot be written"):
        write_bundle(tmp_path / folder, FIRST, force=False)


@pytest.mark.parametrize("bad", ["../escape", "/etc/escape", "a.txt"])
def test_a_failure_half_way_leaves_the_earlier_bundle_and_no_litter(tmp_path, bad):
    write_bundle(tmp_path / "out", FIRST, force=False)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="artifact"):
        write_bundle(tmp_path / "out", [*FIRST, Artifact(bad, "x")], force=True)
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_rename_that_fails_brings_the_old_bundle_back(tmp_path, monkeypatch):
    write_bundle(tmp_path / "out", FIRST, force=False)
    before, rename = tree(tmp_path), Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(16, "Device or resource busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(SpecError, match="busy"):
        write_bundle(tmp_path / "out", SECOND, force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "host", ["node1", "a", "1.2.3.4", "gpu-7.rack-2.example.org", "N" * 63, "x." * 126 + "x"]
)
def test_host_names_of_rfc_1123_pass_unchanged(host):
    assert safe_host(host) == host


@pytest.mark.parametrize(
    "host",
    ["", "a b", "a_b", "-a", "a-", "a..b", ".a", "a.", "a:1", "u@h", "a,b", "$(id)", "a\n", "é",
     "N" * 64, "x." * 127 + "x", "a;b", "a/b", "--flag"],
)  # fmt: skip
def test_other_host_names_are_refused_on_one_line(host):
    with pytest.raises(SpecError, match="not a host name") as caught:
        safe_host(host)
    assert "\n" not in caught.value.message


def test_any_words_come_out_of_bash_as_they_went_in():
    words = ["a b", "it's", 'say "x"', "$(id)", "`id`", "$HOME", "a;b&c|d", "*", "~", "",
             "new\nline", "tab\t", "back\\slash", "ünï", "!!", "#c", "-n"]  # fmt: skip
    line = shell_line(["printf", "%s\\0", *words])
    out = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert out.decode().split("\0")[:-1] == words


def test_one_line_leaves_nothing_that_ends_a_comment():
    text = one_line("a\nb\r\nc\x0bd\x1b[31m\u2028e\x00")
    assert len(text.splitlines()) == 1
    assert text.isprintable()

"""No input makes a traceback, a hang or a half-written file: the whole road, nothing replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.cli import app as cli

MODEL = """\
name: small
layers: 8
hidden: 1024
heads: 8
kv_heads: 8
head_dim: 128
ffn: 4096
vocab: 32000
max_seq_tokens: 2048
"""
ALIASES = "a: &a [x, x]\nb: &b [*a, *a]\nlayers: *b\n"
WORK = ("--seq", "2048", "--global-batch", "64")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(80 * 1024**2)


HOSTILE_MODELS = {
    "missing": None,
    "folder": lambda path: path.mkdir(),
    "empty": "",
    "binary": bytes(range(256)) * 16,
    "not-utf8": b"layers: \xff\xfe",
    "huge": sparse,
    "nan": MODEL.replace("layers: 8", "layers: .nan"),
    "negative": MODEL.replace("layers: 8", "layers: -8"),
    "zero": MODEL.replace("layers: 8", "layers: 0"),
    "enormous-number": MODEL.replace("layers: 8", "layers: " + "9" * 5000),
    "unknown-key": MODEL + "layerz: 8\n",
    "twice": MODEL + "layers: 9\n",
    "wrong-type": MODEL.replace("layers: 8", "layers: [8]"),
    "list": "- layers\n",
    "aliases": ALIASES,
    "recursive": "a: &a [*a]\n",
    "tag": "!!python/object/apply:os.system ['touch owned']\n",
    "deep": "[" * 10_000,
    "two-documents": MODEL + "---\n" + MODEL,
    "escape": MODEL.replace("name: small", 'name: "\\e]0;owned\\a"') + "layerz: 1\n",
}


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Plan in an empty folder; return the one message, after checking that it is all there is."""
    monkeypatch.chdir(tmp_path)

    def go(codes: set[int], *words: str) -> str:
        code = cli.main(["plan", *words, "-o", "out"])
        captured = capsys.readouterr()
        assert code in codes, captured.err
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert captured.err.count("error:") == 1
        assert "\x1b" not in captured.err
        assert not Path("out").exists()
        return captured.err

    return go


@pytest.mark.parametrize("name", HOSTILE_MODELS)
def test_a_hostile_model_file_is_refused(name, refused, tmp_path):
    content, path = HOSTILE_MODELS[name], tmp_path / "model.yaml"
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content(path)
    assert "model.yaml" in refused({2}, "model.yaml", "dgx-h100:1", *WORK)
    assert {p.name for p in tmp_path.iterdir()} <= {"model.yaml"}


@pytest.mark.parametrize(
    ("cluster", "named"),
    [
        ("dgx-h100:0", "dgx-h100"),
        ("dgx-h100:-1", "dgx-h100"),
        ("dgx-h100:1.5", "dgx-h100"),
        ("dgx-h100:99999999999999999999", "nodes"),
        ("dgx-h1000:1", "dgx-h100"),
        ("/dev/null", "/dev/null"),
        ("\x1b[31m", "cluster"),
        ("../" * 2000, "cannot be read"),
    ],
)
def test_a_hostile_cluster_is_refused(cluster, named, refused, tmp_path):
    (tmp_path / "model.yaml").write_text(MODEL)
    assert named in refused({2}, "model.yaml", cluster, *WORK)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--fix", "tp=7"), {1, 2}),  # divides neither the GPUs nor the heads
        (("--fix", "tp=8,pp=8"), {1, 2}),  # 64 GPUs, the cluster has 8
        (("--fix", "tp=abc"), {2}),
        (("--fix", "tp=0"), {1, 2}),
        (("--fix", "tp=-1"), {1, 2}),
        (("--fix", "tp=8..1"), {1, 2}),
        (("--fix", "tp=99999999999999999999999"), {1, 2}),
        (("--fix", "recompute=sometimes"), {2}),
        (("--fix", "tp=1|"), {2}),
        (("--gpus", "9"), {2}),
        (("--gpus", "0"), {2}),
        (("--gpus", "-8"), {2}),
        (("--seq", "-1"), {2}),
        (("--seq", "0"), {2}),
        (("--global-batch", "nan"), {2}),
        (("--expert-imbalance", "nan"), {2}),
        (("--precision", "fp7"), {2}),
        (("--stack", "pytorch-lightening"), {2}),
        (("--unhealthy", "no-such-host"), {2}),
        (("--unhealthy", "@missing"), {2}),
    ],
    ids=lambda value: "=".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_hostile_options_are_refused(words, code, refused, tmp_path):
    (tmp_path / "model.yaml").write_text(MODEL)
    refused(code, "model.yaml", "dgx-h100:1", *WORK, *words)


def test_a_cluster_that_is_too_small_is_exit_1_and_says_by_how_much(refused, tmp_path):
    big = MODEL.replace("layers: 8", "layers: 200").replace("hidden: 1024", "hidden: 32768")
    (tmp_path / "model.yaml").write_text(big.replace("ffn: 4096", "ffn: 131072"))
    said = refused({1}, "model.yaml", "dgx-h100:1", *WORK)
    assert "GiB" in said
    assert "hint:" in said


def test_a_process_that_meets_junk_ends_with_one_message(run, tmp_path):
    (tmp_path / "model.yaml").write_bytes(bytes(range(256)))
    done = run("plan", "model.yaml", "dgx-h100:1", "--json", "-o", "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: model.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["model.yaml"]

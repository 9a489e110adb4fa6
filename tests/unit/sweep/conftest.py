"""A model and a cluster small enough that a point takes milliseconds, beside a study's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

MODEL = dict(
    name="small",
    layers=4,
    hidden=512,
    heads=4,
    kv_heads=4,
    head_dim=128,
    ffn=2048,
    vocab=32000,
    max_seq_tokens=2048,
)
FIXED = {"model": "small.yaml", "cluster": "dgx-h100", "seq": 2048, "global_batch": 64}
Write = Callable[..., Path]


@pytest.fixture
def study(tmp_path: Path) -> Write:
    """Write a study of the small model and return its path."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(MODEL))

    def write(axes: object = None, fixed: object = None, **more: object) -> Path:
        given = FIXED | (fixed or {}) if fixed is None or isinstance(fixed, dict) else fixed
        data = {"fixed": given, "axes": {"nodes": [1, 2]} if axes is None else axes, **more}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        return path

    return write

"""DeepSpeed's own configuration class, read without a GPU and without a process group."""

from __future__ import annotations

import os
import types
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest


def load() -> Any:
    """Return `deepspeed.runtime.config`, or skip the test when DeepSpeed is not installed."""
    pytest.importorskip("torch")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("deepspeed", exc_type=ImportError)
        from deepspeed.runtime import config
    return config


def read(path: Path, *, world: int, dp: int) -> Any:
    """Return the configuration that DeepSpeed makes of the file on `world` ranks, `dp` of data."""
    config = load()
    ranks = types.SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: world)
    mpu = types.SimpleNamespace(get_data_parallel_world_size=lambda: dp)
    with mock.patch.object(config, "dist", ranks), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return config.DeepSpeedConfig(str(path), mpu=mpu)

"""torchtitan's own config manager, without a GPU and without Triton."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

TRITON_ONLY = "torchtitan.distributed.minimal_async_ep.kernels"


def load() -> Any:
    """Return `torchtitan`, or skip the test when it is not installed."""
    pytest.importorskip("torch")
    sys.modules.setdefault(TRITON_ONLY, mock.MagicMock())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchtitan.config", exc_type=ImportError)


@contextlib.contextmanager
def on_hopper() -> Iterator[None]:
    """Answer torchtitan's question for a GPU that has FP8; skip where torchao is not installed."""
    load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao.float8", exc_type=ImportError)
        from torchtitan.components.quantization import float8
    with mock.patch.object(float8, "has_cuda_capability", return_value=True):
        yield


def arguments(bundle: Path) -> list[str]:
    """Return what run.sh makes of `torchtitan.args`."""
    lines = (bundle / "torchtitan.args").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def read(bundle: Path, argv: list[str]) -> Any:
    """Return the configuration that torchtitan makes of the arguments, its model checked too."""
    config = load()
    with mock.patch.object(sys, "path", [str(bundle), *sys.path]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.modules.pop("titan_plan", None)
        made = config.ConfigManager().parse_args(argv)
        made.model_spec.model.update_from_config(config=made)
    return made

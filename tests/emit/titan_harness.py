"""torchtitan's own config manager, without a GPU and without Triton."""

from __future__ import annotations

import contextlib
import functools
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


@functools.cache
def manager() -> Any:
    """Return the one config manager: each new one adds its rules to a registry of the process.

    With one a plan the 200th plan would be read under the rules of 200, which took minutes.
    """
    return load().ConfigManager()


@contextlib.contextmanager
def without_help() -> Iterator[None]:
    """Leave out the help texts, for which tyro reads torchtitan's source anew each time."""
    from tyro import _docstrings

    with (
        mock.patch.object(_docstrings, "get_field_docstring", return_value=None),
        mock.patch.object(_docstrings, "get_callable_description", return_value=""),
    ):
        yield


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
    reader = manager()
    importing = mock.patch.object(sys, "path", [str(bundle), *sys.path])
    with importing, warnings.catch_warnings(), without_help():
        warnings.simplefilter("ignore")
        sys.modules.pop("titan_plan", None)
        made = reader.parse_args(argv)
        made.model_spec.model.update_from_config(config=made)
    return made

"""Megatron-LM's own argument parser and layer split, run without a GPU and without Triton.

megatron-core 0.19.2 carries `megatron.training.arguments`. It asks for Python 3.12 only because of
`typing.override`, imports Triton in one module that argument parsing never reaches, and asks CUDA
for the device's generation in two checks; those are given here. What is emitted stays untouched:
two settings that need Transformer Engine installed are added to the command line only.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import types
import typing
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

NO_TRANSFORMER_ENGINE = ("--no-rope-fusion",)
HOPPER = types.SimpleNamespace(major=9, minor=0, name="H100", total_memory=80 * 2**30)


class RefusedError(Exception):
    """Megatron refuses the command line; the message is its own."""


def load() -> Any:
    """Return `megatron.training.arguments`, or skip the test when it is not installed."""
    import pytest

    pytest.importorskip("torch")
    if not hasattr(typing, "override"):
        typing.override = pytest.importorskip("typing_extensions").override  # type: ignore[attr-defined]
    stub = "megatron.core.transformer.moe.ops.paged_stash"
    sys.modules.setdefault(stub, mock.MagicMock(name=stub))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("megatron.training.arguments", exc_type=ImportError)


@contextlib.contextmanager
def pretend(world: int, env: dict[str, str], argv: list[str]) -> Iterator[None]:
    """Stand in for rank 0 of `world` ranks on a Hopper GPU, with exactly the variables of `env`."""
    import torch

    load()
    import megatron.core.transformer.transformer_config as config
    from megatron.training.argument_utils import ArgumentGroupFactory as Factory

    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "NVTE_", "NCCL_"))}
    variables = clean | {"RANK": "0", "WORLD_SIZE": str(world)} | env
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.dict(os.environ, variables, clear=True))
        enter(mock.patch.object(sys, "argv", ["pretrain_gpt.py", *argv]))
        enter(mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)))
        enter(mock.patch.object(torch.cuda, "get_device_properties", return_value=HOPPER))
        enter(mock.patch.object(config, "is_te_min_version", return_value=True))
        # for its help texts it reads its own source anew each time, nine tenths of the run
        enter(mock.patch.object(Factory, "_get_field_docstrings", return_value={}))
        enter(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        enter(contextlib.redirect_stdout(io.StringIO()))
        enter(contextlib.redirect_stderr(io.StringIO()))
        yield


def parse(argv: list[str], world: int, env: dict[str, str]) -> tuple[Any, Any]:
    """Return (args, TransformerConfig) as Megatron resolves `argv`, or raise RefusedError."""
    arguments = load()
    with pretend(world, env, [*argv, *NO_TRANSFORMER_ENGINE]):
        try:
            args = arguments.validate_args(arguments.parse_args())
            return args, arguments.core_transformer_config_from_args(args)
        except SystemExit as stop:
            raise RefusedError(f"argparse stopped with {stop.code}") from stop
        except (AssertionError, ValueError, RuntimeError) as error:
            raise RefusedError(str(error)) from error


def stage_layers(config: Any) -> list[list[int]]:
    """Return [stage][virtual chunk] -> transformer layers that Megatron would build."""
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    stages = range(config.pipeline_model_parallel_size)
    chunks = range(config.virtual_pipeline_model_parallel_size or 1)
    if (layout := config.pipeline_model_parallel_layout) is not None:
        rows = layout.layout
        return [[sum(x.name == "decoder" for x in rows[s][v]) for v in chunks] for s in stages]
    virtual = config.virtual_pipeline_model_parallel_size is not None
    return [
        [get_num_layers_to_build(config, v if virtual else None, pp_rank=s) for v in chunks]
        for s in stages
    ]


def known_flags() -> dict[str, Any]:
    """Return every flag of the parser -> its argparse action."""
    import argparse

    parser = argparse.ArgumentParser(allow_abbrev=False)
    load().add_megatron_arguments(parser)
    return {flag: action for action in parser._actions for flag in action.option_strings}

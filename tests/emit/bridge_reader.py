"""Run by itself: Megatron-Bridge's own recipe and validation read bundles, without a GPU.

Reads JSON lines {"folder", "world", "env"} and prints one of what Bridge made of each. It has a
process of its own because it stands in for Transformer Engine and other packages that want CUDA:
their modules are stubs that are never called while a configuration is made. All else is real:
Bridge's recipe, its override parser (Hydra) and `runtime_config_update`, which `pretrain` calls
first.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import pickle
import sys
import types
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

ABSENT = ("transformer_engine", "megatron.energon", "modelopt", "nvidia_resiliency_ext")


class _Type(type):
    """A class whose attributes are classes, for whatever is imported from a stub."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Type(name, (), {})


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Type(name, (), {})


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if any(name == need or name.startswith(f"{need}.") for need in ABSENT):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = []
        module.__version__ = "2.9.0"  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave the module empty."""


def load() -> None:
    """Import Megatron-Bridge; raises ImportError where it, or what it needs, is missing."""
    import typing_extensions

    for probing in ("torch._inductor.utils", "torch.utils.flop_counter"):  # before there are stubs
        importlib.import_module(probing)

    if not hasattr(typing, "override"):
        typing.override = typing_extensions.override  # type: ignore[attr-defined]
    kernels = "megatron.core.transformer.moe.ops.paged_stash"
    sys.modules.setdefault(kernels, mock.MagicMock(name=kernels))
    sys.meta_path.append(_Stubs())
    importlib.import_module("megatron.bridge.training.config")
    from megatron import bridge

    # its __init__ imports the recipes of every model, image and video among them; one is used here
    recipes = types.ModuleType("megatron.bridge.recipes")
    recipes.__path__ = [f"{folder}/recipes" for folder in bridge.__path__]
    sys.modules["megatron.bridge.recipes"] = recipes


def quick() -> None:
    """Do once what is the same for every bundle, and was most of the time of reading hundreds.

    The recipe's thousand values become OmegaConf's nodes, and Hydra's grammar reads one override
    after another, most of them seen before; both are Bridge's own code, run on the first of each.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    create, parse = OmegaConf.create, OverridesParser.parse_rule
    made: dict[bytes, bytes] = {}

    def once(content: Any) -> Any:
        if (key := pickle.dumps(content)) not in made:
            made[key] = pickle.dumps(create(content))
        return pickle.loads(made[key])

    @functools.cache
    def rule(text: str, name: str) -> Any:
        return parse(OverridesParser.create(), text, name)

    OmegaConf.create = staticmethod(once)  # type: ignore[assignment]
    OverridesParser.parse_rule = lambda _, text, name: rule(text, name)  # type: ignore[assignment]


def script(folder: Path) -> Any:
    """Return the bundle's own `train_bridge.py` as a module, read anew."""
    sys.modules.pop("train_bridge", None)
    with mock.patch.object(sys, "path", [str(folder), *sys.path]):
        return importlib.import_module("train_bridge")


def read(folder: Path, world: int, env: dict[str, str]) -> Any:
    """Return the ConfigContainer that `train_bridge.py` would start to train with."""
    from megatron.bridge.training.config import runtime_config_update

    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "NVTE_", "NCCL_"))}
    here = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world)}
    with mock.patch.dict(os.environ, clean | here | env, clear=True):
        config = script(folder).planned([])
        runtime_config_update(config)
    return config


def told(config: Any) -> dict[str, Any]:
    """Return what of a configuration the plan decides, in plain values, and layers by stage."""
    import megatron_harness

    parts = {
        "model": config.model, "ddp": config.ddp, "train": config.train, "dist": config.dist,
        "optimizer": config.optimizer, "dataset": config.dataset, "checkpoint": config.checkpoint,
    }  # fmt: skip
    out = {"data_parallel_size": config.data_parallel_size}
    for title, part in parts.items():
        for name, value in vars(part).items():
            plain = isinstance(value, bool | int | float | str | list | tuple | None)
            out[f"{title}.{name}"] = value if plain else str(value)
    out["stage_layers"] = megatron_harness.stage_layers(config.model)
    return out


def answer(line: str) -> dict[str, Any]:
    """Return what Bridge makes of one bundle, or its own words on why it refuses."""
    asked = json.loads(line)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return told(read(Path(asked["folder"]), asked["world"], asked["env"]))
    except (Exception, SystemExit) as error:  # whatever Bridge raises is its verdict
        return {"refused": f"{type(error).__name__}: {error}"[:1000]}


def main(argv: Sequence[str]) -> int:
    """Answer every line of stdin."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            load()
            quick()
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return 0
    for line in sys.stdin:
        print(json.dumps(answer(line), default=str), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

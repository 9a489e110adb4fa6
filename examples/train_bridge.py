#!/usr/bin/env python3
"""Start Megatron-Bridge with a plan: a recipe, and the plan's overrides on top of it.

`model.overrides` gives the recipe for any GPT the shapes of the planned model; RECIPE, as
`module:function`, names a recipe of yours instead, and then `plan.overrides` alone is applied.

    torchrun ... train_bridge.py [KEY=VALUE ...]     # further overrides, in Hydra's words
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import preflight
from megatron.bridge.models.mla_provider import MLAModelProvider
from megatron.bridge.training.callbacks import Callback
from megatron.bridge.training.gpt_step import forward_step
from megatron.bridge.training.mixed_precision import get_mixed_precision_config
from megatron.bridge.training.pretrain import pretrain
from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides
from megatron.core import parallel_state

HERE = Path(__file__).resolve().parent
ANY_GPT = "megatron.bridge.recipes.gpt.vanilla_gpt:vanilla_gpt_pretrain_config"


def overrides(*names: str) -> list[str]:
    """Return the lines of the files, without comments."""
    text = "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def configured(recipe: str, words: list[str]) -> Any:
    """Return the recipe's configuration with the overrides applied.

    The precision comes first: its name stands for a group of settings, which others then change.
    """
    module, _, function = recipe.partition(":")
    config = getattr(importlib.import_module(module), function)()
    if "model.multi_latent_attention=true" in words:
        config.model = MLAModelProvider()
    named = [w.partition("=")[2] for w in words if w.startswith("mixed_precision=")]
    if named or isinstance(config.mixed_precision, str):
        config.mixed_precision = get_mixed_precision_config((named or [config.mixed_precision])[-1])
    rest = [w for w in words if not w.startswith("mixed_precision=")]
    return process_config_with_overrides(config, cli_overrides=rest)


def planned(words: list[str]) -> Any:
    """Return the configuration of this bundle, with further overrides."""
    recipe = os.environ.get("RECIPE", "")
    files = ("plan.overrides",) if recipe else ("model.overrides", "plan.overrides")
    return configured(recipe or ANY_GPT, [*overrides(*files), *words])


def coordinates() -> dict[str, int]:
    """Return where this rank stands by the groups that Megatron-Core has made."""
    return {
        "tp": parallel_state.get_tensor_model_parallel_rank(),
        "cp": parallel_state.get_context_parallel_rank(),
        "ep": parallel_state.get_expert_model_parallel_rank(),
        "dp": parallel_state.get_data_parallel_rank(),
        "pp": parallel_state.get_pipeline_model_parallel_rank(),
    }


class Groups(Callback):
    """Stops the job before its first step when the groups are not the plan's."""

    def on_train_start(self, context: Any) -> None:
        preflight.check_groups(coordinates(), folder=HERE)


def main() -> None:
    """Check the placement, configure, check the groups, train."""
    preflight.check(HERE)
    config = planned(sys.argv[1:])
    pretrain(config=config, forward_step_func=forward_step, callbacks=[Groups()])


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Run a Megatron-LM script, and compare its groups with the rank map as soon as it has made them.

    torchrun ... checked.py pretrain_gpt.py --its-options

Placement alone can be right and the groups another: by `--use-tp-pp-dp-mapping`, or by a flag that
was edited. The job then stops before the model is built, with one message.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import preflight
from megatron.core import parallel_state

HERE = Path(__file__).resolve().parent


def coordinates() -> dict[str, int]:
    """Return where this rank stands by the groups that Megatron-Core has made."""
    return {
        "tp": parallel_state.get_tensor_model_parallel_rank(),
        "cp": parallel_state.get_context_parallel_rank(),
        "ep": parallel_state.get_expert_model_parallel_rank(),
        "dp": parallel_state.get_data_parallel_rank(),
        "pp": parallel_state.get_pipeline_model_parallel_rank(),
    }


def watched(make_groups: Any) -> Any:
    """Return Megatron's own function, followed by the comparison."""

    def run(*words: Any, **options: Any) -> Any:
        made = make_groups(*words, **options)
        preflight.check_groups(coordinates(), folder=HERE)
        return made

    return run


def main() -> None:
    """Become the script named by the first word."""
    script = Path(sys.argv[1]).resolve()
    parallel_state.initialize_model_parallel = watched(parallel_state.initialize_model_parallel)
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()

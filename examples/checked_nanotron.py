#!/usr/bin/env python3
"""Run nanotron's `run_train.py`, and compare its groups with the rank map once it has made them.

    torchrun ... checked_nanotron.py run_train.py --config-file nanotron.yaml

Placement alone can be right and the groups another: by degrees that were edited in the YAML, or by
a nanotron that orders its axes in another way. The job then stops before the model is built.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import preflight
import torch.distributed as dist
from nanotron.parallel import ParallelContext

HERE = Path(__file__).resolve().parent
AXES = ("tp", "cp", "dp", "pp")


def coordinates(context: Any) -> dict[str, int]:
    """Return where this rank stands by the groups that nanotron has made."""
    return {axis: dist.get_rank(getattr(context, f"{axis}_pg")) for axis in AXES}


def watched(make_groups: Any) -> Any:
    """Return nanotron's own method, followed by the comparison."""

    def run(context: Any, *words: Any, **options: Any) -> None:
        make_groups(context, *words, **options)
        preflight.check_groups(coordinates(context), folder=HERE)

    return run


def main() -> None:
    """Become the script named by the first word."""
    script = Path(sys.argv[1]).resolve()
    ParallelContext._init_parallel_groups = watched(ParallelContext._init_parallel_groups)
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()

"""torch.nn.DataParallel: one process, one node, the first GPU as parameter server.

The classic that all-reduce replaced. There is nothing to launch and no rank to go astray; what can
go wrong is the host and the number of GPUs, which the script checks.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.emit.base import Artifact, placed
from planner.emit.capabilities import job_refusals, only, refusals, usual
from planner.emit.shared import example, shared_artifacts
from planner.plan import Plan
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload

WHOLE = only(1, why="torch.nn.DataParallel keeps whole replicas")
CAN = usual(
    "torch.nn.DataParallel",
    **dict.fromkeys(("tp", "pp", "vpp", "cp", "ep", "etp", "dp_replicate"), WHOLE),
    zero=only(0, why="torch.nn.DataParallel keeps whole replicas"),
    schedule=only("none", why="torch.nn.DataParallel keeps whole replicas"),
    dp_sync=only("parameter-server", why="torch.nn.DataParallel is a parameter server"),
)


class DataParallel:
    """Plain data parallelism on one node, synchronised by a parameter server."""

    name = "dataparallel"
    stack = "torchtitan"
    tested_with = "PyTorch 2.13.0"
    can = CAN

    def never(self, model: ModelSpec, work: Workload) -> list[str]:
        """Return one sentence for each thing of the job that no layout mends."""
        return list(job_refusals(work, CAN))

    def unsupported(self, plan: Plan) -> list[str]:
        """Return one sentence for each thing that torch.nn.DataParallel cannot express."""
        return list(problems(plan))

    def emit(self, plan: Plan) -> list[Artifact]:
        """Return the script, run.sh and what every bundle carries."""
        shared = shared_artifacts(
            plan,
            target=self.name,
            framework=f"torch.nn.DataParallel ({self.tested_with})",
            start=start_text(plan),
        )
        return [
            *shared,
            Artifact("train_dataparallel.py", example("train_dataparallel.py")),
            Artifact("run.sh", RUN, executable=True),
        ]


def problems(plan: Plan) -> Iterator[str]:
    """Yield what one process with replicas in threads cannot do."""
    yield from refusals(plan, CAN)
    if plan.placement and len(placed(plan).hosts) > 1:
        yield f"torch.nn.DataParallel stays on one node, not {len(placed(plan).hosts)}."


RUN = """\
#!/usr/bin/env bash
# Starts the one process that drives all GPUs of the node.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$HERE" # for scripts that import preflight
# Segments that grow keep the memory in one piece.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"

# TRAIN_SCRIPT: your own script instead of the stand-in
exec "${PYTHON:-python3}" "${TRAIN_SCRIPT:-$HERE/train_dataparallel.py}" "$@"
"""


def start_text(plan: Plan) -> str:
    """Return the README's section on how to start."""
    return """\
On the node:

```
./run.sh
```

`train_dataparallel.py` trains a small stand-in of the model with the plan's GPUs and batch; put
your own model into it, or your own script into TRAIN_SCRIPT. One process drives all GPUs, so
`preflight.py` has no ranks to ask: the script itself stops when the host or its number of GPUs is
not the plan's. The first GPU holds the optimizer and gathers all outputs, so it needs the most
memory and its links are the narrow place: `dp_sync=all-reduce` is faster on any real model."""


EMITTER = DataParallel()

"""What a framework cannot keep as planned: the optimizer, its number formats, states on the host.

One home for the question, so that no emitter forgets it and writes Adam for another optimizer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from planner.emit.base import placed
from planner.plan import Plan
from planner.specs.stack import stack_named
from planner.specs.workload import Optimizer

ADAMW_ONLY = (Optimizer.ADAMW,)
FORMATS = ("pure-bf16", "precision-aware", "bf16-moments", "fp8-moments")
"""Flags of a stack that say in which format states are kept."""


ONE_THREAD = """\
# One thread a rank; more would fight over the cores that feed the GPUs.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"""


def threads(plan: Plan) -> str:
    """Return the shell lines that set the threads of a rank: many where the host has work to do."""
    if plan.best.layout.offload == "none":
        return ONE_THREAD
    ranks = placed(plan).gpus_per_node
    return f"""\
# The host steps the optimizer, on all of its cores: each rank takes its share of them.
OMP_NUM_THREADS="${{OMP_NUM_THREADS:-$(( ($(nproc) + {ranks - 1}) / {ranks} ))}}"
export OMP_NUM_THREADS
"""


def formats_of(plan: Plan) -> set[str]:
    """Return the flags of the plan's stack that say how states are kept."""
    return set(plan.request.workload.stack.split("+")[1:]) & set(FORMATS)


def state_problems(
    plan: Plan,
    target: str,
    *,
    optimizers: Collection[Optimizer] = ADAMW_ONLY,
    offloads: Collection[str] = ("none",),
    formats: Collection[str] = (),
    recompute_lists: bool = False,
) -> Iterator[str]:
    """Yield a sentence for an optimizer, an offload or a format that `target` does not write."""
    work, lay = plan.request.workload, plan.best.layout
    if work.optimizer not in optimizers:
        names = ", ".join(o.value for o in optimizers)
        yield f"{target} has {names} here, not optimizer={work.optimizer.value}."
    listed = work.recompute_modules is not None and lay.recompute == "selective"
    units = (work.recompute_method, work.recompute_layers) != ("uniform", 1)
    if not recompute_lists and (listed or (units and lay.recompute == "full")):
        yield f"{target} has no list of modules or layers to recompute; Megatron-LM has."
    if lay.offload not in offloads:
        yield f"{target} keeps states on the GPUs as planned here, not offload={lay.offload}."
    if strange := sorted(formats_of(plan) - set(formats)):
        yield f"{target} has no {', '.join(strange)} here (stack {stack_named(work.stack).name})."

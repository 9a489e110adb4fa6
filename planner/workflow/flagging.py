"""What flags of a stack would make a layout fit as it is: FP8 parameters, activations on the host.

These are switches of the framework, not fields of the layout, so nothing searches them; where a
layout does not fit they are tried one by one, and told with their memory and cost.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace

from planner.errors import SpecError
from planner.estimate.inputs import Inputs
from planner.estimate.kernels import uses_fp8
from planner.estimate.memory import fits, limit_bytes, peak_bytes
from planner.estimate.running import judge, own_kinds
from planner.layouts.rules import broken_rules
from planner.layouts.rules.rule import Context
from planner.layouts.table import Layouts
from planner.specs.stack import stack_named
from planner.units import gib, seconds
from planner.workflow.request import PlanRequest


def flag_mends(request: PlanRequest, layouts: Layouts, step_s: float) -> list[str]:
    """Return a sentence for each flag with which one layout fits that takes `step_s` without."""
    out = []
    for flag in (_in_fp8(request, layouts), _offloaded(request, layouts)):
        context = _with(request, flag) if flag else None
        if context is None or not _fits(context, layouts):
            continue
        took, limit = judge(context, layouts)[0].step_s, limit_bytes(Inputs(*context, layouts))
        peak = float(peak_bytes(_inputs(context, layouts))[0])
        out.append(
            f"--stack {context.workload.stack}: fits ({gib(peak)} of {gib(limit)}), "
            f"{seconds(took)} a step ({took / step_s - 1:+.1%})"
        )
    return out


def _in_fp8(request: PlanRequest, layouts: Layouts) -> str:
    """Return the flag that keeps parameters in FP8, where that is new."""
    stack = stack_named(request.workload.stack)
    return (
        "fp8-params" if uses_fp8(Inputs(*request.context, layouts)) and not stack.fp8_params else ""
    )


def _offloaded(request: PlanRequest, layouts: Layouts) -> str:
    """Return the flag that sends the fewest layers' activations to the host with which it fits."""
    most = request.model.layers - 1
    if stack_named(request.workload.stack).offload_layers or not most:
        return ""

    def enough(layers: int) -> bool:
        context = _with(request, f"offload-layers={layers}")
        return context is not None and _fits(context, layouts)

    if not enough(most):
        return ""
    counts = range(1, most + 1)
    return f"offload-layers={counts[bisect_left(counts, True, key=enough)]}"


def _with(request: PlanRequest, flag: str) -> Context | None:
    """Return the context with one more flag; None where the stack does not have it."""
    stack = f"{request.workload.stack}+{flag}"
    try:
        stack_named(stack)
    except SpecError:
        return None
    return replace(request, workload=request.workload.model_copy(update={"stack": stack})).context


def _inputs(context: Context, layouts: Layouts) -> Inputs:
    return Inputs(*context, layouts, kinds=own_kinds(context, judge(context, layouts)[0]))


def _fits(context: Context, layouts: Layouts) -> bool:
    """Return whether the rules allow a layout, and it has the room on GPUs and host."""
    if broken_rules(layouts, 0, context):
        return False
    x = _inputs(context, layouts)
    return bool(fits(x, peak_bytes(x))[0])

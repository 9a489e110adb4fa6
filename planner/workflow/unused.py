"""Options that were given and that the layout makes nothing of: said, never passed over."""

from __future__ import annotations

from collections.abc import Sequence

from planner.plan import Layout
from planner.specs.stack import stack_named
from planner.specs.workload import Workload


def unused(work: Workload, layout: Layout, stage_layers: Sequence[Sequence[int]]) -> list[str]:
    """Return a sentence for each recompute option that does nothing to this layout, or less."""
    found = _offload_unused(work, layout)
    kind = layout.recompute
    if work.recompute_modules is not None and kind != "selective":
        found.append(
            f"--recompute-modules does nothing here: this layout has recompute={kind}, "
            "and the list is of what recompute=selective runs again"
        )
    units = (work.recompute_method, work.recompute_layers)
    if units == ("uniform", 1):
        return found
    if kind != "full":
        found.append(
            f"--recompute-layers does nothing here: this layout has recompute={kind}, "
            "and the number is of what recompute=full keeps"
        )
        return found
    most = max((n for chunks in stage_layers for n in chunks), default=0)
    if 0 < most < work.recompute_layers:
        found.append(
            f"--recompute-layers {work.recompute_layers} is as {most} here: "
            "no pipeline chunk of this layout has more layers"
        )
    return found


def _offload_unused(work: Workload, layout: Layout) -> list[str]:
    """Return a sentence for each flag of the stack on where states are that changes none."""
    stack = stack_named(work.stack)
    found = []
    if stack.fp8_params and work.precision != "fp8":
        found.append(
            f"fp8-params does nothing here: precision is {work.precision.value}; "
            "--precision fp8 keeps parameters in FP8"
        )
    if layout.offload != "none" or stack.offload_fraction == 1:
        return found
    return [
        *found,
        "offload-fraction does nothing here: this layout keeps the optimizer on the GPUs; "
        "--fix offload=optimizer moves that share of it",
    ]

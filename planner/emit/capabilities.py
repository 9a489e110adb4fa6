"""What a target can express, as data: for each field of a plan the values, and why no others.

One table a target instead of scattered conditions, so that no emitter forgets a field, documents
print it, and the nearest layout that a target can run is found by looking at columns. What depends
on several fields at once (widths that do not divide, ZeRO under a pipeline) is each emitter's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from planner.emit.states import formats_of
from planner.plan import Layout, Plan
from planner.specs.stack import stack_named
from planner.specs.workload import Optimizer, Precision, Workload

LAYOUT_FIELDS = (
    *("tp", "sp", "pp", "vpp", "cp", "ep", "etp", "dp_replicate", "zero"),
    *("schedule", "recompute", "offload", "dp_sync"),
)
WORK_FIELDS = ("recompute_list", "precision", "optimizer", "formats", "capacity_factor")
FIELDS = (*LAYOUT_FIELDS, *WORK_FIELDS)


class Can(NamedTuple):
    """The values of one field that a target expresses (None: all), and why it has no others."""

    values: tuple[Any, ...] | None
    why: str = ""

    def holds(self, value: Any) -> bool:
        """Return whether the target expresses this value."""
        return self.values is None or value in self.values


Capabilities = Mapping[str, Can]
"""By field, every one of FIELDS: what is not thought of cannot slip through."""

ALL = Can(None)
ANYTHING: Capabilities = dict.fromkeys(FIELDS, ALL)
"""For schedulers, which start a framework with limits of its own."""


def only(*values: Any, why: str) -> Can:
    """Return that the target expresses these values alone."""
    return Can(values, why)


def usual(target: str, **fields: Can) -> Capabilities:
    """Return a table of what most targets have, with `fields` where this one differs.

    AdamW in the usual formats, bf16, no lists for recompute, all states on the GPUs.
    """
    table = {
        **ANYTHING,
        "recompute_list": only(
            False, why=f"{target} has no list of modules or layers to recompute; Megatron-LM has"
        ),
        "precision": only(Precision.BF16, Precision.FP16, why=f"{target} has no FP8 training"),
        "optimizer": only(Optimizer.ADAMW, why=f"{target} has adamw here, not another"),
        "formats": only(
            "", why=f"{target} keeps states in the usual formats only, without these of the stack"
        ),
        "offload": only("none", why=f"{target} keeps states on the GPUs here"),
        "dp_sync": only("all-reduce", why=f"{target} has no parameter server"),
        "capacity_factor": only(None, why=f"{target} lets experts take every token"),
    }
    return {**table, **fields}


def layout_refusals(lay: Layout, work: Workload, can: Capabilities) -> Iterator[str]:
    """Yield a sentence for each field of a layout that the table does not hold."""
    for field in LAYOUT_FIELDS:
        if not can[field].holds(value := getattr(lay, field)):
            yield f"{field}={word(value)}: {can[field].why}."
    listed = work.recompute_modules is not None and lay.recompute == "selective"
    units = (work.recompute_method, work.recompute_layers) != ("uniform", 1)
    if not can["recompute_list"].holds(listed or (units and lay.recompute == "full")):
        yield f"{can['recompute_list'].why}."


def job_refusals(work: Workload, can: Capabilities, *, offload: bool = False) -> Iterator[str]:
    """Yield a sentence for each field of the job that the table does not hold, in any layout.

    With `offload`, in any that offloads.
    """
    for field in ("precision", "optimizer", "capacity_factor"):
        if not can[field].holds(value := getattr(work, field)):
            yield f"{field}={word(value)}: {can[field].why}."
    if strange := [
        name for name in sorted(formats_of(work, offload=offload)) if not can["formats"].holds(name)
    ]:
        stack = stack_named(work.stack).name
        yield f"{can['formats'].why}: {', '.join(strange)} (stack {stack})."


def refusals(plan: Plan, can: Capabilities) -> Iterator[str]:
    """Yield a sentence for each field of the best plan that the table does not hold.

    And where the batch does not add up, which no framework takes.
    """
    lay, work = plan.best.layout, plan.request.workload
    yield from layout_refusals(lay, work, can)
    yield from job_refusals(work, can, offload=lay.offload != "none")
    sequences = lay.micro_batch * lay.num_microbatches * lay.dp
    if sequences != work.global_batch:
        yield (
            f"micro_batch*num_microbatches*dp = {sequences}, but global_batch is "
            f"{work.global_batch}."
        )


def word(value: Any) -> str:
    """Return a value as `--layout` and the command line write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(getattr(value, "value", value))


def words(can: Can) -> str:
    """Return the values for a table in the docs: 'any', or what there is."""
    if can.values is None:
        return "any"
    known = [word(v) for v in can.values if v not in ("", None)]
    return ", ".join(known) or "none"

"""What can be said of a launch target before a search: the model, the job and what is fixed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.emit import emitter_named
from planner.emit.capabilities import LAYOUT_FIELDS, Capabilities, word
from planner.emit.wrapped import payload
from planner.errors import InfeasibleError
from planner.layouts.ranges import Fix
from planner.layouts.table import NAMES
from planner.workflow.request import PlanRequest
from planner.workflow.targets import stack_of


def refuse_foreseen(request: PlanRequest, target: str) -> None:
    """Raise InfeasibleError where `target` can run no plan of the request, whatever is found.

    Not raised does not mean that it can: widths and groups are only known layout by layout.
    """
    asked = request.workload.stack
    workload = request.workload.model_copy(update={"stack": stack_of(target, asked)})
    why = emitter_named(target).never(request.model, workload)
    fixed = list(_fixed(request.choices, payload(target, asked).can))
    if not (why or fixed):
        return
    mend = "another --target, or --fix without " + ", ".join(name for name, _ in fixed)
    raise InfeasibleError(
        f"{target} can run no layout of this job: " + " ".join([*why, *(s for _, s in fixed)]),
        hint="" if why else mend,
    )


def _fixed(fix: Fix, can: Capabilities) -> Iterator[tuple[str, str]]:
    """Yield each field of which no value that is left is one that the target expresses."""
    for field in LAYOUT_FIELDS:
        choice, held = fix.choices.get(field), can[field].values
        if choice and held is not None and not any(choice.allows(_code(field, v)) for v in held):
            known = ", ".join(map(word, held))
            yield field, f"{field}={choice.text}: {can[field].why} (it takes {field}={known})."


def _code(field: str, value: Any) -> int:
    """Return a value of the table as layouts hold it."""
    return NAMES[field].index(value) if field in NAMES else int(value)

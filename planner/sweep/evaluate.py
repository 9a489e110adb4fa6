"""One point answered: the best layout, what it costs and where its pipelines run, as flat columns.

Flat, because a row must be the same in JSONL, CSV and Parquet. Nothing here depends on when or
where it ran, so that a resumed sweep writes the bytes of an uninterrupted one.
"""

from __future__ import annotations

from planner.errors import PlannerError
from planner.plan import Plan, option_text
from planner.workflow import PlanRequest, plan

Cell = str | int | float | bool | None
Outcome = dict[str, Cell]
OK, INFEASIBLE, REFUSED, FAILED = "ok", "infeasible", "refused", "failed"


def evaluate(request: PlanRequest) -> Outcome:
    """Return the columns of one point; whatever fails becomes its `status` and `reason`."""
    try:
        return _columns(plan(request))
    except PlannerError as error:
        return refusal(error)
    except MemoryError:
        return failure("out of memory")
    except Exception as error:  # a defect of ours must not cost the other points
        return failure(f"internal error: {type(error).__name__}: {error}")


def refusal(error: PlannerError) -> Outcome:
    """Return the outcome of a question that has no answer, or that contradicts itself."""
    status = INFEASIBLE if error.exit_code == 1 else REFUSED
    return {"status": status, "reason": error.message, "hint": error.hint}


def failure(reason: str) -> Outcome:
    """Return the outcome of a point that could not be worked on; the next run tries it again."""
    return {"status": FAILED, "reason": reason, "hint": ""}


def _columns(found: Plan) -> Outcome:
    best = found.best
    lay, cost, placed = best.layout, best.estimate, found.placement
    layout = lay.model_dump(mode="json")
    return {
        "status": OK,
        "reason": "",
        "hint": "",
        "layout": lay.short(),
        "gpus_used": lay.gpus,
        **{f"search.{name}": option_text(value) for name, value in best.options.items()},
        **layout,
        "step_time_s": cost.step_time_s,
        "tokens_per_s": cost.tokens_per_s,
        "tokens_per_s_per_gpu": cost.tokens_per_s_per_gpu,
        "tflops_per_gpu": cost.tflops_per_gpu,
        "mfu": cost.mfu,
        "mfu_causal": cost.mfu_causal,
        "bubble_fraction": cost.bubble_fraction,
        **{f"time_s.{name}": amount for name, amount in cost.time_s.items()},
        "memory_peak_bytes": cost.memory.peak_bytes,
        "memory_limit_bytes": cost.memory.limit_bytes,
        "at_risk": cost.memory.at_risk,
        "dropped_tokens": cost.dropped_tokens,
        "splits": placed.splits if placed else None,
        "placement": placed.status if placed else None,
        "layouts_enumerated": found.search.enumerated,
        "layouts_legal": found.search.legal,
        "layouts_feasible": found.search.feasible,
    }

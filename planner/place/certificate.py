"""Certificate: what is proved about a map, of which question, and how far the bound is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from planner.errors import SpecError, did_you_mean
from planner.place.groups import IntArray
from planner.place.relax import many
from planner.plan import OrderTime
from planner.units import seconds as in_seconds

Rule = Literal["under-leaf", "fastest"]
RULES: tuple[Rule, ...] = get_args(Rule)
PROVED = 1e-9
"""A step time this close (relative) to its bound meets it: the rest is rounding."""


def rule_named(text: str, where: str) -> Rule:
    """Return the rule; SpecError, which names `where` it stands, for one that there is not."""
    if chosen := next((rule for rule in RULES if rule == text), None):
        return chosen
    near = did_you_mean(text[:80], RULES)
    raise SpecError(
        f"{where}: {text[:80]!r} is not a rule", hint=near or f"write {' or '.join(RULES)}"
    )


@dataclass(frozen=True)
class Choice:
    """The nodes chosen, in rank order, and what was found out about step times on the way."""

    nodes: IntArray
    question: Literal["fewest-splits", "least-step-time", "fewest-moved-ranks"] = "fewest-splits"
    seconds: float | None = None
    bound_s: float | None = None
    orders: list[OrderTime] = field(default_factory=list)
    baseline: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    moved: int | None = None
    must_move: int = 0


def certificate(choice: Choice, splits: int, fewest: int, scope: str) -> dict[str, Any]:
    """Return status, objective, bound, gap and what is proved, as `Placement` takes them.

    `fewest` bounds the splits of `scope`, the maps that were searched.
    """
    times = {"step_time_s": choice.seconds, "step_time_bound_s": choice.bound_s}
    objective, bound = float(splits), float(min(fewest, splits))
    if choice.moved is not None:
        objective, bound = float(choice.moved), float(choice.must_move)
    elif choice.question == "least-step-time" and choice.seconds and choice.bound_s:
        objective, bound = choice.seconds, choice.bound_s
    gap = (objective - bound) / objective if objective else 0.0
    if choice.moved is not None:
        proven = f"{many(choice.must_move, 'rank')} cannot stay; {choice.moved:,} move"
    elif choice.question == "least-step-time":
        proven = _about_seconds(objective, bound, gap, len(choice.orders))
    else:
        proven = _about_splits(splits, int(bound), scope or "maps of whole nodes")
    gap = 0.0 if gap <= PROVED else gap
    return times | {
        "moved_ranks": choice.moved,
        "question": choice.question,
        "status": "feasible" if gap else "optimal",
        "objective": objective,
        "bound": bound,
        "gap": gap,
        "proven": proven,
    }


def _about_seconds(objective: float, bound: float, gap: float, orders: int) -> str:
    if gap <= PROVED:
        return (
            f"no map takes less than {in_seconds(bound)} a step by this estimate: "
            "what uplinks have to carry, this one meets"
        )
    return (
        f"no map takes less than {in_seconds(bound)} a step by this estimate: so much has to cross "
        f"uplinks; the best of {orders} orders is {gap:.2%} above that"
    )


def _about_splits(splits: int, bound: int, scope: str) -> str:
    if splits == 0:
        return "no pipeline edge leaves a leaf"
    if splits == bound:
        return f"no map splits pipelines at fewer edges, among {scope}"
    return f"at least {bound:,} edges are split, among {scope}; {splits:,} are known to do"

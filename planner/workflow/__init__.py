"""The whole road, from a request to a placed plan or an explanation: what the commands call."""

from planner.workflow.auditing import audit
from planner.workflow.checking import check
from planner.workflow.expressing import nearest_layout, refuse, whose_figures
from planner.workflow.foreseeing import refuse_foreseen
from planner.workflow.mixing import explain, place, plan
from planner.workflow.replacing import replaced
from planner.workflow.request import PlanRequest
from planner.workflow.simulating import SimulationRequest, simulate
from planner.workflow.targets import narrowed, plan_for_target, stack_of
from planner.workflow.variants import choices_of

__all__ = [
    "PlanRequest",
    "SimulationRequest",
    "audit",
    "check",
    "choices_of",
    "explain",
    "narrowed",
    "nearest_layout",
    "place",
    "plan",
    "plan_for_target",
    "refuse",
    "refuse_foreseen",
    "replaced",
    "simulate",
    "stack_of",
    "whose_figures",
]

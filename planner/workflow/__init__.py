"""The whole road, from a request to a placed plan or an explanation: what the commands call."""

from planner.workflow.checking import check
from planner.workflow.explaining import explain
from planner.workflow.expressing import nearest_layout, refuse
from planner.workflow.placing import place
from planner.workflow.planning import PlanRequest, plan, plan_for_target
from planner.workflow.simulating import SimulationRequest, simulate

__all__ = [
    "PlanRequest",
    "SimulationRequest",
    "check",
    "explain",
    "nearest_layout",
    "place",
    "plan",
    "plan_for_target",
    "refuse",
    "simulate",
]

"""The whole road, from a request to a placed plan or an explanation: what the commands call."""

from planner.workflow.explaining import explain
from planner.workflow.placing import place
from planner.workflow.planning import PlanRequest, plan, plan_for_target

__all__ = ["PlanRequest", "explain", "place", "plan", "plan_for_target"]

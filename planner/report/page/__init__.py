"""One self-contained HTML page of a plan or a sweep: nothing is fetched, everything is escaped."""

from planner.report.page.commands import Command
from planner.report.page.plan import plan_page
from planner.report.page.sweep import sweep_page

__all__ = ["Command", "plan_page", "sweep_page"]

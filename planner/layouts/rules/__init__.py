"""Legality: which layouts a stack can run, each rule with the sentence that a user sees."""

from __future__ import annotations

import numpy as np

from planner.layouts.rules.common import COMMON
from planner.layouts.rules.deepspeed import DEEPSPEED
from planner.layouts.rules.megatron import MEGATRON
from planner.layouts.rules.rule import Context, Mask, Rule
from planner.layouts.rules.schedules import SCHEDULE_RULES, schedules_of, searched_schedules
from planner.layouts.rules.torchtitan import TORCHTITAN
from planner.layouts.rules.transformers import TRANSFORMERS
from planner.layouts.table import Layouts

__all__ = [
    "RULES",
    "Context",
    "Mask",
    "Rule",
    "broken_rules",
    "rules_broken",
    "rules_of",
    "schedules_of",
    "searched_schedules",
]

RULES: tuple[Rule, ...] = (
    *COMMON,
    *SCHEDULE_RULES,
    *MEGATRON,
    *DEEPSPEED,
    *TORCHTITAN,
    *TRANSFORMERS,
)


def rules_of(stack: str) -> list[Rule]:
    """Return the rules that bind layouts of `stack`, in the order in which they are told."""
    return [rule for rule in RULES if rule.applies(stack)]


def broken_rules(layouts: Layouts, row: int, context: Context) -> list[str]:
    """Return the sentences of every rule that one layout breaks."""
    one = layouts.take(slice(row, row + 1))
    return [rule.explain(one, 0, context) for rule in rules_broken(layouts, row, context)]


def rules_broken(layouts: Layouts, row: int, context: Context) -> list[Rule]:
    """Return every rule that one layout breaks, in the order in which they are told."""
    one = layouts.take(slice(row, row + 1))
    rules = rules_of(context.workload.stack)
    return [rule for rule in rules if bool(np.any(rule.broken(one, context)))]

"""Why nothing is legal: the rules in the way of the nearest layouts, and what would help.

Counts of rejects say which rule was asked first, not which decides. So the layouts are laid out
again without any rule, and those that break the fewest are shown with the rules that they break.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planner.errors import InfeasibleError
from planner.layouts.grid import Tally, grid_of, legal_layouts
from planner.layouts.ranges import FIXABLE, Fix, parse_fix
from planner.layouts.rules import Context, Rule, broken_rules, rules_broken, rules_of
from planner.layouts.table import NAMES, Layouts
from planner.rank import Ranking
from planner.units import count
from planner.workflow.request import PlanRequest
from planner.workflow.rows import layout_record

MOST_PARTS = 8
"""Parts of the space that are looked at, evenly spread: some half a million layouts."""
VALUES_SHOWN = 6
BATCH_RULE = "global batch does not divide"
LAST_LAYER_RULE = "activations of the last layer on the host"


def nothing_legal(request: PlanRequest, ranking: Ranking) -> InfeasibleError:
    """Return the error for a search without a legal layout: which rules decide, what would help."""
    fix, gpus = parse_fix(request.fix), ranking.gpus
    near = nearest(request.context, gpus, fix)
    counted = f"none of {ranking.tally.enumerated:,} layouts on {gpus:,} GPUs is legal"
    if near is None:
        reasons = ranking.tally.rejected.most_common(3)
        told = "; ".join(f"{name} ({times:,})" for name, times in reasons)
        return InfeasibleError(f"{counted}: {told}", hint=OTHERWISE)
    rules = rules_broken(near, 0, request.context)
    sentences = "; ".join(broken_rules(near, 0, request.context))
    which = "one rule" if len(rules) == 1 else f"{count(len(rules))} rules"
    return InfeasibleError(
        f"{counted}. The nearest, {layout_record(near, 0).short()}, breaks {which}: {sentences}",
        hint=_hint(request, near, rules) or OTHERWISE,
    )


OTHERWISE = "change the global batch, the sequence length or the fixed fields"


def nearest(context: Context, gpus: int, fix: Fix) -> Layouts | None:
    """Return the layout that breaks the fewest rules, the plainest of them; None if there is none.

    Where the space is large, of a sample that is spread over all of it.
    """
    grid = grid_of(context, gpus, fix, Tally(), rules=())
    if grid is None or not len(grid):
        return None
    rules = rules_of(context.workload.stack)
    best: tuple[tuple[int, ...], Layouts] | None = None
    for at in np.unique(np.linspace(0, len(grid) - 1, MOST_PARTS).astype(int)).tolist():
        rows, _ = grid.part(at)
        if not len(rows):
            continue
        one = np.zeros(len(rows), dtype=np.int64)
        for rule in rules:
            one += rule.broken(rows.every(rule.on), context)[rows.of_every(rule.on)]
        few = rows.take(np.flatnonzero(one == one.min()))
        order = np.lexsort((few.zero, few.vpp, few.pp, few.tp, few.micro_batch, few.cp))
        chosen = few.take(order[:1])
        key = (int(one.min()), int(chosen.cp[0]), int(chosen.micro_batch[0]), at)
        if best is None or key < best[0]:
            best = key, chosen
    return best[1] if best else None


def _hint(request: PlanRequest, near: Layouts, rules: list[Rule]) -> str:
    """Return the smallest change that makes something legal, as far as one is known."""
    concerned = {field for rule in rules for field in rule.on}
    for name in [*filter(concerned.__contains__, request.fix), *request.fix]:
        if values := _legal_without(request, near, name):
            return f"without {name}={request.fix[name]} there are: {name}={values}"
    if any(rule.name == BATCH_RULE for rule in rules):
        of = int(near.dp[0] * near.micro_batch[0])
        batch = request.workload.global_batch
        up = -(-batch // of) * of
        return f"--global-batch {up:,}".replace(",", "") + f", a multiple of {of:,}"
    if any(rule.name == LAST_LAYER_RULE for rule in rules):
        return f"--stack with offload-layers={request.model.layers - 1} or fewer"
    return ""


def _legal_without(request: PlanRequest, near: Layouts, name: str) -> str:
    """Return the values of a fixed field under which something is legal, all others as fixed."""
    others: Mapping[str, str] = {k: v for k, v in request.fix.items() if k != name}
    gpus = int(near.gpus[0])
    found: set[int] = set()
    parts = legal_layouts(request.context, gpus, parse_fix(others), Tally())
    for _, rows in zip(range(MOST_PARTS), parts, strict=False):
        found |= set(np.unique(getattr(rows, name)).tolist())
    words = [NAMES[name][v] if name in NAMES else f"{v}" for v in sorted(found)]
    more = "|..." if len(words) > VALUES_SHOWN else ""
    return "|".join(words[:VALUES_SHOWN]) + more if name in FIXABLE else ""

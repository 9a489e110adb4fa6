"""A bundle on disk against its plan: the files by the emitters, the placement by its own check."""

from __future__ import annotations

from pathlib import Path

from planner.emit.check import Found, bundles_in, check_bundle, missing_files
from planner.place.check import PlacementError, check_placement
from planner.plan import Plan


def check(folder: Path) -> list[Found]:
    """Return every bundle in `folder` with what is wrong with it, a sentence each.

    Files that the whole folder lacks stand with the first. Raises SpecError when `folder` holds no
    bundle.
    """
    found = [_checked(check_bundle(bundle)) for bundle in bundles_in(folder)]
    known = {f"{f.folder.name}/{problem}" for f in found for problem in f.problems}
    gone = [s for s in missing_files(folder) if s not in known]
    return [found[0]._replace(problems=[*gone, *found[0].problems]), *found[1:]]


def _checked(found: Found) -> Found:
    """Add what is wrong with the placement; hosts that are named more than once, and so on."""
    if found.plan is None:
        return found
    return found._replace(problems=[*_placement_problems(found.plan), *found.problems])


def _placement_problems(plan: Plan) -> list[str]:
    if plan.placement is None:
        return ["plan.json: the plan has no placement"]
    try:
        check_placement(plan.request.cluster, plan.best.layout, plan.placement)
    except PlacementError as error:
        return [f"plan.json: placement: {error}"]
    return []

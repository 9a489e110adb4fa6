"""Why a layout lost: what it takes more than the winner, term by term, in seconds and in bytes."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import RenderableType

from planner.plan import Estimate, Plan, RankedPlan
from planner.report.parts import indented, title
from planner.report.text import printable
from planner.units import GIB, figure, seconds

LEAST_SHARE_OF_STEP = 5e-4
LEAST_BYTES = 0.05 * GIB
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "overhead")


def why_lost(plan: Plan, second: RankedPlan) -> list[RenderableType]:
    """Return the runner-up's difference to the winner, term by term."""
    best = plan.best
    lines = [title(f"Why #{second.rank} lost"), indented(_named(best, second))]
    lines += [indented(line) for line in _by_objective(plan, second)]
    if best.global_batch == second.global_batch:
        lines += [indented(line) for line in differences(best.estimate, second.estimate)]
    if second.tie:
        lines.append(indented("too close to tell: less than the estimate's own error"))
    return lines


def _named(best: RankedPlan, other: RankedPlan) -> str:
    words = [other.layout.short()]
    if other.nodes != best.nodes:
        words.append(f"on {other.nodes} nodes")
    if other.global_batch != best.global_batch:
        words.append(f"with batch {other.global_batch}")
    return " ".join(words)


def _by_objective(plan: Plan, second: RankedPlan) -> list[str]:
    """Return the difference in what the plan was chosen for, where that is no step time."""
    best = plan.best
    pairs = {
        "cost": (best.usd_per_trillion_tokens, second.usd_per_trillion_tokens),
        "energy": (best.mwh_per_trillion_tokens, second.mwh_per_trillion_tokens),
        "tokens-per-gpu": (
            best.estimate.tokens_per_s_per_gpu,
            second.estimate.tokens_per_s_per_gpu,
        ),
        "gpus": (best.layout.gpus, second.layout.gpus),
    }
    ours, theirs = pairs.get(plan.objective.name, (None, None))
    if not ours or theirs is None or ours == theirs:
        return []
    unit = printable(plan.objective.unit)
    return [f"{figure(theirs)} {unit} in place of {figure(ours)} ({theirs / ours - 1:+.1%})"]


def differences(ours: Estimate, theirs: Estimate) -> list[str]:
    """Return by how much another estimate is slower and larger, and by which parts."""
    slower = theirs.step_time_s - ours.step_time_s
    word = "slower" if slower >= 0 else "faster"
    larger = theirs.memory.peak_bytes - ours.memory.peak_bytes
    lines = [
        f"{word} by {seconds(abs(slower))} ({abs(slower) / ours.step_time_s:.1%}), "
        f"peak memory {larger / GIB:+.2f} GiB"
    ]
    gaps = _gaps(ours.time_s, theirs.time_s, LEAST_SHARE_OF_STEP * ours.step_time_s)
    words = [f"{printable(n)} {'+' if g > 0 else '-'}{seconds(abs(g))}" for n, g in gaps]
    lines += [", ".join(words)] if words else []
    held = _gaps(_fullest(ours), _fullest(theirs), LEAST_BYTES)
    sizes = [f"{printable(n)} {g / GIB:+.2f} GiB" for n, g in held]
    return [*lines, f"its fullest stage: {', '.join(sizes)}"] if sizes else lines


def _gaps(
    ours: Mapping[str, float], theirs: Mapping[str, float], least: float
) -> list[tuple[str, float]]:
    """Return the differences that are worth telling, largest first."""
    names = list(dict.fromkeys((*ours, *theirs)))
    gaps = {n: theirs.get(n, 0.0) - ours.get(n, 0.0) for n in names}
    told = [(n, g) for n, g in gaps.items() if abs(g) >= least]
    return sorted(told, key=lambda item: (-abs(item[1]), item[0]))


def _fullest(estimate: Estimate) -> dict[str, float]:
    stage = max(estimate.memory.stages, key=lambda s: s.total)
    return {name: getattr(stage, name) for name in PARTS}

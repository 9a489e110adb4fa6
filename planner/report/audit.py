"""The report of an import: what the files say, how it compares with the best, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from planner.report.explain import headline, mended, section, verdict
from planner.report.memory import memory_report
from planner.report.mends import mends_table
from planner.report.parts import indented, notes, title
from planner.report.tables import time_report
from planner.report.text import printable
from planner.units import count, seconds

if TYPE_CHECKING:
    from planner.explanation import Audit, Explanation, Switch
    from planner.plan import Layout

NOTICED = 0.0005
"""Share of step time that rounds to 0.1 %."""
NAMES_SHOWN = 200
"""Settings that are named; a job of hundreds is rather a hostile file than a job."""
TOLD = ("tp", "pp", "dp", "zero", "micro_batch")
PLAIN = ("1", "0", "none", "all-reduce")
"""Values of a layout that are told only of the fields in `TOLD`."""


def job_report(found: Mapping[str, Any]) -> RenderableType:
    """Return whose job it is, its layout and its work, and what was assumed or left aside."""
    on = f" on {found['gpus']:,} GPUs" if found["gpus"] else ""
    model, work = found["model"], found["workload"]
    head = f"{found['framework']} job{on}" + (f", {_model(found)}" if model else "")
    given = ", ".join(f"{n}={v}" for n, v in found["given"].items() if _tells(n, v))
    parts: list[RenderableType] = [title(head), indented(given), indented(_work(work))]
    parts += section("Assumed", found["assumed"])
    idle = set(found["without_effect"])
    others = [name for name in found["ignored"] if name not in idle]
    for heading, names in (
        ("Settings left aside: what they change is not told here", others),
        ("Settings that change neither layout nor memory nor speed", sorted(idle)),
    ):
        if names:
            more = len(names) - NAMES_SHOWN
            tail = f", and {more:,} more (--json has them all)" if more > 0 else ""
            parts += section(heading, [", ".join(names[:NAMES_SHOWN]) + tail])
    return Group(*parts)


def _model(found: Mapping[str, Any]) -> str:
    """Return the model's name and its parameters."""
    return f"{found['model']['name']} ({count(found['parameters'])} parameters)"


def _tells(name: str, value: str) -> bool:
    return name in TOLD or value not in PLAIN or (name, value) == ("sp", "1")


def _work(work: Mapping[str, Any]) -> str:
    batch, seq = work["global_batch"], work["seq_tokens"]
    sequences = f"{batch:,} sequences" if batch else "sequences (how many, no file says)"
    tokens = f"{seq:,} tokens" if seq else "a length that no file says"
    return (
        f"{sequences} of {tokens} a step, {work['precision']}, {work['optimizer']}, stack "
        + str(work["stack"])
    )


def audit_report(found: Audit) -> RenderableType:
    """Return the layout's verdict, its time against the best, what differs and what to change."""
    answer = found.explanation
    parts: list[RenderableType] = [Text(), verdict(answer)]
    taken = [f"{field}={value}" for field, value in answer.assumed.items()]
    parts += section(
        "No file says, so the best legal value was taken", [", ".join(taken)][: len(taken)]
    )
    parts += mended(answer)
    if answer.estimate:
        parts += [Text(), title(printable(_sentence(answer)))]
        parts += [indented(line) for line in _because(answer)]
        parts += [Text(), headline(answer.estimate)]
        parts += [Text(), time_report(answer.estimate)]
        parts += [Text(), memory_report(answer.estimate.memory)]
    if found.better:
        parts += [Text(), title("What one change would gain"), mends_table(found.better)]
    parts += section("Beside the layout", [_switched(one) for one in found.switches])
    return Group(*parts, *notes(answer.notes))


def _switched(switch: Switch) -> str:
    """Return what turning one setting on would gain."""
    step = f"({seconds(switch.step_time_s)} a step)"
    gain = f"{-switch.slower:.1%}" if switch.slower <= -NOTICED else f"under {NOTICED:.2%}"
    costs = f"costs {switch.slower:.1%} {step}" if switch.slower >= NOTICED else ""
    return f"{switch.setting} on: {switch.advice}; {costs or f'gains {gain} {step}'}"


def _sentence(answer: Explanation) -> str:
    """Return how the layout compares with the best, in a sentence."""
    if answer.estimate is None:
        return ""
    mine = f"Your current layout takes {seconds(answer.estimate.step_time_s)} a step"
    if (against := answer.against) is None:
        return mine
    theirs = f"{against.best.short()}, {seconds(against.best_step_time_s)}"
    if against.place is None:
        return f"{mine} if it fitted; the best that fits is {theirs}"
    if against.slower <= 1e-9:
        return f"{mine}: no layout of these GPUs is faster"
    return f"{mine}, {against.slower:.1%} slower than the best that fits ({theirs}), because"


def _because(answer: Explanation) -> Iterable[str]:
    """Yield what is done in other time, and the fields that make it so."""
    against = answer.against
    if against is None or answer.estimate is None or against.place is None or against.slower <= 0:
        return
    mine = answer.estimate.time_s
    for name, more in sorted(against.time_s.items(), key=lambda item: -abs(item[1])):
        if abs(more) > 0.002 * against.best_step_time_s:
            sign = "more" if more > 0 else "less"
            yield f"{name}: {seconds(abs(more))} {sign} ({seconds(mine.get(name, 0.0))})"
    if answer.layout and (changes := _changes(answer.layout, against.best)):
        yield f"the best differs in {changes}"


def _changes(mine: Layout, best: Layout) -> str:
    told = []
    for name in type(mine).model_fields:
        old, new = getattr(mine, name), getattr(best, name)
        if old != new and name != "num_microbatches":
            told.append(f"{name} {str(old).lower()} -> {str(new).lower()}")
    return ", ".join(told)

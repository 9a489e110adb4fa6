"""Every schedule by name: a new one is one file and one line here."""

from __future__ import annotations

from planner.errors import SpecError, did_you_mean
from planner.pipeline import (
    dualpipe,
    dualpipev,
    gpipe,
    interleaved,
    looped_bfs,
    one_f_one_b,
    zbv,
    zero_bubble,
)
from planner.pipeline.schedule import Schedule

SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        gpipe.SCHEDULE,
        one_f_one_b.SCHEDULE,
        interleaved.SCHEDULE,
        looped_bfs.SCHEDULE,
        zero_bubble.FLAT,
        zero_bubble.INTERLEAVED,
        zbv.SCHEDULE,
        dualpipev.SCHEDULE,
        dualpipe.SCHEDULE,
    )
}


def schedule_named(name: str) -> Schedule:
    """Return the schedule called `name`; raises SpecError with the known names otherwise."""
    if name not in SCHEDULES:
        raise SpecError(
            f"schedule: {name!r} is not known; allowed: {', '.join(SCHEDULES)}",
            hint=did_you_mean(name, SCHEDULES),
        )
    return SCHEDULES[name]

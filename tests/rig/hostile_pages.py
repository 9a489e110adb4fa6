"""Rows of a sweep, and pages of plans and sweeps whose every free text is an attack."""

from __future__ import annotations

from typing import Any

from planner.plan import Plan
from planner.report.page import Command, plan_page, sweep_page

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x1b[31m%{y}\u2028"


def row(point: int, gpus: int, **more: object) -> dict[str, Any]:
    """Return a row of a sweep; twice the GPUs are 1.8 times as fast."""
    speed = 1e5 * (gpus / 8) ** 0.85
    base = dict(point=point, id=f"{point:016x}", model="m", cluster="c", nodes=gpus // 8, gpus=gpus)
    base |= {"seq_tokens": 2048, "global_batch": 64, "fix": "", "status": "ok", "reason": ""}
    base |= {"layout": "tp=8,pp=1", "step_time_s": 1e6 / speed, "tokens_per_s": speed}
    base |= {"tokens_per_s_per_gpu": speed / gpus, "mfu": 0.4, "memory_peak_bytes": 5e10}
    base |= {"splits": 0, "time_s.compute": 0.8e6 / speed, "time_s.tp": 0.2e6 / speed}
    return base | more


ROWS = [
    row(number, gpus, **{"cluster.fabric.leaf_oversubscription": over})
    for number, (gpus, over) in enumerate((g, o) for g in (8, 16, 64) for o in (1, 4))
]


def hostile_of(plan: Plan) -> Plan:
    """Return a plan whose every free text is an attack."""
    data = plan.model_dump(mode="python", by_alias=True)
    data["request"]["model"]["name"] = data["request"]["model"]["source"] = HOSTILE
    data["request"]["cluster"]["name"] = HOSTILE
    data["request"]["cluster"]["accelerator"]["name"] = HOSTILE
    data["request"]["workload"]["stack"] = HOSTILE
    data["search"]["rejected"] = {HOSTILE: 3}
    data["notes"] = data["placement"]["notes"] = [HOSTILE]
    data["plans"][1]["note"] = HOSTILE
    for plan_ in data["plans"]:
        plan_["estimate"]["time_s"][HOSTILE] = 0.1
    for place in data["placement"]["ranks"]:
        place["host"] = place["leaf"] = HOSTILE
    return Plan.model_validate(data)


def pages(plan: Plan) -> dict[str, str]:
    half = f"{HOSTILE}\ud800"  # of a pair: JSON can write it, UTF-8 cannot
    bad = row(9, 8, status=half, reason=HOSTILE, hint=HOSTILE, step_time_s=None)
    odd = row(10, 8, model=HOSTILE, layout=half, fix=half, **{f"cluster.{HOSTILE}": HOSTILE})
    odd |= {f"time_s.{HOSTILE}": 1.0}
    return {
        "plan": plan_page(plan, [Command(HOSTILE, HOSTILE, HOSTILE)], tie=0.03),
        "sweep": sweep_page([*ROWS, bad, odd], HOSTILE, []),
    }

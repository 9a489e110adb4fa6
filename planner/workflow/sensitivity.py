"""What each hardware figure does to the winner: the plan again, with the figure halved and doubled.

Every layout is scored anew each time: a faster network may make another layout the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import log
from typing import Any, NamedTuple

from planner.estimate.inputs import Inputs
from planner.estimate.memory import fits, peak_bytes
from planner.estimate.running import Judged, judge
from planner.layouts.table import Layouts
from planner.objectives import Job
from planner.place import contended
from planner.plan import Sensitivity, WhatIf
from planner.rank import rank
from planner.specs.changing import changed
from planner.specs.cluster import ClusterSpec
from planner.workflow.choosing import aimed
from planner.workflow.on_fabric import on_fabric
from planner.workflow.request import PlanRequest, Progress
from planner.workflow.rows import layout_record
from planner.workflow.spots import placed_layout

FACTORS = (0.5, 2.0)


class Figure(NamedTuple):
    """A hardware figure: the dotted paths of a cluster that hold it."""

    name: str
    about: str
    paths: tuple[str, ...]


FIGURES = (
    Figure("matmul_peak", "matmul peak", ("accelerator.peak_tflops",)),
    Figure("hbm_bandwidth", "HBM bandwidth", ("accelerator.hbm_gb_per_s",)),
    Figure(
        "hbm_size",
        "HBM size",
        ("accelerator.memory_gib", "accelerator.usable_memory_gib"),
    ),
    Figure(
        "scale_up_bandwidth",
        "NVLink bandwidth",
        ("scale_up.gb_per_s", "scale_up.collectives.gb_per_s"),
    ),
    Figure("nic_bandwidth", "NIC bandwidth", ("node.nic_gbit_per_s",)),
    Figure(
        "latency",
        "link latency",
        (
            "fabric.latency_us",
            "fabric.step_latency_us",
            "scale_up.latency_us",
            "scale_up.collectives.alpha_us",
        ),
    ),
)


def sensitivity(
    request: PlanRequest, layouts: Layouts, gpus: int, progress: Progress
) -> list[Sensitivity]:
    """Return what halving and doubling each hardware figure does to a plan.

    `layouts` is the winner, one row; `request` is of its own job.
    """
    found = []
    now_s = _on_its_links_s(request, layouts, judge(request.context, layouts)[0])
    for figure in FIGURES:
        if figure.name == "nic_bandwidth" and request.cluster.nodes == 1:
            continue
        progress(f"what if: {figure.about}")
        cases = [_case(request, layouts, gpus, figure, factor) for factor in FACTORS]
        found.append(
            Sensitivity(
                figure=figure.name,
                about=figure.about,
                elasticity=_elasticity(cases, now_s),
                why_none=_why_none(cases),
                cases=cases,
            )
        )
    return found


def _elasticity(cases: list[WhatIf], now_s: float) -> float | None:
    """Return the slope between the outer factors in logarithms, None where neither fits.

    Where one of them does not fit, the slope between the other and the figure as it is.
    """
    fitting = {c.factor: c.first_step_time_s for c in cases if c.first_fits and c.first_step_time_s}
    if not fitting:
        return None
    if len(fitting) == 1:
        fitting[1.0] = now_s
    low, high = min(fitting), max(fitting)
    return log(fitting[high] / fitting[low]) / log(high / low)


def _why_none(cases: list[WhatIf]) -> str:
    """Return at which factors the layout does not fit, so that no slope reaches there."""
    return ", ".join(f"does not fit at x {c.factor:g}" for c in cases if not c.first_fits)


def _case(
    request: PlanRequest, layouts: Layouts, gpus: int, figure: Figure, factor: float
) -> WhatIf:
    changes = dict(scaled(request.cluster, figure, factor))
    other = replace(request, cluster=changed(request.cluster, changes, "cluster"))
    judged = judge(other.context, layouts)[0]
    told = WhatIf(
        factor=factor,
        changes={path: value for path, value in changes.items() if not isinstance(value, list)},
        first_fits=_fits(other, layouts, judged),
        first_step_time_s=_on_its_links_s(other, layouts, judged),
    )
    ranking, _ = on_fabric(other, rank(other.context, gpus, request.choices), 1)
    best = aimed(ranking, request.aim, Job(gpus, request.workload.tokens))
    if not len(best.layouts):
        return told
    first = layout_record(best.layouts, 0)
    return told.model_copy(
        update={
            "layout": first,
            "step_time_s": float(best.step_s[0]),
            "same_layout": first == layout_record(layouts, 0),
        }
    )


def _on_its_links_s(request: PlanRequest, layouts: Layouts, judged: Judged) -> float:
    """Return what the layout takes where it would be placed: narrow uplinks slow it down."""
    if not contended(request.cluster):
        return judged.step_s
    return placed_layout(request, layout_record(layouts, 0)).step_time_s or judged.step_s


def _fits(request: PlanRequest, layouts: Layouts, judged: Judged) -> bool:
    x = Inputs(*request.context, layouts)
    peak = peak_bytes(x)
    if judged.peak_bytes is not None:
        peak[0] = judged.peak_bytes
    return bool(fits(x, peak)[0])


def scaled(cluster: ClusterSpec, figure: Figure, factor: float) -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, new value) of every field that a figure stands in."""
    data = cluster.model_dump(mode="json")
    for path in figure.paths:
        root, _, rest = path.partition(".")
        if rest.startswith("collectives."):
            inner = rest.removeprefix("collectives.")
            rows = data[root]["collectives"]
            yield f"{root}.collectives", [{**r, inner: r[inner] * factor} for r in rows]
            continue
        value = data[root][rest]
        yield path, _times(value, factor)


def _times(value: float | Mapping[str, float], factor: float) -> float | dict[str, float]:
    if isinstance(value, Mapping):
        return {name: amount * factor for name, amount in value.items()}
    return value * factor

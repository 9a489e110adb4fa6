"""Kernels of a real step: what rate its multiplies and its attention sustained.

Of all that a profile shows, the rates of kernels whose shapes were recorded are fitted: they are
numbers of the stack. Collectives in a trace include waiting for other ranks, so they are shown and
not fitted.

A profile of a moment is a benchmark on a cool card: it is compared with what kernels take in one,
without the accelerator's `derate`, and all of its kernels share the clocks of that moment, so that
a thousand of them are no more evidence than one table of multiplies. Its rate counts by what it is
worth beside what was known; only a profile of many seconds says what is sustained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from planner.calibrate.figure import TELLING, Found, Prediction, Quality, figures_of
from planner.calibrate.fitted import worth
from planner.calibrate.kernels import Activity, Kernel, class_of
from planner.calibrate.peaks import most_factor, told_impossible
from planner.calibrate.probe import probe
from planner.calibrate.solve import FloatArray, Number, Solution, solve
from planner.calibrate.stacks import WIDTHS
from planner.estimate.compute import attention_core_forward_s
from planner.estimate.kernels import gemm_s
from planner.specs.cluster import ClusterSpec
from planner.specs.figures import StackFigures
from planner.specs.stack import stack_named, stack_with

FEWEST = 3
"""Distinct shapes below which a rate is not fitted."""
SHOWN = 3
HOT_S, HOT_BUSY = 10.0, 0.5
"""Length of a profile, and the share of it that the GPU works, from which its clocks are those of
long training."""
COOL_ERROR, HOT_ERROR = 0.15, 0.03
"""Relative error that all kernels of a profile share: the clocks of a moment (a step of an H100 at
8 % load, tests/measured/calibrate, runs 1.18 x as fast as another H100's own table of multiplies),
or those of long training."""
LEAST_GAIN = 0.002
"""By how much a profile must bring the median error down to change a figure: where the rate is
bounded by the best kernel's, any number fits as well as another."""
SHAPE_ERROR = 0.15
"""Relative error of a kernel's formula from shape to shape: one shape says little of the next."""
TYPES = {"c10::BFloat16": "bf16", "c10::Half": "fp16"}
MULTIPLIES = ("aten::mm", "aten::addmm")
FORWARDS = {
    "aten::_cudnn_attention_forward": (0, 1, 2, 3),
    "aten::_scaled_dot_product_cudnn_attention": (0, 1, 2, 3),
    "aten::_scaled_dot_product_flash_attention": (0, 1, 2, 3),
    "aten::_flash_attention_forward": (0, 2, 1, 3),
}
"""Operator -> where batch, heads, sequence and head width stand in a query's shape."""


class Shape(NamedTuple):
    """A kernel's sizes: (m, n, k), or (batch, heads, key heads, sequence, width) of attention."""

    precision: str
    sizes: tuple[int, ...]


def fit_profiles(
    cluster: ClusterSpec,
    profiles: Sequence[Activity],
    stack: str,
    *,
    shipped: ClusterSpec | None = None,
) -> tuple[Found, ClusterSpec]:
    """Return what profiles say of a stack's kernels, and the cluster with it put in.

    `shipped` is the cluster before any calibration, which "before" stands for.
    """
    shipped = shipped or cluster
    found = Found(facts=[activity.words() for activity in profiles])
    names = (kernel.name for activity in profiles for kernel in activity.kernels)
    if stack_named(stack).attention_kernel != "te" and any("cudnn" in n for n in names):
        found.warnings.append(
            f"{profiles[0].file}: attention runs in cuDNN kernels; {stack} has others: "
            f"--stack {stack}+cudnn"
        )
    cool = not any(_hot(activity) for activity in profiles)
    if found.facts and cool:
        found.facts.append(
            "kernels of a moment run at the clocks of a cool card, so they are compared with "
            "those of a benchmark and count for part of the evidence: measured steps (--steps) "
            "outrank a profile"
        )
    for name, shape_of, predict in (
        ("gemm", _multiply, _multiply_s),
        ("attention", _attention, _attention_s),
    ):
        times: dict[Shape, list[float]] = defaultdict(list)
        for activity in profiles:
            for kernel in activity.kernels:
                if (shape := shape_of(kernel)) is not None:
                    times[shape].append(kernel.seconds)
        fewest = FEWEST if name == "gemm" else 1
        if len(times) >= fewest:
            medians = {shape: float(np.median(v)) for shape, v in sorted(times.items())}
            shapes = _Shapes(profiles[0].file, stack, name, medians, predict, cool=cool)
            cluster = _fit(cluster, shapes, found, shipped=shipped)
        elif name == "gemm":
            found.facts.append(
                f"{profiles[0].file}: {len(times)} shapes of multiplies where {fewest} are needed; "
                "record with record_shapes=True to have rates fitted"
            )
    return found, cluster


def _hot(activity: Activity) -> bool:
    return activity.window_s >= HOT_S and activity.busy_s >= HOT_BUSY * activity.window_s


@dataclass(frozen=True)
class _Shapes:
    """Kernels of one kind: how long each shape took in the median, and what predicts it."""

    file: str
    stack: str
    name: str
    """The number of the stack that they tell: `gemm` or `attention`."""
    medians: Mapping[Shape, float]
    predict: Callable[[ClusterSpec, str, Shape], float]
    cool: bool

    @property
    def measured(self) -> FloatArray:
        """Return the seconds of each shape."""
        return np.array(list(self.medians.values()))

    @property
    def what(self) -> str:
        """Return how the kernels are called."""
        return "multiplies" if self.name == "gemm" else "attention"

    def predicted(self, cluster: ClusterSpec) -> FloatArray:
        """Return the seconds that a cluster's numbers say, as cool as the profile was."""
        at = _cool(cluster) if self.cool else cluster
        return np.array([self.predict(at, self.stack, shape) for shape in self.medians])


def _cool(cluster: ClusterSpec) -> ClusterSpec:
    """Return the cluster with its GPUs as fast as in a benchmark."""
    gpu = cluster.accelerator
    gemm = gpu.gemm.model_copy(update={"derate": 1.0})
    return cluster.model_copy(update={"accelerator": gpu.model_copy(update={"gemm": gemm})})


def _fit(
    cluster: ClusterSpec, shapes: _Shapes, found: Found, *, shipped: ClusterSpec
) -> ClusterSpec:
    profile, name = shapes.stack.split("+", maxsplit=1)[0], shapes.name
    known = cluster.figures_of(shapes.stack) or StackFigures.model_validate({})
    now = float(getattr(stack_with(shapes.stack, known.numbers), name))

    def changed(value: float) -> ClusterSpec:
        figures = known.model_copy(update={name: value})
        return cluster.model_copy(update={"stacks": {**cluster.stacks, profile: figures}})

    def predicted(values: FloatArray) -> FloatArray:
        return shapes.predicted(changed(float(values[0])))

    shapes = _possible(cluster, shapes, found)
    if not shapes.medians:
        return cluster
    measured, group = shapes.measured, f"{shapes.what} of {profile} in a profile"
    if np.array_equal(predicted(np.array([0.9 * now])), predicted(np.array([now]))):
        off = float(np.median(shapes.predicted(cluster) / measured)) - 1
        found.facts.append(
            f"{group}: told {off:+.0%} off; a flag of {shapes.stack} sets its rate, which no "
            "figure of a cluster changes"
        )
        return cluster
    high = max(now, most_factor(cluster, name, derated=not shapes.cool))
    alone = solve(predicted, measured, [Number(name, now, 3 * WIDTHS[name], high=high)])
    share = _evidence(name, shapes)
    solution = _weighed(alone, name, now, share)
    error = np.log(predicted(solution.values) / measured)
    solution = replace(solution, error=error, unseen=error)
    quality = Quality.of(solution, measured)
    if not worth(found, group, quality, shapes.file, least_gain=LEAST_GAIN, weighed=True):
        return cluster
    solution = replace(solution, before=np.log(shapes.predicted(shipped) / measured))
    quality = Quality.of(solution, measured)
    figures = figures_of(group, solution, quality, [(("stacks", profile, name), "", now)])
    found.figures += figures
    if not figures:
        return cluster
    found.facts.append(_said(shapes, group, float(alone.values[0]), figures[0].after, share))
    found.predictions += _shown(shapes, shipped, changed(figures[0].after))
    return changed(figures[0].after)


def _possible(cluster: ClusterSpec, shapes: _Shapes, found: Found) -> _Shapes:
    """Return the shapes that the GPU can have computed in that time; say so of the others."""
    if shapes.name != "gemm" or not shapes.medians:
        return shapes
    flops = np.array([2.0 * float(np.prod(shape.sizes)) for shape in shapes.medians])
    precision = next(iter(shapes.medians)).precision
    what = "shapes of multiplies"
    above, told = told_impossible(what, cluster.accelerator, precision, flops, shapes.measured)
    if told:
        found.warnings.append(f"{shapes.file}: {told}")
    left = {s: t for (s, t), no in zip(shapes.medians.items(), above, strict=True) if not no}
    return replace(shapes, medians=left)


def _evidence(name: str, shapes: _Shapes) -> float:
    """Return how much of what a profile says is taken: its weight beside what was known."""
    shared = COOL_ERROR if shapes.cool else HOT_ERROR
    error = shared**2 + SHAPE_ERROR**2 / len(shapes.medians)
    return float(WIDTHS[name] ** 2 / (WIDTHS[name] ** 2 + error))


def _weighed(alone: Solution, name: str, now: float, share: float) -> Solution:
    """Return the solution moved from what ships by its share of the evidence only."""
    value = now * np.exp(share * np.log(alone.values / now))
    spread = np.full(1, WIDTHS[name] * np.sqrt(1.0 - share))
    return replace(alone, values=value, spread=np.maximum(spread, share * alone.spread))


def _said(shapes: _Shapes, group: str, alone: float, after: float, share: float) -> str:
    count = len(shapes.medians)
    few = (
        f": {count} shape{'s' if count > 1 else ''}, not enough to tell" if count < TELLING else ""
    )
    return (
        f"{group}{few}; alone they would say {shapes.name} {alone:.3g}; beside what was known "
        f"they count for {share:.0%}: {after:.3g}"
    )


def _shown(shapes: _Shapes, before: ClusterSpec, after: ClusterSpec) -> list[Prediction]:
    """Return the predictions of the kernels that take longest."""
    told = (shapes.predicted(before), shapes.predicted(after))
    kind = "multiply" if shapes.name == "gemm" else "attention"
    out = []
    for i in np.argsort(-shapes.measured, kind="stable")[:SHOWN].tolist():
        sizes = " x ".join(map(str, list(shapes.medians)[i].sizes))
        seconds = float(shapes.measured[i])
        pair = (float(told[0][i]), float(told[1][i]))
        out.append(Prediction(f"{kind} {sizes}", "kernel", *pair, seconds))
    return out


def _multiply(kernel: Kernel) -> Shape | None:
    """Return (m, n, k) of a 16-bit multiply."""
    precision = TYPES.get(kernel.dtype)
    if kernel.op not in MULTIPLIES or precision is None or class_of(kernel.name) != "multiplies":
        return None
    first = 0 if kernel.op == "aten::mm" else 1  # addmm has the bias before them
    left, right = (*kernel.dims[first : first + 2], (), ())[:2]
    if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
        return None
    return Shape(precision, (left[0], right[1], left[1]))


def _multiply_s(cluster: ClusterSpec, stack: str, shape: Shape) -> float:
    x = probe(cluster, precision=shape.precision, stack=stack)
    m, n, k = (np.array([float(size)]) for size in shape.sizes)
    return float(gemm_s(x, m, n, k)[0])


def _attention(kernel: Kernel) -> Shape | None:
    """Return the sizes of a causal forward pass of fused attention."""
    order = FORWARDS.get(kernel.op)
    precision = TYPES.get(kernel.dtype)
    if not order or precision is None or class_of(kernel.name) != "attention" or not kernel.causal:
        return None
    if len(kernel.dims) < 2 or len(kernel.dims[0]) != 4 or len(kernel.dims[1]) != 4:
        return None
    batch, heads, tokens, width = (kernel.dims[0][i] for i in order)
    keys, seen = (kernel.dims[1][order[i]] for i in (1, 2))
    if seen != tokens or heads % keys or max(batch, heads, tokens, width) > 10_000_000:
        return None
    return Shape(precision, (batch, heads, keys, tokens, width))


def _attention_s(cluster: ClusterSpec, stack: str, shape: Shape) -> float:
    batch, heads, keys, tokens, width = shape.sizes
    x = probe(
        cluster,
        precision=shape.precision,
        stack=stack,
        heads=heads,
        kv_heads=keys,
        head_dim=width,
        seq_tokens=tokens,
        micro_batch=batch,
    )
    return float(attention_core_forward_s(x)[0])

"""Kernels of a real step: what rate its multiplies and its attention sustained.

Of all that a profile shows, the rates of kernels whose shapes were recorded are fitted: they are
numbers of the stack, measured while it trained. Collectives in a trace include waiting for other
ranks, so they are shown and not fitted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from planner.calibrate.figure import Found, Prediction, Quality, figures_of
from planner.calibrate.kernels import Activity, Kernel, class_of
from planner.calibrate.links import worth
from planner.calibrate.probe import probe
from planner.calibrate.solve import FloatArray, Number, solve
from planner.calibrate.stacks import WIDTHS
from planner.estimate.compute import attention_core_forward_s
from planner.estimate.kernels import gemm_s
from planner.specs.cluster import ClusterSpec
from planner.specs.figures import StackFigures
from planner.specs.stack import stack_named, stack_with

FEWEST = 3
"""Distinct shapes below which a rate is not fitted."""
SHOWN = 3
HOT_S = 10.0
"""Length of a profile from which its clocks are those of long training."""
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
    cluster: ClusterSpec, profiles: Sequence[Activity], stack: str
) -> tuple[Found, ClusterSpec]:
    """Return what profiles say of a stack's kernels, and the cluster with it put in."""
    found = Found(facts=[activity.words() for activity in profiles])
    names = (kernel.name for activity in profiles for kernel in activity.kernels)
    if stack_named(stack).attention_kernel != "te" and any("cudnn" in n for n in names):
        found.warnings.append(
            f"{profiles[0].file}: attention runs in cuDNN kernels; {stack} has others: "
            f"--stack {stack}+cudnn"
        )
    if found.facts and max(activity.window_s for activity in profiles) < HOT_S:
        found.facts.append(
            "kernels of a moment run at the clocks of a cool card; a rate held for hours is lower: "
            "measured steps (--steps) outrank a profile"
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
            file = profiles[0].file
            cluster = _fit(cluster, stack, name, medians, predict, file=file, found=found)
        elif name == "gemm":
            found.facts.append(
                f"{profiles[0].file}: {len(times)} shapes of multiplies where {fewest} are needed; "
                "record with record_shapes=True to have rates fitted"
            )
    return found, cluster


def _fit(
    cluster: ClusterSpec,
    stack: str,
    name: str,
    medians: Mapping[Shape, float],
    predict: Callable[[ClusterSpec, str, Shape], float],
    *,
    file: str,
    found: Found,
) -> ClusterSpec:
    profile = stack.split("+", maxsplit=1)[0]
    known = cluster.figures_of(stack) or StackFigures.model_validate({})
    now = float(getattr(stack_with(stack, known.numbers), name))
    measured = np.array(list(medians.values()))

    def changed(value: float) -> ClusterSpec:
        figures = known.model_copy(update={name: value})
        return cluster.model_copy(update={"stacks": {**cluster.stacks, profile: figures}})

    def predicted(values: FloatArray) -> FloatArray:
        at = changed(float(values[0]))
        return np.array([predict(at, stack, shape) for shape in medians])

    solution = solve(predicted, measured, [Number(name, now, 3 * WIDTHS[name])])
    quality = Quality.of(solution, measured)
    group = f"{'multiplies' if name == 'gemm' else 'attention'} of {profile} in a profile"
    if not worth(found, group, quality, file):
        return cluster
    places = [(("stacks", profile, name), "", now)]
    figures = figures_of(group, solution, quality, places)
    found.figures += figures
    if not figures:
        return cluster
    before, after = predicted(np.array([now])), predicted(np.array([figures[0].after]))
    for i in np.argsort(-measured, kind="stable")[:SHOWN].tolist():
        sizes = " x ".join(map(str, list(medians)[i].sizes))
        what = f"{'multiply' if name == 'gemm' else 'attention'} {sizes}"
        seconds = float(measured[i])
        found.predictions.append(
            Prediction(what, "kernel", float(before[i]), float(after[i]), seconds)
        )
    return changed(figures[0].after)


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

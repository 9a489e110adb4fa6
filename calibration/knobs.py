"""The numbers that are fitted: where each lives in the planner, and how far it may go.

Every number is fitted as the logarithm of a factor on what it is now. Three kinds: fields of stack
profiles, each drawn towards the stack's lineage; constants of formulas; figures of accelerators.
Priors are the widths that two studies before this one gave (docs/model.md, Calibration).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planner.layouts.rules import Context
from planner.specs.accelerator import Accelerator, GemmFit
from planner.specs.profile import Stack
from planner.specs.profiles import STACKS
from planner.specs.stack import FLAGS, stack_named

LINEAGES: dict[str, tuple[str, ...]] = {
    "te": (
        "megatron",
        "megatron-bridge",
        "megatron-plain",
        "megatron-swift",
        "megatron-ci",
        "mlperf",
        "nemo-2023",
    ),
    "mlm": (
        "megatron-2021",
        "megatron-deepspeed",
        "megatron-deepspeed-2022",
        "megatron-deepspeed-2021",
    ),
    "fsdp": ("deepspeed", "torchtitan", "llm-foundry", "fsdp1"),
    "nano": ("nanotron", "internevo"),
    "xla": ("jax",),
}
LINEAGE_OF = {stack: lineage for lineage, stacks in LINEAGES.items() for stack in stacks}

# field -> (how far a lineage goes from what it is, how far a stack goes from its lineage); 0: the
# stack's own number moves with its lineage only. Natural logarithms.
FIELDS: dict[str, tuple[float, float]] = {
    "gemm": (0.06, 0.10),
    "memory_traffic": (0.20, 0.25),
    "attention": (0.15, 0.10),
    "host_s": (0.30, 0.30),
    "host_tp": (0.15, 0.0),
    "host_wait": (0.50, 0.0),
    "kernel_s": (0.50, 0.0),
    "host_moe_s": (0.25, 0.0),
    "tp_exposed": (0.25, 0.35),
    "tp_wait_s": (0.50, 0.50),
    "dp_exposed": (0.25, 0.35),
    "p2p_exposed": (0.30, 0.0),
    "step_s": (0.30, 0.80),
    "microbatch_s": (0.50, 0.0),
    "accumulate": (0.40, 0.0),
    "optimizer": (0.30, 0.0),
    "fsdp_contention": (0.30, 0.0),
    "overlap": (0.25, 0.0),
    "moe_traffic": (0.40, 0.0),
}


# (lineage, field) -> where its stacks are drawn to instead of their mean. What FSDP stacks have
# once a step is no trait of theirs: runs of seconds (DeepSpeed, Lightning on V100) hide other
# errors in it, and short ones (llm-foundry) say a few hundredths.
CENTRES: dict[tuple[str, str], float] = {("fsdp", "step_s"): 0.06}


@dataclass(frozen=True)
class Constant:
    """A module-level number of the planner, under one name in every module that uses it."""

    name: str
    modules: tuple[str, ...]
    width: float
    flags: tuple[tuple[str, str], ...] = ()
    """(flag, field) pairs of `planner.specs.stack.FLAGS` that hold it."""


CONSTANTS: tuple[Constant, ...] = (
    Constant("MISALIGNED_BY_8", ("estimate.kernels",), 0.10),
    Constant("MISALIGNED", ("estimate.kernels",), 0.20),
    Constant("ATTENTION_HALF_TOKENS", ("estimate.kernels", "estimate.compute"), 0.25),
    Constant("ATTENTION_BACKWARD_RATE", ("estimate.kernels", "estimate.compute"), 0.08),
    Constant("NARROW_HEADS", ("estimate.kernels",), 0.50),
    Constant("UNFUSED_TRAFFIC", ("estimate.kernels",), 0.20),
    Constant("GROUPED_RATE", ("estimate.compute",), 0.10),
    Constant("ROUTER_RATE", ("estimate.compute",), 0.30),
    Constant("EXPERT_ACTIVATION_BYTES", ("estimate.compute",), 0.30),
    Constant("BIASED_EXPERTS", ("estimate.compute",), 0.30),
    Constant("FP8_CAST", ("estimate.compute",), 0.30),
    Constant("TP_BACKWARD", ("estimate.communication",), 0.15),
    Constant("HOST_FORWARD", ("estimate.layer",), 0.10),
    Constant("GRACE_HOST", ("estimate.layer",), 0.15),
    Constant("PARTLY_GRAPHED", ("estimate.layer",), 0.20),
    Constant("ASYNC_TP", ("specs.stack",), 0.30, (("async-tp", "tp_exposed"),)),
    Constant("CUDNN_ATTENTION", ("specs.stack",), 0.10, (("cudnn", "attention"),)),
    Constant("EAGER", ("specs.stack",), 0.30, (("eager", "fusion"),)),
    Constant("ROWWISE_RATE", ("specs.stack",), 0.15, (("fp8-rowwise", "fp8_rate"),)),
    Constant("ROWWISE_CAST", ("specs.stack",), 0.40, (("fp8-rowwise", "fp8_cast"),)),
    Constant("CURRENT_CAST", ("specs.stack",), 0.15, (("fp8-current", "fp8_cast"),)),
    Constant("MXFP8_CAST", ("specs.stack",), 0.15, (("mxfp8", "fp8_cast"),)),
    Constant("NVFP4_CAST", ("specs.stack",), 0.15, (("nvfp4", "fp8_cast"),)),
    Constant("NVFP4_RATE", ("specs.stack",), 0.15, (("nvfp4", "fp4_rate"),)),
    Constant("FUSED_MOE", ("specs.stack",), 0.15, (("fused-moe", "moe_traffic"),)),
    Constant("EP_OVERLAP", ("specs.stack",), 0.40, (("ep-overlap", "ep_exposed"),)),
    Constant("DP_FLOOR", ("estimate.step",), 0.40),
)

# group of accelerators -> names by prefix
DEVICES: dict[str, tuple[str, ...]] = {
    "A100": ("a100", "a800"),
    "H100": ("h100-sxm-80gb", "h200", "h800", "h100-nvl", "h100-pcie", "gh200"),
    "H100-500W": ("h100-sxm-96gb",),
    "H20": ("h20-",),
    "B200": ("b200", "gb200"),
    "B300": ("b300", "gb300"),
    "V100": ("v100",),
    "MI300X": ("mi3",),
}
DEVICE_WIDTHS = {"H20": 3.0, "H100-500W": 1.5}
"""Factor on the widths where a device is known by little else than these runs."""
MOST_FP8 = 2.24
"""FP8 multiplies over 16-bit ones at most: peaks differ by 2, and the tables' shares by a tenth."""
DEVICE_FIELDS: dict[str, float] = {"gemm": 0.06, "gemm_fp8": 0.06, "te": 0.10, "fa2": 0.10}


@dataclass(frozen=True)
class Knob:
    """One number: `kind` says which table it is from; groups of one `column` never share a run."""

    kind: str
    column: str
    group: str
    width: float


def knobs() -> list[Knob]:
    """Return every number that can be fitted, in a fixed order."""
    out = [
        Knob("lineage", field, lineage, wide)
        for field, (wide, _) in FIELDS.items()
        for lineage in LINEAGES
    ]
    out += [
        Knob("stack", field, stack, own)
        for field, (_, own) in FIELDS.items()
        for stack in LINEAGE_OF
        if own
    ]
    out += [Knob("constant", c.name, "", c.width) for c in CONSTANTS]
    return out + [
        Knob("device", field, device, width * DEVICE_WIDTHS.get(device, 1.0))
        for field, width in DEVICE_FIELDS.items()
        for device in DEVICES
    ]


def device_of(accelerator: str) -> str:
    """Return the group of an accelerator, or nothing."""
    found = [d for d, names in DEVICES.items() if accelerator.startswith(names)]
    return found[0] if found else ""


class Planner:
    """The planner with some of its numbers changed; `restore` puts the shipped ones back."""

    def __init__(self) -> None:
        """Remember the shipped numbers."""
        self._stacks = dict(STACKS)
        self._constants = {c.name: float(getattr(_module(c.modules[0]), c.name)) for c in CONSTANTS}

    def shipped(self, stack: str) -> Stack:
        """Return a profile as it ships."""
        return self._stacks[stack]

    def constant(self, name: str) -> float:
        """Return a shipped constant."""
        return self._constants[name]

    def mean_of_lineages(self, field: str) -> float:
        """Return the geometric mean over lineages of what the stacks are set to now."""
        means = [
            np.mean([np.log(getattr(STACKS[s], field)) for s in stacks])
            for stacks in LINEAGES.values()
            if all(getattr(STACKS[s], field) > 0 for s in stacks)
        ]
        return float(np.exp(np.mean(means)))

    def value(self, knob: Knob) -> float:
        """Return the shipped number behind a knob of a stack or a constant."""
        if knob.kind == "constant":
            return self._constants[knob.column]
        return float(getattr(self._stacks[knob.group], knob.column))

    def lineage_offset(self, knob: Knob) -> float:
        """Return how far a stack's shipped number is from its lineage's mean, in logarithms."""
        mine = getattr(self._stacks[knob.group], knob.column)
        return float(np.log(mine / self.lineage_mean(LINEAGE_OF[knob.group], knob.column)))

    def lineage_mean(self, lineage: str, field: str) -> float:
        """Return what a lineage's stacks are drawn to: the mean of its shipped numbers."""
        if (lineage, field) in CENTRES:
            return CENTRES[lineage, field]
        found = [getattr(self._stacks[s], field) for s in LINEAGES[lineage]]
        return float(np.exp(np.mean([np.log(v) for v in found if v > 0] or [0.0])))

    def apply(
        self, found: Sequence[Knob], theta: Sequence[float], contexts: Sequence[Context]
    ) -> list[Context]:
        """Set the numbers and return the contexts with their clusters changed."""
        by_kind: dict[str, dict[tuple[str, str], float]] = {}
        for knob, value in zip(found, theta, strict=True):
            by_kind.setdefault(knob.kind, {})[knob.column, knob.group] = float(value)
        for name, stack in self._stacks.items():
            STACKS[name] = self._stack(stack, by_kind)
        stack_named.cache_clear()
        for c in CONSTANTS:
            factor = np.exp(by_kind.get("constant", {}).get((c.name, ""), 0.0))
            for module in c.modules:
                setattr(_module(module), c.name, self._constants[c.name] * float(factor))
            for flag, field in c.flags:
                FLAGS[flag][1][field] = self._constants[c.name] * float(factor)
        return _moved(contexts, by_kind.get("device", {}))

    def restore(self) -> None:
        """Put the shipped numbers back."""
        self.apply((), (), ())

    def _stack(self, stack: Stack, by_kind: Mapping[str, Mapping[tuple[str, str], float]]) -> Stack:
        lineage = LINEAGE_OF.get(stack.name)
        if lineage is None:
            return stack
        changes: dict[str, Any] = {}
        for field in FIELDS:
            move = by_kind.get("lineage", {}).get((field, lineage), 0.0)
            move += by_kind.get("stack", {}).get((field, stack.name), 0.0)
            if move:
                changes[field] = getattr(stack, field) * float(np.exp(move))
        return replace(stack, **changes)


def _module(name: str) -> Any:
    return importlib.import_module(f"planner.{name}")


def _moved(contexts: Sequence[Context], device: Mapping[tuple[str, str], float]) -> list[Context]:
    """Return the contexts with changed accelerators; equal clusters stay shared."""
    out: list[Context] = []
    known: dict[int, Any] = {}
    for context in contexts:
        cluster = context.cluster
        key = id(cluster)
        if key not in known:
            gpu = cluster.accelerator
            group = device_of(gpu.name)
            known[key] = cluster.model_copy(update={"accelerator": accelerator(gpu, group, device)})
        out.append(context._replace(cluster=known[key]))
    return out


def accelerator(
    gpu: Accelerator, group: str, moves: Mapping[tuple[str, str], float]
) -> Accelerator:
    """Return the accelerator with its rates moved, no further than kernels go.

    Attention is no faster than the multiplies it is made of, FA2 no faster than the other class,
    and as fast on Blackwell as on Hopper; FP8 is at most as much faster as its tables say.
    """
    factor = {f: float(np.exp(moves.get((f, group), 0.0))) for f in DEVICE_FIELDS}
    if group in ("B200", "B300"):
        factor["fa2"] = float(np.exp(moves.get(("fa2", "H100"), 0.0)))
    update: dict[str, Any] = {"gemm": _faster(gpu.gemm, factor["gemm"])}
    if gpu.gemm_fp8 is not None:
        peaks = gpu.peak_flops_per_s("fp8") / gpu.peak_flops_per_s("bf16")
        sixteen = update["gemm"].emax * update["gemm"].derate
        most = MOST_FP8 * sixteen / (peaks * gpu.gemm_fp8.emax * gpu.gemm_fp8.derate)
        update["gemm_fp8"] = _faster(gpu.gemm_fp8, min(factor["gemm_fp8"], max(most, 1e-3)))
    te = min(gpu.attention.te * factor["te"], gpu.gemm.emax)
    fa2 = min(gpu.attention.fa2 * factor["fa2"], te)
    update["attention"] = gpu.attention.model_copy(update={"te": te, "fa2": fa2})
    return gpu.model_copy(update=update)


def _faster(fit: GemmFit, factor: float) -> GemmFit:
    return fit.model_copy(update={"derate": fit.derate * factor})

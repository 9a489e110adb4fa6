"""Emit: the launch bundle of a plan, one file per framework; emitters do not know each other."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from planner.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from planner.emit.base import Artifact, Emitter
    from planner.plan import Plan

EMITTER_NAMES = (
    "torchrun",
    "deepspeed",
    "megatron",
    "megatron-bridge",
    "accelerate",
    "torchtitan",
    "nanotron",
    "dataparallel",
    "slurm",
    "k8s",
)


def emitter_named(name: str) -> Emitter:
    """Return the emitter of a target; its module, `planner.emit.<name_>`, holds it as `EMITTER`.

    Raises SpecError for a target that does not exist.
    """
    if name not in EMITTER_NAMES:
        known = ", ".join(EMITTER_NAMES)
        hint = did_you_mean(name, EMITTER_NAMES)
        raise SpecError(f"--target: {name!r} is not one of {known}", hint=hint)
    emitter: Emitter = import_module(f"planner.emit.{name.replace('-', '_')}").EMITTER
    return emitter


def bundle(plan: Plan, target: str) -> list[Artifact]:
    """Return every file of the launch bundle of the best plan for `target`.

    Raises SpecError when the target does not exist, or cannot express the layout.
    """
    emitter = emitter_named(target)
    if problems := emitter.unsupported(plan):
        raise SpecError(
            f"{target} cannot run {plan.best.layout.short()}: " + " ".join(problems),
            hint=f"meshwright plan ... -o DIR --target {target} finds the best layout it can run",
        )
    return emitter.emit(plan)

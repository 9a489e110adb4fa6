"""Schedulers start somebody else's `run.sh`: which framework's, and how its bundle is carried.

Slurm and Kubernetes place nodes and start one command on each; what that command is, is a
framework's. They ask for it here by the plan alone, so that emitters need not know each other.
"""

from __future__ import annotations

from planner.emit import emitter_named
from planner.emit.base import Artifact, Emitter, placed
from planner.emit.shared import shared_artifacts
from planner.plan import Plan
from planner.specs.model import ModelSpec
from planner.specs.stack import stack_named
from planner.specs.workload import Workload

BY_STACK = {
    "megatron": ("megatron",),
    "megatron-bridge": ("megatron-bridge", "megatron"),
    "nanotron": ("nanotron",),
    "deepspeed": ("deepspeed", "accelerate"),
    "torchtitan": ("torchrun", "torchtitan", "accelerate"),
    "transformers": ("accelerate",),
}
"""By the profile of a stack where it is a framework of its own, else by whose rules it follows."""
ANY_STACK = ("torchrun", "megatron", "torchtitan", "deepspeed", "accelerate")


def started_for(stack: str) -> tuple[str, ...]:
    """Return the frameworks that a scheduler may start for a stack, the first choice first."""
    profile = stack.partition("+")[0]
    return BY_STACK.get(profile) or BY_STACK.get(stack_named(stack).rules, ANY_STACK)


def payload(target: str, stack: str) -> Emitter:
    """Return the emitter whose own stack and table of what it can hold for a target.

    That is the target's, or for a scheduler that of the framework that it starts: one rule for
    `--target torchrun` and for the same files under Slurm.
    """
    emitter = emitter_named(target)
    return emitter_named(started_for(stack)[0]) if emitter.stack == "any" else emitter


def candidates(plan: Plan) -> tuple[str, ...]:
    """Return the frameworks that may run the plan, the first choice first."""
    return started_for(plan.request.workload.stack)


def inner_of(plan: Plan) -> Emitter | None:
    """Return the first framework that can express the plan, or None."""
    emitters = map(emitter_named, candidates(plan))
    return next((emitter for emitter in emitters if not emitter.unsupported(plan)), None)


def inner_problems(plan: Plan) -> list[str]:
    """Return why no framework can express the plan, the first sentence of each."""
    if inner_of(plan):
        return []
    return [f"{name}: {emitter_named(name).unsupported(plan)[0]}" for name in candidates(plan)]


def never_inside(model: ModelSpec, work: Workload) -> list[str]:
    """Return why no framework runs any plan of the job, the first sentence of each."""
    why = {name: emitter_named(name).never(model, work) for name in started_for(work.stack)}
    if not all(why.values()):
        return []
    return [f"{name}: {sentences[0]}" for name, sentences in why.items()]


def wrapped(plan: Plan, *, target: str, title: str, start: str) -> list[Artifact]:
    """Return the framework's bundle with the scheduler's README; its own becomes FRAMEWORK.md.

    `title` and `start` are as `framework` and `start` of `shared_artifacts`.
    """
    inner = inner_of(plan)
    if inner is None:
        raise ValueError("unsupported(plan) was not asked")
    own = shared_artifacts(
        plan,
        target=target,
        framework=f"{title}, starting {inner.name}",
        start=start,
        runs=inner.name,
    )
    taken = {artifact.path for artifact in own}
    rest = [a for a in inner.emit(plan) if a.path not in taken]
    theirs = next(a for a in inner.emit(plan) if a.path == "README.md")
    return [*own, *rest, theirs._replace(path="FRAMEWORK.md")]


def leaf_of_node(plan: Plan) -> list[str]:
    """Return the leaf of each node, by node rank."""
    place = placed(plan)
    return [row.leaf for row in place.ranks[:: place.gpus_per_node]]


def node_ranks_by_leaf(plan: Plan) -> list[int]:
    """Return the node ranks, those under one leaf next to each other."""
    leaf = leaf_of_node(plan)
    first = {name: index for index, name in reversed(list(enumerate(leaf)))}
    return sorted(range(len(leaf)), key=lambda node: (first[leaf[node]], node))

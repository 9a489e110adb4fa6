"""`meshwright plan`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli import completing
from planner.cli import options as o
from planner.cli.aiming import Wanted
from planner.cli.asking import Asked, options_typed, request_of
from planner.cli.names import TARGETS
from planner.cli.talk import progress, say, show

if TYPE_CHECKING:
    from collections.abc import Iterable

    from planner.cli.bundles import Refused
    from planner.plan import Plan
    from planner.workflow import PlanRequest

MANY_CHOICES = 20
"""Searches of which the user is told beforehand."""

EXAMPLES = """\
\b
Examples:
  meshwright plan llama-3.1-70b dgx-h100:32
  meshwright plan llama-3.1-70b dgx-h100:32 --seq 8192 --global-batch 512
  meshwright plan deepseek-v3 dgx-h100:256 --fix "pp=8|16,recompute=full"
  meshwright plan llama-3.1-8b dgx-h100:2 -o launch --target torchrun,megatron
  meshwright plan llama-3.1-70b dgx-h100 --nodes 8,16,32 --objective cost --price 2.5
  meshwright plan llama-3.1-70b dgx-h100:64 --objective gpus --tokens 1T --deadline 30d
"""


def plan(
    model: o.Model,
    cluster: o.Cluster,
    *,
    seq: o.Seq = None,
    global_batch: o.Batches = None,
    precision: o.Precision = None,
    optimizer: o.Optimizer = "adamw",
    stack: o.Stack = "any",
    fix: Annotated[
        str,
        typer.Option(
            metavar="FIELD=VALUE,...",
            help="Keep layout fields: tp=8, pp=4..16, zero=1|3.",
            autocompletion=completing.layout_fields,
        ),
    ] = "",
    objective: o.Objective = "step-time",
    nodes: o.Nodes = None,
    price: o.Price = None,
    power: o.Power = None,
    tokens: o.Tokens = None,
    deadline: o.Deadline = None,
    budget: o.Budget = None,
    max_step_time: o.MaxStepTime = None,
    sensitivity: o.Sensitivity = False,
    search: o.Search = None,
    top: o.Top = 10,
    gpus: o.Gpus = None,
    mixed: o.Mixed = False,
    unhealthy: o.Unhealthy = None,
    slow: o.Slow = None,
    pipelines: o.Pipelines = "under-leaf",
    nodes_file: o.NodesFile = None,
    slurm_topology: o.SlurmTopology = None,
    node_state: o.NodeState = None,
    expert_imbalance: o.ExpertImbalance = None,
    capacity_factor: o.CapacityFactor = None,
    max_memory: o.MaxMemory = None,
    risk_memory: o.RiskMemory = None,
    expert_load: o.ExpertLoad = None,
    recompute_modules: o.RecomputeModules = None,
    recompute_layers: o.RecomputeLayers = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write plan.json and bundles here."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"Launch files to write: {TARGETS}.",
            autocompletion=completing.targets,
        ),
    ] = None,
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Find the best layout of MODEL on CLUSTER, place it, and say why.

    Every legal layout is estimated, on every number of nodes and with every batch that is left
    open; the best is the fastest, unless --objective says otherwise. It is placed on the hosts;
    with -o and --target its launch files are written, each framework with the best layout that it
    can express; one that can express none is refused, and the exit code is 1. With one target,
    layouts are ranked by its own rules and speed.
    """
    from planner.cli import bundles

    targets = bundles.targets_of(target)
    bundles.refuse_early(output, targets, force=force)
    if len(targets) == 1 and stack == "any":
        stack = bundles.stack_told(targets[0])
    request = request_of(
        Asked(
            model,
            cluster,
            seq=seq,
            batches=global_batch,
            precision=precision,
            optimizer=optimizer,
            stack=stack,
            expert_imbalance=expert_imbalance,
            capacity_factor=capacity_factor,
            max_memory=max_memory,
            risk_memory=risk_memory,
            expert_load=expert_load,
            recompute_modules=recompute_modules,
            recompute_layers=recompute_layers,
            fix=fix,
            top=top,
            unhealthy=unhealthy,
            slow=slow,
            gpus=gpus,
            mixed=mixed,
            nodes_file=nodes_file,
            slurm_topology=slurm_topology,
            node_state=node_state,
            pipelines=pipelines,
            wanted=Wanted(objective, price, power, tokens, deadline, budget, max_step_time),
            nodes=nodes,
            sensitivity=sensitivity,
            search=search,
        )
    )
    refused = bundles.foreseen(request, targets)
    if len(refused) == len(targets):
        bundles.end_with(refused, targets, answered=False)
    bundles.tell(refused)
    found, more = _found(request, output, _without(targets, refused), force=force)
    if as_json:
        typer.echo(found.to_json(), nl=False)
    else:
        _report(found)
    bundles.tell(more)
    bundles.end_with([*refused, *more], targets, answered=True)
    if output is None and not as_json:
        say("launch files: the same command with  -o launch --target torchrun,megatron,deepspeed")
        words = [*options_typed(found.best.options), "--layout", found.best.layout.short()]
        say(f"rank by rank: meshwright place ... {' '.join(words)}")


def _found(
    request: PlanRequest, output: Path | None, targets: Iterable[str], *, force: bool
) -> tuple[Plan, list[Refused]]:
    """Return the plan, after its files are written, and the targets that cannot run any."""
    from planner import workflow
    from planner.cli import bundles
    from planner.units import seconds

    def other(target: str) -> Plan:
        tell(f"planning for {target}")
        instead = workflow.plan_for_target(workflow.narrowed(request, found), target)
        best = instead.best
        swaps.append(
            f"the {target} bundle has the best layout that {target} can run, by the rules and "
            f"speed of stack {instead.request.workload.stack}: {best.layout.short()}, "
            f"{seconds(best.estimate.step_time_s)} a step"
        )
        return instead

    if request.search and (choices := workflow.choices_of(request)) > MANY_CHOICES:
        say(f"--search opens {choices:,} choices beside the layouts, each a search of its own")
    swaps: list[str] = []
    with progress("planning") as tell:
        found = workflow.plan(request, progress=tell)
        written = bundles.Written([], [])
        if output:
            written = bundles.write(output, found, targets, force=force, instead=other)
    for sentence in (*swaps, *(f"wrote {path}" for path in written.paths)):
        say(sentence)
    return found, written.refused


def _without(targets: tuple[str, ...], refused: list[Refused]) -> list[str]:
    gone = {one.target for one in refused}
    return [target for target in targets if target not in gone]


def _report(found: Plan) -> None:
    from planner.report.tables import plan_report

    show(plan_report(found))

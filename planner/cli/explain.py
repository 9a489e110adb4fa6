"""`meshwright explain`: one layout, opened down to formula and source."""

from __future__ import annotations

import typer

from planner.cli import options as o
from planner.cli.asking import Asked, request_of
from planner.cli.talk import progress, show

EXAMPLES = """\
\b
Examples:
  meshwright explain llama-3.1-70b dgx-h100:32 --layout tp=8,pp=4
  meshwright explain llama-3.1-70b dgx-h100:2 --layout tp=2 --json
  meshwright explain llama-3.1-405b dgx-h100:64 --layout tp=8,pp=4,zero=1,recompute=none
"""


def explain(
    model: o.Model,
    cluster: o.Cluster,
    *,
    layout: o.LayoutText,
    seq: o.Seq = None,
    global_batch: o.GlobalBatch = None,
    precision: o.Precision = None,
    optimizer: o.Optimizer = "adamw",
    stack: o.Stack = "any",
    gpus: o.Gpus = None,
    pipelines: o.Pipelines = "under-leaf",
    nodes_file: o.NodesFile = None,
    slurm_topology: o.SlurmTopology = None,
    node_state: o.NodeState = None,
    unhealthy: o.Unhealthy = None,
    slow: o.Slow = None,
    mixed: o.Mixed = False,
    expert_imbalance: o.ExpertImbalance = None,
    capacity_factor: o.CapacityFactor = None,
    max_memory: o.MaxMemory = None,
    risk_memory: o.RiskMemory = None,
    expert_load: o.ExpertLoad = None,
    recompute_modules: o.RecomputeModules = None,
    recompute_layers: o.RecomputeLayers = None,
    as_json: o.Json = False,
) -> None:
    """Show every term of one layout: value, formula, source; memory by stage and part.

    If the layout is illegal, out of memory or beaten: why, by how much, and what would mend it:
    the cheapest changes that make it fit, or the nearest legal layouts. Exit code 0 either way,
    because the question is answered. Where uplinks are narrow, its times are those on the links of
    the map that `place` would give it.
    """
    fields = o.fields_of(layout, option="--layout")
    request = request_of(
        Asked(
            model,
            cluster,
            seq=seq,
            global_batch=global_batch,
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
            gpus=gpus,
            pipelines=pipelines,
            nodes_file=nodes_file,
            slurm_topology=slurm_topology,
            node_state=node_state,
            unhealthy=unhealthy,
            slow=slow,
            mixed=mixed,
            layout=fields,
        )
    )
    from planner import workflow

    with progress("explaining") as tell:
        answer = workflow.explain(request, fields, progress=tell)
    if as_json:
        typer.echo(answer.to_json(), nl=False)
        return
    from planner.report.explain import explain_report

    show(explain_report(answer))

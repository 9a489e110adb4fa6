"""`meshwright place`: rank to host and GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli import options as o
from planner.cli.asking import Asked, request_of
from planner.cli.talk import answer_json, show

EXAMPLES = """\
\b
Examples:
  meshwright place llama-3.1-70b dgx-h100:32 --layout tp=8,pp=4
  meshwright place llama-3.1-70b dgx-h100:32 --layout tp=8 --unhealthy node00007,node00012:3
  meshwright place llama-3.1-70b dgx-h100 --layout tp=8 --nodes-file hosts.txt --json
  meshwright place llama-3.1-70b dgx-h100 --layout tp=8 --slurm-topology topology.conf
  meshwright place llama-3.1-70b dgx-h100:32 --layout tp=8,pp=4 --pipelines fastest
  meshwright place llama-3.1-70b dgx-h100:33 --layout tp=8,pp=4,dp=8 --moved-from old.json
"""


def place(
    model: o.Model,
    cluster: o.Cluster,
    *,
    layout: o.LayoutText,
    pipelines: o.Pipelines = "under-leaf",
    nodes_file: o.NodesFile = None,
    slurm_topology: o.SlurmTopology = None,
    node_state: o.NodeState = None,
    unhealthy: o.Unhealthy = None,
    slow: o.Slow = None,
    moved_from: Annotated[
        Path | None,
        typer.Option(
            "--moved-from",
            metavar="OLD.json",
            help="An earlier place or plan --json: keep every rank there that can stay.",
        ),
    ] = None,
    seq: o.Seq = None,
    global_batch: o.GlobalBatch = None,
    precision: o.Precision = None,
    optimizer: o.Optimizer = "adamw",
    stack: o.Stack = "any",
    gpus: o.Gpus = None,
    mixed: o.Mixed = False,
    expert_imbalance: o.ExpertImbalance = None,
    capacity_factor: o.CapacityFactor = None,
    max_memory: o.MaxMemory = None,
    expert_load: o.ExpertLoad = None,
    recompute_modules: o.RecomputeModules = None,
    recompute_layers: o.RecomputeLayers = None,
    as_json: o.Json = False,
) -> None:
    """Map every rank of a layout to a host and a GPU.

    The answer says whether the map is proved best, which tiers of the network each kind of group
    crosses, and what it gains over hosts in name order.
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
            expert_load=expert_load,
            recompute_modules=recompute_modules,
            recompute_layers=recompute_layers,
            unhealthy=unhealthy,
            slow=slow,
            gpus=gpus,
            mixed=mixed,
            layout=fields,
            nodes_file=nodes_file,
            slurm_topology=slurm_topology,
            node_state=node_state,
            pipelines=pipelines,
        )
    )
    from planner import workflow
    from planner.plan import Placement

    old = Placement.read(moved_from) if moved_from else None
    placement = workflow.place(request, fields, moved_from=old)
    if as_json:
        answer_json(placement.model_dump(mode="json", by_alias=True))
        return
    from planner.report.placing import place_report

    show(place_report(placement))

"""What a calibration changes for jobs that everyone knows: one in a node, one over eight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.calibrate.figure import Prediction
from planner.estimate.running import judge
from planner.layouts.rules import Context
from planner.layouts.table import Layouts
from planner.specs.catalog import load_model
from planner.specs.cluster import ClusterSpec
from planner.specs.links import FabricKind
from planner.specs.workload import Workload

SEQ_TOKENS = 4096
NODES, STAGES, ACCUMULATED = 8, 4, 16
MOST_TP = 8


def reference_jobs(
    before: ClusterSpec, after: ClusterSpec, stacks: Sequence[str]
) -> list[Prediction]:
    """Return the step times of a few jobs as they were and are predicted, stack by stack."""
    out = []
    for stack in stacks:
        for what, model, nodes, batch, layout in _jobs(before):
            seconds = []
            for cluster in (before, after):
                own = cluster.model_copy(update={"nodes": nodes, "hosts": None, "leafs": None})
                work = Workload.model_validate(
                    {"seq_tokens": SEQ_TOKENS, "global_batch": batch, "stack": stack}
                )
                context = Context(load_model(model), own, work)
                seconds.append(judge(context, Layouts.of([layout]), recut=False)[0].step_s)
            out.append(Prediction(f"{what}, {stack}", "job", seconds[0], seconds[1]))
    return out


def _jobs(cluster: ClusterSpec) -> Iterator[tuple[str, str, int, int, dict[str, object]]]:
    """Yield (words, model, nodes, global batch, layout) of jobs that the cluster has room for."""
    gpus = cluster.node.gpus
    if gpus > 1:
        yield (
            f"llama-3.1-8b, 1 node, FSDP {gpus}",
            "llama-3.1-8b",
            1,
            4 * gpus,
            _layout(dp=gpus, zero=3, num_microbatches=4),
        )
    tp = next(t for t in (MOST_TP, 4, 2, 1) if gpus % t == 0)
    dp, left = divmod(NODES * gpus, tp * STAGES)
    if cluster.node.nics and cluster.fabric.kind is not FabricKind.NONE and not left:
        yield (
            f"llama-3.1-70b, {NODES} nodes, tp {tp} pp {STAGES} dp {dp}",
            "llama-3.1-70b",
            NODES,
            ACCUMULATED * dp,
            _layout(
                tp=tp,
                sp=int(tp > 1),
                pp=STAGES,
                dp=dp,
                zero=1,
                num_microbatches=ACCUMULATED,
                schedule="1f1b",
            ),
        )


def _layout(**fields: object) -> dict[str, object]:
    plain = {
        **dict.fromkeys(("tp", "pp", "vpp", "cp", "ep", "etp", "dp", "dp_replicate"), 1),
        "sp": 0,
        "zero": 0,
        "micro_batch": 1,
        "num_microbatches": 1,
        "recompute": "none",
        "schedule": "none",
        "offload": "none",
        "dp_sync": "all-reduce",
    }
    return {**plain, **fields}

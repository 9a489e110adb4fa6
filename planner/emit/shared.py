"""What every bundle carries, whatever the framework: the plan, the rank map, its check, a README.

Launchers differ in how they number nodes, and a job whose ranks stand elsewhere than planned still
runs, only slower. So the map is written down, and `preflight.py` compares it with what each rank
sees.
"""

from __future__ import annotations

import hashlib
import json
from math import log

from planner.emit import emitter_named
from planner.emit.base import Artifact, hosts_are_placeholders, one_line, placed
from planner.files import data_folder
from planner.plan import Plan, RankedPlan
from planner.units import count, gib, seconds

RANK_MAP_SCHEMA = "meshwright.rank_map/1"
AXES = ("tp", "cp", "ep", "dp", "pp")
STAND_INS = ("torchrun", "deepspeed", "accelerate", "dataparallel")
"""Targets whose script trains a small stand-in until another takes its place."""
STAND_IN_VOCAB = 256
"""Its tokens, in examples/train_*.py and tiny_model.py."""


def shared_artifacts(
    plan: Plan, *, target: str, framework: str, start: str, runs: str = ""
) -> list[Artifact]:
    """Return plan.json, rank_map.json, preflight.py, hosts.txt and README.md.

    `target` is what `--target` takes; `framework` is named in the README with its version; `start`
    is its section, in Markdown, on how to start the job; `runs` is the target whose script a
    scheduler starts.

    Raises SpecError when the placement is missing or no launcher can keep it.
    """
    placed(plan)
    return [
        Artifact("plan.json", plan.to_json()),
        Artifact("rank_map.json", rank_map(plan, target=target)),
        Artifact("preflight.py", example("preflight.py")),
        Artifact("hosts.txt", hosts_text(plan)),
        Artifact(
            "README.md",
            readme(plan, target=target, framework=framework, start=start, runs=runs or target),
        ),
    ]


def example(name: str) -> str:
    """Return the text of a shipped example."""
    return (data_folder("examples") / name).read_text(encoding="utf-8")


def rank_map(plan: Plan, *, target: str) -> str:
    """Return the JSON document rank -> host, GPU, coordinates; one rank a line, to diff well.

    It also says for which target the bundle is, so that `check_bundle` knows what belongs in it.
    """
    place = placed(plan)
    head = {
        "schema": RANK_MAP_SCHEMA,
        "target": target,
        "world_size": len(place.ranks),
        "gpus_per_node": place.gpus_per_node,
        "hosts": place.hosts,
        "hosts_are_placeholders": hosts_are_placeholders(plan),
        "order": "tp-cp-ep-dp-pp, tp fastest",
        "planned": fingerprint(plan),
    }
    keys = ("rank", "host", "gpu", *AXES)
    rows = (json.dumps({k: getattr(r, k) for k in keys}) for r in place.ranks)
    body = ",\n  ".join(rows)
    return json.dumps(head, indent=1)[:-2] + f',\n "ranks": [\n  {body}\n ]\n}}\n'


def fingerprint(plan: Plan) -> str:
    """Return a word that changes with what was asked and with the layout that was found.

    Some bundles repeat little of `plan.json` elsewhere; an edit there would not be noticed.
    """
    best = plan.best
    text = (
        f"{best.layout.short()} {best.layout} {best.stage_layers} {plan.request.model_dump_json()}"
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hosts_text(plan: Plan) -> str:
    """Return the hosts in node-rank order, one a line."""
    return "\n".join(placed(plan).hosts) + "\n"


def first_loss(plan: Plan, runs: str) -> str:
    """Return where the loss of what is run starts: even odds for every token."""
    vocab = plan.request.model.vocab
    own = f"ln({vocab}) = {log(vocab):.1f}"
    if runs not in STAND_INS:
        return own
    stand_in = f"ln({STAND_IN_VOCAB}) = {log(STAND_IN_VOCAB):.1f}"
    return f"{stand_in}\n   ({own} with a model of the planned vocabulary in the stand-in's place)"


def readme(plan: Plan, *, target: str, framework: str, start: str, runs: str) -> str:
    """Return the README: what was planned, what to expect, how to start, what to check first."""
    request, best, place = plan.request, plan.best, placed(plan)
    work, estimate = request.workload, best.estimate
    model, cluster = one_line(request.model.name), one_line(request.cluster.name)
    nodes, gpus = len(place.hosts), len(place.ranks)
    hosts = f"placed on {nodes} {'nodes' if nodes > 1 else 'node'} of {place.gpus_per_node} GPUs"
    return f"""\
# {model} on {gpus} GPUs of {cluster}

Launch bundle for {framework}, {hosts}. The layout:

    {best.layout.short()}

`plan.json` holds the whole plan: model, cluster, workload, estimate and placement.
`meshwright emit plan.json --target {target} -o DIR` writes these files again; after you edit some,
`meshwright emit --check .` says whether they still agree with the plan.

| one training step | |
|---|---|
| sequences x tokens | {work.global_batch} x {work.seq_tokens} ({count(work.tokens)} tokens) |
| micro-batches per step | {best.layout.num_microbatches} of {best.layout.micro_batch} sequences |
| expected time | {seconds(estimate.step_time_s)} |
| expected tokens/s per GPU | {estimate.tokens_per_s_per_gpu:.0f} |
| expected model FLOP/s utilisation | {estimate.mfu:.1%} |
{_any_note(plan, runs)}
## Start

{start.strip()}

## Before the first step

`preflight.py` reads `rank_map.json` and stops the job when a rank stands elsewhere than planned.
It runs by itself under the launcher (`preflight.py` in place of the training script), or inside
your own script: `preflight.check()` before the process group is made, and
`preflight.check_groups({{"tp": ..., "dp": ..., "pp": ...}})` with this rank's coordinates after.
{_host_note(plan)}

## The first ten steps

1. Every rank passes the preflight, and the loss starts near {first_loss(plan, runs)} and falls.
2. Peak memory (`torch.cuda.max_memory_allocated()`) of each pipeline stage stays near the column
   "allocated", what `nvidia-smi` shows near the last one:

{_memory_table(best)}

3. The median of steps 4 to 10 is near {seconds(estimate.step_time_s)}. Where it is not, compare a
   profile with the parts expected (exposed time, they add up to the step):

{_time_table(best)}
{_stand_in_note(plan, runs)}"""


def _any_note(plan: Plan, runs: str) -> str:
    """Return that the figures are no framework's, where the plan is for any stack."""
    if plan.request.workload.stack != "any":
        return ""
    own = emitter_named(runs).stack
    return (
        f"\nThe plan is for no stack in particular (`--stack any`), and so are these figures; "
        f"{runs} trains by\nthe rules and at the speed of stack {own}, for which "
        f"`meshwright plan ... --target {runs}` finds\nits own.\n"
    )


def _stand_in_note(plan: Plan, runs: str) -> str:
    """Return that memory and times are not those of the stand-in that is trained at first."""
    if runs not in STAND_INS:
        return ""
    model = one_line(plan.request.model.name)
    return f"\nMemory and times are those of {model}, once it has taken the stand-in's place.\n"


def _host_note(plan: Plan) -> str:
    if hosts_are_placeholders(plan):
        return (
            "The cluster lists no hosts, so the names in `hosts.txt` are placeholders: the "
            "preflight\nchecks which ranks share a node, not what the node is called. To have the "
            "real names checked too,\nplan with `--nodes-file FILE`, or list them under `hosts:` "
            "in the cluster file."
        )
    return "The hosts are those that the cluster lists; their names are compared as well."


def _memory_table(best: RankedPlan) -> str:
    """Return what a process allocates, stage by stage, and what `nvidia-smi` shows beyond it."""
    memory = best.estimate.memory
    rows = [
        f"   | {stage} | {gib(m.total - m.overhead)} "
        f"| {gib(m.weights + m.gradients + m.optimizer)} | {gib(m.activations + m.logits)} "
        f"| {gib(m.buffers)} | {gib(m.total)} |"
        for stage, m in enumerate(memory.stages)
    ]
    head = (
        "   | stage | allocated | weights, gradients, optimizer | activations, logits "
        "| buffers | with context, NCCL, fragmentation |"
    )
    limit = f"\n   A GPU can give {gib(memory.limit_bytes)}."
    return "\n".join((head, "   |---|---|---|---|---|---|", *rows, limit))


def _time_table(best: RankedPlan) -> str:
    parts = sorted(best.estimate.time_s.items(), key=lambda item: (-item[1], item[0]))
    rows = [f"   | {name} | {seconds(amount)} |" for name, amount in parts if amount > 0]
    return "\n".join(("   | part | seconds |", "   |---|---|", *rows))

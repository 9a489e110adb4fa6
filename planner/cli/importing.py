"""`meshwright import`: the layout of a job that exists, explained and compared with the best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import completing
from planner.cli import options as o
from planner.cli.asking import Asked, workload_of
from planner.cli.talk import answer_json, progress, say, show
from planner.errors import SpecError
from planner.explanation import Against

if TYPE_CHECKING:
    from planner.explanation import Audit
    from planner.importing import Job
    from planner.specs.cluster import ClusterSpec
    from planner.specs.model import ModelSpec
    from planner.workflow import PlanRequest

EXAMPLES = """\
\b
Examples:
  meshwright import train.sh --cluster dgx-h100:8
  meshwright import ds_config.json --model llama-3.1-8b --cluster dgx-a100:2 --seq 4096
  meshwright import llama3_70b.toml --gpus 256 --json
  meshwright import launch/megatron
  meshwright import train.sh --set TP=8 --cluster dgx-h100 -o current.json
\b
FILE: Megatron-LM arguments, alone or in a shell script; Megatron-Bridge or NeMo YAML; DeepSpeed
JSON; torchtitan TOML or arguments; Accelerate YAML; nanotron YAML; the Hugging Face Trainer's
arguments as JSON or in a script; a plan.json; the folder of a launch bundle. Several are read as
one job. Scripts are read, never run.
"""


def import_job(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Settings of one job.", show_default=False),
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Where the files do not hold its shapes.",
            autocompletion=completing.models,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="CLUSTER",
            help="What it runs on; as many nodes as the job has GPUs, unless ':N' says it.",
            autocompletion=completing.clusters,
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=10**7, help="GPUs that the job runs on.")
    ] = None,
    seq: o.Seq = None,
    global_batch: o.GlobalBatch = None,
    stack: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Default: that of the files' framework.",
            autocompletion=completing.stacks,
        ),
    ] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Value of a variable in a script."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PLAN.json", help="Write it as a plan, placed."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Read an existing job's settings: its layout, what it costs, and what would be faster.

    Says what was assumed and which settings were left aside. Without a cluster it only translates.
    """
    from planner.importing import read_job
    from planner.specs.catalog import load_cluster

    if output is not None and (output.suffix.lower() != ".json" or output.is_dir()):
        raise SpecError(f"-o: {output} is no file that ends in .json")
    given = o.variables_of(variables or [])
    named = load_cluster(cluster) if cluster else None
    job = read_job(files, gpus=gpus, otherwise=named.gpus if named else None, given=given)
    machines = _machines(job, cluster, named)
    spec = _model(job, model)
    request = _request(job, spec, machines, seq=seq, batch=global_batch, stack=stack)
    stated = _stated(job) | ({"seq_tokens": seq} if seq else {})
    stated |= {"global_batch": global_batch} if global_batch else {}
    _answer(job, spec, request, files, stated=stated, output=output, as_json=as_json)


def _answer(
    job: Job,
    spec: ModelSpec | None,
    request: PlanRequest | None,
    files: list[Path],
    *,
    stated: dict[str, Any],
    output: Path | None,
    as_json: bool,
) -> None:
    """Print what was found, after it is written where that is asked for."""
    from planner import workflow

    found = None
    if request is not None:
        with progress("comparing"):
            found = workflow.audit(request, request.fix)
    if output is not None:
        _write(output, request)
    document = _document(job, spec, request, found, files, stated=stated)
    if as_json:
        answer_json(document)
        return
    from planner.report.audit import audit_report, job_report

    show(*(job_report(document), *([audit_report(found)] if found else [])))
    if output is not None:
        say(f"wrote {output}")
    if request is None:
        missing = "--model MODEL" if spec is None else "--cluster CLUSTER"
        say(f"what it costs, and what would be faster: the same command with {missing}")


def _machines(job: Job, text: str | None, named: ClusterSpec | None) -> ClusterSpec | None:
    """Return the cluster: the one named, with as many nodes as the job needs where it is open."""
    if named is None or text is None:
        return job.cluster
    if job.gpus is None or job.gpus <= named.gpus or named.nodes > 1:
        return named
    from planner.specs.catalog import load_cluster

    nodes = -(-job.gpus // named.node.gpus)
    return named if text.endswith(":1") else load_cluster(f"{text}:{nodes}")


def _model(job: Job, text: str | None) -> ModelSpec | None:
    """Return the model named, else the one that the files hold or name."""
    from planner.specs.catalog import load_model

    if text:
        return load_model(text)
    if job.model is None and job.model_name:
        return load_model(job.model_name)
    return job.model


def _request(
    job: Job,
    spec: ModelSpec | None,
    machines: ClusterSpec | None,
    *,
    seq: int | None,
    batch: int | None,
    stack: str | None,
) -> PlanRequest | None:
    """Return what to compare; None where there is no model or no cluster to compare on."""
    if spec is None or machines is None:
        return None
    from planner.workflow import PlanRequest

    if job.gpus and job.gpus > machines.gpus:
        raise SpecError(
            f"--cluster: the job runs on {job.gpus:,} GPUs, {machines.name} has {machines.gpus:,}"
            + (f"; {job.gpus_from}" if job.gpus_from else ""),
            hint="a cluster grows with ':N' behind its name; --gpus N says the job's number",
        )
    asked = Asked(
        model=spec.name,
        cluster=machines.name,
        seq=seq or job.seq_tokens,
        global_batch=batch or job.global_batch,
        precision=job.precision or "bf16",
        optimizer=job.optimizer,
        stack=stack or job.stack,
        capacity_factor=job.capacity_factor if spec.experts else None,
    )
    work = workload_of(asked, spec, job.gpus or machines.gpus).model_copy(
        update={
            "recompute_modules": job.recompute_modules,
            "recompute_method": job.recompute_method,
            "recompute_layers": job.recompute_layers,
        }
    )
    fields = {"dp_sync": "all-reduce", **job.layout} | (
        {} if spec.experts else {"ep": "1", "etp": "1"}
    )
    return PlanRequest(model=spec, cluster=machines, workload=work, fix=fields, gpus=job.gpus)


def _document(
    job: Job,
    spec: ModelSpec | None,
    request: PlanRequest | None,
    found: Audit | None,
    files: list[Path],
    *,
    stated: dict[str, Any],
) -> dict[str, Any]:
    """Return the JSON document; `stated` is the work where nothing says what it runs on."""
    answer = found.explanation if found else None
    against = answer.against if answer else None
    opened = answer.model_dump(mode="json", by_alias=True) if answer else None
    return {
        "schema": "meshwright.import/1",
        "framework": job.framework,
        "files": [str(path) for path in files],
        "gpus": job.gpus,
        "given": dict(job.layout),
        "layout": opened["layout"] if opened else None,
        "model": spec.model_dump(mode="json", exclude_none=True) if spec else None,
        "parameters": _parameters(spec) if spec else None,
        "workload": request.workload.model_dump(mode="json") if request else stated,
        "assumed": list(job.assumed),
        "ignored": list(job.ignored),
        "without_effect": list(job.without_effect),
        "step_time_s": answer.estimate.step_time_s if answer and answer.estimate else None,
        "slower": max(0.0, against.slower) if against and against.place else None,
        "best": _best(against) if against else None,
        "better": [m.model_dump(mode="json") for m in found.better] if found else [],
        "switches": [s.model_dump(mode="json") for s in found.switches] if found else [],
        "explanation": opened,
    }


def _best(against: Against) -> dict[str, Any]:
    """Return the layout that the job's is compared with, and what it takes."""
    return {
        "layout": against.best.model_dump(mode="json"),
        "step_time_s": against.best_step_time_s,
        "peak_bytes": against.best_peak_bytes,
    }


def _parameters(spec: ModelSpec) -> int:
    from planner.specs.parameters import count_parameters

    return count_parameters(spec).total


def _stated(job: Job) -> dict[str, Any]:
    names = ("seq_tokens", "global_batch", "precision", "optimizer", "stack")
    return {name: getattr(job, name) for name in names} | {"precision": job.precision or "bf16"}


def _write(output: Path, request: PlanRequest | None) -> None:
    """Write the job's layout as a placed plan, whole or not at all."""
    if request is None:
        raise SpecError(
            "-o: a plan needs a model and a cluster", hint="add --model MODEL --cluster CLUSTER"
        )
    from dataclasses import replace

    from planner import workflow
    from planner.files import write_whole

    found = workflow.plan(replace(request, top=1))
    try:
        write_whole(output, found.to_json())
    except OSError as error:
        raise SpecError(f"-o: {output} cannot be written ({error.strerror or error})") from error

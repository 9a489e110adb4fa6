"""`meshwright specs`: what ships, and what a file resolves to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from planner.cli import completing
from planner.cli.options import Json
from planner.cli.talk import answer_json, say
from planner.errors import PlannerError, SpecError, did_you_mean

if TYPE_CHECKING:
    from planner.specs.record import Record

EXAMPLES = """\
\b
Examples:
  meshwright specs list llama
  meshwright specs show deepseek-v3
"""
LIST_EXAMPLES = """\
\b
Examples:
  meshwright specs list
  meshwright specs list llama 70b
  meshwright specs list h100 --json
"""
SHOW_EXAMPLES = """\
\b
Examples:
  meshwright specs show llama-3.1-8b
  meshwright specs show ./config.json --json
  meshwright specs show dgx-h100:64 > my-cluster.yaml
"""
CHECK_EXAMPLES = """\
\b
Example:
  meshwright specs check my-model.yaml my-cluster.yaml
"""
SCHEMA_EXAMPLES = """\
\b
Example:
  meshwright specs schema cluster > cluster.schema.json
"""
KINDS = ("model", "cluster", "accelerator", "workload", "study")
Kind = Literal["model", "cluster", "accelerator", "workload", "study"]
TELLING_FIELDS: Mapping[Kind, frozenset[str]] = {
    "cluster": frozenset({"extends", "mix", "accelerator", "node", "fabric", "scale_up"}),
    "accelerator": frozenset({"peak_tflops", "memory_gib", "hbm_gb_per_s"}),
    "workload": frozenset({"seq_tokens", "global_batch"}),
    "study": frozenset({"axes", "fixed"}),
}
"""Fields that only one kind of file has; a file with none of them is read as a model."""

app = typer.Typer(
    help="Models, clusters and accelerators that ship, and what a file resolves to.",
    no_args_is_help=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def specs(context: typer.Context) -> None:
    """Models, clusters and accelerators that ship, and what a file resolves to; alone: a list."""
    if context.invoked_subcommand is None:
        list_names()


KindOption = Annotated[
    str | None,
    typer.Option("--kind", metavar="|".join(KINDS), help="Take it for this; default: found out."),
]


@app.command("list", epilog=LIST_EXAMPLES)
def list_names(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...", help="Only names that hold every TEXT.", show_default=False
        ),
    ] = None,
    *,
    search: Annotated[
        str, typer.Option(metavar="TEXT", help="The same, as an option; whatever its case.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the models, clusters and accelerators that ship, by name."""
    from planner.specs import catalog

    every = {
        "models": catalog.model_names(),
        "clusters": catalog.cluster_names(),
        "accelerators": catalog.accelerator_names(),
    }
    wanted = [*(words or []), *([search] if search else [])]
    keys = [_key(word) for word in wanted]
    found = {
        kind: [n for n in names if all(key in _key(n) for key in keys)]
        for kind, names in every.items()
    }
    if as_json:
        answer_json({"schema": "meshwright.specs/1", **found})
        return
    for heading, names in found.items():
        if names:
            typer.echo(f"{heading.capitalize()} ({len(names)})")
            typer.echo(_in_columns(names))
    if not any(found.values()):
        asked = " ".join(wanted)
        names = [name for held in every.values() for name in held]
        near = did_you_mean(asked[:100], names)
        say(f"no name holds {asked[:80]!r}; {near or '`meshwright specs list` shows all'}")


@app.command("show", short_help="Show what a name or a file resolves to.", epilog=SHOW_EXAMPLES)
def show_spec(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Shipped name, YAML file, or config.json.",
            show_default=False,
            autocompletion=completing.specs,
        ),
    ],
    kind: KindOption = None,
    as_json: Json = False,
) -> None:
    """Show what a name or a file resolves to; for a model, its parameters by part too."""
    found, record = resolve(name, _kind(kind))
    spec = record.model_dump(mode="json", exclude_none=True, exclude={"mix"})
    derived = _derived(record)
    if as_json:
        answer_json({"schema": "meshwright.spec/1", "kind": found, "spec": spec, **derived})
        return
    import yaml

    typer.echo(yaml.safe_dump(spec, sort_keys=False, width=80, allow_unicode=False), nl=False)
    if parameters := derived.get("parameters"):
        from planner.units import count

        typer.echo("# parameters")
        for part, number in parameters.items():
            typer.echo(f"#   {part:<10} {number:>19,}  {count(number):>8}")
    if "gpus" in derived:
        typer.echo(f"# gpus: {derived['gpus']:,}")


@app.command("check", epilog=CHECK_EXAMPLES)
def check(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Spec files.", show_default=False)
    ],
    kind: KindOption = None,
    as_json: Json = False,
) -> None:
    """Check spec files; exit code 2 when one of them is wrong."""
    wanted = _kind(kind)
    results = [_checked(file, wanted) for file in files]
    if as_json:
        answer_json({"schema": "meshwright.check/1", "files": results})
    for result in results:
        if not result["ok"]:
            say(f"error: {result['error']}")
        elif not as_json:
            typer.echo(f"{result['file']}: ok ({result['kind']} {result['name']})")
    if not all(result["ok"] for result in results):
        raise typer.Exit(2)


@app.command("schema", epilog=SCHEMA_EXAMPLES)
def schema(
    kind: Annotated[str, typer.Argument(metavar="|".join(KINDS), show_default=False)],
    as_json: Json = False,
) -> None:
    """Print the JSON Schema of a kind of spec file, for editors."""
    wanted = _kind(kind) or "model"
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_schema(wanted)}
    import json

    typer.echo(json.dumps(document, indent=None if as_json else 2))


def resolve(text: str, kind: Kind | None) -> tuple[Kind, Record]:
    """Return the kind and the record of a shipped name or a file.

    Raises SpecError when there is none, or when the file is wrong.
    """
    if kind is None and _is_path(text):
        kind = _kind_of_file(Path(text))
    if kind:
        return kind, _loaders()[kind](text)
    for each in ("model", "cluster", "accelerator"):
        try:
            return each, _loaders()[each](text)
        except SpecError:  # of another kind, or of none
            continue
    from planner.specs import catalog

    names = (*catalog.model_names(), *catalog.cluster_names(), *catalog.accelerator_names())
    near = did_you_mean(text[:100], names)
    raise SpecError(
        f"no model, cluster or accelerator is named {text[:80]!r}",
        hint=f"{near} `meshwright specs list` shows every name".strip(),
    )


def _loaders() -> dict[Kind, Callable[[str], Record]]:
    from planner.specs.catalog import load_accelerator, load_cluster, load_model

    return {
        "model": load_model,
        "cluster": load_cluster,
        "accelerator": load_accelerator,
        "workload": _load_workload,
        "study": _load_study,
    }


def _load_workload(text: str) -> Record:
    from planner.specs.read import read_mapping, validate
    from planner.specs.workload import Workload

    return validate(Workload, read_mapping(Path(text)), text)


def _load_study(text: str) -> Record:
    from planner.sweep.study import read_study

    return read_study(Path(text))


def _is_path(text: str) -> bool:
    """Return whether `text` is a file rather than a name, by the rules of the catalog."""
    if "/" in text or text.lower().endswith((".yaml", ".yml", ".json")):
        return True
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # overlong, or holds a NUL
        return False


def _kind_of_file(path: Path) -> Kind:
    from planner.specs.read import read_mapping

    if path.is_dir():  # a folder that a Hugging Face model was saved in
        return "model"
    try:
        fields = set(read_mapping(path))
    except SpecError:
        if path.exists() or ":" not in path.name:
            raise
        return "cluster"  # path:N
    kinds = (kind for kind, telling in TELLING_FIELDS.items() if telling & fields)
    return next(kinds, "model")


def _kind(text: str | None) -> Kind | None:
    for kind in KINDS:
        if text == kind:
            return kind  # type: ignore[return-value]
    if text is None:
        return None
    raise SpecError(f"{text!r} is not one of {', '.join(KINDS)}", hint=did_you_mean(text, KINDS))


def _derived(record: Record) -> dict[str, Any]:
    """Return what follows from a record and people ask for: parameters by part, or GPUs."""
    from planner.specs.cluster import ClusterSpec
    from planner.specs.model import ModelSpec

    if isinstance(record, ModelSpec):
        from dataclasses import asdict

        from planner.specs.parameters import count_parameters

        return {"parameters": asdict(count_parameters(record))}
    return {"gpus": record.gpus} if isinstance(record, ClusterSpec) else {}


def _checked(file: Path, kind: Kind | None) -> dict[str, Any]:
    try:
        found, record = resolve(f"./{file}" if file.parent == Path() else str(file), kind)
    except PlannerError as error:
        return {"file": str(file), "ok": False, "error": str(error)}
    return {"file": str(file), "ok": True, "kind": found, "name": getattr(record, "name", "")}


def _schema(kind: Kind) -> dict[str, Any]:
    """Return the schema of what a file may hold, which is a little more than the record does."""
    from planner.specs.accelerator import Accelerator
    from planner.specs.cluster import ClusterSpec
    from planner.specs.model import ModelSpec
    from planner.specs.workload import Workload
    from planner.sweep.study import study_schema

    if kind == "study":
        return study_schema()
    records: dict[Kind, type[Record]] = {
        "model": ModelSpec,
        "cluster": ClusterSpec,
        "accelerator": Accelerator,
        "workload": Workload,
    }
    document = _at_top(records[kind].model_json_schema())
    by_file = {"name", "nodes"}  # taken from the file's name and from ':N' where they are left out
    document["required"] = [f for f in document["required"] if f not in by_file]
    if kind == "cluster":
        document["properties"]["accelerator"] = {
            "anyOf": [
                document["properties"]["accelerator"],
                {"type": "string", "description": "Name of a shipped accelerator."},
                {
                    "type": "object",
                    "required": ["base"],
                    "properties": {"base": {"type": "string"}},
                    "description": "A shipped accelerator, and the fields that differ.",
                },
            ]
        }
        document["properties"]["mix"] |= {"items": {"type": "string"}}
        _may_extend(document)
    return document


def _at_top(document: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with the fields at its top, also of a record that may hold its own kind."""
    if "$ref" not in document:
        return document
    name = document["$ref"].rpartition("/")[2]
    inner: dict[str, Any] = document["$defs"].pop(name)
    return {**inner, "$defs": document["$defs"]}


def _may_extend(document: dict[str, Any]) -> None:
    """Allow a cluster that extends another: then any field, and any field of a field, may miss."""
    whole = document.pop("required")
    document["required"] = []
    document["properties"]["extends"] = {
        "type": "string",
        "description": "A shipped cluster, or a file beside this one; only what differs is here.",
    }
    document["anyOf"] = [
        {"required": ["extends"]},
        {"required": ["mix"]},
        {"required": whole},
    ]
    for name in ("Accelerator", "AttentionFit", "Fabric", "GemmFit", "Node", "ScaleUp"):
        document["$defs"][name].pop("required", None)


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _in_columns(names: list[str]) -> str:
    """Return names one a line, or side by side on a terminal, as `ls` does."""
    if not sys.stdout.isatty():
        return "\n".join(f"  {name}" for name in names)
    width = max(map(len, names)) + 2
    import shutil

    columns = max(1, (shutil.get_terminal_size().columns - 2) // width)
    height = -(-len(names) // columns)
    rows = (names[row::height] for row in range(height))
    return "\n".join("  " + "".join(f"{n:<{width}}" for n in row).rstrip() for row in rows)

"""Options that several commands share, and the readers of their small languages.

Text becomes a mapping or a tuple of words here; whether a value makes sense is the workflow's
question, because only that knows the model and the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from planner.cli import amounts, completing
from planner.cli.names import LAYOUT_FIELDS
from planner.errors import SpecError, did_you_mean
from planner.units import MOST

Rule = Literal["under-leaf", "fastest"]
"""As `planner.place.Rule`, which is not imported: it loads numpy."""

MOST_SHOWN = 1000
"""Rows that --top may ask for."""
LIST_FILE_BYTES = 16 * 1024**2
"""Largest list file that is read; a million host names fit."""

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Shipped name, YAML file, or Hugging Face config.json.",
        show_default=False,
        autocompletion=completing.models,
    ),
]
Cluster = Annotated[
    str,
    typer.Argument(
        metavar="CLUSTER",
        help="Shipped name or YAML file; ':N' sets the nodes; A:4+B:8 are two node types.",
        show_default=False,
        autocompletion=completing.clusters,
    ),
]
Seq = Annotated[
    int | None,
    typer.Option(
        "--seq",
        parser=amounts.tokens,
        metavar="TOKENS",
        help="Sequence length, 8192 or 8k. Default: 8192, or the model's maximum if that is less.",
    ),
]
GlobalBatch = Annotated[
    int | None,
    typer.Option(
        "--global-batch",
        parser=amounts.whole("--global-batch", 1, MOST),
        metavar="N",
        help="Sequences a step. Default: about 4M tokens, or 1024 a GPU if that is more.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="Of the multiplies: bf16, fp16 or fp8. Default: bf16, or fp16 on GPUs without it.",
        autocompletion=completing.precisions,
    ),
]
Optimizer = Annotated[
    str,
    typer.Option(
        "--optimizer",
        metavar="NAME",
        help="adamw, adamw-8bit, sgd (with momentum) or muon (adamw beside matrices).",
        autocompletion=completing.optimizers,
    ),
]
Stack = Annotated[
    str,
    typer.Option(
        "--stack",
        metavar="NAME",
        help="Whose rules and overheads apply: megatron, megatron-bridge, deepspeed, torchtitan, "
        "any, ... (all: docs/model.md), with flags as in megatron+deepep+full-graphs.",
        autocompletion=completing.stacks,
    ),
]
ExpertImbalance = Annotated[
    float | None,
    typer.Option(
        "--expert-imbalance",
        parser=amounts.number("--expert-imbalance"),
        metavar="RATIO",
        help="Tokens on the busiest expert rank / on the mean one. Default: 1.1.",
    ),
]
CapacityFactor = Annotated[
    float | None,
    typer.Option(
        "--capacity-factor",
        parser=amounts.number("--capacity-factor"),
        metavar="RATIO",
        help="An expert takes at most this many times its share. Default: dropless.",
    ),
]
RecomputeModules = Annotated[
    str | None,
    typer.Option(
        "--recompute-modules",
        metavar="NAMES",
        help="What recompute=selective runs again: core_attn, mlp, moe, moe_act, layernorm, "
        "mla_up_proj, shared_experts, comma-separated. Default: the stack's.",
    ),
]
RecomputeLayers = Annotated[
    str | None,
    typer.Option(
        "--recompute-layers",
        metavar="N|block:N",
        help="What recompute=full keeps: the input of every N layers (N), or of the first N "
        "layers of each chunk and the others whole (block:N). Default: 1.",
    ),
]
MaxMemory = Annotated[
    float | None,
    typer.Option(
        "--max-memory",
        parser=amounts.share("--max-memory"),
        metavar="SHARE",
        help="Share of a GPU's usable memory that a plan may take, 0.9 or 90%. Default: 0.97.",
    ),
]
RiskMemory = Annotated[
    float | None,
    typer.Option(
        "--risk-memory",
        parser=amounts.share("--risk-memory"),
        metavar="SHARE",
        help="Mark plans above this share: published runs there were far slower. Default: 0.85.",
    ),
]
ExpertLoad = Annotated[
    Path | None,
    typer.Option(
        "--expert-load",
        metavar="FILE",
        help="Measured tokens per expert: JSON list, or one number a line.",
    ),
]
Unhealthy = Annotated[
    str | None,
    typer.Option(
        "--unhealthy",
        metavar="HOSTS",
        help="Hosts, node[1-4] or host:gpu to avoid, comma-separated, or @file.",
    ),
]
Slow = Annotated[
    str | None,
    typer.Option(
        "--slow",
        metavar="HOSTS",
        help="Hosts that work but are slow, to avoid like unhealthy ones; as --unhealthy.",
    ),
]
Mixed = Annotated[
    bool,
    typer.Option(
        "--mixed",
        help="Of several node types (A:4+B:8), one job over all at the pace of the slowest; "
        "without it the best type alone.",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        parser=amounts.whole("--gpus"),
        metavar="N",
        help="Use exactly N GPUs of the cluster.",
    ),
]
NodesFile = Annotated[
    Path | None,
    typer.Option(
        "--nodes-file",
        metavar="FILE",
        help="The hosts to use, in leaf order; also as node[001-032].",
    ),
]
SlurmTopology = Annotated[
    Path | None,
    typer.Option(
        "--slurm-topology",
        metavar="FILE",
        help="Slurm's topology.conf or topology.yaml: which hosts share a leaf.",
    ),
]
NodeState = Annotated[
    Path | None,
    typer.Option(
        "--node-state",
        metavar="FILE",
        help="Output of `scontrol show nodes` or `kubectl get nodes -o json`: what is up and free.",
    ),
]
Pipelines = Annotated[
    str,
    typer.Option(
        metavar="RULE",
        help="under-leaf: fewest pipelines split between leafs. fastest: least step time.",
    ),
]
Top = Annotated[
    int,
    typer.Option(
        "--top",
        parser=amounts.whole("--top", 1, MOST_SHOWN),
        metavar="K",
        help="Layouts to show, 1 to 1000.",
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        "--objective",
        metavar="NAME",
        help="step-time, tokens-per-gpu, cost, energy, memory, or gpus (fewest within the limits).",
    ),
]
Price = Annotated[
    float | None,
    typer.Option(
        "--price",
        parser=amounts.number("--price"),
        metavar="USD",
        help="Of a GPU for an hour. Default: the accelerator's, if known.",
    ),
]
Power = Annotated[
    float | None,
    typer.Option(
        "--power",
        parser=amounts.number("--power"),
        metavar="WATTS",
        help="Of a GPU in training. Default: 76 % of its rated power.",
    ),
]
Tokens = Annotated[
    str | None, typer.Option("--tokens", metavar="N", help="Tokens of the whole run, such as 15T.")
]
Deadline = Annotated[
    str | None,
    typer.Option("--deadline", metavar="TIME", help="All --tokens within so long, such as 30d."),
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", metavar="USD", help="All --tokens for so much, such as 2M."),
]
MaxStepTime = Annotated[
    str | None,
    typer.Option("--max-step-time", metavar="TIME", help="Longest step allowed, such as 20s."),
]
Nodes = Annotated[
    str | None,
    typer.Option(
        "--nodes",
        metavar="N..M|N,...",
        help="Choose the number of nodes: every one of 8..128, or of 8,16,32.",
    ),
]
Batches = Annotated[
    str | None,
    typer.Option(
        "--global-batch",
        metavar="N",
        help="Sequences a step; to choose among: 512,768, or 256..1024 (which doubles). Default: "
        "about 4M tokens, or 1024 a GPU if that is more.",
    ),
]
Sensitivity = Annotated[
    bool,
    typer.Option("--sensitivity", help="Plan again with each hardware figure halved and doubled."),
]
Search = Annotated[
    str | None,
    typer.Option(
        "--search",
        metavar="AXIS,...",
        help="Choose more than layouts: offload, schedule, precision, overlap, recompute-modules, "
        "recompute-layers, or all.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier bundle in DIR.")]
LayoutText = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="FIELD=VALUE,...",
        help="Layout; a field left out takes the best legal value.",
        show_default=False,
        autocompletion=completing.layout_fields,
    ),
]


def fields_of(text: str, *, option: str) -> dict[str, str]:
    """Return 'tp=8,pp=4..16' as {'tp': '8', 'pp': '4..16'}; an empty text is an empty mapping.

    Raises SpecError for an unknown or repeated field, and for a pair without a value.
    """
    out: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in pair.partition("="))
        field = _field(name, option)
        if not equals or not value:
            raise SpecError(
                f"{option}: {name!r} has no value", hint=f"write {option} {field}=VALUE"
            )
        if field in out:
            raise SpecError(
                f"{option}: {field!r} is given twice ({out[field]} and {value})",
                hint="several values are written 4|8, a range 4..16",
            )
        out[field] = value
    return out


def variables_of(pairs: Sequence[str]) -> dict[str, str]:
    """Return ['TP=8'] as {'TP': '8'}; SpecError for what is no such pair."""
    out: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise SpecError(f"--set: {pair[:80]!r} is not NAME=VALUE", hint="such as --set TP=8")
        out[name] = value
    return out


def recompute_of(modules: str | None, layers: str | None) -> dict[str, object]:
    """Return the workload's fields of --recompute-modules and --recompute-layers.

    Raises SpecError for a number of layers that is none; module names are the workload's to check.
    """
    found: dict[str, object] = {}
    if modules is not None:
        found["recompute_modules"] = words_of(modules, option="--recompute-modules")
    if layers is None:
        return found
    method, _, number = layers.strip().rpartition(":")
    if method not in ("", "uniform", "block") or not (number.isascii() and number.isdigit()):
        raise SpecError(
            f"--recompute-layers: {layers[:80]!r} is not a number of layers",
            hint="write 4 (every 4 layers) or block:4 (4 layers of each chunk)",
        )
    return found | {"recompute_method": method or "uniform", "recompute_layers": number[:9]}


def rule_of(text: str) -> Rule:
    """Return the value of --pipelines; SpecError for a rule that there is not."""
    from planner.place import rule_named

    return rule_named(text, "--pipelines")


def _field(name: str, option: str) -> str:
    field = name.lower().replace("-", "_")
    if field not in LAYOUT_FIELDS:
        near = did_you_mean(field, LAYOUT_FIELDS)
        known = f"fields: {', '.join(LAYOUT_FIELDS)}"
        raise SpecError(
            f"{option}: unknown layout field {name!r}", hint=f"{near} {known}" if near else known
        )
    return field


def words_of(text: str | None, *, option: str) -> tuple[str, ...]:
    """Return 'a,b' as ('a', 'b'), and '@file' as the words of that file.

    In a file, words are separated by commas, blanks or lines, and '#' starts a comment.
    """
    if text is None:
        return ()
    if text.startswith("@"):
        return listed(Path(text[1:]), option=option)
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise SpecError(f"{option}: names nothing", hint=f"write {option} name1,name2 or @file")
    return words


def hosts_of(text: str | None, *, option: str) -> tuple[str, ...]:
    """Return the words of a list of hosts, `node[001-003,7]` and `node[1-3]:0` written out.

    Raises SpecError as `words_of`, and for brackets that are no host expression.
    """
    found = words_of(text, option=option)
    if not any("[" in word or "]" in word for word in found):
        return found
    from planner.specs.hostlist import expand, words

    try:
        whole = list(words(",".join(found)))
        parts = [word.rpartition(":") if ":" in word else (word, "", "") for word in whole]
        return tuple(
            f"{host}{colon}{gpu}"
            for names, colon, gpu in parts
            for host in _expanded(names, expand)
        )
    except ValueError as error:
        raise SpecError(f"{option}: {error}") from error


def _expanded(names: str, expand: Callable[[str], list[str]]) -> list[str]:
    return expand(names) if "[" in names else [names]


def listed(path: Path, *, option: str) -> tuple[str, ...]:
    """Return the words of a list file, in order; '#' starts a comment.

    Raises SpecError when the file cannot be read, holds binary data, or lists nothing.
    """
    lines = (line.partition("#")[0] for line in text_of(path, option=option).splitlines())
    words = tuple(word for line in lines for word in line.replace(",", " ").split())
    if not words:
        raise SpecError(f"{option}: {path} lists nothing", hint="write one name a line")
    if bad := next((word for word in words if not word.isprintable()), None):
        raise SpecError(f"{option}: {path} holds {bad!r}, which is not a name")
    return words


def shares_of(path: Path, *, option: str) -> tuple[float, ...]:
    """Return the numbers in `path`: a JSON list, or numbers separated by commas or lines.

    Raises SpecError when one is not a finite number.
    """
    import json

    text = text_of(path, option=option).strip()
    try:
        if text.startswith("["):
            words = json.loads(text)
        else:
            words = [w for w in text.replace(",", " ").split() if w]
        numbers = tuple(float(word) for word in words)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise SpecError(
            f"{option}: {path} is not a list of numbers ({error})",
            hint="write a JSON list, or one number a line",
        ) from error
    if not numbers or not all(map(math.isfinite, numbers)):
        raise SpecError(f"{option}: {path} needs finite numbers, one per expert")
    return numbers


def text_of(path: Path, *, option: str, most_bytes: int = LIST_FILE_BYTES) -> str:
    """Return what a regular UTF-8 file of at most `most_bytes` holds; SpecError for any other."""
    try:
        if not path.exists():
            raise SpecError(f"{option}: {path}: no such file")
        if not path.is_file():
            raise SpecError(f"{option}: {path}: not a regular file")
        if (size := path.stat().st_size) > most_bytes:
            raise SpecError(f"{option}: {path} has {size} bytes, at most {most_bytes} are read")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{option}: {path}: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise SpecError(f"{option}: {path} is not a text file (UTF-8)") from error

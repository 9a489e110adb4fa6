"""`meshwright gradient-sync`: what one gradient synchronisation moves, scheme by scheme."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from planner.cli import options as o
from planner.cli.talk import answer_json, show
from planner.errors import SpecError

EXAMPLES = """\
\b
Examples:
  meshwright gradient-sync 100B --replicas 8
  meshwright gradient-sync llama-3.1-70b --replicas 64 --bytes 4 --json
"""
SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
NUMBER = re.compile(r"(\d{1,18}(?:\.\d{1,18})?(?:[eE]\+?\d{1,2})?)\s?([KMBGT]?)", re.IGNORECASE)


def gradient_sync(
    size: Annotated[
        str, typer.Argument(metavar="PARAMETERS|MODEL", help="100B, 1e12, or a model as for plan.")
    ],
    *,
    replicas: Annotated[
        int, typer.Option(metavar="N", min=2, max=10_000_000, help="GPUs that hold a replica.")
    ] = 8,
    width: Annotated[
        float,
        typer.Option("--bytes", metavar="B", min=0.5, max=8, help="Bytes of one gradient value."),
    ] = 2.0,
    as_json: o.Json = False,
) -> None:
    """Show what one gradient synchronisation moves: parameter server, ring, ZeRO-1, 2, 3.

    Per GPU, through the busiest link and in total, and which model size or number of replicas the
    often-quoted 2 TB belongs to.
    """
    from planner.estimate.sync import gradient_sync as rows_of
    from planner.estimate.sync import two_terabytes
    from planner.explanation import SyncRow

    parameters = _parameters(size)
    rows = [
        SyncRow.model_validate({**row._asdict(), "source": str(row.source)})
        for row in rows_of(parameters, replicas, width)
    ]
    note = two_terabytes(parameters, width)
    if as_json:
        answer_json(
            {
                "schema": "meshwright.gradient-sync/1",
                "parameters": parameters,
                "replicas": replicas,
                "bytes_per_value": width,
                "schemes": [row.model_dump() for row in rows],
                "note": note,
            }
        )
        return
    from planner.report.explain import sync_report
    from planner.units import count

    heading = (
        f"One gradient synchronisation of {count(parameters)} parameters at {width:g} bytes "
        f"over {replicas:,} GPUs"
    )
    show(sync_report(rows, heading, note))


def _parameters(text: str) -> float:
    """Return the number of parameters that '100B' or a model's name stands for."""
    if match := NUMBER.fullmatch(text.strip()):
        value = float(match[1]) * SUFFIXES[match[2].upper()]
        if not 1 <= value <= 1e18:
            raise SpecError(f"PARAMETERS: {text} is not allowed; allowed: 1 to 1e18")
        return value
    from planner.specs.catalog import load_model
    from planner.specs.parameters import count_parameters

    return float(count_parameters(load_model(text)).total)

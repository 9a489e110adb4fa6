"""Puts fitted numbers where the planner keeps them: profiles, formula files, hardware files."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from calibration.knobs import (
    CONSTANTS,
    FIELDS,
    LINEAGE_OF,
    Knob,
    Planner,
    accelerator,
    device_of,
)
from planner.specs import profiles
from planner.specs.accelerator import Accelerator
from planner.specs.catalog import load_accelerator

ROOT = Path(__file__).parents[1]
PROFILES = ROOT / "planner" / "specs" / "profiles.py"
BASES = {"te": "_TE", "mlm": "_MLM", "fsdp": "_FSDP", "nano": "_NANO"}
LEAST = 0.01
"""A number that moves by less than this share stays as it is written."""
Edit = tuple[int, int, int, int, str]


def number(value: float) -> str:
    """Return three significant digits, as Python and YAML read them."""
    text = f"{value:.3g}"
    return text if "." in text or "e" in text else f"{text}.0"


def write_numbers(planner: Planner, knobs: list[Knob], theta: list[float]) -> None:
    """Write every fitted number into its file."""
    found = {(k.kind, k.column, k.group): float(v) for k, v in zip(knobs, theta, strict=True)}
    _write_profiles(planner, found)
    for constant in CONSTANTS:
        move = found["constant", constant.name, ""]
        if abs(move) >= LEAST:
            home = ROOT / "planner" / (constant.modules[0].replace(".", "/") + ".py")
            value = planner.constant(constant.name) * float(np.exp(move))
            replace_assigned(home, {constant.name: number(value)})
    _write_devices(found)


def _write_profiles(planner: Planner, found: Mapping[tuple[str, str, str], float]) -> None:
    wanted: dict[str, dict[str, float]] = {}
    for field, (_, own) in FIELDS.items():
        for lineage, base in BASES.items():
            move = found["lineage", field, lineage]
            wanted.setdefault(base, {})[field] = _moved(getattr(profiles, base), field, move)
        for stack, lineage in LINEAGE_OF.items():
            move = found["lineage", field, lineage] + found.get(("stack", field, stack), 0.0)
            value = _moved(planner.shipped(stack), field, move)
            from_base = wanted.get(BASES.get(lineage, ""), {}).get(field)
            if own or value != from_base:
                wanted.setdefault(stack, {})[field] = value
    wanted["any"] = {
        f: planner.mean_of_lineages(f)
        for f in FIELDS
        if f not in ("attention", "overlap", "host_s", "host_tp", "host_wait", "host_moe_s")
    }
    text = PROFILES.read_text(encoding="utf-8")
    PROFILES.write_text(_edited(text, _profile_edits(planner, text, wanted)), encoding="utf-8")


def _moved(stack: object, field: str, move: float) -> float:
    return float(getattr(stack, field)) * float(np.exp(move))


def _profile_edits(
    planner: Planner, text: str, wanted: Mapping[str, Mapping[str, float]]
) -> list[Edit]:
    edits: list[Edit] = []
    for name, call in _blocks(ast.parse(text)).items():
        given = {k.arg: k.value for k in call.keywords if k.arg}
        shipped = getattr(profiles, name) if name.startswith("_") else planner.shipped(name)
        for field, value in wanted.get(name, {}).items():
            old = float(getattr(shipped, field))
            same = abs(value - old) <= LEAST * abs(old)
            if field in given and not same:
                edits.append((*_span(given[field]), number(value)))
            elif field not in given and not same:
                last = call.keywords[-1].value
                at = (last.end_lineno or 0, last.end_col_offset or 0)
                edits.append((*at, *at, f",\n        {field}={number(value)}"))
    return edits


def _blocks(tree: ast.Module) -> dict[str, ast.Call]:
    """Return the calls that make lineages (by variable) and stacks (by their name)."""
    out: dict[str, ast.Call] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            target = node.targets[0]
            if isinstance(target, ast.Name) and target.id in BASES.values():
                out[target.id] = node.value
        elif isinstance(node, ast.Call):
            for k in node.keywords:
                if k.arg == "name" and isinstance(k.value, ast.Constant):
                    out[str(k.value.value)] = node
    return {k: v for k, v in out.items() if k.startswith("_") or k in profiles.STACKS}


def _span(node: ast.expr) -> tuple[int, int, int, int]:
    return (node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)


def _edited(text: str, edits: list[Edit]) -> str:
    """Return the text with each (line, column, end line, end column, new text) put in."""
    lines = text.encode().splitlines(keepends=True)
    starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    data = b"".join(lines)
    order = sorted(enumerate(edits), key=lambda e: (e[1][0], e[1][1], e[0]), reverse=True)
    for _, (line, column, end_line, end_column, new) in order:
        a, b = int(starts[line - 1]) + column, int(starts[end_line - 1]) + end_column
        data = data[:a] + new.encode() + data[b:]
    return data.decode()


def replace_assigned(path: Path, values: Mapping[str, str]) -> None:
    """Replace what module-level names of a file are assigned."""
    text = path.read_text(encoding="utf-8")
    edits: list[Edit] = []
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        if isinstance(target, ast.Name) and target.id in values:
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            edits.append((*_span(node.value), values[target.id]))
    assert len(edits) == len(values), f"{path}: {sorted(values)} not all assigned"
    path.write_text(_edited(text, edits), encoding="utf-8")


def _write_devices(found: Mapping[tuple[str, str, str], float]) -> None:
    moves = {(field, group): v for (kind, field, group), v in found.items() if kind == "device"}
    for path in sorted((ROOT / "hardware_specs" / "accelerators").glob("*.yaml")):
        gpu = load_accelerator(path.stem)
        if not (group := device_of(path.stem)):
            continue
        before, after = _rates(gpu), _rates(accelerator(gpu, group, moves))
        text = path.read_text(encoding="utf-8")
        for field, value in after.items():
            if abs(value / before[field] - 1) >= LEAST:
                text = _scaled(text, field, value / before[field])
        path.write_text(text, encoding="utf-8")


def _rates(gpu: Accelerator) -> dict[str, float]:
    rates = {"gemm": gpu.gemm.derate, "te": gpu.attention.te, "fa2": gpu.attention.fa2}
    return rates if gpu.gemm_fp8 is None else rates | {"gemm_fp8": gpu.gemm_fp8.derate}


def _scaled(text: str, field: str, factor: float) -> str:
    """Return a hardware file with one figure multiplied: a derate, or a rate of attention."""
    if field in ("te", "fa2"):
        pattern = rf"(?m)^(  {field}: )([\d.]+)"
    else:
        pattern = rf"(?m)^({field}:\n(?:  \w+: [\d.]+\n)*?  derate: )([\d.]+)"
    return re.sub(pattern, lambda m: m[1] + number(float(m[2]) * factor), text)

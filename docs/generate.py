"""Write what README and docs show of the code: help, tables of formulas, rules and specs, output.

    python docs/generate.py            rewrite the generated blocks
    python docs/generate.py --check    exit 1 if one of them is stale

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else is written by
hand. Nothing generated holds a timing or a path, so the same code gives the same text.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from planner.cli.app import app, main
from planner.emit import EMITTER_NAMES, emitter_named
from planner.emit.capabilities import FIELDS, words
from planner.emit.wrapped import payload
from planner.estimate import (
    again,
    autocast,
    communication,
    compute,
    directions,
    layer,
    muon,
    optimizer,
    params,
    pipelined,
    step,
)
from planner.estimate import experts as routing
from planner.estimate.record import MEMORY_MODULES, TERMS
from planner.layouts.rules import RULES
from planner.objectives import FORMULAS
from planner.specs.catalog import (
    accelerator_names,
    cluster_names,
    load_accelerator,
    load_cluster,
    load_model,
    model_names,
)
from planner.specs.parameters import count_parameters
from planner.specs.stack import STACKS
from planner.units import count

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *("README.md", "docs/cli.md", "docs/model.md", "docs/specs.md", "docs/rules.md"),
    "docs/calibrate.md",
    *("docs/library.md", "docs/objectives.md"),
    *("docs/gallery.md", "docs/import.md"),
)
BLOCK = re.compile(r"(<!-- generated: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
SYMBOLS = {"<": "\\<", "|": "\\|", "*": "\\*", "_": "\\_"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; numbers stand to the right."""
    body = [[str(cell) for cell in row] for row in rows]
    columns = zip(*body, strict=True)
    numeric = [all(re.fullmatch(r"[\d.,]*[TBMk]?", cell) for cell in cells) for cells in columns]
    lines = [list(head), ["---:" if right else "---" for right in numeric], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: object) -> str:
    """Return inline code for a table's cell."""
    return f"`{str(text).replace('|', chr(92) + '|')}`"


def plain(text: str) -> str:
    """Return text with the characters escaped that Markdown would read as markup."""
    return "".join(SYMBOLS.get(letter, letter) for letter in text)


def printed(line: str) -> str:
    """Return what a command line prints to stdout, at 80 columns without colours."""
    words = shlex.split(line)
    if words.pop(0) != "meshwright":
        raise ValueError(f"not a command of ours: {line}")
    out = io.StringIO()
    before = dict(os.environ)
    os.environ.update(COLUMNS="80", NO_COLOR="1")
    try:
        quiet = contextlib.redirect_stderr(io.StringIO())
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), quiet:
            exit_code = main(words)
    finally:
        os.environ.clear()
        os.environ.update(before)
    if exit_code:
        raise RuntimeError(f"{line}: exit code {exit_code}")
    return out.getvalue().rstrip("\n")


def console(line: str) -> str:
    """Return a command and its output as a fenced block."""
    return f"```console\n$ {line}\n{printed(line)}\n```"


def beginning(line: str) -> str:
    """Return a command and its output down to where a report goes into time and memory."""
    shown = re.split(r"\n\n(?=Where the|Terms\n|Why #2|Layouts rejected|Notes\n)", printed(line))[0]
    return f"```console\n$ {line}\n{shown}\n```"


def script(name: str) -> str:
    """Return a script of docs/examples and what it prints."""
    path = ROOT / "docs/examples" / name
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(path))
    return f"```python\n{path.read_text(encoding='utf-8')}```\n\n```text\n{out.getvalue()}```"


def objectives() -> str:
    """Return what a plan may be chosen for, and how that is counted."""
    rows = [
        (code(name.value), plain(f.unit), code(f.text), plain(str(f.source or "")))
        for name, f in FORMULAS.items()
    ]
    return table(("objective", "unit", "counted as", "source"), rows)


def command_paths() -> list[str]:
    """Return every command, parents first, as a user types it."""
    found: list[str] = []

    def walk(command: Any, path: str) -> None:
        found.append(path)
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}")

    walk(typer.main.get_command(app), "meshwright")
    return found


def helps() -> str:
    """Return the help of every command, one section each."""
    parts = [f"## {path}\n\n```\n{printed(f'{path} --help')}\n```" for path in command_paths()]
    return "\n\n".join(parts)


def terms(*modules: ModuleType) -> str:
    """Return the formulas of some modules of the estimate."""
    names = {module.__name__ for module in modules}
    defined = [t for t in TERMS if t.function.__module__ in names]
    rows = [
        (code(t.name), plain(t.doc), code(t.formula), t.unit, plain(str(t.source))) for t in defined
    ]
    return table(("term", "what it is", "formula", "unit", "source"), rows)


def rules() -> str:
    """Return every rule of legality, those of physics and arithmetic first."""
    rows = [
        (plain(r.name), code(r.sentence), ", ".join(r.stacks) or "all", plain(r.where))
        for r in sorted(RULES, key=lambda r: bool(r.stacks))
    ]
    return table(("a layout is refused for", "which reads", "by stack", "enforced in"), rows)


def stacks() -> str:
    """Return the training stacks and the numbers by which the estimate tells them apart."""
    rows = [
        (
            code(s.name), s.title, s.attention_kernel, s.gemm, s.memory_traffic, s.tp_exposed,
            s.dp_exposed, s.p2p_exposed, s.fsdp_contention, s.overlap, s.step_s,
        )
        for s in STACKS.values()
    ]  # fmt: skip
    head = (
        "stack", "what it is", "attention", "gemm", "memory traffic", "tp exposed", "dp exposed",
        "p2p exposed", "zero 3 contention", "overlap", "s a step",
    )  # fmt: skip
    return table(head, rows)


def models() -> str:
    """Return the shipped models with their parameters."""
    rows = []
    for name in model_names():
        model = load_model(name)
        counted = count_parameters(model)
        experts = model.experts
        kind = f"{experts.count} experts, {experts.top_k} a token" if experts else ""
        shape = f"{model.layers} x {model.hidden}"
        rows.append((code(name), count(counted.total), count(counted.active), shape, kind))
    return table(("model", "parameters", "active", "layers x hidden", "experts"), rows)


def clusters() -> str:
    """Return the shipped clusters: what stands in a node and what joins the nodes."""
    rows = []
    for name in cluster_names():
        c = load_cluster(name)
        fabric = c.fabric
        leaf = f"{fabric.nodes_per_leaf:,}" if fabric.nodes_per_leaf else ""
        over = f"{fabric.leaf_oversubscription:g}:1"
        nics = f"{c.node.nics} x {c.node.nic_gbit_per_s:g} Gbit/s" if c.node.nics else ""
        gpus = f"{c.node.gpus} {c.accelerator.name}"
        joined = [fabric.name or fabric.kind.value, nics, leaf, over] if c.node.nics else [""] * 4
        rows.append((code(name), gpus, plain(c.scale_up.kind), c.domain_gpus, *joined))
    network = ("network", "NICs", "nodes a leaf", "uplinks")
    head = ("cluster", "node", "scale-up", "GPUs joined", *network)
    return table(head, rows)


def accelerators() -> str:
    """Return the shipped accelerators."""
    rows = []
    for name in accelerator_names():
        a = load_accelerator(name)
        rows.append(
            (
                code(name),
                f"{a.memory_gib:g}",
                f"{a.usable_memory_gib:g}",
                f"{a.hbm_gb_per_s:,.0f}",
                f"{a.peak_flops_per_s('bf16') / 1e12:,.0f}",
                f"{a.peak_tflops['fp8']:,.0f}" if "fp8" in a.peak_tflops else "",
                f"{a.gemm.derate:g}",
            )
        )
    head = ("accelerator", "GiB", "usable", "GB/s", "16-bit TFLOP/s", "fp8 TFLOP/s", "derate")
    return table(head, rows)


def targets() -> str:
    """Return the launch targets: whose rules a plan for them obeys, what read their files."""
    emitters = [emitter_named(name) for name in EMITTER_NAMES]
    starts = {e.name: payload(e.name, e.stack) for e in emitters}
    rows = [
        (
            code(e.name),
            code(starts[e.name].stack)
            + ("" if starts[e.name] is e else f", as {code(starts[e.name].name)}; or by `--stack`"),
            plain(e.tested_with),
        )
        for e in emitters
    ]
    return table(("target", "planned with the rules of stack", "files tested with"), rows)


def capabilities() -> str:
    """Return what each target expresses of each field; 'any' is left to the rules."""
    emitters = [emitter_named(name) for name in EMITTER_NAMES if name not in ("slurm", "k8s")]
    rows = [
        (code(field), *(plain(words(e.can[field])) for e in emitters))
        for field in FIELDS
        if any(e.can[field].values is not None for e in emitters)
    ]
    return table(("field", *(code(e.name) for e in emitters)), rows)


BLOCKS: dict[str, Callable[[], str]] = {
    "help": helps,
    "objectives": objectives,
    "rules": rules,
    "targets": targets,
    "capabilities": capabilities,
    "stacks": stacks,
    "models": models,
    "clusters": clusters,
    "accelerators": accelerators,
    "terms of params": partial(terms, params),
    "terms of memory": partial(terms, *MEMORY_MODULES),
    "terms of compute": partial(terms, compute, again, directions, autocast),
    "terms of communication": partial(terms, communication),
    "terms of experts": partial(terms, routing),
    "terms of step": partial(terms, optimizer, muon, layer, pipelined, step),
}


def block(name: str) -> str:
    """Return a block's text: of BLOCKS, or `output of COMMAND`, `top of COMMAND`, `script FILE`."""
    if name.startswith("top of "):
        return beginning(name.removeprefix("top of "))
    if name.startswith("script "):
        return script(name.removeprefix("script "))
    if name.startswith("output of "):
        return console(name.removeprefix("output of "))
    return BLOCKS[name]()


def regenerated(text: str) -> str:
    """Return a page with every generated block as the code gives it now."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found['name'])}\n{found[3]}", text)


def stale_pages(*, write: bool) -> list[str]:
    """Return the pages that differ from what the code gives, rewritten if asked."""
    stale = []
    for page in PAGES:
        old = (ROOT / page).read_text(encoding="utf-8")
        new = regenerated(old)
        if new != old:
            stale.append(page)
            if write:
                (ROOT / page).write_text(new, encoding="utf-8")
    return stale


def run(argv: Sequence[str]) -> int:
    """Rewrite the pages, or with `--check` say which are stale; return the exit code."""
    if list(argv) not in ([], ["--check"]):
        print(__doc__)
        return 2
    check = bool(argv)
    stale = stale_pages(write=not check)
    said = "stale, run `python docs/generate.py`" if check else "rewritten"
    for page in stale:
        print(f"{page}: {said}")
    if not stale:
        print(f"{len(PAGES)} pages are as the code gives them")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

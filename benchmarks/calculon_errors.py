"""Errors of this planner and of Calculon on the same published runs: those that both can express.

    git clone https://github.com/calculon-ai/calculon && git -C calculon checkout caa4b11
    python benchmarks/calculon_errors.py calculon published_runs.csv

Calculon is the user's own checkout; it needs numpy, pandas and psutil. Both tools get the layout
and the recompute that a row states. Calculon also gets what its model leaves to the user, one rule
for all rows, as it is used in its own validation: no fused activation, no overlap, all-reduce
without sequence parallelism, the network of a group by whether it fits a node. Its memory limit is
lifted: it has no flash attention and would refuse runs that ran.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from planner.validate import predicted, read_runs  # noqa: E402
from planner.validate.runs import Run  # noqa: E402
from planner.validate.scores import families  # noqa: E402

SYSTEMS = {"a100": "a100_80g.json", "a800": "a100_80g.json", "h100-sxm": "h100_80g_nvl8.json"}
"""Accelerators that Calculon ships a system for."""
RECOMPUTE = {"none": "none", "full": "full", "selective": "attn_only"}
PLENTY_GIB = 1e6
Seconds = Callable[[Run], float | None]


class Compared(NamedTuple):
    """One run: what was measured, and what each tool says."""

    run: Run
    measured_s: float
    planner_s: float
    calculon_s: float


def main() -> None:
    """Print the errors of both by source, and what choosing by either would have cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("calculon", type=Path, help="path of a checkout of Calculon")
    parser.add_argument("runs", type=Path, help="table of published runs")
    asked = parser.parse_args()
    rows = compared(read_runs(asked.runs), calculon(asked.calculon))
    print(f"{'':50}{'runs':>6}{'planner: median, mean, bias':>36}{'Calculon':>36}")
    by_source: dict[str, list[Compared]] = defaultdict(list)
    for row in rows:
        by_source[row.run.row["source"]].append(row)
    for source, mine in [*sorted(by_source.items()), ("all", rows)]:
        ours, theirs = (cells(errors(mine, tool)) for tool in ("planner_s", "calculon_s"))
        print(f"{source:50}{len(mine):6}{ours:>36}{theirs:>36}")
    for tool in ("planner_s", "calculon_s"):
        print(f"{tool.removesuffix('_s'):10}", chosen(rows, tool))


def calculon(checkout: Path) -> Seconds:
    """Return Calculon as a function of a run; nothing for a run that it cannot express."""
    sys.path.insert(0, str(checkout))
    logging.disable(logging.CRITICAL)  # it writes a debug record for every figure
    Llm = importlib.import_module("calculon.llm").Llm  # noqa: N806
    system_of = importlib.import_module("calculon.system").System
    systems = {}
    for name, file in SYSTEMS.items():
        told = json.loads((checkout / "systems" / file).read_text(encoding="utf-8"))
        told["mem1"]["GiB"] = PLENTY_GIB
        systems[name] = told

    def seconds(run: Run) -> float | None:
        told = next((s for n, s in systems.items() if accelerator(run).startswith(n)), None)
        if told is None or not expressible(run):
            return None
        system = system_of(told)
        model = Llm(Llm.Application(application(run)), logging.getLogger())
        try:
            model.compile(system, Llm.Execution.from_json(execution(run)))
            model.run(system)
        except (Llm.Error, AssertionError):
            return None
        return float(model.get_total_time())

    return seconds


def accelerator(run: Run) -> str:
    """Return the accelerator that a run is predicted on."""
    assert run.context is not None
    return run.context.cluster.accelerator.name


def expressible(run: Run) -> bool:
    """Return whether Calculon has all that a run does: GPT blocks in 16 bit, tp, pp and dp."""
    if run.context is None or run.layout is None:
        return False
    m, c, w = run.context
    lay = run.layout
    return (
        m.experts is None
        and not m.gated_mlp
        and m.kv_heads == m.heads
        and w.precision in ("bf16", "fp16")
        and c.node.gpus == 8
        and lay["cp"] == 1
        and lay["zero"] <= 1
        and lay["offload"] == "none"
        and m.layers % (lay["pp"] * lay["vpp"]) == 0
    )


def application(run: Run) -> dict[str, int]:
    """Return a run's model as Calculon takes it."""
    assert run.context is not None
    m = run.context.model
    return {
        "hidden": m.hidden,
        "feedforward": m.ffn,
        "seq_size": run.context.workload.seq_tokens,
        "attn_heads": m.heads,
        "attn_size": m.head_dim,
        "num_blocks": m.layers,
    }


def execution(run: Run) -> dict[str, Any]:
    """Return a run's layout as Calculon takes it."""
    assert run.context is not None
    assert run.layout is not None
    lay, node = run.layout, run.context.cluster.node.gpus
    split = lay["sp"] == 1
    # where a row states recompute, Calculon gets that; its own reading is the planner's
    stated = next((k for k in RECOMPUTE if run.row.get("recompute", "").startswith(k)), None)
    recompute = RECOMPUTE[stated or lay["recompute"]]
    return {
        "num_procs": lay["tp"] * lay["pp"] * lay["dp"],
        "tensor_par": lay["tp"],
        "pipeline_par": lay["pp"],
        "data_par": lay["dp"],
        "tensor_par_net": int(lay["tp"] > node),
        "data_par_net": int(lay["tp"] * lay["dp"] > node),
        "pipeline_par_net": int(lay["tp"] * lay["dp"] * lay["pp"] > node),
        "batch_size": run.context.workload.global_batch,
        "microbatch_size": lay["micro_batch"],
        "datatype": "float16",
        "fused_activation": False,
        "attention_type": "multihead",
        "activation_recompute": recompute,
        "pipeline_interleaving": lay["vpp"],
        "optimizer_sharding": lay["zero"] == 1 and lay["dp"] > 1,
        "tensor_par_comm_type": "rs_ag" if split else "ar",
        "tensor_par_overlap": "none",
        "seq_par_ag_redo": split and recompute != "full",
        "data_par_overlap": False,
        "weight_offload": False,
        "activations_offload": False,
        "optimizer_offload": False,
        "training": True,
    }


def compared(runs: Iterable[Run], other: Seconds) -> list[Compared]:
    """Return the runs that both tools predict and whose step time was measured."""
    kept = [run for run in runs if expressible(run)]
    out = []
    for run, record in zip(kept, predicted(kept), strict=True):
        if record["step_time_s_measured"] is None or (theirs := other(run)) is None:
            continue
        measured, ours = record["step_time_s_measured"], record["step_time_s_predicted"]
        out.append(Compared(run, measured, ours, theirs))
    return out


def errors(rows: Iterable[Compared], tool: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return predicted / measured - 1 of one tool."""
    return np.array([getattr(row, tool) / row.measured_s - 1 for row in rows])


def cells(relative: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Return median and mean of |error|, and the median error, in %."""
    size = np.abs(relative)
    figures = (np.median(size), np.mean(size), np.median(relative))
    return f"{100 * figures[0]:8.1f} {100 * figures[1]:8.1f} {100 * figures[2]:+8.1f}"


def chosen(rows: Iterable[Compared], tool: str) -> Mapping[str, Any]:
    """Return how well one tool chooses and orders among runs that differ in their layout only."""
    return families(
        [
            {
                "family": row.run.row.get("family", ""),
                "source": row.run.row["source"],
                "step_time_s_predicted": getattr(row, tool),
                "step_time_s_measured": row.measured_s,
            }
            for row in rows
        ]
    )


if __name__ == "__main__":
    main()

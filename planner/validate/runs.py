"""Published runs: one row of a table of measurements as model, cluster, workload and layout.

A blank that a stack has a usual value for is filled and said; a row that lacks more is skipped,
and says which field. Measured columns are read in `measured` only, after and apart from what the
prediction is made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from planner.errors import PlannerError
from planner.layouts.rules import Context
from planner.layouts.split import fits
from planner.specs.cluster import ClusterSpec
from planner.specs.model import Experts, LatentAttention, ModelSpec
from planner.specs.stack import stack_named
from planner.specs.workload import RECOMPUTABLE, Workload
from planner.validate import stacks
from planner.validate.fields import NotStatedError, whole
from planner.validate.machines import cluster_of, nodes_of
from planner.validate.table import Table, read_table
from planner.validate.vocabulary import (
    BIASED_EXPERTS,
    FRAMEWORKS,
    OFFLOADED,
    PRECISION,
    RECOMPUTE,
    longest_prefix,
)

_BLOCK = re.compile(r"full:block ([1-9]\d{0,3})\b")
_INFERRED = "recompute full inferred"
_SHARDS = re.compile(r"ZeRO(?: stage |-)1 .{0,12}?(\d+)-(?:GPU|rank) group")


@dataclass(frozen=True)
class Run:
    """One row: what to predict, or why it is skipped, and what was filled in."""

    row: Mapping[str, str]
    context: Context | None = None
    layout: Mapping[str, Any] | None = None
    reason: str = ""
    assumed: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Return the row's name."""
        return self.row["id"]


def read_runs(path: Path, on: ClusterSpec | None = None, stack: str = "") -> list[Run]:
    """Return the rows of the table in a file, as `runs_of` does; SpecError where it is none."""
    return runs_of(read_table(path), on, stack)


def runs_of(table: Table, on: ClusterSpec | None = None, stack: str = "") -> list[Run]:
    """Return the rows of a table of runs; with `on` they ran on nodes of that cluster.

    `stack` is the training stack of rows whose framework is blank or not known.
    """
    return [
        _run({k: (v or "").strip() for k, v in row.items() if isinstance(k, str)}, on, stack)
        for row in table.rows
    ]


def _run(row: Mapping[str, str], on: ClusterSpec | None, stack: str) -> Run:
    assumed: dict[str, str] = {}
    try:
        context = _context(row, assumed, on, stack)
        layout = _layout(row, context, assumed)
    except NotStatedError as missing:
        return Run(row, reason=str(missing), assumed=assumed)
    except PlannerError as error:
        return Run(row, reason=error.message, assumed=assumed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return Run(row, reason=f"arch_json or sizes: {where} {first['msg']}", assumed=assumed)
    return Run(row, context, layout, assumed=assumed)


def _context(
    row: Mapping[str, str], assumed: dict[str, str], on: ClusterSpec | None, named: str
) -> Context:
    model = model_of(row)
    if named and longest_prefix(row["framework"], FRAMEWORKS) is None:
        stack = stack_named(named).name
    else:
        stack = stacks.stack_of(row, assumed, experts=model.experts is not None)
    dtype = row.get("dtype", "")
    if not dtype:
        dtype = "fp16" if row["hardware"].startswith("V100") else "bf16"
        assumed["dtype"] = dtype
    precision = longest_prefix(dtype, PRECISION)
    if precision is None:
        raise NotStatedError(f"dtype: {dtype!r} is not modelled")
    workload = Workload.model_validate(
        {
            "seq_tokens": whole(row, "seq"),
            "global_batch": whole(row, "global_batch"),
            "precision": precision,
            "stack": stack,
            "expert_imbalance": 1.0,
            "recompute_modules": _modules(row, stack),
            **_block(row),
        }
    )
    gpus = whole(row, "gpus")
    cluster = nodes_of(on, row, gpus) if on else cluster_of(row, gpus, assumed)
    return Context(model, cluster, workload)


def _modules(row: Mapping[str, str], stack: str) -> list[str] | None:
    """Return the modules that a row's selective recompute lists; None where it lists none."""
    text = row.get("recompute", "")
    if not text.startswith(("selective", "moe+")) or stack_named(stack).attention_kernel != "te":
        return None
    return [
        word for word in RECOMPUTABLE if re.search(rf"(?<![a-z_]){word}(?![a-z_])", text)
    ] or None


def _block(row: Mapping[str, str]) -> dict[str, Any]:
    """Return the layers that full recompute in blocks runs again, where a row says so."""
    named = _BLOCK.match(row.get("recompute", ""))
    return {"recompute_method": "block", "recompute_layers": int(named[1])} if named else {}


def model_of(row: Mapping[str, str]) -> ModelSpec:
    """Return the architecture that `arch_json` describes; raises NotStatedError when it cannot."""
    if not row["arch_json"]:
        raise NotStatedError("arch_json: not stated")
    try:
        arch = json.loads(row["arch_json"])
    except (ValueError, RecursionError):  # no JSON, or a number of thousands of digits
        raise NotStatedError("arch_json: not JSON") from None
    if not isinstance(arch, dict):
        raise NotStatedError("arch_json: not an object")
    if "mamba" in arch or "hybrid_pattern" in arch:
        raise NotStatedError("arch_json: state-space layers are not modelled")
    name = row.get("model", "") or "unnamed"
    if "lora" in (name + row["id"]).lower():
        raise NotStatedError("model: low-rank adapters are not modelled")
    for key in ("layers", "hidden", "heads", "ffn", "vocab"):
        if not isinstance(arch.get(key), int) or arch[key] < 1:
            raise NotStatedError(f"arch_json: {key} not stated")
    for key in ("moe", "mla"):
        if not isinstance(arch.get(key) or {}, dict):
            raise NotStatedError(f"arch_json: {key} is not an object")
    plain = not arch.get("glu")
    return ModelSpec.model_validate(
        {
            "name": name,
            **{k: arch[k] for k in ("layers", "hidden", "heads", "ffn", "vocab")},
            "kv_heads": arch.get("kv_heads") or arch["heads"],
            "head_dim": arch.get("head_dim") or arch["hidden"] // arch["heads"],
            "max_seq_tokens": 1_000_000_000,
            "gated_mlp": not plain,
            "norm": "layernorm" if plain else "rmsnorm",
            "qkv_bias": plain,
            "mlp_bias": plain,
            "attention_output_bias": plain,
            "dropout": plain and "unfused" in row.get("attention", ""),
            "tied_embeddings": bool(arch.get("tied")),
            "mtp_layers": arch.get("mtp") or 0,
            "sliding_window_tokens": arch.get("sliding_window") or None,
            "full_attention_period": (arch.get("swa_every") or 0)
            if arch.get("sliding_window")
            else 0,
            "experts": _experts(arch, name),
            "mla": _latent(arch),
        }
    )


def _experts(arch: Mapping[str, Any], name: str) -> Experts | None:
    moe = arch.get("moe")
    if not moe:
        return None
    width = moe.get("ffn") or arch["ffn"]
    shares = moe.get("shared") or 0  # in routed experts' widths: half a one is a shared expert too
    if not isinstance(width, int) or not isinstance(shares, int | float):
        raise NotStatedError("arch_json: moe.ffn and moe.shared are not numbers")
    shared = moe.get("shared_ffn") or width * shares
    return Experts.model_validate(
        {
            "count": moe.get("experts"),
            "top_k": moe.get("topk"),
            "ffn": width,
            "shared_ffn": shared,
            "first_dense_layers": moe.get("dense_layers") or 0,
            "layer_period": moe.get("freq") or 1,
            "expert_bias": name.lower().startswith(BIASED_EXPERTS),
        }
    )


def _latent(arch: Mapping[str, Any]) -> LatentAttention | None:
    mla = arch.get("mla")
    if not mla:
        return None
    return LatentAttention.model_validate(
        {
            "q_lora_rank": mla.get("q_lora") or None,
            "kv_lora_rank": mla.get("kv_lora"),
            "qk_nope_head_dim": mla.get("qk_nope"),
            "qk_rope_head_dim": mla.get("qk_rope"),
            "v_head_dim": mla.get("v_head"),
        }
    )


def _layout(row: Mapping[str, str], c: Context, assumed: dict[str, str]) -> dict[str, Any]:
    """Return the layout's columns; raises NotStatedError when sizes disagree."""
    stated = row.get("offload", "") if not stacks.offloaded_layers(row) else ""
    offload = longest_prefix(stated or "none", OFFLOADED)
    if offload is None:
        raise NotStatedError(f"offload: {row['offload'][:40]!r} is not modelled")
    tp, pp, cp, ep = (max(1, whole(row, name, 1)) for name in ("tp", "pp", "cp", "ep"))
    gpus = whole(row, "gpus")
    dp = whole(row, "dp", gpus // (tp * pp * cp)) or 1
    if tp * pp * cp * dp != gpus:
        raise NotStatedError(f"dp: tp {tp} * pp {pp} * cp {cp} * dp {dp} is not {gpus} GPUs")
    micro_batch = whole(row, "micro_batch")
    vpp = max(1, whole(row, "vpp", 1)) if pp > 1 else 1
    batch = c.workload.global_batch
    if micro_batch == 0 or batch % (dp * micro_batch):
        raise NotStatedError(f"micro_batch: {micro_batch} * dp {dp} does not divide batch {batch}")
    if not fits(c.model.layers, pp, vpp):
        raise NotStatedError(f"vpp: {pp * vpp} chunks for {c.model.layers} layers")
    etp = _expert_tensor_ways(row, tp, assumed) if c.model.experts else 1
    if c.model.experts and (tp * cp * dp) % (ep * etp):
        raise NotStatedError(
            f"ep: {ep} * etp {etp} does not divide {tp * cp * dp} ranks of a stage"
        )
    return {
        "tp": tp,
        "sp": stacks.sequence_parallel(row, tp, c.workload.stack, assumed),
        "pp": pp,
        "vpp": vpp,
        "cp": cp,
        "ep": ep if c.model.experts else 1,
        "etp": etp,
        "dp": dp,
        "dp_replicate": _replicas(row, c, dp),
        "zero": stacks.zero_stage(row, dp * cp, c.workload.stack, assumed),
        "micro_batch": micro_batch,
        "num_microbatches": batch // (dp * micro_batch),
        "recompute": _recompute(row, c, assumed),
        "schedule": "none" if pp == 1 else "interleaved" if vpp > 1 else "1f1b",
        "offload": offload,
        "dp_sync": "all-reduce",
    }


def _replicas(row: Mapping[str, str], c: Context, dp: int) -> int:
    """Return the copies of hybrid sharding: shards stay within a node, or a group that is named."""
    named = _SHARDS.search(row.get("note", ""))
    shards = int(named[1]) if named else c.cluster.node.gpus
    if (row.get("fsdp") != "hybrid" and not named) or not shards or dp % shards:
        return 1
    return dp // shards


def _expert_tensor_ways(row: Mapping[str, str], tp: int, assumed: dict[str, str]) -> int:
    """Return etp; Megatron-LM's arguments take tp where it is not given."""
    if not row.get("etp") and tp > 1 and row["framework"].startswith("Megatron-LM"):
        assumed["etp"] = str(tp)
        return tp
    return max(1, whole(row, "etp", 1))


def _recompute(row: Mapping[str, str], c: Context, assumed: dict[str, str]) -> str:
    """Return what the row recomputes; vTrain's simulator settings do not say it of one node's runs.

    There, with everything run again, the multiplies of a layer would have to beat the A100's peak:
    8 more sequences of 1,024 tokens take 16.6 ms at h = 2,048 and 6.5 ms at h = 1,024.
    """
    text = row.get("recompute", "")
    if _INFERRED in row.get("note", "") and c.cluster.nodes == 1:
        assumed["recompute"] = "none"
        return "none"
    if not text:
        assumed["recompute"] = stacks.usual_recompute(c.workload.stack)
        return assumed["recompute"]
    kind = longest_prefix(text, RECOMPUTE)
    if kind is None:
        raise NotStatedError(f"recompute: {text[:40]!r} is not known")
    return kind

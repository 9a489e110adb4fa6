"""Rules of arithmetic and physics: they bind every stack."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.layouts.rules.rule import Context, Mask, Rule
from planner.layouts.table import Layouts
from planner.specs.stack import stack_named


def _divides(part: NDArray[np.int64], whole: int) -> Mask:
    divides: Mask = whole % part == 0
    return divides


def _tp_straddles(x: Layouts, c: Context) -> Mask:
    node, domain = c.cluster.node.gpus, c.cluster.domain_gpus_used
    inside = (x.tp <= node) & (node % x.tp == 0)
    wide = (x.tp > node) & (x.tp % node == 0) & (x.tp <= domain)
    straddles: Mask = ~(inside | wide)
    return straddles


def _kv_uneven(x: Layouts, c: Context) -> Mask:
    if c.model.mla is not None:
        return np.zeros(len(x), dtype=bool)
    g = c.model.kv_heads
    uneven: Mask = (g % x.tp != 0) & (x.tp % g != 0)
    return uneven


def _ffn_uneven(x: Layouts, c: Context) -> Mask:
    has_dense = not all(c.model.moe_layers)
    return (c.model.ffn % x.tp != 0) if has_dense else np.zeros(len(x), dtype=bool)


def _experts(c: Context, attribute: str) -> int:
    return int(getattr(c.model.experts, attribute)) if c.model.experts else 0


def _batch_uneven(x: Layouts, c: Context) -> Mask:
    uneven: Mask = c.workload.global_batch % (x.dp * x.micro_batch) != 0
    return uneven


def _too_many_chunks(x: Layouts, c: Context) -> Mask:
    room = np.where((x.vpp == 1) | (x.folds == 1), c.model.layers, c.model.layers + 2)
    return x.pp * x.vpp > room


def _listed(x: Layouts, c: Context) -> Mask:
    """Return where recompute is to follow a list of modules, units or blocks of layers."""
    units = (c.workload.recompute_method, c.workload.recompute_layers) != ("uniform", 1)
    modules = c.workload.recompute_modules is not None
    listed: Mask = ((x.recompute == 1) & modules) | ((x.recompute == 2) & units)
    return listed


COMMON: tuple[Rule, ...] = (
    Rule(
        "tp does not fit the node",
        "tp={tp} does not fit the node of {node_gpus} GPUs (NVLink domain {domain}) evenly",
        ("tp",),
        _tp_straddles,
    ),
    Rule(
        "tp does not divide the heads",
        "tp={tp} does not divide the {heads} attention heads",
        ("tp",),
        lambda x, c: ~_divides(x.tp, c.model.heads),
        where="megatron/core/transformer/transformer_config.py:1324",
    ),
    Rule(
        "tp and kv heads do not divide",
        "tp={tp} neither divides nor is a multiple of the {kv_heads} key/value heads",
        ("tp",),
        _kv_uneven,
    ),
    Rule(
        "tp does not divide the feed-forward",
        "tp={tp} does not divide the feed-forward width {ffn}",
        ("tp",),
        _ffn_uneven,
    ),
    Rule(
        "tp does not divide the shared experts",
        "tp={tp} does not divide the shared experts' width {shared_ffn}",
        ("tp",),
        lambda x, c: _experts(c, "shared_ffn") % x.tp != 0,
    ),
    Rule(
        "sequence parallelism without tp",
        "sp needs tp > 1 (it shards what tensor parallelism leaves whole)",
        (
            "sp",
            "tp",
        ),
        lambda x, c: (x.sp == 1) & (x.tp == 1),
    ),
    Rule(
        "sequence does not divide by cp",
        "cp={cp} needs a sequence that is a multiple of {cp} x 2 (causal load balance), not {seq}",
        ("cp",),
        lambda x, c: (x.cp > 1) & (c.workload.seq_tokens % (2 * x.cp) != 0),
        where="torchtitan/trainer.py:306, megatron/training/arguments.py",
    ),
    Rule(
        "sequence does not divide by tp",
        "sp with tp={tp}, cp={cp} does not divide the sequence of {seq} tokens",
        (
            "sp",
            "cp",
            "tp",
        ),
        lambda x, c: (x.sp == 1) & (c.workload.seq_tokens % (x.cp * x.tp) != 0),
    ),
    Rule(
        "ep does not divide the experts",
        "ep={ep} does not divide the {experts} experts",
        ("ep",),
        lambda x, c: (_experts(c, "count") or 1) % x.ep != 0,
    ),
    Rule(
        "expert tensor parallelism does not divide",
        "etp={etp} must divide tp={tp} and the expert width {expert_ffn}",
        (
            "tp",
            "etp",
        ),
        lambda x, c: (
            (x.tp % x.etp != 0) | ((_experts(c, "ffn") or 1) % x.etp != 0)
            if c.model.experts
            else x.etp != 1
        ),
    ),
    Rule(
        "ep x etp does not fit the stage",
        "ep={ep} x etp={etp} does not divide the tp x cp x dp = {tp} x {cp} x {dp} ranks of a "
        "stage",
        (
            "tp",
            "cp",
            "dp",
            "ep",
            "etp",
        ),
        lambda x, c: (x.tp * x.cp * x.dp) % (x.ep * x.etp) != 0,
        where="megatron/core/parallel_state.py:883",
    ),
    Rule(
        "global batch does not divide",
        "the global batch {global_batch} is not a multiple of dp={dp} x micro_batch={micro_batch}",
        (
            "dp",
            "micro_batch",
        ),
        _batch_uneven,
        where="megatron/core/num_microbatches_calculator.py, deepspeed/runtime/config.py:602",
    ),
    Rule(
        "more chunks than layers",
        "pp={pp} x vpp={vpp} makes more pipeline chunks than {layers} layers can fill",
        (
            "pp",
            "vpp",
            "schedule",
        ),
        _too_many_chunks,
    ),
    Rule(
        "virtual chunks without a pipeline",
        "vpp={vpp} needs pp > 1",
        (
            "vpp",
            "pp",
        ),
        lambda x, c: (x.vpp > 1) & (x.pp == 1),
    ),
    Rule(
        "zero without data parallelism",
        "zero={zero} shards over dp x cp ranks, and there is one",
        (
            "zero",
            "dp",
            "cp",
            "offload",
        ),
        lambda x, c: (x.zero > 0) & (x.dp * x.cp == 1) & (x.offload == 0),
    ),
    Rule(
        "parameters on the host need zero 3",
        "offload={offload} fetches weights layer by layer, which needs zero=3, not zero={zero}",
        ("zero", "offload"),
        lambda x, c: (x.offload >= 2) & (x.zero != 3),
        stacks=("any", "deepspeed"),
        where="deepspeed/runtime/zero/offload_config.py",
    ),
    Rule(
        "NVMe offload needs drives",
        "offload={offload} needs the rate of a node's NVMe drives: node.nvme_gb_per_s in the "
        "cluster file",
        ("offload",),
        lambda x, c: (x.offload >= 3) & (c.cluster.node.nvme_gb_per_s is None),
    ),
    Rule(
        "a part of the optimizer on the host",
        "{stack}: only offload=optimizer leaves a part of the optimizer's state on the GPUs, not "
        "offload={offload}",
        ("offload",),
        lambda x, c: (x.offload >= 2) & (stack_named(c.workload.stack).offload_fraction < 1),
    ),
    Rule(
        "activations on the host",
        "{stack}: activations go to the host without a pipeline and without recompute, not with "
        "pp={pp}, recompute={recompute}",
        ("pp", "recompute"),
        lambda x, c: (
            ((x.pp > 1) | (x.recompute > 0))
            if stack_named(c.workload.stack).offload_layers
            else np.zeros(len(x), dtype=bool)
        ),
        where="megatron/core/transformer/transformer_config.py:1714",
    ),
    Rule(
        "activations of the last layer on the host",
        "{stack}: the last of the {layers} layers keeps its activations on the GPU",
        ("pp",),
        lambda x, c: np.full(
            len(x), stack_named(c.workload.stack).offload_layers >= c.model.layers
        ),
        where="megatron/core/transformer/transformer_config.py:1707",
    ),
    Rule(
        "offload with a parameter server",
        "offload={offload} does not go with a parameter server",
        ("dp_sync", "offload"),
        lambda x, c: (x.dp_sync == 1) & (x.offload > 0),
    ),
    Rule(
        "replicas of shards need zero 3",
        "dp_replicate={dp_replicate} (HSDP) needs zero=3 and must divide dp={dp} into groups of "
        "> 1",
        (
            "dp_replicate",
            "zero",
            "dp",
            "cp",
        ),
        lambda x, c: (
            (x.dp_replicate > 1)
            & ((x.zero != 3) | (x.dp % x.dp_replicate != 0) | (x.dp_replicate >= x.dp * x.cp))
        ),
    ),
    Rule(
        "a replica must hold whole expert groups",
        "ep={ep} x etp={etp} does not fit into one of the dp_replicate={dp_replicate} replicas",
        (
            "dp_replicate",
            "tp",
            "cp",
            "dp",
            "ep",
            "etp",
        ),
        lambda x, c: (
            (x.dp_replicate > 1)
            & ((x.tp * x.cp * x.dp // np.maximum(x.dp_replicate, 1)) % (x.ep * x.etp) != 0)
        ),
    ),
    Rule(
        "parameter server is plain data parallelism on one node",
        "a parameter server (DataParallel) needs one node, dp > 1 and tp=pp=cp=ep=1, zero=0",
        (
            "dp_sync",
            "tp",
            "pp",
            "cp",
            "ep",
            "zero",
            "dp",
        ),
        lambda x, c: (
            (x.dp_sync == 1)
            & (
                (x.tp * x.pp * x.cp * x.ep > 1)
                | (x.zero > 0)
                | (x.dp == 1)
                | (x.dp > c.cluster.node.gpus)
            )
        ),
    ),
    Rule(
        "megatron, deepspeed: no parameter server",
        "{stack} has no parameter server",
        ("dp_sync",),
        lambda x, c: x.dp_sync == 1,
        stacks=("megatron", "deepspeed"),
    ),
    Rule(
        "deepspeed, torchtitan, transformers: no lists of recompute",
        "{stack} cannot be told which modules (or how many layers) to recompute; Megatron-LM can",
        ("recompute",),
        _listed,
        stacks=("deepspeed", "torchtitan", "transformers"),
    ),
)

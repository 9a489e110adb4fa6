"""Legality: one rule, one mask, one sentence. Rules without `stacks` are physics or arithmetic.

A rule's sentence is a format string over the layout's row and the model's and cluster's figures.
Where a framework enforces a rule, `where` says so (framework file), found by running its own code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.layouts.table import Layouts
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.stack import stack_named
from planner.specs.workload import Workload

Mask = NDArray[np.bool_]


class Context(NamedTuple):
    """What rules may look at beside the layouts."""

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload


@dataclass(frozen=True)
class Rule:
    """`broken(layouts, context)` is a mask of the rows that violate the rule."""

    name: str
    sentence: str
    on: tuple[str, ...]
    """The columns that the mask looks at: it is applied as soon as these are known."""
    broken: Callable[[Layouts, Context], Mask]
    stacks: tuple[str, ...] = ()
    where: str = ""

    def applies(self, stack: str) -> bool:
        """Return whether the rule binds layouts of `stack`."""
        return not self.stacks or stack_named(stack).rules in self.stacks

    def explain(self, layouts: Layouts, row: int, context: Context) -> str:
        """Return the rule's sentence with the figures of one layout filled in."""
        model, cluster, workload = context
        figures: dict[str, Any] = {**layouts.row(row)}
        figures |= {
            "layers": model.layers,
            "heads": model.heads,
            "kv_heads": model.kv_heads,
            "ffn": model.ffn,
            "hidden": model.hidden,
            "experts": model.experts.count if model.experts else 0,
            "expert_ffn": model.experts.ffn if model.experts else 0,
            "shared_ffn": model.experts.shared_ffn if model.experts else 0,
            "seq": workload.seq_tokens,
            "global_batch": workload.global_batch,
            "domain": cluster.domain_gpus_used,
            "node_gpus": cluster.node.gpus,
            "nodes": cluster.nodes,
            "stack": workload.stack,
            "max_seq": model.max_seq_tokens,
        }
        return self.sentence.format(**figures)


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


def _never(x: Layouts) -> Mask:
    return np.zeros(len(x), dtype=bool)


def _batch_uneven(x: Layouts, c: Context) -> Mask:
    uneven: Mask = c.workload.global_batch % (x.dp * x.micro_batch) != 0
    return uneven


def _too_many_chunks(x: Layouts, c: Context) -> Mask:
    room = np.where(x.vpp == 1, c.model.layers, c.model.layers + 2)
    return x.pp * x.vpp > room


def _schedule_disagrees(x: Layouts) -> Mask:
    single = (x.pp == 1) & (x.schedule == 0)
    flat = (x.pp > 1) & (x.vpp == 1) & ((x.schedule == 1) | (x.schedule == 2))
    interleaved = (x.pp > 1) & (x.vpp > 1) & (x.schedule == 3)
    disagrees: Mask = ~(single | flat | interleaved)
    return disagrees


RULES: tuple[Rule, ...] = (
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
        "schedule and chunks disagree",
        "schedule={schedule} does not go with pp={pp}, vpp={vpp} "
        "(none: pp=1; gpipe, 1f1b: vpp=1; interleaved: vpp>1)",
        (
            "pp",
            "vpp",
            "schedule",
        ),
        lambda x, c: _schedule_disagrees(x),
    ),
    Rule(
        "too few micro-batches to interleave",
        "interleaving needs micro-batches in multiples of pp={pp}; there are {num_microbatches}",
        (
            "vpp",
            "num_microbatches",
            "pp",
        ),
        lambda x, c: (x.vpp > 1) & ((x.num_microbatches < x.pp) | (x.num_microbatches % x.pp != 0)),
        stacks=("any", "megatron"),
        where="megatron/core/pipeline_parallel/schedules.py",
    ),
    Rule(
        "zero without data parallelism",
        "zero={zero} shards over dp x cp ranks, and there is one",
        (
            "zero",
            "dp",
            "cp",
        ),
        lambda x, c: (x.zero > 0) & (x.dp * x.cp == 1),
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
    # --- Megatron-LM
    Rule(
        "megatron: experts with tp need sp",
        "Megatron-LM needs sp with experts and tp={tp}",
        (
            "tp",
            "sp",
        ),
        lambda x, c: (x.tp > 1) & (x.sp == 0) if c.model.experts else _never(x),
        stacks=("megatron",),
        where="megatron/core/transformer/transformer_config.py",
    ),
    Rule(
        "megatron: no GPipe",
        "Megatron-LM has no GPipe schedule (1f1b or interleaved)",
        ("schedule",),
        lambda x, c: x.schedule == 1,
        stacks=("megatron",),
    ),
    Rule(
        "megatron: zero 2 and 3 without a pipeline only",
        "Megatron-FSDP (zero={zero}) does not go with pp={pp}",
        (
            "zero",
            "pp",
        ),
        lambda x, c: (x.zero >= 2) & (x.pp > 1),
        stacks=("megatron",),
        where="megatron/core/distributed/fsdp",
    ),
    Rule(
        "megatron: no hybrid sharding",
        "dp_replicate={dp_replicate} with zero=3 is not expressible in Megatron-LM",
        ("dp_replicate",),
        lambda x, c: x.dp_replicate > 1,
        stacks=("megatron",),
    ),
    Rule(
        "megatron, deepspeed: no parameter server",
        "{stack} has no parameter server",
        ("dp_sync",),
        lambda x, c: x.dp_sync == 1,
        stacks=("megatron", "deepspeed"),
    ),
    # --- DeepSpeed
    Rule(
        "deepspeed: pipeline with zero 2 or 3",
        "DeepSpeed refuses zero={zero} with pp={pp} (a pipeline allows zero 0 and 1)",
        (
            "pp",
            "zero",
        ),
        lambda x, c: (x.pp > 1) & (x.zero >= 2),
        stacks=("deepspeed",),
        where="deepspeed/runtime/pipe/engine.py:76",
    ),
    Rule(
        "deepspeed: no virtual chunks, no GPipe",
        "DeepSpeed's pipeline engine runs 1f1b only (vpp={vpp}, schedule={schedule})",
        (
            "vpp",
            "schedule",
        ),
        lambda x, c: (x.vpp > 1) | (x.schedule == 1),
        stacks=("deepspeed",),
        where="deepspeed/runtime/pipe/schedule.py",
    ),
    Rule(
        "deepspeed: no context parallelism",
        "DeepSpeed has no ring context parallelism (cp={cp})",
        ("cp",),
        lambda x, c: x.cp > 1,
        stacks=("deepspeed",),
    ),
    Rule(
        "deepspeed: no tensor parallelism",
        "DeepSpeed splits tensors only for Hugging Face models it knows (AutoTP), not tp={tp}",
        ("tp",),
        lambda x, c: x.tp > 1,
        stacks=("deepspeed",),
        where="deepspeed/module_inject/auto_tp.py",
    ),
    Rule(
        "deepspeed: no sequence-parallel tp",
        "DeepSpeed's AutoTP has no sequence parallelism",
        ("sp",),
        lambda x, c: x.sp == 1,
        stacks=("deepspeed",),
    ),
    Rule(
        "deepspeed: experts live inside data parallelism",
        "DeepSpeed needs ep={ep} to divide dp={dp}, and etp=1",
        (
            "dp",
            "ep",
            "etp",
        ),
        lambda x, c: (x.dp % x.ep != 0) | (x.etp > 1),
        stacks=("deepspeed",),
        where="deepspeed/utils/groups.py",
    ),
    Rule(
        "deepspeed: no selective recompute",
        "DeepSpeed checkpoints whole layers (recompute none or full)",
        ("recompute",),
        lambda x, c: x.recompute == 1,
        stacks=("deepspeed",),
    ),
    Rule(
        "deepspeed, megatron: no HSDP",
        "dp_replicate={dp_replicate} is not expressible in DeepSpeed (MiCS has been removed)",
        ("dp_replicate",),
        lambda x, c: x.dp_replicate > 1,
        stacks=("deepspeed",),
        where="deepspeed/runtime/config.py:120",
    ),
    # --- PyTorch FSDP2 / torchtitan
    Rule(
        "torchtitan: tp must divide the kv heads",
        "torchtitan needs tp={tp} to divide the {kv_heads} key/value heads",
        ("tp",),
        lambda x, c: (c.model.kv_heads % x.tp != 0) if c.model.mla is None else _never(x),
        stacks=("torchtitan",),
        where="torchtitan/models/common/decoder.py:149",
    ),
    Rule(
        "torchtitan: sequence does not divide by tp and cp",
        "torchtitan needs a sequence that is a multiple of tp x 2 cp = {tp} x 2 x {cp}, not {seq}",
        (
            "sp",
            "cp",
            "tp",
        ),
        lambda x, c: (x.sp == 1) & (x.cp > 1) & (c.workload.seq_tokens % (2 * x.tp * x.cp) != 0),
        stacks=("torchtitan",),
        where="torchtitan/trainer.py:306",
    ),
    Rule(
        "torchtitan: no zero 1",
        "FSDP2 has zero 2 (no reshard after forward) and 3, not 1",
        ("zero",),
        lambda x, c: x.zero == 1,
        stacks=("torchtitan",),
    ),
    Rule(
        "torchtitan: no replicated parameters beside tp, cp, pp",
        "PyTorch DDP (zero=0, dp={dp}) does not go with tp, cp or pp; use zero 2 or 3",
        (
            "zero",
            "dp",
            "cp",
            "tp",
            "pp",
        ),
        lambda x, c: (x.zero == 0) & (x.dp * x.cp > 1) & (x.tp * x.cp * x.pp > 1),
        stacks=("torchtitan",),
        where="torchtitan/distributed",
    ),
    Rule(
        "torchtitan: experts follow tp, or ep",
        "torchtitan splits experts by tp with ep=1 (etp={tp}), by ep alone otherwise (etp=1)",
        ("tp", "ep", "etp"),
        lambda x, c: x.etp != np.where(x.ep == 1, x.tp, 1) if c.model.experts else _never(x),
        stacks=("torchtitan",),
        where="torchtitan/distributed/parallel_dims.py",
    ),
    Rule(
        "torchtitan: tied embeddings with a pipeline",
        "torchtitan refuses tied embeddings with pp={pp}",
        ("pp",),
        lambda x, c: (x.pp > 1) if c.model.tied_embeddings else _never(x),
        stacks=("torchtitan",),
        where="torchtitan/models/common/decoder.py:139",
    ),
    Rule(
        "torchtitan: fewer micro-batches than stages",
        "torch's 1F1B needs at least pp={pp} micro-batches; there are {num_microbatches}",
        (
            "schedule",
            "num_microbatches",
            "pp",
        ),
        lambda x, c: (x.schedule >= 2) & (x.num_microbatches < x.pp),
        stacks=("torchtitan",),
        where="torch/distributed/pipelining/schedules.py:1020",
    ),
    Rule(
        "torchtitan: interleaving rounds",
        "torch's Interleaved1F1B needs whole rounds of micro-batches; {num_microbatches} over "
        "pp={pp} are not",
        (
            "vpp",
            "num_microbatches",
            "pp",
        ),
        lambda x, c: (
            (x.vpp > 1) & (x.num_microbatches % np.maximum(1, x.num_microbatches // x.pp) != 0)
        ),
        stacks=("torchtitan",),
        where="torch/distributed/pipelining/schedules.py:2935",
    ),
)


def rules_of(stack: str) -> list[Rule]:
    """Return the rules that bind layouts of `stack`, in the order in which they are told."""
    return [rule for rule in RULES if rule.applies(stack)]


def broken_rules(layouts: Layouts, row: int, context: Context) -> list[str]:
    """Return the sentences of every rule that one layout breaks."""
    one = layouts.take(slice(row, row + 1))
    return [
        rule.explain(one, 0, context)
        for rule in rules_of(context.workload.stack)
        if bool(np.any(rule.broken(one, context)))
    ]

"""What PyTorch FSDP2, as torchtitan uses it, can run."""

from __future__ import annotations

import numpy as np

from planner.layouts.rules.rule import Rule, never

TORCHTITAN: tuple[Rule, ...] = (
    Rule(
        "torchtitan: tp must divide the kv heads",
        "torchtitan needs tp={tp} to divide the {kv_heads} key/value heads",
        ("tp",),
        lambda x, c: (c.model.kv_heads % x.tp != 0) if c.model.mla is None else never(x),
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
        lambda x, c: x.etp != np.where(x.ep == 1, x.tp, 1) if c.model.experts else never(x),
        stacks=("torchtitan",),
        where="torchtitan/distributed/parallel_dims.py",
    ),
    Rule(
        "torchtitan: tied embeddings with a pipeline",
        "torchtitan refuses tied embeddings with pp={pp}",
        ("pp",),
        lambda x, c: (x.pp > 1) if c.model.tied_embeddings else never(x),
        stacks=("torchtitan",),
        where="torchtitan/models/common/decoder.py:139",
    ),
    Rule(
        "torchtitan: offload takes parameters too",
        "FSDP2's CPUOffloadPolicy moves parameters, gradients and optimizer of shards: "
        "offload=optimizer+params with zero >= 2 and dp x cp > 1, not offload={offload}, "
        "zero={zero}, dp={dp}",
        ("zero", "dp", "cp", "offload"),
        lambda x, c: (
            (x.offload == 1)
            | (x.offload > 2)
            | ((x.offload == 2) & ((x.zero < 2) | (x.dp * x.cp == 1)))
        ),
        stacks=("torchtitan",),
        where="torchtitan/distributed/fsdp.py:173",
    ),
)

"""What DeepSpeed can run."""

from __future__ import annotations

from planner.layouts.rules.rule import Context, Rule, never
from planner.specs.stack import stack_named
from planner.specs.workload import Optimizer


def _share(c: Context) -> float:
    """Return the share of the optimizer's state that its offload moves."""
    return stack_named(c.workload.stack).offload_fraction


def _never_split(c: Context) -> bool:
    """Return whether the job has what AutoTP is not planned with: experts, or Muon."""
    return c.model.experts is not None or c.workload.optimizer is Optimizer.MUON


DEEPSPEED: tuple[Rule, ...] = (
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
        "deepspeed: no virtual chunks",
        "DeepSpeed's pipeline engine runs one chunk a stage, not vpp={vpp}",
        ("vpp",),
        lambda x, c: x.vpp > 1,
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
        "deepspeed: tensor parallelism beside ZeRO alone",
        "DeepSpeed's tensor parallelism (AutoTP, tp={tp}) goes with ZeRO alone here: no pipeline, "
        "experts, hpZ, offload or Muon beside it",
        ("tp", "pp", "dp_replicate", "offload"),
        lambda x, c: (
            (x.tp > 1) & ((x.pp > 1) | (x.dp_replicate > 1) | (x.offload > 0) | _never_split(c))
        ),
        stacks=("deepspeed",),
        where="deepspeed/runtime/engine.py:940",
    ),
    Rule(
        "deepspeed: heads in tp",
        "DeepSpeed's AutoTP needs tp={tp} to divide the {kv_heads} key/value heads",
        ("tp",),
        lambda x, c: (c.model.kv_heads % x.tp != 0) if c.model.mla is None else x.tp > 1,
        stacks=("deepspeed",),
        where="deepspeed/runtime/engine.py:1047",
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
        "deepspeed: experts with zero 3 or offload",
        "DeepSpeed's layer of experts (ep={ep}) needs zero <= 2 and states on the GPUs, "
        "not zero={zero}, offload={offload}",
        ("ep", "zero", "offload"),
        lambda x, c: (x.ep > 1) & ((x.zero == 3) | (x.offload > 0)),
        stacks=("deepspeed",),
        where="deepspeed/runtime/engine.py:2215",
    ),
    Rule(
        "deepspeed: experts with muon",
        "DeepSpeed's {optimizer} needs whole gradients, its experts (ep={ep}) scattered ones",
        ("ep",),
        lambda x, c: (x.ep > 1) if c.workload.optimizer is Optimizer.MUON else never(x),
        stacks=("deepspeed",),
        where="deepspeed/runtime/zero/stage_1_and_2.py:869",
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
    Rule(
        "deepspeed: offload is ZeRO's",
        "offload={offload} needs zero >= 1 and no pipeline in DeepSpeed, not zero={zero}, pp={pp}",
        ("zero", "pp", "offload"),
        lambda x, c: (x.offload > 0) & ((x.zero == 0) | (x.pp > 1)),
        stacks=("deepspeed",),
        where="deepspeed/runtime/zero/offload_config.py",
    ),
    Rule(
        "deepspeed: a part of the optimizer needs zero 3",
        "DeepSpeed leaves a part of the optimizer's state on the GPUs under zero=3 only, not "
        "zero={zero} ({stack})",
        ("zero", "offload"),
        lambda x, c: (x.offload > 0) & (x.zero != 3) & (_share(c) < 1),
        stacks=("deepspeed",),
        where="deepspeed/runtime/zero/offload_config.py, ratio",
    ),
    Rule(
        "deepspeed: muon needs zero",
        "DeepSpeed's {optimizer} needs zero >= 1 and no pipeline, not zero={zero}, pp={pp}",
        ("zero", "pp"),
        lambda x, c: (
            ((x.zero == 0) | (x.pp > 1)) if c.workload.optimizer is Optimizer.MUON else never(x)
        ),
        stacks=("deepspeed",),
        where="deepspeed/runtime/zero/muon/muon_optimizer.py",
    ),
    Rule(
        "deepspeed: offload steps with CPU Adam",
        "DeepSpeed steps on the host with its CPU Adam, not {optimizer}",
        ("offload",),
        lambda x, c: (x.offload > 0) & (c.workload.optimizer is not Optimizer.ADAMW),
        stacks=("deepspeed",),
        where="deepspeed/runtime/engine.py:2384",
    ),
)

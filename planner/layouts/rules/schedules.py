"""Which pipeline schedules a stack runs, as data; and how many micro-batches they take."""

from __future__ import annotations

import numpy as np

from planner.layouts.rules.rule import Context, Mask, Rule
from planner.layouts.table import NAMES, SPLITS, Layouts
from planner.pipeline.registry import SCHEDULES

OLD = ("gpipe", "1f1b", "interleaved")
RUNS: dict[str, tuple[str, ...]] = {
    "any": tuple(SCHEDULES),
    "megatron": ("1f1b", "interleaved"),
    "deepspeed": ("1f1b",),
    "torchtitan": (*OLD, "looped-bfs"),
    "transformers": (),
}
"""Rules of a stack, or the profile `any`, -> its schedules; other profiles run the oldest three."""
WITH_FLAG: dict[str, tuple[str, ...]] = {
    # torch's schedules that split backward refuse compiled modules (torch 2.13.0 schedules.py)
    "eager": ("interleaved-zb", "zbv", "dualpipev"),
    # AMD's scheduler in Megatron-LM's place; its zero bubble holds what ZB-H1 does
    "primus-pipeline": ("zb-h1", "zbv"),
}
"""Flag of a stack -> the schedules that it adds."""
ADDS = {"torchtitan": "eager", "megatron": "primus-pipeline"}
"""Rules -> the one of these flags that means something to them."""


def schedules_of(context: Context) -> tuple[str, ...]:
    """Return the schedules that a workload's stack runs."""
    profile, *flags = context.workload.stack.split("+")
    rules = context.rules
    names = RUNS["any"] if profile == "any" else OLD if rules == "any" else RUNS[rules]
    flag = ADDS.get(rules)
    return (*names, *(WITH_FLAG[flag] if flag in flags else ()))


def searched_schedules(context: Context, *, every: bool = False) -> tuple[str, ...]:
    """Return the schedules that a search goes through when none is asked for.

    The oldest three (a rule says where a stack lacks one) and those that the stack adds. For the
    profile `any`, whose times are the mean of stacks of which none was measured with weight
    gradients apart, the newer ones are legal, and searched where `every` one is asked for.
    """
    if not every and context.workload.stack.split("+", maxsplit=1)[0] == "any":
        return OLD
    return tuple(dict.fromkeys((*OLD, *schedules_of(context))))


def _not_run(x: Layouts, c: Context) -> Mask:
    runs = np.zeros(len(NAMES["schedule"]), dtype=np.bool_)
    runs[[0, *(NAMES["schedule"].index(name) for name in schedules_of(c))]] = True
    broken: Mask = ~runs[x.schedule]
    return broken


LEAST, MOST = (np.array([1, *(s.vpp[i] for s in SCHEDULES.values())]) for i in (0, 1))
"""Schedule code -> the least and the most virtual chunks that it runs."""


def _disagrees(x: Layouts) -> Mask:
    """Return where the schedule does not go with the stages and chunks."""
    chunks: Mask = (x.vpp < LEAST[x.schedule]) | (x.vpp > MOST[x.schedule])
    broken: Mask = chunks | ((x.pp == 1) != (x.schedule == 0))
    return broken


def _is(x: Layouts, *names: str) -> Mask:
    named: Mask = np.isin(x.schedule, [NAMES["schedule"].index(name) for name in names])
    return named


def _rounds(x: Layouts) -> Mask:
    """Return where the micro-batches do not make equal rounds, as torch wants them."""
    uneven: Mask = x.num_microbatches % np.maximum(1, x.num_microbatches // x.pp) != 0
    return uneven


SCHEDULE_RULES: tuple[Rule, ...] = (
    Rule(
        "schedule and chunks disagree",
        "schedule={schedule} does not go with pp={pp}, vpp={vpp} (none: pp=1; gpipe, 1f1b, zb-h1, "
        "dualpipe: vpp=1; zbv, dualpipev: vpp=2; interleaved, looped-bfs, interleaved-zb: vpp>1)",
        ("pp", "vpp", "schedule"),
        lambda x, c: _disagrees(x),
    ),
    *(
        Rule(
            f"{who}: its pipeline schedules",
            f"{says}, not schedule={{schedule}}",
            ("schedule",),
            _not_run,
            stacks=(who,),
            where=where,
        )
        for who, says, where in (
            ("any", "{stack} runs gpipe, 1f1b, interleaved", ""),
            (
                "megatron",
                "Megatron-LM runs 1f1b and interleaved (zb-h1, zbv with AMD's scheduler: "
                "--stack {stack}+primus-pipeline)",
                "megatron/core/pipeline_parallel/schedules.py",
            ),
            (
                "deepspeed",
                "DeepSpeed's pipeline engine runs 1f1b only",
                "deepspeed/runtime/pipe/schedule.py",
            ),
            (
                "torchtitan",
                "torchtitan runs gpipe, 1f1b, interleaved, looped-bfs, and with modules that are "
                "not compiled (--stack {stack}+eager) interleaved-zb, zbv, dualpipev",
                "torch/distributed/pipelining/schedules.py:3620",
            ),
        )
    ),
    Rule(
        "too few micro-batches to interleave",
        "interleaving needs micro-batches in multiples of pp={pp}; there are {num_microbatches}",
        ("schedule", "num_microbatches", "pp"),
        lambda x, c: (
            _is(x, "interleaved", "interleaved-zb")
            & ((x.num_microbatches < x.pp) | (x.num_microbatches % x.pp != 0))
        ),
        stacks=("any", "megatron"),
        where="megatron/core/pipeline_parallel/schedules.py",
    ),
    Rule(
        "too few micro-batches to fill the pipeline from both ends",
        "schedule={schedule} needs 2 pp = 2 x {pp} micro-batches or more; there are "
        "{num_microbatches}",
        ("schedule", "num_microbatches", "pp"),
        lambda x, c: _is(x, "dualpipev", "dualpipe") & (x.num_microbatches < 2 * x.pp),
        where="torch/distributed/pipelining/schedules.py:3440",
    ),
    Rule(
        "two copies of the model meet in pairs",
        "schedule=dualpipe needs even pp={pp} and micro-batches ({num_microbatches})",
        ("schedule", "num_microbatches", "pp"),
        lambda x, c: _is(x, "dualpipe") & ((x.pp % 2 != 0) | (x.num_microbatches % 2 != 0)),
    ),
    Rule(
        "torchtitan: weight gradients apart with cp",
        "torchtitan's attention that needs no compiler does not go with cp={cp}, and "
        "schedule={schedule} with no compiler",
        ("schedule", "cp"),
        lambda x, c: SPLITS[x.schedule] & (x.cp > 1),
        stacks=("torchtitan",),
        where="torchtitan/models/llama3/model.py:80",
    ),
    Rule(
        "torchtitan: fewer micro-batches than stages",
        "torch's 1F1B needs at least pp={pp} micro-batches; there are {num_microbatches}",
        ("schedule", "num_microbatches", "pp"),
        lambda x, c: _is(x, "1f1b", "interleaved") & (x.num_microbatches < x.pp),
        stacks=("torchtitan",),
        where="torch/distributed/pipelining/schedules.py:1020",
    ),
    Rule(
        "torchtitan: interleaving rounds",
        "torch's {schedule} needs whole rounds of micro-batches; {num_microbatches} over "
        "pp={pp} are not",
        ("schedule", "num_microbatches", "pp"),
        lambda x, c: _is(x, "interleaved", "interleaved-zb") & _rounds(x),
        stacks=("torchtitan",),
        where="torch/distributed/pipelining/schedules.py:2935",
    ),
)

"""A slow, obvious enumeration: one nested loop a degree, one `if` a rule, plain Python numbers.

Written from the sentences of the rules and the declared ranges, not from the code that is tested: a
layout is a dictionary, legality is a function of one dictionary, and nothing is skipped early.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.workload import Workload

Row = dict[str, int]
NONE, GPIPE, ONE_F_ONE_B, INTERLEAVED, LOOPED_BFS = 0, 1, 2, 3, 4
ZB_H1, INTERLEAVED_ZB, ZBV, DUALPIPEV, DUALPIPE = 5, 6, 7, 8, 9
IN_ROUNDS = (INTERLEAVED, INTERLEAVED_ZB)
SELECTIVE = 1


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def choose(fix: dict[str, set[int]], name: str, declared: list[int]) -> list[int]:
    """The user's own values where he named them (also outside of the range), else the range."""
    return sorted(fix[name]) if name in fix else declared


def everything(
    model: ModelSpec,
    cluster: ClusterSpec,
    workload: Workload,
    gpus: int,
    fix: dict[str, set[int]],
    *,
    opened: tuple[str, ...] = (),
) -> Iterator[Row]:
    """Every combination of the declared ranges with tp * cp * pp * dp = gpus, legal or not."""
    experts = model.experts.count if model.experts else 1
    small_tp = [d for d in divisors(gpus) if d <= max(16, cluster.domain_gpus)]
    for tp in choose(fix, "tp", small_tp):
        if gpus % tp:
            continue
        for cp in choose(fix, "cp", [d for d in divisors(gpus // tp) if d <= 64]):
            if gpus % (tp * cp):
                continue
            rest = gpus // (tp * cp)
            for pp in choose(fix, "pp", [d for d in divisors(rest) if d <= model.layers + 2]):
                if rest % pp or ("dp" in fix and rest // pp not in fix["dp"]):
                    continue
                for ep in choose(fix, "ep", divisors(experts)):
                    widths = divisors(tp) if model.experts else [1]
                    for etp in choose(fix, "etp", widths):
                        shape = {"tp": tp, "cp": cp, "pp": pp, "dp": rest // pp}
                        shape |= {"ep": ep, "etp": etp}
                        yield from runs(model, workload, shape, fix, opened)


def runs(
    model: ModelSpec,
    workload: Workload,
    shape: Row,
    fix: dict[str, set[int]],
    opened: tuple[str, ...],
) -> Iterator[Row]:
    """Every way to run one shape: chunks, schedule, micro-batch, and what is kept where."""
    pp, dp = shape["pp"], shape["dp"]
    most_chunks = 1 if pp == 1 else max(1, (model.layers + 2) // pp)
    offloads = [0, 1, 2, 3, 4] if "offload" in opened else [0]
    alone = shape["tp"] * shape["cp"] * pp * shape["ep"] == 1
    for vpp in choose(fix, "vpp", list(range(1, most_chunks + 1))):
        natural = [NONE] if pp == 1 else in_use(workload.stack, vpp)
        if pp > 1 and "schedule" in opened and workload.stack == "any":
            natural = every_schedule(vpp)
        for schedule in choose(fix, "schedule", natural):
            for micro_batch in choose(fix, "micro_batch", divisors(workload.global_batch)):
                steps = max(1, workload.global_batch // (dp * micro_batch))
                for sp in choose(fix, "sp", [0, 1] if shape["tp"] > 1 else [0]):
                    for zero in choose(fix, "zero", [0, 1, 2, 3]):
                        whole = divisors(dp) if zero == 3 else [1]
                        for replicate in choose(fix, "dp_replicate", whole):
                            for recompute in choose(fix, "recompute", [0, 1, 2]):
                                plain = alone and zero == 0
                                syncs = choose(fix, "dp_sync", [0, 1] if plain else [0])
                                for sync, offload in product(
                                    syncs, choose(fix, "offload", offloads)
                                ):
                                    yield {
                                        **shape,
                                        "vpp": vpp,
                                        "schedule": schedule,
                                        "micro_batch": micro_batch,
                                        "num_microbatches": steps,
                                        "sp": sp,
                                        "zero": zero,
                                        "dp_replicate": replicate,
                                        "recompute": recompute,
                                        "dp_sync": sync,
                                        "offload": offload,
                                    }


def every_schedule(vpp: int) -> list[int]:
    """What runs so many chunks a stage: those that go there and back run two."""
    if vpp == 1:
        return [GPIPE, ONE_F_ONE_B, ZB_H1, DUALPIPE]
    return [INTERLEAVED, LOOPED_BFS, INTERLEAVED_ZB, *([ZBV, DUALPIPEV] if vpp == 2 else [])]


def in_use(stack: str, vpp: int) -> list[int]:
    """What a search goes through when no schedule is asked for: the oldest, and torchtitan's."""
    if vpp == 1:
        return [GPIPE, ONE_F_ONE_B]
    return [INTERLEAVED, *([LOOPED_BFS] if stack == "torchtitan" else [])]


def legal(row: Row, model: ModelSpec, cluster: ClusterSpec, workload: Workload) -> bool:
    """Whether physics, arithmetic and the stack allow one layout."""
    stack = workload.stack
    return (
        fits_the_model(row, model)
        and fits_the_machine(row, cluster)
        and fits_the_batch(row, workload)
        and fits_the_pipeline(row, model)
        and fits_the_experts(row, model)
        and states_agree(row, cluster)
        and offload_agrees(row, stack)
        and {"any": any_stack, "megatron": megatron}.get(stack, lambda *_: True)(row, model)
        and (stack != "deepspeed" or deepspeed(row, model))
        and (stack != "torchtitan" or torchtitan(row, model, workload))
    )


def fits_the_model(row: Row, model: ModelSpec) -> bool:
    tp = row["tp"]
    if model.heads % tp:
        return False
    if model.mla is None and model.kv_heads % tp and tp % model.kv_heads:
        return False
    if not all(model.moe_layers) and model.ffn % tp:
        return False
    return not (model.experts and model.experts.shared_ffn % tp)


def fits_the_machine(row: Row, cluster: ClusterSpec) -> bool:
    """Tensor parallelism fills a part of a node, or whole nodes of one NVLink domain."""
    tp, node = row["tp"], cluster.node.gpus
    if tp <= node:
        return node % tp == 0
    return tp % node == 0 and tp <= cluster.domain_gpus_used


def fits_the_batch(row: Row, workload: Workload) -> bool:
    tp, cp, seq = row["tp"], row["cp"], workload.seq_tokens
    if workload.global_batch % (row["dp"] * row["micro_batch"]):
        return False
    if cp > 1 and seq % (2 * cp):
        return False
    if row["sp"] and tp == 1:
        return False
    return not (row["sp"] and seq % (cp * tp))


def fits_the_pipeline(row: Row, model: ModelSpec) -> bool:
    pp, vpp, schedule = row["pp"], row["vpp"], row["schedule"]
    if pp == 1:
        return vpp == 1 and schedule == NONE and model.layers >= 1
    m = row["num_microbatches"]
    if schedule in (DUALPIPEV, DUALPIPE) and m < 2 * pp:
        return False
    if schedule == DUALPIPE and (pp % 2 or m % 2):
        return False
    if vpp == 1:
        return pp <= model.layers and schedule in (GPIPE, ONE_F_ONE_B, ZB_H1, DUALPIPE)
    if schedule in (ZBV, DUALPIPEV):
        return vpp == 2 and pp * vpp <= model.layers
    return pp * vpp <= model.layers + 2 and schedule in (*IN_ROUNDS, LOOPED_BFS)


def fits_the_experts(row: Row, model: ModelSpec) -> bool:
    ep, etp = row["ep"], row["etp"]
    if model.experts is None:
        return ep == etp == 1
    if model.experts.count % ep or row["tp"] % etp or model.experts.ffn % etp:
        return False
    return row["tp"] * row["cp"] * row["dp"] % (ep * etp) == 0


def states_agree(row: Row, cluster: ClusterSpec) -> bool:
    ranks, copies = row["dp"] * row["cp"], row["dp_replicate"]
    if row["zero"] and ranks == 1 and not row["offload"]:
        return False
    if copies > 1:
        if row["zero"] != 3 or row["dp"] % copies or copies >= ranks:
            return False
        if row["tp"] * ranks // copies % (row["ep"] * row["etp"]):
            return False
    if row["dp_sync"]:
        alone = row["tp"] == row["pp"] == row["cp"] == row["ep"] == 1
        return alone and row["zero"] == 0 and 1 < row["dp"] <= cluster.node.gpus
    return True


def offload_agrees(row: Row, stack: str) -> bool:
    """What may lie on the host: the optimizer (1), the parameters too (2). AdamW is taken."""
    if not row["offload"]:
        return True
    if row["offload"] > 2:  # to drives, of which the cluster has none
        return False
    optimizer, zero = row["offload"] == 1, row["zero"]
    several = row["dp"] * row["cp"] > 1
    return (
        not row["dp_sync"]
        and {
            "any": optimizer or zero == 3,
            "megatron": optimizer and zero == 1,
            "deepspeed": row["pp"] == 1 and zero >= 1 and (optimizer or zero == 3),
            "torchtitan": not optimizer and zero >= 2 and several,
        }[stack]
    )


def any_stack(row: Row, model: ModelSpec) -> bool:
    """No framework: interleaving in whole rounds of pp micro-batches is part of the schedule."""
    return row["schedule"] not in IN_ROUNDS or row["num_microbatches"] % row["pp"] == 0


def megatron(row: Row, model: ModelSpec) -> bool:
    if not any_stack(row, model):
        return False
    if model.experts and row["tp"] > 1 and not row["sp"]:
        return False
    if row["schedule"] not in (NONE, ONE_F_ONE_B, INTERLEAVED):
        return False
    if row["dp_sync"] or row["dp_replicate"] > 1:
        return False
    return not (row["zero"] >= 2 and row["pp"] > 1)


def deepspeed(row: Row, model: ModelSpec) -> bool:
    if row["pp"] > 1 and row["zero"] >= 2:
        return False
    if row["vpp"] > 1 or row["schedule"] not in (NONE, ONE_F_ONE_B) or row["cp"] > 1 or row["sp"]:
        return False
    if row["dp"] % row["ep"] or row["etp"] > 1:
        return False
    beside = row["pp"] > 1 or row["offload"] or model.experts or model.mla
    if row["tp"] > 1 and (beside or model.kv_heads % row["tp"]):
        return False
    if row["ep"] > 1 and (row["zero"] == 3 or row["offload"]):
        return False
    return not (row["recompute"] == SELECTIVE or row["dp_replicate"] > 1 or row["dp_sync"])


def torchtitan(row: Row, model: ModelSpec, workload: Workload) -> bool:
    pp, m = row["pp"], row["num_microbatches"]
    if row["sp"] and row["cp"] > 1 and workload.seq_tokens % (row["tp"] * 2 * row["cp"]):
        return False
    if model.mla is None and model.kv_heads % row["tp"]:
        return False
    experts_astray = model.experts and row["etp"] != (row["tp"] if row["ep"] == 1 else 1)
    if experts_astray or row["zero"] == 1 or (pp > 1 and model.tied_embeddings):
        return False
    if row["zero"] == 0 and row["dp"] * row["cp"] > 1 and row["tp"] * row["cp"] * pp > 1:
        return False
    if pp > 1 and row["schedule"] in (ONE_F_ONE_B, INTERLEAVED) and m < pp:
        return False
    compiled = row["schedule"] <= LOOPED_BFS  # the others refuse compiled modules
    return compiled and (row["schedule"] != INTERLEAVED or m % max(1, m // pp) == 0)

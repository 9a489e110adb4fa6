"""Placing: the road from a cluster and a layout to a checked map of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.place.arranging import (
    Job,
    Map,
    arranged,
    gpus_said,
    hostname_order,
    job_of,
    notes_of,
    rails_said,
    spares_said,
    types_said,
)
from planner.place.bound import least_loads
from planner.place.certificate import Choice, Rule, certificate
from planner.place.check import check_placement
from planner.place.clock import Clock
from planner.place.expand import gpus_of, rank_places
from planner.place.fastest import (
    BY_NAME,
    MATTERS,
    UNDER_LEAF,
    fastest,
    loads,
    order_times,
    remarks,
    scored,
)
from planner.place.groups import IntArray, splits, tiers
from planner.place.hosts import FreeNodes, free_nodes
from planner.place.moving import (
    Units,
    gone_ranks,
    kept_nodes,
    moved_ranks,
    on_old_gpus,
    with_spares,
)
from planner.place.relax import anything, kinds_of, many
from planner.place.traffic import Load
from planner.place.tree import Tree
from planner.plan import Layout, Placement
from planner.specs.cluster import ClusterSpec


def place(
    cluster: ClusterSpec,
    layout: Layout,
    *,
    unhealthy: Sequence[str] = (),
    keep_ep_in_domain: bool = True,
    busy: Sequence[str] = (),
    slow: Sequence[str] = (),
    told: Sequence[str] = (),
    clock: Clock | None = None,
    pipelines: Rule = "under-leaf",
    moved_from: Placement | None = None,
) -> Placement:
    """Return the map of ranks with the fewest pipeline edges that leave a leaf, checked.

    With `pipelines="fastest"` and a clock, the map with the least step time over all orders of
    filling leafs; with a clock, either way, the step time of both is told. With `moved_from`, the
    map with the fewest ranks elsewhere than in that one, and what placing anew would give.

    Nodes are whole: every node used runs the same number of consecutive ranks, so a list of hosts
    expresses the map. A tensor-parallel group stays inside a node, or a scale-up domain where that
    is larger; with `keep_ep_in_domain` context and expert groups that fit into such a domain stay
    inside one too, where there is room. The ranks that hold one stage of a pipeline share a leaf.
    `unhealthy` is read as by `free_nodes`; `busy` says which of it other jobs hold, and `slow` what
    only is slow, for the advice when there are too few nodes; that the hosts `told` are left out
    has been said already.

    Raises SpecError for unknown hosts, and InfeasibleError when there are too few nodes.
    """
    before = moved_from.gpus_per_node if moved_from else None
    free = free_nodes(cluster, unhealthy)
    others = kinds_of(cluster, unhealthy, busy, slow)
    legal = clock.allows if clock else anything
    job = job_of(cluster, layout, free, others=others, ranks_before=before, legal=legal)
    found = arranged(job, keep=keep_ep_in_domain)
    by_name = hostname_order(job)
    choice = _chosen(job, found, by_name, clock, pipelines)
    if moved_from is not None:
        choice, free = _least_moved(job, choice, moved_from, clock)
    spans, named = job.spans(choice.nodes), job.spans(by_name)
    lost = splits(layout, spans["leaf"])
    gpus = gpus_of(free, choice.nodes, job.ranks)
    leafs = [cluster.leaf_name(leaf) for leaf in job.tree.leaf[choice.nodes].tolist()]
    placement = Placement(
        **certificate(choice, lost, found.bound, found.scope),
        splits=lost,
        ranks=rank_places(layout, free, choice.nodes, job.ranks, leafs),
        tiers=tiers(layout, spans),
        baseline={"splits": splits(layout, named["leaf"]), "tiers": tiers(layout, named)}
        | choice.baseline,
        orders=choice.orders,
        notes=[
            *(found.notes if choice.nodes is found.nodes else ()),
            *notes_of(job, frozenset(told)),
            *gpus_said(job, gpus),
            *rails_said(job, gpus),
            *types_said(job, choice.nodes),
            *spares_said(job, choice.nodes),
            *choice.notes,
        ],
    )
    check_placement(cluster, layout, placement, unhealthy=unhealthy)
    return placement


def loads_of(
    free: FreeNodes, tree: Tree, clock: Clock, *, pipelines: Rule = "under-leaf"
) -> list[Load]:
    """Return what the maps that `place` chooses from make the uplinks carry.

    Raises InfeasibleError where there are no maps.
    """
    job = job_of(clock.context.cluster, clock.layout, free, tree=tree, legal=clock.allows)
    found = arranged(job, keep=True)
    maps = {UNDER_LEAF: found.nodes}
    if pipelines == "under-leaf":
        return loads(clock, tree, job.ranks, maps, None)
    if clock.layout.tp <= job.cluster.node.gpus:
        maps[BY_NAME] = hostname_order(job)
    return loads(clock, tree, job.ranks, maps, found.cells, bound_s=_bound(job, clock))


def trades_of(free: FreeNodes, tree: Tree, clock: Clock) -> list[list[Load]]:
    """Return, per tier, loads of which that of any map is at least one (`planner.place.bound`).

    Raises InfeasibleError where there are no maps.
    """
    job = job_of(clock.context.cluster, clock.layout, free, tree=tree, legal=clock.allows)
    return least_loads(job.layout, job.ranks, _switches(job))


def _switches(job: Job) -> tuple[IntArray, IntArray]:
    return job.tree.leaf[job.usable], job.tree.pod[job.usable]


def _chosen(
    job: Job, found: Map, by_name: IntArray, clock: Clock | None, pipelines: Rule
) -> Choice:
    """Return the map that the rule asks for, with step times where there is a clock."""
    if clock is None:
        return Choice(found.nodes)
    maps = {UNDER_LEAF: found.nodes, BY_NAME: by_name}
    bound = _bound(job, clock)
    all_scored = scored(clock, job.tree, job.ranks, maps, found.cells, bound_s=bound)
    # names in a row may tear a tensor group that spans nodes out of its scale-up domain
    whole = job.layout.tp <= job.cluster.node.gpus
    open_to = [one for one in all_scored if whole or one.words != BY_NAME]
    rule = pipelines if clock.contended else "under-leaf"
    best = fastest(open_to) if rule == "fastest" else all_scored[0]
    return Choice(
        nodes=best.nodes,
        question="least-step-time" if pipelines == "fastest" else "fewest-splits",
        seconds=best.seconds,
        bound_s=min(bound, best.seconds),
        orders=order_times(all_scored),
        baseline={"step_time_s": all_scored[1].seconds},
        notes=remarks(clock, open_to, best),
    )


def _bound(job: Job, clock: Clock) -> float:
    """Return a step time that no map on the usable nodes beats."""
    if not clock.contended:
        return clock.bound()
    return clock.bound(least_loads(job.layout, job.ranks, _switches(job)))


def _least_moved(
    job: Job, anew: Choice, old: Placement, clock: Clock | None
) -> tuple[Choice, FreeNodes]:
    """Return the map with the fewest moved ranks, priced beside `anew`, and the GPUs it may use."""
    layout, ranks = job.layout, job.ranks
    kept = kept_nodes(layout, ranks, job.free, old, spare=job.usable)
    could_stay = kept_nodes(layout, ranks, job.free, old, spare=job.usable[:0])
    free = on_old_gpus(job.free, kept, ranks, old)
    nodes = with_spares(Units(layout, ranks, job.tree), job.usable, kept)

    def moves(to: IntArray, on: FreeNodes) -> int:
        gpus = gpus_of(on, to, ranks).tolist()
        hosts = (on.hosts[n] for n in to.tolist() for _ in range(ranks))
        return moved_ranks(old, list(zip(hosts, gpus, strict=True)))

    moved, others = moves(nodes, free), moves(anew.nodes, job.free)
    orders, took = anew.orders, None
    if clock is not None:
        words = "every rank that can stays"
        (swapped,) = scored(clock, job.tree, ranks, {words: nodes}, None)
        orders, took = [*order_times([swapped]), *anew.orders], swapped.seconds
    choice = replace(
        anew,
        nodes=nodes,
        question="fewest-moved-ranks",
        seconds=took,
        orders=orders,
        moved=moved,
        must_move=gone_ranks(job.free, could_stay, ranks, old),
        notes=[_price(moved, others, took, anew.seconds)],
    )
    return choice, free


def _price(moved: int, others: int, took: float | None, anew: float | None) -> str:
    """Return what moves, and what placing anew would move and gain."""
    words = f"{many(moved, 'rank')} of the earlier map move; placing anew would move {others:,}"
    if took is None or anew is None:
        return words
    gain = took / anew - 1
    return f"{words} and " + (f"be {gain:.1%} faster" if gain >= MATTERS else "be no faster")

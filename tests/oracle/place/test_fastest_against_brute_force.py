"""`--pipelines fastest` on 96 random small clusters against every map of theirs."""

import random

import numpy as np
import pytest

from planner.layouts.rules import Context
from planner.place import Clock, place
from planner.place.traffic import Load
from planner.specs.catalog import load_model
from planner.specs.workload import Workload

DEGREES = [(2, 3), (3, 2), (2, 4), (4, 2), (2, 5), (5, 2), (3, 3), (6, 2)]
CASES = 96


def every_load(stages, columns, rooms, *, ring):
    """Return the (rings, sends) of all maps that no other map's are below, both as Load counts.

    Row by row: what counts of the rows before is the last row and what each leaf has given away.
    """
    leafs = len(rooms)
    rows = np.indices((leafs,) * columns).reshape(columns, -1).T
    own = np.stack([rows == k for k in range(leafs)])  # [leaf, row, column]
    exits = (own & ~np.roll(own, -1, axis=2)).sum(axis=2).T
    cells = own.sum(axis=2).T
    kept = np.einsum("kac,kbc->abk", own.astype(int), own.astype(int))
    down, up = cells[:, None] - kept, cells[None] - kept
    found = set()
    for first in range(len(rows)):
        if min(np.roll(rows[first], n).tolist() for n in range(columns)) < rows[first].tolist():
            continue  # a turn of another first row
        state = np.concatenate([[first], cells[first], exits[first], np.zeros(2 * leafs, int)])
        states = state[None]
        for _ in range(stages - 1):
            one = np.repeat(np.arange(len(states)), len(rows))
            row = np.tile(np.arange(len(rows)), len(states))
            fits = (states[one, 1 : 1 + leafs] + cells[row] <= rooms).all(axis=1)
            one, row = one[fits], row[fits]
            last = states[one, 0]
            added = np.concatenate([cells[row], exits[row], down[last, row], up[last, row]], axis=1)
            states = _once(np.concatenate([row[:, None], states[one, 1:] + added], axis=1))
        if ring:
            closing = [down[states[:, 0], first], up[states[:, 0], first]]
            states[:, 1 + 2 * leafs :] += np.concatenate(closing, axis=1)
        states = states[(states[:, 1 : 1 + leafs] <= rooms).all(axis=1)]
        rings = states[:, 1 + leafs : 1 + 2 * leafs].max(axis=1)
        sends = states[:, 1 + 2 * leafs :].max(axis=1)
        found |= set(zip(rings.tolist(), sends.tolist(), strict=True))
    return [a for a in found if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in found)]


def _once(states):
    """Return the rows of an array of small numbers, each once (by a product that tells them)."""
    weights = np.random.default_rng(0).integers(1, 2**40, states.shape[1])
    return states[np.unique(states @ weights, return_index=True)[1]]


def instances():
    """Yield degrees, rooms, nodes a leaf, oversubscription and chunks, with few spare nodes."""
    chance, found = random.Random(11), 0
    while found < CASES:
        stages, columns = chance.choice(DEGREES)
        per_leaf, count = chance.randint(2, 6), chance.choice([2, 3, 3, 4])
        rooms = [chance.randint(1, per_leaf) for _ in range(count)]
        spare = sum(rooms) - stages * columns
        if count**columns <= 128 and 0 <= spare <= 4 and max(rooms) < stages * columns:
            found += 1
            yield stages, columns, rooms, per_leaf, chance.choice([3, 4, 8]), chance.choice([1, 2])


@pytest.fixture(scope="module")
def answers(cluster_of, layout_of):
    """Return, per instance, our step time and bound, over the least time of all maps."""
    model = load_model("llama-3.1-70b")
    return np.array([_answer(cluster_of, layout_of, model, one) for one in instances()])


def _answer(cluster_of, layout_of, model, instance):
    stages, columns, rooms, per_leaf, ways, chunks = instance
    layout = layout_of(tp=8, pp=stages, dp=columns).model_copy(update={"vpp": chunks})
    cluster = cluster_of(per_leaf * len(rooms), per_leaf=per_leaf)
    fabric = cluster.fabric.model_copy(update={"leaf_oversubscription": float(ways)})
    cluster = cluster.model_copy(update={"fabric": fabric})
    work = Workload(seq_tokens=4096, global_batch=columns * layout.num_microbatches)
    clock = Clock(Context(model, cluster, work), layout)
    down = [
        cluster.host(per_leaf * k + n)
        for k, room in enumerate(rooms)
        for n in range(room, per_leaf)
    ]
    found = place(cluster, layout, unhealthy=down, clock=clock, pipelines="fastest")
    loads = every_load(stages, columns, rooms, ring=chunks > 1)
    least = min(
        clock.seconds([Load(rings=(float(x), 0.0), sends=(8.0 * y, 0.0)) for x, y in loads])
    )
    return found.step_time_s / least, found.bound / least


def test_the_bound_is_above_no_map_and_ours_below_none(answers):
    assert (answers[:, 1] <= 1 + 1e-12).all()
    assert (answers[:, 0] >= 1 - 1e-12).all()


def test_ours_is_within_half_a_percent_of_the_fastest_of_all_maps(answers):
    assert len(answers) == CASES
    assert (answers[:, 0] <= 1.005).all()


def test_most_of_them_are_proved_fastest(answers):
    assert np.mean(answers[:, 0] <= answers[:, 1] * (1 + 1e-9)) > 0.85

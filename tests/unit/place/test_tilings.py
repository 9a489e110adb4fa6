"""Tilings: every cell once, no leaf over its room, none busier than its block allows."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.place.cells import Grid
from planner.place.tilings import Block, tiled_orders


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rooms=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    stages=st.integers(1, 8),
    columns=st.integers(1, 8),
)
def test_every_order_has_each_slot_once(rooms, stages, columns):
    assume(stages * columns <= sum(rooms))
    leaf_of_slot = np.repeat(np.arange(len(rooms)), rooms)
    for order in tiled_orders(Grid(stages, columns, 1, 1), leaf_of_slot):
        assert order.slots.shape == (stages, columns)
        assert len(np.unique(order.slots)) == stages * columns
        assert order.slots.min() >= 0
        assert order.slots.max() < sum(rooms)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(width=st.integers(1, 6), rows=st.integers(1, 8), data=st.data())
def test_a_leaf_gets_as_many_cells_as_keep_it_to_its_rows(width, rows, data):
    most, size = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 20))
    alone = data.draw(st.booleans())
    block = Block(width * rows, width, most, alone)
    filled = data.draw(st.integers(0, block.need - 1))

    def busy(cells):
        row = np.bincount(np.arange(filled, filled + cells) // width)
        return int(((row > 0) & (row < width)).sum() if alone else (row > 0).sum())

    allowed = [n for n in range(min(size, block.need - filled) + 1) if busy(n) <= most]
    assert max(0, block.room(size, filled)) == max(allowed)


@pytest.mark.parametrize(
    ("stages", "columns", "rooms", "most"),
    [
        (4, 8, [5, 6, 7, 6, 4, 4], 2),  # two bands of two stages: 5 + 7 + 4 and 6 + 6 + 4
        (3, 3, [1, 4, 1, 4], 1),  # two whole stages, the third of what is left
    ],
)
def test_leafs_whose_rooms_add_up_are_put_together(stages, columns, rooms, most):
    leaf_of_slot = np.repeat(np.arange(len(rooms)), rooms)

    def partly(leaf):
        held = np.stack([(leaf == k).sum(axis=1) for k in range(len(rooms))])
        return int(((held > 0) & (held < columns)).sum(axis=1).max())

    orders = tiled_orders(Grid(stages, columns, 1, 1), leaf_of_slot)
    assert min(partly(leaf_of_slot[order.slots]) for order in orders) == most

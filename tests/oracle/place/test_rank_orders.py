"""Our groups are those that Megatron's and torchtitan's own code forms (see the file's 'about')."""

import json
from pathlib import Path

import numpy as np
import pytest

from planner.place.groups import coordinates, groups

FILE = Path(__file__).parents[2] / "measured" / "rank_orders.json"
CASES = json.loads(FILE.read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_groups_are_the_frameworks_own(layout_of, case):
    layout = layout_of(**{k: case[k] for k in ("tp", "pp", "cp", "dp", "ep", "etp")})
    for kind, theirs in case["groups"].items():
        assert sorted(groups(layout, kind).tolist()) == sorted(theirs), kind


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_coordinates_number_the_members_of_a_group(layout_of, case):
    layout = layout_of(**{k: case[k] for k in ("tp", "pp", "cp", "dp", "ep", "etp")})
    at = coordinates(layout)
    for kind, theirs in case["groups"].items():
        for group in theirs:
            np.testing.assert_array_equal(at[kind][group], np.arange(len(group)))

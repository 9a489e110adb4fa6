"""Clusters and layouts to place: only the degrees and the switches matter here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from small_clusters import make_cluster, make_layout

from planner.plan import Layout
from planner.specs.cluster import ClusterSpec


@pytest.fixture(scope="session")
def cluster_of() -> Callable[..., ClusterSpec]:
    return make_cluster


@pytest.fixture(scope="session")
def layout_of() -> Callable[..., Layout]:
    return make_layout

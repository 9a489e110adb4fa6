"""Tree: the switches above the nodes, and how many whole cells fit under each.

Nodes are numbered so that domains, leafs and pods are runs of consecutive nodes; everything here
leans on that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from planner.place.groups import IntArray
from planner.specs.cluster import ClusterSpec


@dataclass(frozen=True)
class Tree:
    """Scale-up domain, leaf and pod of every node of the cluster."""

    domain: IntArray
    leaf: IntArray
    pod: IntArray

    @classmethod
    def of(cls, cluster: ClusterSpec) -> Tree:
        """Return the tree of `cluster`, all nodes at once."""
        if cluster.leafs is not None:
            return cls(*(np.array(listed, dtype=np.int64) for listed in cluster.positions))
        nodes: Any = np.arange(cluster.nodes, dtype=np.int64)
        above = (cluster.domain_of(nodes), cluster.leaf_of(nodes), cluster.pod_of(nodes))
        return cls(*(np.broadcast_to(cast(Any, a), cluster.nodes).astype(np.int64) for a in above))

    def blocks(self, nodes: IntArray, block_nodes: int) -> IntArray:
        """Return [block, node]: as many runs of `block_nodes` nodes inside one domain as fit."""
        return nodes[_chunks(self.domain[nodes], block_nodes)]

    def cells(self, blocks: IntArray, cell_nodes: int) -> IntArray:
        """Return [cell, node]: as many runs of whole blocks inside one leaf as fit."""
        rows = _chunks(self.leaf[blocks[:, 0]], cell_nodes // blocks.shape[1])
        return blocks[rows].reshape(-1, cell_nodes)


def _chunks(keys: IntArray, size: int) -> IntArray:
    """Return [chunk, size]: positions in `keys` (sorted), cut into chunks that share one key."""
    _, start, length = np.unique(keys, return_index=True, return_counts=True)
    place_in_run = np.arange(len(keys)) - np.repeat(start, length)
    kept = place_in_run < np.repeat(length // size * size, length)
    return np.flatnonzero(kept).reshape(-1, size)

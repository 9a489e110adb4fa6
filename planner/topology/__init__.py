"""Topology: what schedulers know about a cluster, turned into leafs, pods and health.

Parsers are pure functions from text to records; `arrange` joins what they found with a cluster.
"""

from planner.topology.arrange import Arranged, arrange
from planner.topology.nodes import NodeState, node_states
from planner.topology.slurm import slurm_leafs

__all__ = ["Arranged", "NodeState", "arrange", "node_states", "slurm_leafs"]

"""From the files that schedulers write to a cluster of real hosts, for `place` and `plan`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from planner.cli import options
from planner.errors import SpecError

if TYPE_CHECKING:
    from planner.specs.cluster import ClusterSpec
    from planner.topology import Arranged

STATE_FILE_BYTES = 256 * 1024**2
"""Largest node state file that is read; kubectl writes some 15 kB a node."""


def real_cluster(
    cluster: ClusterSpec,
    typed: str,
    *,
    nodes_file: Path | None = None,
    slurm_topology: Path | None = None,
    node_state: Path | None = None,
) -> Arranged:
    """Return `cluster` (typed so) with the hosts, leafs and health that the files say.

    Raises SpecError, naming the file, for what cannot be read, and when ':N' was typed and the
    files list another number of hosts.
    """
    from planner.place import nodes_from_file
    from planner.topology import Arranged, arrange, node_states, slurm_leafs

    files = {
        "--nodes-file": nodes_file,
        "--slurm-topology": slurm_topology,
        "--node-state": node_state,
    }
    given = {option: file for option, file in files.items() if file}
    if not given:
        return Arranged(cluster)
    hosts = leafs = states = None
    if nodes_file:
        options.text_of(nodes_file, option="--nodes-file")
        hosts = nodes_from_file(nodes_file)
    if slurm_topology:
        text = options.text_of(slurm_topology, option="--slurm-topology")
        leafs = slurm_leafs(text, f"--slurm-topology: {slurm_topology}")
    if node_state:
        text = options.text_of(node_state, option="--node-state", most_bytes=STATE_FILE_BYTES)
        states = node_states(text, f"--node-state: {node_state}")
    said = ", ".join(f"{option} {file}" for option, file in given.items())
    found = arrange(cluster, hosts=hosts, leafs=leafs, states=states, origin=said)
    if re.search(r":\d+$", typed) and cluster.nodes != found.cluster.nodes:
        raise SpecError(
            f"{said}: lists {found.cluster.nodes} hosts, ':{cluster.nodes}' asks for "
            f"{cluster.nodes}",
            hint="leave ':N' out, or list as many hosts",
        )
    return found

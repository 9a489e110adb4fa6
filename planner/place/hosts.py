"""Hosts: their names, which GPUs of them are healthy, and the files that list them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import SpecError, did_you_mean
from planner.specs.cluster import ClusterSpec
from planner.specs.hostlist import HOSTNAME, expand

SUGGEST_AMONG = 20_000  # a near miss is looked for among at most so many hosts: difflib is slow

PATTERN = re.compile(r"[A-Za-z0-9._-]*\{(:0?[1-9]?d)?\}[A-Za-z0-9._-]*")
"""A host name with one counter; a wider format could ask for gigabytes of zeros."""


@dataclass(frozen=True)
class FreeNodes:
    """Every host of a cluster in its order, and `healthy[node, gpu]`."""

    hosts: tuple[str, ...]
    healthy: NDArray[np.bool_]

    def with_gpus(self, needed_gpus: int) -> NDArray[np.int64]:
        """Return the indices of the nodes that have at least `needed_gpus` healthy GPUs."""
        return np.flatnonzero(self.healthy.sum(axis=1) >= needed_gpus)

    def with_first_gpus(self, needed_gpus: int) -> NDArray[np.int64]:
        """Return those whose GPUs 0 to `needed_gpus` - 1 are: launchers count from 0."""
        return np.flatnonzero(self.healthy[:, :needed_gpus].all(axis=1))


def free_nodes(
    cluster: ClusterSpec, unhealthy: Sequence[str] = (), *, option: str = "--unhealthy"
) -> FreeNodes:
    """Return the hosts of `cluster` without what `unhealthy` names.

    An item is `host`, `host:gpu`, several of them with commas between, or `@file` (one a line,
    `#` starts a comment). Raises SpecError, which names the `option`, for an unknown host, a GPU
    that the node does not have, and a file that cannot be read.
    """
    hosts = _host_names(cluster)
    index = {host: node for node, host in enumerate(hosts)}
    healthy = np.ones((cluster.nodes, cluster.node.gpus), dtype=np.bool_)
    for word, where in _words(unhealthy, option):
        node, gpu = _locate(word, where, index, cluster)
        healthy[node, gpu] = False
    return FreeNodes(hosts, healthy)


def nodes_from_file(path: str | Path) -> list[str]:
    """Return the hostnames in `path`, in order; blank lines and `#` comments are left out.

    A line holds one or several, with commas or blanks between, also as `node[001-032]`. Raises
    SpecError when the file cannot be read, is empty, repeats a host, or holds something that is no
    hostname.
    """
    first_line: dict[str, int] = {}
    for number, line in _lines(Path(path)):
        try:
            hosts = expand(line)
        except ValueError as error:
            raise SpecError(
                f"{path}, line {number}: {error}",
                hint=(
                    "leave 'slots=' out; --unhealthy names GPUs that are not to be used"
                    if "slots=" in line
                    else "write hostnames (letters, digits, '.', '-' and '_') or node[001-032]"
                ),
            ) from error
        for host in hosts:
            if host in first_line:
                raise SpecError(
                    f"{path}, line {number}: host {host!r} is already on line {first_line[host]}"
                )
            first_line[host] = number
    if not first_line:
        raise SpecError(f"{path}: names no host", hint="write one hostname a line")
    return list(first_line)


def with_hosts(cluster: ClusterSpec, hosts: Sequence[str]) -> ClusterSpec:
    """Return `cluster` made of `hosts`: they fill its leafs in the order given."""
    listed = {"hosts": tuple(hosts), "nodes": len(hosts), "leafs": None}
    # not model_copy: it would carry along what the old record has worked out and kept
    return ClusterSpec.model_construct(**(dict(cluster) | listed))


def _host_names(cluster: ClusterSpec) -> tuple[str, ...]:
    """Return the hosts; those of `with_hosts` did not pass the cluster's own validation."""
    if not cluster.names_hosts and not PATTERN.fullmatch(cluster.host_pattern):
        raise SpecError(
            f"cluster {cluster.name}: host_pattern {cluster.host_pattern[:80]!r} is not allowed",
            hint="write letters, digits, '.', '-' and one counter such as {:05d}: node{:05d}",
        )
    hosts = tuple(map(cluster.host, range(cluster.nodes)))
    if (odd := next((h for h in hosts if not HOSTNAME.fullmatch(h)), None)) is not None:
        raise SpecError(
            f"cluster {cluster.name}: {odd[:80]!r} is not a hostname",
            hint="use letters, digits, '.', '-' and '_'",
        )
    if len(set(hosts)) < len(hosts):
        double = Counter(hosts).most_common(1)[0][0]
        raise SpecError(f"cluster {cluster.name}: two nodes have the name {double!r}")
    return hosts


def _words(items: Sequence[str], option: str) -> Iterator[tuple[str, str]]:
    """Yield each 'host' or 'host:gpu', and where it was read."""
    for item in items:
        if item.startswith("@"):
            path = Path(item[1:])
            lines = [(text, f"{path}, line {number}") for number, text in _lines(path)]
        else:
            lines = [(item, option)]
        for text, where in lines:
            for word in filter(None, map(str.strip, text.split(","))):
                yield word, where


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of each line that says something."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecError(f"{path}: cannot be read ({reason})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if said := line.partition("#")[0].strip():
            yield number, said


def _locate(
    word: str, where: str, index: dict[str, int], cluster: ClusterSpec
) -> tuple[int, int | slice]:
    """Return the node and its GPU (all of them for a bare host) that `word` names."""
    if word in index:
        return index[word], slice(None)
    host, colon, gpu = word.rpartition(":")
    if not colon or host not in index:
        raise SpecError(f"{where}: {_unknown(host if colon else word, index, cluster)}")
    if not (gpu.isascii() and gpu.isdigit() and len(gpu) < 5 and int(gpu) < cluster.node.gpus):
        raise SpecError(
            f"{where}: {word!r}: GPU {gpu!r} is not one of {host}",
            hint=f"GPUs are numbered 0 to {cluster.node.gpus - 1}",
        )
    return index[host], int(gpu)


def _unknown(host: str, index: dict[str, int], cluster: ClusterSpec) -> str:
    names = list(index)
    near = did_you_mean(host, names) if len(names) <= SUGGEST_AMONG else ""
    span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    known = f"host {host[:80]!r} is not one of {cluster.name}'s {len(names)} ({span})"
    return f"{known}; {near}" if near else known

"""ClusterSpec: one accelerator, one node type, how many, and the network between them.

Figures are written the way datasheets give them (GB/s, Gbit/s, TFLOP/s; decimal, one direction);
the properties give them in the units that formulas use (bytes_per_s, flops_per_s).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from planner.specs.accelerator import Accelerator
from planner.specs.figures import StackFigures
from planner.specs.hostlist import expand
from planner.specs.links import Fabric, FabricKind, ScaleUp
from planner.specs.profiles import STACKS
from planner.specs.record import Record
from planner.units import GB, GIB


class Node(Record):
    """One server (or compute tray)."""

    gpus: PositiveInt = Field(le=1024)
    nics: NonNegativeInt = Field(le=1024, description="Network ports for training traffic.")
    nic_gbit_per_s: PositiveFloat = Field(description="Of one port, one direction.")
    host: Literal["x86", "grace"] = "x86"
    memory_gib: PositiveFloat | None = Field(
        None, description="Of the host; None: not known, so nothing is refused for it."
    )
    memory_gb_per_s: PositiveFloat | None = Field(
        None, description="Of the host's memory, all sockets; None: usual of its kind."
    )
    host_link_gb_per_s: PositiveFloat | None = Field(
        None, description="One GPU to the host, one direction; None: usual of its kind."
    )
    nvme_gb_per_s: PositiveFloat | None = Field(
        None, description="All NVMe drives of a node together, read or write; None: no offload."
    )

    @property
    def nic_bytes_per_s(self) -> float:
        """Return what all NICs of the node send together, one direction, in bytes per second."""
        return self.nics * self.nic_gbit_per_s * 1e9 / 8


USUAL_HOST_LINK = {"x86": 32.0, "grace": 225.0}
"""GB/s of a GPU to its host: PCIe 4.0 x16; NVLink-C2C (450) shared by the two GPUs of a Grace."""
USUAL_HOST_MEMORY = {"x86": 400.0, "grace": 500.0}
"""GB/s: two sockets of 8 channels DDR4-3200; one Grace with LPDDR5X."""


class Leaf(Record):
    """The hosts under one leaf switch, where a list says it rather than the order of nodes."""

    name: str = Field(min_length=1, max_length=200)
    pod: str = Field("", max_length=200, description="What this leaf's uplinks lead to.")
    hosts: tuple[str, ...] = Field(
        min_length=1, description="Names, or expressions such as node[001-032]."
    )

    @field_validator("hosts", mode="before")
    @classmethod
    def _expanded(cls, value: Any) -> Any:
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
            return value
        return tuple(host for word in words for host in expand(word))


class Positions(NamedTuple):
    """Where every node stands: its scale-up domain, its leaf and its pod, by node index."""

    domain: tuple[int, ...]
    leaf: tuple[int, ...]
    pod: tuple[int, ...]


class ClusterSpec(Record):
    """`nodes` equal nodes. Hosts are named by `host_pattern` unless `hosts` lists them.

    They stand under leafs in their order, `fabric.nodes_per_leaf` each, unless `leafs` names the
    hosts of every leaf; then these are the nodes, leaf after leaf.
    """

    name: str = Field(min_length=1, max_length=200)
    source: str = ""
    accelerator: Accelerator
    node: Node
    scale_up: ScaleUp
    fabric: Fabric
    nodes: PositiveInt = Field(le=131_072)
    host_pattern: str = Field("node{:05d}", max_length=200)
    hosts: tuple[str, ...] | None = None
    leafs: tuple[Leaf, ...] | None = Field(
        None, min_length=1, description="Leafs of unequal size or in any order; pod after pod."
    )
    stacks: dict[str, StackFigures] = Field(
        default_factory=dict, description="Training stacks as measured here, by profile."
    )
    mix: tuple[ClusterSpec, ...] = Field(
        (),
        description="Node types of which this is made; its own figures are the worst of theirs. "
        "In a file: names or paths with ':N', such as [dgx-h100:8, dgx-a100:16], and nothing else "
        "beside `name`.",
    )
    sources: dict[str, str] = Field(default_factory=dict)

    @field_validator("stacks")
    @classmethod
    def _stacks_are_known(cls, value: dict[str, StackFigures]) -> dict[str, StackFigures]:
        for name in value:
            if name not in STACKS:
                raise ValueError(f"no stack is named {name!r}; known: {', '.join(sorted(STACKS))}")
        return value

    @model_validator(mode="after")
    def _leafs_agree(self) -> Self:
        if self.leafs is None:
            return self
        if self.hosts is not None:
            raise ValueError("hosts and leafs both name the nodes; give one of them")
        if (listed := sum(len(leaf.hosts) for leaf in self.leafs)) != self.nodes:
            raise ValueError(f"leafs list {listed} hosts for {self.nodes} nodes")
        if twice := _first_double([leaf.name for leaf in self.leafs]):
            raise ValueError(f"two leafs have the name {twice!r}")
        if twice := _first_double([pod for pod, _ in groupby(leaf.pod for leaf in self.leafs)]):
            raise ValueError(f"the leafs of pod {twice!r} are not listed one after the other")
        if twice := _first_double([host for leaf in self.leafs for host in leaf.hosts]):
            raise ValueError(f"host {twice!r} is listed twice")
        return self

    @model_validator(mode="after")
    def _network_agrees(self) -> Self:
        if self.nodes > 1 and self.node.nics == 0:
            raise ValueError(f"{self.nodes} nodes need a network, but node.nics is 0")
        if self.nodes > 1 and self.fabric.kind is FabricKind.NONE:
            raise ValueError(f"{self.nodes} nodes need a network, but fabric.kind is none")
        domain = self.domain_gpus
        if domain % self.node.gpus:
            raise ValueError(
                f"scale_up.domain_gpus ({domain}) is not a multiple of node.gpus ({self.node.gpus})"
            )
        if self.hosts is not None and len(self.hosts) != self.nodes:
            raise ValueError(f"hosts lists {len(self.hosts)} names for {self.nodes} nodes")
        return self

    @property
    def gpus(self) -> int:
        """Return the number of GPUs of the whole cluster."""
        return self.nodes * self.node.gpus

    def figures_of(self, stack: str) -> StackFigures | None:
        """Return what was measured of a stack here; flags after its name make no difference."""
        return self.stacks.get(stack.split("+", maxsplit=1)[0]) if self.stacks else None

    @property
    def host_link_bytes_per_s(self) -> float:
        """Return what a GPU sends to its host, one direction, in bytes per second."""
        return (self.node.host_link_gb_per_s or USUAL_HOST_LINK[self.node.host]) * GB

    @property
    def host_memory_bytes_per_s(self) -> float:
        """Return the bandwidth of a node's host memory in bytes per second."""
        graces = max(1, self.node.gpus // 2) if self.node.host == "grace" else 1
        usual = USUAL_HOST_MEMORY[self.node.host] * graces
        return (self.node.memory_gb_per_s or usual) * GB

    @property
    def host_memory_bytes(self) -> float | None:
        """Return the host memory of a node in bytes; None where it is not known."""
        return self.node.memory_gib * GIB if self.node.memory_gib else None

    @property
    def domain_gpus(self) -> int:
        """Return the GPUs that share scale-up links: a node, or a larger NVLink domain."""
        return self.scale_up.domain_gpus or self.node.gpus

    @property
    def domain_nodes(self) -> int:
        """Return the nodes in one scale-up domain."""
        return self.domain_gpus // self.node.gpus

    @property
    def domains(self) -> int:
        """Return the number of scale-up domains that the nodes stand in: see `filled_domains`.

        With `leafs`, of every leaf on its own.
        """
        if self.leafs is not None:
            return self.positions.domain[-1] + 1
        return filled_domains(self.nodes, self.domain_nodes)

    @property
    def domain_gpus_used(self) -> int:
        """Return the GPUs of the fullest scale-up domain: 64 of an NVL72 rack of 16 trays."""
        if self.leafs is None:
            return self.node.gpus * -(-self.nodes // self.domains)
        sizes = (len(leaf.hosts) for leaf in self.leafs)
        most = (-(-nodes // filled_domains(nodes, self.domain_nodes)) for nodes in sizes)
        return self.node.gpus * max(most)

    @property
    def leaf_nodes(self) -> int:
        """Return the nodes that a leaf has ports for.

        Of the largest, or all nodes, where the fabric does not say.
        """
        most = max(len(leaf.hosts) for leaf in self.leafs) if self.leafs else self.nodes
        return self.fabric.nodes_per_leaf or most

    @property
    def pod_nodes(self) -> int | None:
        """Return the nodes that a pod has room for; None where there is one pod."""
        if self.fabric.leafs_per_pod:
            return self.leaf_nodes * self.fabric.leafs_per_pod
        pods = [len(list(group)) for _, group in groupby(leaf.pod for leaf in self.leafs or ())]
        return self.leaf_nodes * max(pods) if len(pods) > 1 else None

    @cached_property
    def positions(self) -> Positions:
        """Return where every node stands, all at once."""
        nodes = range(self.nodes)
        if self.leafs is None:
            domains, leafs = map(self.domain_of, nodes), map(self.leaf_of, nodes)
            return Positions(tuple(domains), tuple(leafs), tuple(map(self.pod_of, nodes)))
        return Positions(*zip(*self._listed_positions(self.leafs), strict=True))

    def _listed_positions(self, leafs: tuple[Leaf, ...]) -> Iterator[tuple[int, int, int]]:
        """Yield (domain, leaf, pod) of every node of listed leafs; domains do not cross leafs."""
        pods = list(dict.fromkeys(leaf.pod for leaf in leafs))
        before = 0
        for index, leaf in enumerate(leafs):
            nodes, pod = len(leaf.hosts), pods.index(leaf.pod)
            domains = filled_domains(nodes, self.domain_nodes)
            for n in range(nodes):
                yield before + n * domains // nodes, index, pod
            before += domains

    @cached_property
    def _listed_hosts(self) -> tuple[str, ...] | None:
        if self.leafs is None:
            return self.hosts
        return tuple(host for leaf in self.leafs for host in leaf.hosts)

    @property
    def names_hosts(self) -> bool:
        """Return whether the hosts are real names, listed, rather than made from a pattern."""
        return self.hosts is not None or self.leafs is not None

    def host(self, index: int) -> str:
        """Return the name of node `index`, counted from 0."""
        listed = self._listed_hosts
        return listed[index] if listed else self.host_pattern.format(index + 1)

    def leaf_name(self, leaf: int) -> str:
        """Return what to call a leaf: its switch's name, or `leaf0007`."""
        return self.leafs[leaf].name if self.leafs else f"leaf{leaf:04d}"

    def domain_of(self, index: int) -> int:
        """Return the scale-up domain of node `index`.

        A domain larger than a node (NVL72) is filled evenly.
        """
        if self.leafs is not None:
            return self.positions.domain[index]
        if self.domain_nodes == 1:
            return index
        return index * self.domains // self.nodes

    def leaf_of(self, index: int) -> int:
        """Return the leaf of node `index`; a scale-up domain never straddles two leafs."""
        if self.leafs is not None:
            return self.positions.leaf[index]
        if self.domain_nodes == 1:
            return index // self.leaf_nodes
        per_leaf = self.leaf_nodes // self.domain_nodes
        if self.fabric.nodes_per_leaf is None:  # one leaf: a domain that is not full counts whole
            per_leaf = self.domains
        return self.domain_of(index) // max(1, per_leaf)

    def pod_of(self, index: int) -> int:
        """Return the pod of node `index`."""
        if self.leafs is not None:
            return self.positions.pod[index]
        per_pod = self.fabric.leafs_per_pod
        return self.leaf_of(index) // per_pod if per_pod else 0


def filled_domains(nodes: int, domain_nodes: int) -> int:
    """Return in how many scale-up domains `nodes` nodes stand.

    As few as hold them; but where leaving up to a ninth of each domain empty fills all of them
    alike, that many. 64 trays of NVL72 stand in 4 racks of 16 rather than of 18, 256 trays in
    16: so are jobs of a power of two allocated on such racks.
    """
    for filled in range(domain_nodes, (8 * domain_nodes - 1) // 9, -1):
        if nodes % filled == 0:
            return nodes // filled
    return -(-nodes // domain_nodes)


def _first_double(words: list[str]) -> str | None:
    """Return the first word that stands there twice."""
    if len(set(words)) == len(words):
        return None
    return Counter(words).most_common(1)[0][0]

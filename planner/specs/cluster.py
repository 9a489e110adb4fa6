"""ClusterSpec: one accelerator, one node type, how many, and the network between them.

Figures are written the way datasheets give them (GB/s, Gbit/s, TFLOP/s; decimal, one direction);
the properties give them in the units that formulas use (bytes_per_s, flops_per_s).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from planner.specs.record import Record
from planner.units import GB, GIB, TERA

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]


class GemmFit(Record):
    """Matrix-multiply time, t0 + 2mnk/(peak * emax * derate) * (1+m0/m)(1+n0/n)(1+k0/k)."""

    t0_us: NonNegativeFloat = Field(description="Launch time of one kernel.")
    emax: PositiveFloat = Field(le=1, description="Share of the dense peak reached by huge shapes.")
    m0: NonNegativeFloat = 0.0
    n0: NonNegativeFloat = 0.0
    k0: NonNegativeFloat = 0.0
    derate: PositiveFloat = Field(
        1.0, le=1.5, description="Sustained in training / in the benchmark."
    )


class AttentionFit(Record):
    """Fused attention: share of the dense 16-bit peak that the forward kernel sustains."""

    te: PositiveFloat = Field(le=1, description="cuDNN / FlashAttention-3 class kernels.")
    fa2: PositiveFloat = Field(le=1, description="FlashAttention-2 class kernels.")


class Accelerator(Record):
    """One GPU as the planner sees it: what one rank owns."""

    name: str = Field(min_length=1, max_length=200)
    vendor: Literal["nvidia", "amd", "intel", "other"] = "nvidia"
    memory_gib: PositiveFloat = Field(description="On the datasheet.")
    usable_memory_gib: PositiveFloat = Field(description="What a process can allocate.")
    hbm_gb_per_s: PositiveFloat
    peak_tflops: dict[Literal["fp32", "tf32", "bf16", "fp16", "fp8", "fp4"], PositiveFloat] = Field(
        description="Dense, never the sparse figure."
    )
    gemm: GemmFit = Field(description="16-bit matrix multiplies.")
    gemm_fp8: GemmFit | None = None
    attention: AttentionFit
    price_usd_per_hour: PositiveFloat | None = None
    tdp_w: PositiveFloat | None = None
    sources: dict[str, str] = Field(description="Field name -> where its figure comes from.")

    @model_validator(mode="after")
    def _memory_agrees(self) -> Self:
        if self.usable_memory_gib > self.memory_gib:
            raise ValueError(
                f"usable_memory_gib ({self.usable_memory_gib}) is more than "
                f"memory_gib ({self.memory_gib})"
            )
        if "bf16" not in self.peak_tflops and "fp16" not in self.peak_tflops:
            raise ValueError("peak_tflops needs bf16 or fp16")
        return self

    @property
    def usable_memory_bytes(self) -> float:
        """Return the memory that a process can allocate, in bytes."""
        return self.usable_memory_gib * GIB

    @property
    def hbm_bytes_per_s(self) -> float:
        """Return the datasheet memory bandwidth in bytes per second."""
        return self.hbm_gb_per_s * GB

    def peak_flops_per_s(self, precision: str) -> float:
        """Return the dense peak of `precision` ('bf16', 'fp16', 'fp8', 'fp32') in FLOP/s.

        A GPU without bf16 (V100) runs 16-bit work in fp16, and the other way round; one without
        fp8 (or without any fp32 figure) falls back to 16 bit.
        """
        order = {"fp8": ("fp8", "bf16", "fp16"), "fp16": ("fp16", "bf16"), "fp32": ("tf32", "fp32")}
        for name in order.get(precision, ("bf16", "fp16")):
            if name in self.peak_tflops:
                return self.peak_tflops[name] * TERA
        return self.peak_flops_per_s("bf16")


class CollectiveFit(Record):
    """Measured collective in one scale-up domain: alpha + V/bandwidth + gamma*sqrt(V).

    V is bytes * 2(n-1)/n for all_reduce and bytes * (n-1)/n for the others, `bytes` being the
    whole buffer as nccl-tests counts it.
    """

    op: Collective
    gpus: PositiveInt
    alpha_us: NonNegativeFloat
    gb_per_s: PositiveFloat
    gamma_us_per_sqrt_kb: NonNegativeFloat = 0.0


class ScaleUp(Record):
    """The links inside a node, or inside an NVLink domain larger than a node."""

    kind: str = Field(description="For people: 'NVLink 4 + NVSwitch', 'PCIe 4.0', 'xGMI mesh'.")
    topology: Literal["switch", "mesh", "pcie"] = "switch"
    gb_per_s: PositiveFloat = Field(
        description="One direction, per GPU, to all its peers together."
    )
    domain_gpus: PositiveInt | None = Field(
        None, description="GPUs that share these links; default: the GPUs of a node."
    )
    latency_us: NonNegativeFloat = 10.0
    collectives: tuple[CollectiveFit, ...] = ()

    @property
    def bytes_per_s(self) -> float:
        """Return one direction of one GPU's links in bytes per second."""
        return self.gb_per_s * GB


class FabricKind(StrEnum):
    """What a leaf is: one ToR switch, or the switches of one rail-optimised scalable unit."""

    RAIL = "rail"
    TOR = "tor"
    FAT_TREE = "fat-tree"
    NONE = "none"  # a single node


class Fabric(Record):
    """The network between nodes, level by level. Oversubscription 4 means 4:1 going up."""

    kind: FabricKind
    name: str = Field("", description="For people: 'InfiniBand NDR', 'RoCE', 'EFA v2'.")
    nodes_per_leaf: PositiveInt | None = Field(
        None, description="None: every node is one hop away."
    )
    leafs_per_pod: PositiveInt | None = Field(None, description="None: one pod.")
    leaf_oversubscription: PositiveFloat = Field(1.0, ge=1)
    pod_oversubscription: PositiveFloat = Field(1.0, ge=1)
    efficiency: PositiveFloat = Field(
        0.76, le=1, description="Bus bandwidth / NIC rate, large messages."
    )
    all_to_all_efficiency: PositiveFloat = Field(0.85, le=1)
    latency_us: NonNegativeFloat = Field(25.0, description="First byte between two nodes.")
    step_latency_us: NonNegativeFloat = Field(5.4, description="Each further step of a ring.")


class Node(Record):
    """One server (or compute tray)."""

    gpus: PositiveInt = Field(le=1024)
    nics: NonNegativeInt = Field(le=1024, description="Network ports for training traffic.")
    nic_gbit_per_s: PositiveFloat = Field(description="Of one port, one direction.")
    host: Literal["x86", "grace"] = "x86"

    @property
    def nic_bytes_per_s(self) -> float:
        """Return what all NICs of the node send together, one direction, in bytes per second."""
        return self.nics * self.nic_gbit_per_s * 1e9 / 8


class ClusterSpec(Record):
    """`nodes` equal nodes. Hosts are named by `host_pattern` unless `hosts` lists them."""

    name: str = Field(min_length=1, max_length=200)
    source: str = ""
    accelerator: Accelerator
    node: Node
    scale_up: ScaleUp
    fabric: Fabric
    nodes: PositiveInt = Field(le=131_072)
    host_pattern: str = Field("node{:05d}", max_length=200)
    hosts: tuple[str, ...] | None = None
    sources: dict[str, str] = Field(default_factory=dict)

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
        """Return the number of scale-up domains that the nodes stand in.

        As few as hold them; but where leaving up to a ninth of each domain empty fills all of them
        alike, that many. 64 trays of NVL72 stand in 4 racks of 16 rather than of 18, 256 trays in
        16: so are jobs of a power of two allocated on such racks.
        """
        full = self.domain_nodes
        for filled in range(full, (8 * full - 1) // 9, -1):
            if self.nodes % filled == 0:
                return self.nodes // filled
        return -(-self.nodes // full)

    @property
    def domain_gpus_used(self) -> int:
        """Return the GPUs of the fullest scale-up domain: 64 of an NVL72 rack of 16 trays."""
        return self.node.gpus * -(-self.nodes // self.domains)

    @property
    def leaf_nodes(self) -> int:
        """Return the nodes under one leaf; all of them where the fabric names no leaf."""
        return self.fabric.nodes_per_leaf or self.nodes

    def host(self, index: int) -> str:
        """Return the name of node `index`, counted from 0."""
        return self.hosts[index] if self.hosts else self.host_pattern.format(index + 1)

    def domain_of(self, index: int) -> int:
        """Return the scale-up domain of node `index`.

        A domain larger than a node (NVL72) is filled evenly.
        """
        if self.domain_nodes == 1:
            return index
        return index * self.domains // self.nodes

    def leaf_of(self, index: int) -> int:
        """Return the leaf of node `index`; a scale-up domain never straddles two leafs."""
        if self.domain_nodes == 1:
            return index // self.leaf_nodes
        per_leaf = self.leaf_nodes // self.domain_nodes
        if self.fabric.nodes_per_leaf is None:  # one leaf: a domain that is not full counts whole
            per_leaf = self.domains
        return self.domain_of(index) // max(1, per_leaf)

    def pod_of(self, index: int) -> int:
        """Return the pod of node `index`."""
        per_pod = self.fabric.leafs_per_pod
        return self.leaf_of(index) // per_pod if per_pod else 0

"""The links of a cluster's file: inside a node or a scale-up domain, and the fabric between."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from planner.specs.record import Record
from planner.units import GB

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]


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
    routing_efficiency: PositiveFloat = Field(
        1.0, le=1, description="Share of an uplink that hashed flows get; 1: none collide."
    )
    efficiency: PositiveFloat = Field(
        0.76, le=1, description="Bus bandwidth / NIC rate, large messages."
    )
    all_to_all_efficiency: PositiveFloat = Field(0.85, le=1)
    latency_us: NonNegativeFloat = Field(25.0, description="First byte between two nodes.")
    step_latency_us: NonNegativeFloat = Field(5.4, description="Each further step of a ring.")

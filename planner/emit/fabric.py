"""What NCCL (or RCCL) should know of the network, in shell lines, each with its reason.

NCCL finds most of it by itself. Set is what it cannot find out or what its makers' guides ask for
on such machines; what only the site knows (names of interfaces, traffic classes) stands there as a
comment, ready to be filled in. What is set in the environment already always wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from planner.emit.base import placed
from planner.plan import Plan
from planner.specs.cluster import ClusterSpec
from planner.specs.links import FabricKind


class Setting(NamedTuple):
    """A variable and why. It is only suggested where `value` is the site's to say."""

    name: str
    value: str
    why: str
    suggested: bool = False


def settings(plan: Plan) -> list[Setting]:
    """Return the settings of the plan's cluster: links inside nodes, then the network."""
    cluster = plan.request.cluster
    out = list(_accelerator(cluster))
    if len(placed(plan).hosts) > 1:
        out += [*_domain(cluster), *_transport(cluster), *_rails(cluster), *_names(cluster)]
    return out


def fabric_text(plan: Plan) -> str:
    """Return the settings as shell lines to be sourced."""
    library = "RCCL" if plan.request.cluster.accelerator.vendor == "amd" else "NCCL"
    network = plan.request.cluster.fabric.name or "the network"
    if len(placed(plan).hosts) == 1:
        network = "one node"
    head = f"# {library} on {_plain(network)}; what is set already wins.\n"
    last = Setting("NCCL_DEBUG", "INFO", "says which adapters and links each rank uses", True)
    return head + "".join(_lines(setting) for setting in (*settings(plan), last))


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:80]


def _lines(setting: Setting) -> str:
    name, value, why, suggested = setting
    if suggested:
        return f"# {why}:\n# export {name}={value}\n"
    return f'# {why}\nexport {name}="${{{name}:-{value}}}"\n'


def _accelerator(cluster: ClusterSpec) -> Iterator[Setting]:
    """Yield what AMD's guide to training on Instinct GPUs asks for."""
    if cluster.accelerator.vendor != "amd":
        return
    if any(name in cluster.accelerator.name.upper() for name in ("MI300", "MI325")):
        yield Setting(
            "NCCL_MIN_NCHANNELS", "112", "AMD's guide: fewer channels do not fill the xGMI mesh"
        )
    yield Setting(
        "TORCH_NCCL_HIGH_PRIORITY", "1", "collectives first, so that compute waits less for them"
    )
    yield Setting(
        "GPU_MAX_HW_QUEUES", "2", "one queue computes, one communicates; more delay each other"
    )


def _domain(cluster: ClusterSpec) -> Iterator[Setting]:
    """Yield what NVLink across nodes (NVL72) needs."""
    if cluster.domain_nodes > 1 and cluster.accelerator.vendor == "nvidia":
        yield Setting(
            "NCCL_MNNVL_ENABLE",
            "1",
            "NVLink reaches the other trays of a rack, given its IMEX service: ask for it",
        )


def transport_of(cluster: ClusterSpec) -> str:
    """Return the kind of network by its name: efa, roce, ib, slingshot, tcpx, tcp or nothing."""
    name = cluster.fabric.name.lower()
    kinds = {
        "efa": ("efa",),
        "slingshot": ("slingshot",),
        "tcpx": ("tcpx",),
        "roce": ("roce", "spectrum"),
        "ib": ("infiniband",),
        "tcp": ("ethernet", "tcp", "gvnic"),
    }
    return next((kind for kind, marks in kinds.items() if any(m in name for m in marks)), "")


def _transport(cluster: ClusterSpec) -> Iterator[Setting]:
    """Yield what each kind of network needs."""
    match transport_of(cluster):
        case "efa":
            yield from _efa(cluster)
        case "slingshot":
            yield from SLINGSHOT
        case "roce":
            yield PATIENT
            yield from ROCE
        case "ib":
            yield PATIENT
        case "tcpx":
            yield Setting(
                "LD_LIBRARY_PATH",
                "/path/to/the/plugin:$LD_LIBRARY_PATH",
                "the GPUDirect-TCPX plugin is the image's; source its own nccl-env-profile.sh too",
                suggested=True,
            )
        case "tcp":
            yield from SOCKETS


def _efa(cluster: ClusterSpec) -> Iterator[Setting]:
    """Yield what the libfabric plugin of AWS needs."""
    yield Setting("FI_PROVIDER", "efa", "libfabric takes the adapters for EFA, not their TCP side")
    if "V100" not in cluster.accelerator.name.upper():
        yield Setting(
            "FI_EFA_USE_DEVICE_RDMA", "1", "GPUs read and write each other without the host"
        )
    yield Setting("NCCL_SOCKET_IFNAME", "^docker,lo,veth", "first contact over a real interface")
    yield Setting(
        "FI_EFA_USE_HUGE_PAGE",
        "0",
        "where data loaders that fork end with 'cannot allocate memory'",
        suggested=True,
    )


PATIENT = Setting(
    "NCCL_IB_TIMEOUT", "22", "a link that flaps is waited for (4.096 us * 2^22 = 17 s a try)"
)
ROCE = (
    Setting(
        "NCCL_IB_GID_INDEX",
        "3",
        "the RoCE v2 address of the adapters; NCCL before 2.21 cannot find it (`show_gids`)",
        suggested=True,
    ),
    Setting(
        "NCCL_IB_TC",
        "106",
        "the traffic class that your switches keep lossless; a wrong one runs, slowly",
        suggested=True,
    ),
    Setting(
        "NCCL_IB_QPS_PER_CONNECTION",
        "4",
        "more flows for hashing to spread over the uplinks, where switches do not spray packets",
        suggested=True,
    ),
)
SLINGSHOT = (
    Setting("NCCL_SOCKET_IFNAME", "hsn", "first contact over the Slingshot interfaces"),
    Setting("NCCL_CROSS_NIC", "1", "a dragonfly has no rails: other adapters are as near"),
    Setting("NCCL_NET_GDR_LEVEL", "PHB", "adapters reach the GPUs of their socket directly"),
    Setting("FI_CXI_DISABLE_HOST_REGISTER", "1", "registered host memory hangs the GPU's driver"),
    Setting("FI_MR_CACHE_MONITOR", "userfaultfd", "the default monitor can deadlock with NCCL"),
)
SOCKETS = (
    Setting("NCCL_SOCKET_NTHREADS", "4", "one thread does not fill a fast Ethernet adapter"),
    Setting("NCCL_NSOCKS_PERTHREAD", "4", "and neither does one socket a thread"),
)


def _rails(cluster: ClusterSpec) -> Iterator[Setting]:
    """Yield what keeps traffic on its rail where every adapter has a switch of its own."""
    if cluster.fabric.kind is FabricKind.RAIL and transport_of(cluster) != "slingshot":
        yield Setting(
            "NCCL_CROSS_NIC",
            "0",
            "rails: a ring stays on its adapter's switches; crossing over goes through the spine",
        )


def _names(cluster: ClusterSpec) -> Iterator[Setting]:
    """Yield the names that only the site knows, as suggestions."""
    if transport_of(cluster) not in ("efa", "slingshot"):
        yield Setting(
            "NCCL_SOCKET_IFNAME",
            "eth0",
            "the interface of MASTER_ADDR, for the first contact, where it is not found",
            suggested=True,
        )
    if transport_of(cluster) in ("roce", "ib", ""):
        yield Setting(
            "NCCL_IB_HCA",
            "mlx5",
            "the adapters that carry training traffic, where storage has some of its own",
            suggested=True,
        )

"""Which terms a layout has at all: the others are computed, since formulas are, and count nowhere.

`explain` leaves them out for people; in its JSON they are marked. That they count nowhere is tested
by changing them (tests/unit/estimate/test_applying.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.estimate.activations import autocasts
from planner.estimate.inputs import Inputs
from planner.layouts.table import DP_SYNC, HIDES, OFFLOAD, RECOMPUTE, SPLITS

DENSE = (
    *("dense_layer_parameters", "dense_elementwise_forward_s", "dense_elementwise_backward_s"),
    *("mlp_forward_s", "mlp_backward_s", "dense_recompute_s", "dense_gather_s", "dense_scatter_s"),
    *("dense_compute_forward_s", "dense_compute_backward_s", "dense_directions_s"),
    *("dense_layer_s", "dense_layer_activation_bytes"),
)
EXPERTS = (
    *("moe_layer_parameters", "expert_parameters", "stage_expert_parameters", "busiest_rank"),
    *("stage_expert_vectors", "routed_tokens", "received_tokens", "experts_forward_s"),
    *("experts_backward_s", "moe_elementwise_forward_s", "moe_elementwise_backward_s"),
    *("moe_recompute_s", "ep_forward_s", "moe_gather_s", "moe_scatter_s", "moe_layer_s"),
    *("moe_layer_activation_bytes", "moe_compute_forward_s", "moe_compute_backward_s"),
    *("moe_directions_s", "hidden_s"),
)
PIPELINE = ("pp_microbatch_s", "tied_embedding_s", "bubble_s", "unfilled_share")
HOST = ("host_rank_bytes", "host_copies_s", "host_step_s", "host_traffic_s", "drive_step_s")
MATRICES_APART = ("stage_tables", "stage_dense_vectors", "stage_expert_vectors")


def idle_terms(x: Inputs) -> frozenset[str]:
    """Return the names of the terms that do not apply to the one layout of `x`."""
    return frozenset([*_of_model(x), *_of_degrees(x), *_of_sharding(x), *_of_states(x)])


def _of_model(x: Inputs) -> Iterator[str]:
    """Yield the terms of what the model does not have, or does not run again."""
    if x.model.experts is None:
        yield from EXPERTS
    elif all(x.model.moe_layers) and not x.model.mtp_layers:
        yield from DENSE
    if not x.model.tied_embeddings:
        yield "tied_embedding_s"
    if RECOMPUTE[int(x.layouts.recompute[0])] == "none":
        yield from ("dense_recompute_s", "moe_recompute_s")


def _of_degrees(x: Inputs) -> Iterator[str]:
    """Yield the terms of the ways in which the layout does not split anything."""
    lay = x.layouts
    if lay.tp[0] == 1:
        yield from ("tp_forward_s", "tp_backward_s")
    if lay.cp[0] == 1:
        yield "cp_forward_s"
    if lay.ep[0] * lay.etp[0] == 1:
        yield "ep_forward_s"
    if lay.pp[0] == 1:
        yield from PIPELINE
    if not x.runs(SPLITS):
        yield "unfilled_share"
    if not x.runs(HIDES):
        yield "hidden_s"


def _of_sharding(x: Inputs) -> Iterator[str]:
    """Yield the terms of other ways to keep replicas alike."""
    lay = x.layouts
    zero = int(lay.zero[0])
    served = DP_SYNC[int(lay.dp_sync[0])] == "parameter-server"
    alone = lay.dp[0] * lay.cp[0] == 1 and (x.model.experts is None or lay.edp[0] == 1)
    if not served:
        yield "parameter_server_s"
    if served or alone or (zero >= 2 and lay.dp_replicate[0] == 1):
        yield "gradient_sync_s"
    if served or alone or zero not in (1, 2):
        yield "parameter_gather_s"
    if zero < 2:
        yield from ("dense_scatter_s", "moe_scatter_s")
    if zero != 3:
        yield from ("dense_gather_s", "moe_gather_s", "embedding_sharding_s")
    if zero < 2 and x.stack.states != "fsdp2":
        yield "largest_layer_parameters"


def _of_states(x: Inputs) -> Iterator[str]:
    """Yield the terms of places and forms that the training states do not have."""
    where = OFFLOAD[int(x.layouts.offload[0])]
    if where == "none":
        yield from HOST
    else:
        yield "gpu_step_s"
    if not where.endswith("-nvme"):
        yield "drive_step_s"
    optimizer = x.workload.optimizer.value
    if optimizer != "muon":
        yield "orthogonalising_flops"
    if optimizer in ("adamw", "sgd"):
        yield from MATRICES_APART
    if x.stack.states != "fsdp2":
        yield "fsdp_peak_point"
    if not autocasts(x).any():
        yield "autocast_s"

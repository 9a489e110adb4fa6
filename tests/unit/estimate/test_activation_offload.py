"""Activations on the host: what stays on the GPU, and what a pass waits for, by running it.

The order in which Transformer Engine copies (pytorch/cpu_offload.py at d0067d0da6): layer i goes
once its forward is over, and must be gone before that of layer L - N + i; it comes back from the
backward of layer L - 1 - N + i on.
"""

from __future__ import annotations

import numpy as np
import pytest
from estimate_cases import inputs, spec

from planner.estimate import memory
from planner.estimate.in_flight import activations_bytes
from planner.estimate.layer import dense_directions_s
from planner.estimate.offloading import copies_bytes_per_s, wait_s
from planner.estimate.recompute import away_bytes, offloaded_bytes, whole_layer_bytes
from planner.estimate.step import activation_wait_s, step_s, time_parts
from planner.layouts.rules import broken_rules
from planner.layouts.rules.rule import Context
from planner.specs.model import Experts

LAYERS = 12
COUNTS = (1, 3, 6, 8, 10, 11)
KINDS = {
    "dense": None,
    "first-dense": Experts(count=8, top_k=2, ffn=704, first_dense_layers=3),
    "in-turn": Experts(count=8, top_k=2, ffn=704, layer_period=2),
}


def most_held(layers: list[float], away: int) -> float:
    """Return the most that a forward and a backward pass over the layers hold at once."""
    count, here, most = len(layers), set[int](), 0.0
    for i in range(count):
        here -= {i - (count - away)}
        here |= {i}
        most = max(most, sum(layers[j] for j in here))
    for i in reversed(range(count)):
        back = i - (count - 1 - away)
        here |= {back} if 0 <= back < away else set()
        most = max(most, sum(layers[j] for j in here))
        here -= {i}
    assert not here
    return most


def time_taken(layer_s: float, copy_s: float, count: int, away: int) -> float:
    """Return how long one pass takes in which layers wait for copies, forward or backward."""
    now, copied, gone = 0.0, 0.0, [0.0] * away
    for i in range(count):
        if 0 <= (due := i - (count - away)) < away:
            now = max(now, gone[due])
        now += layer_s
        if i < away:
            copied = max(copied, now) + copy_s
            gone[i] = copied
    return now


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_holds_what_the_passes_leave_there(count, kind):
    model = spec(layers=LAYERS, experts=KINDS[kind])
    assert sum(model.moe_layers) == {"dense": 0, "first-dense": 9, "in-turn": 6}[kind]
    x, plain = (inputs(model, {}, stack=f"megatron{f}") for f in (f"+offload-layers={count}", ""))
    dense, moe = (float(part[0]) for part in whole_layer_bytes(x))
    each = [moe if with_experts else dense for with_experts in model.moe_layers]
    kept = sum(each) - away_bytes(x)[0]
    assert kept == pytest.approx(most_held(each, count))
    less = activations_bytes(plain) - activations_bytes(x)
    assert less[0, 0] == pytest.approx(sum(each) - most_held(each, count))
    assert offloaded_bytes(x)[0] == pytest.approx(sum(each[:count]))
    assert memory.host_bytes(x)[0] == pytest.approx(sum(each[:count]))
    assert memory.host_bytes(plain)[0] == 0


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("copy_s", [0.1, 0.9, 1.0, 1.1, 1.5, 4.0])
def test_a_pass_waits_as_long_as_its_copies_make_it(count, copy_s):
    told = wait_s(np.array([count * copy_s]), np.array([LAYERS - 2.0]), whole=count == LAYERS - 1)
    assert LAYERS + told[0] == pytest.approx(time_taken(1.0, copy_s, LAYERS, count))


def test_copies_that_the_link_cannot_hide_make_a_step_longer_and_others_do_not():
    layout = {"micro_batch": 8, "num_microbatches": 4}
    model = spec(layers=LAYERS, hidden=2048, heads=16, kv_heads=16, head_dim=128, ffn=8192)
    found = {}
    for gb_per_s in (1.0, 1e4):
        x = inputs(model, layout, stack="megatron+offload-layers=6", seq_tokens=4096)
        node = x.cluster.node.model_copy(update={"host_link_gb_per_s": gb_per_s})
        x.cluster = x.cluster.model_copy(update={"node": node})
        found[gb_per_s] = x
    slow, fast = found.values()
    assert activation_wait_s(fast)[0] == 0
    copies = offloaded_bytes(slow)[0] / 0.8e9
    ways = dense_directions_s(slow)[0, :, :6].sum() * (LAYERS - 2)
    assert activation_wait_s(slow)[0] == pytest.approx(2 * copies - ways)
    assert step_s(slow)[0] - step_s(fast)[0] == pytest.approx(4 * activation_wait_s(slow)[0])
    parts = time_parts(slow)
    assert parts["offload"][0] == pytest.approx(4 * activation_wait_s(slow)[0])
    assert sum(parts.values())[0] == pytest.approx(step_s(slow)[0])


def test_all_gpus_of_a_node_share_the_memory_of_their_host():
    rows = [{"dp": dp} for dp in (1, 2, 8)]
    x = inputs(spec(), *rows, stack="megatron+offload-layers=1")
    wide = x.cluster.node.model_copy(update={"host_link_gb_per_s": 300.0, "memory_gb_per_s": 400.0})
    x.cluster = x.cluster.model_copy(update={"node": wide})
    assert copies_bytes_per_s(x) == pytest.approx([240e9, 200e9, 50e9])


@pytest.mark.parametrize(
    ("layout", "count", "legal"),
    [
        ({}, 3, True),
        ({"dp": 8, "zero": 3}, 3, True),
        ({"pp": 2, "schedule": "1f1b"}, 1, False),
        ({"recompute": "selective"}, 1, False),
        ({"recompute": "full"}, 1, False),
        ({}, 4, False),
    ],
)
def test_activations_go_to_the_host_without_a_pipeline_and_without_recompute(layout, count, legal):
    x = inputs(spec(layers=4), layout, stack=f"megatron+offload-layers={count}")
    broken = broken_rules(x.layouts, 0, Context(x.model, x.cluster, x.workload))
    assert [r for r in broken if "activations" in r] == broken
    assert (not broken) == legal

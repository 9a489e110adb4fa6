"""Terms said not to apply to a layout are nothing, or change neither its time nor its memory."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from planner.estimate import communication, memory, params, step
from planner.estimate.applying import idle_terms
from planner.estimate.inputs import Inputs, Term
from planner.estimate.record import TERMS
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import parse_fix
from planner.layouts.rules import Context
from planner.layouts.table import Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

CASES = {
    "dense": ("llama-3.1-8b", "dgx-h100:2", {}, {"recompute": "none|full"}),
    "tied": ("llama-3.2-1b", "dgx-h100:1", {"optimizer": "muon"}, {}),
    "experts": ("mixtral-8x7b", "dgx-h100:2", {"stack": "megatron"}, {"micro_batch": "1"}),
    "fsdp": ("llama-3.1-8b", "dgx-h100:2", {"stack": "torchtitan"}, {}),
    "away": (
        "llama-3.1-8b",
        "dgx-h100:1",
        {"stack": "deepspeed"},
        {"offload": "optimizer|optimizer+params"},
    ),
    "autocast": ("llama-3.2-1b", "dgx-h100:1", {"stack": "transformers"}, {}),
    "both at once": (
        "mixtral-8x7b",
        "dgx-h100:2",
        {},
        {"schedule": "zb-h1|dualpipev", "ep": "8", "micro_batch": "1"},
    ),
    "experts, sharded": ("mixtral-8x7b", "dgx-h100:2", {"stack": "torchtitan"}, {"zero": "3"}),
    "served": ("llama-3.2-1b", "dgx-h100:1", {}, {"dp_sync": "parameter-server"}),
}
SAMPLE = 12


class Blind(Inputs):
    """Inputs whose terms of some names have senseless values."""

    names: frozenset[str] = frozenset()

    def of(self, t: Term) -> np.ndarray:
        value = t.function(self)
        return np.where(value != 0, 1e7, value) if t.name in self.names else value


@lru_cache
def some(name: str) -> list[Inputs]:
    """Return legal layouts of a case, one by one, spread over all of them."""
    model, cluster, more, fix = CASES[name]
    work = Workload(seq_tokens=4096, global_batch=32, **more)
    context = Context(load_model(model), load_cluster(cluster), work)
    rows = list(legal_layouts(context, context.cluster.gpus, parse_fix(fix), Tally()))
    picked = np.linspace(0, sum(map(len, rows)) - 1, SAMPLE).astype(int)
    every = [part.take([row]) for part in rows for row in range(len(part))]
    return [Inputs(*context, every[row]) for row in picked]


@pytest.mark.parametrize("name", CASES)
def test_a_term_that_does_not_apply_is_nothing_or_counts_nowhere(name):
    for x in some(name):
        blind = Blind(x.model, x.cluster, x.workload, x.layouts)
        object.__setattr__(blind, "names", idle_terms(x))
        assert step.step_s(blind)[0] == step.step_s(x)[0], x.layouts
        peaks = [float(memory.peak_bytes(each)[0]) for each in (blind, x)]
        assert peaks[0] == peaks[1], x.layouts
        parts, others = step.time_parts(blind), step.time_parts(x)
        assert {n: p[0] for n, p in parts.items()} == {n: p[0] for n, p in others.items()}


def test_every_term_applies_to_some_layout():
    idle = [idle_terms(x) for name in CASES for x in some(name)]
    names = {t.name for t in TERMS}
    assert frozenset.union(*idle) <= names
    # no case has NVMe drives, or experts with an optimizer that tells their biases apart
    assert frozenset.intersection(*idle) <= {"drive_step_s", "stage_expert_vectors"}


DENSE = {
    **{"tp": 8, "sp": 0, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "dp_replicate": 1},
    **{"micro_batch": 1, "recompute": "none", "schedule": "none", "offload": "none"},
    "dp_sync": "all-reduce",
}


def dense(**more: int) -> Inputs:
    work = Workload(seq_tokens=4096, global_batch=32)
    return Inputs(
        load_model("llama-3.1-8b"), load_cluster("dgx-h100:2"), work, Layouts.of([DENSE | more])
    )


def test_one_replica_of_a_dense_model_has_no_data_parallel_traffic():
    """Its tensor ranks would be the experts' replicas, if there were experts."""
    parts = step.time_parts(dense(dp=1, zero=0, num_microbatches=32))
    assert parts["dp"][0] == 0


def test_sharded_gradients_of_a_dense_layer_go_in_one_collective():
    x = dense(dp=2, zero=3, num_microbatches=16)
    two = np.array([2])
    sent = x.stack.gradient_reduce_bytes * params.dense_layer_parameters(x)
    one = communication.group_s(x, "reduce_scatter", sent, x.layouts.tp, two)
    assert communication.dense_scatter_s(x)[0] == pytest.approx(one[0])

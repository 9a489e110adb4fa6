"""States and their shards counted by hand, one layout and one matrix at a time.

Nothing here comes from `planner.estimate`: shapes of the published models, plain integers, one `if`
a rule. So a formula that is wrong for all rows at once is seen too, not only a wrong gather.
"""

from __future__ import annotations

import numpy as np
import pytest

from planner.estimate.inputs import Inputs
from planner.estimate.params import stage_dense_parameters, stage_expert_parameters
from planner.estimate.states import gradients_bytes, optimizer_bytes, weights_bytes
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import Fix
from planner.layouts.rules import Context
from planner.layouts.table import Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

ROWS = 600
SHAPES = {
    # of each config.json: layers, hidden, heads, kv heads, head dim, ffn, experts, vocabulary
    "llama-3.1-8b": (32, 4096, 32, 8, 128, 14336, 0, 128256),
    "mixtral-8x7b": (32, 4096, 32, 8, 128, 14336, 8, 32000),
}
GRADIENT = {"any": 4, "megatron": 4}


def parameters(name: str, row: dict, stage: int) -> tuple[int, int]:
    """Outside of experts, and in experts, on one rank of a stage."""
    layers, hidden, heads, kv, dim, ffn, experts, vocab = SHAPES[name]
    tp = row["tp"]
    outside = inside = 0
    for _ in range(layers // row["pp"]):  # only rows that divide evenly are asked for
        outside += hidden * heads * dim // tp  # queries
        outside += 2 * hidden * kv * dim // tp  # keys, values
        outside += heads * dim * hidden // tp  # output
        outside += 2 * hidden  # two norms
        if experts:
            outside += hidden * experts  # router
            inside += experts // row["ep"] * (3 * hidden * ffn // row["etp"])
        else:
            outside += 3 * hidden * ffn // tp
    padded = vocab
    while padded % (128 * tp):
        padded += 1
    if stage == 0:
        outside += padded * hidden // tp
    if stage == row["pp"] - 1:
        outside += padded * hidden // tp + hidden
    return outside, inside


def shards(row: dict) -> tuple[int, int]:
    """Ranks that share one copy of a state outside of experts, and of experts."""
    ranks = row["tp"] * row["cp"] * row["dp"]
    outside = row["cp"] * row["dp"] // row["dp_replicate"]
    inside = ranks // (row["ep"] * row["etp"]) // row["dp_replicate"]
    return outside, inside


def state(name: str, row: dict, stage: int, *, each: int, shared: bool) -> float:
    outside, inside = parameters(name, row, stage)
    ways = shards(row) if shared else (1, 1)
    return each * (outside / ways[0] + inside / ways[1])


@pytest.mark.parametrize("stack", ["any", "megatron"])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_states_of_random_layouts_are_those_counted_by_hand(name, stack):
    work = Workload(seq_tokens=4096, global_batch=96, stack=stack)
    context = Context(load_model(name), load_cluster("dgx-h100:4"), work)
    layouts = Layouts.concat(list(legal_layouts(context, 32, Fix(), Tally())))
    layers = SHAPES[name][0]
    even = (layers % (layouts.pp * layouts.vpp) == 0) & (layouts.folds == 0)
    rows = np.random.default_rng(11).permutation(np.flatnonzero(even))[:ROWS]
    x = Inputs(*context, layouts.take(rows))
    found = {
        "outside": stage_dense_parameters(x),
        "inside": stage_expert_parameters(x),
        "weights": weights_bytes(x),
        "gradients": gradients_bytes(x),
        "optimizer": optimizer_bytes(x),
    }
    for at in range(len(rows)):
        row = x.layouts.row(at)
        zero = row["zero"]
        for kind in np.flatnonzero(x.stages.count[at]).tolist():
            stage = int(x.stages.index[at, kind])
            outside, inside = parameters(name, row, stage)
            wanted = {
                "outside": outside,
                "inside": inside,
                "weights": state(name, row, stage, each=2, shared=zero == 3),
                "gradients": state(name, row, stage, each=GRADIENT[stack], shared=zero >= 2),
                "optimizer": state(name, row, stage, each=12, shared=zero >= 1),
            }
            for what, amount in wanted.items():
                told = float(found[what][at, kind])
                assert told == pytest.approx(amount, rel=1e-12), (what, stage, row)

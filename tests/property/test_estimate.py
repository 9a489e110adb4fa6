"""Laws that every layout obeys, whatever the constants: rows are independent, parts sum to wholes,
and no worse machine makes a plan faster.
"""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.estimate import memory, pipelined, step
from planner.estimate.fp8_weights import fp8_copies_bytes
from planner.estimate.inputs import Inputs
from planner.estimate.record import TERMS
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import Fix
from planner.layouts.rules import Context
from planner.layouts.table import SPLITS, Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

CASES = {
    "dense-any": ("llama-3.1-8b", "dgx-h100:4", {}),
    "tied-megatron": ("gpt-3-1.3b", "dgx-a100:4", {"stack": "megatron"}),
    "latent-experts": ("deepseek-v2-lite", "dgx-h100:4", {"capacity_factor": 1.05}),
    "experts-megatron-fp8": (
        "mixtral-8x7b",
        "h100-tor-4to1:16",
        {"stack": "megatron", "precision": "fp8"},
    ),
    "torchtitan": ("llama-3.1-8b", "meta-24k-roce:4", {"stack": "torchtitan"}),
    "deepspeed": ("mixtral-8x7b", "dgx-a100:4", {"stack": "deepspeed"}),
    "domain": ("qwen3-30b-a3b", "gb200-nvl72:32", {"stack": "megatron"}),
    "muon": ("deepseek-v2-lite", "dgx-h100:4", {"stack": "megatron", "optimizer": "muon"}),
    "8-bit": ("gpt-3-1.3b", "dgx-h100:4", {"stack": "deepspeed", "optimizer": "adamw-8bit"}),
    "measured-load": (
        "mixtral-8x7b",
        "dgx-h100:2",
        {"expert_load": (1, 2, 3, 4, 5, 6, 7, 8), "capacity_factor": 1.5},
    ),
}
case = st.sampled_from(sorted(CASES))


BY_PART = ("dense_layer_s", "moe_layer_s", "dense_directions_s", "moe_directions_s", "autocast_s")


@functools.cache
def legal(name):
    """Every legal layout of a case, with the context that it belongs to."""
    model, cluster, more = CASES[name]
    around = Context(
        load_model(model), load_cluster(cluster), Workload(seq_tokens=4096, global_batch=96, **more)
    )
    parts = list(legal_layouts(around, around.cluster.gpus, Fix(), Tally()))
    return around, Layouts.concat(parts)


def sample(name, rows, seed):
    around, layouts = legal(name)
    picked = np.random.default_rng(seed).choice(len(layouts), min(rows, len(layouts)), False)
    return around, layouts.take(np.sort(picked))


def padded(values, width):
    """A row of a term with one column a kind of stage, padded with zeros as many rows are."""
    return values if values.ndim == 0 else np.pad(values, (0, width - len(values)))


PAIRS = {
    "tp": (1, 4),
    "sp": (0, 1),
    "pp": (1, 4),
    "vpp": (1, 2),
    "cp": (1, 2),
    "ep": (1, 4),
    "etp": (1, 2),
    "dp": (4, 16),
    "dp_replicate": (1, 4),
    "zero": (0, 3),
    "micro_batch": (1, 3),
    "num_microbatches": (1, 32),
    "recompute": (0, 2),
    "schedule": (2, 3),
    "offload": (0, 1),
    "dp_sync": (0, 1),
}
OTHERS = {
    "zero": (1, 2),
    "recompute": (1, 2),
    "schedule": (5, 7),
    "cp": (1, 8),
    "dp": (2, 64),
    "pp": (2, 4),
    "vpp": (1, 3),
    "offload": (0, 2),
}


def independent(pairs, rows):
    """Rows whose columns are drawn apart, so that none can stand in for another; few are legal."""
    draw = np.random.default_rng(23).integers(0, 2, (len(pairs), rows))
    columns = {n: np.array(p)[d] for (n, p), d in zip(pairs.items(), draw, strict=True)}
    return Layouts(**columns)


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS | OTHERS], ids=["some", "others"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_many_rows_equal_one_by_one_in_every_term(name, pairs):
    """A term is computed on the distinct values of the columns it names: it must name them all."""
    around, _ = legal(name)
    layouts = independent(pairs, 40_000)
    few = np.arange(24)
    many = Inputs(*around, layouts)
    together = {t.name: t(many)[few] for t in TERMS}
    together |= {"step_s": step.step_s(many)[few], "peak_bytes": memory.peak_bytes(many)[few]}
    absent = many.stages.count[few] == 0
    for row in few:
        one = Inputs(*around, layouts.take([row]))
        alone = {t.name: t(one)[0] for t in TERMS}
        alone |= {"step_s": step.step_s(one)[0], "peak_bytes": memory.peak_bytes(one)[0]}
        for term, value in alone.items():
            found = together[term][row]
            if found.ndim and term not in BY_PART:
                found = np.where(absent[row], 0.0, found)
            wanted = value if found.ndim > 1 else padded(value, found.size)
            np.testing.assert_allclose(found, wanted, rtol=1e-12, err_msg=f"{term} of row {row}")


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_term_is_finite_and_not_negative(name):
    around, layouts = sample(name, 20000, seed=3)
    x = Inputs(*around, layouts)
    for t in TERMS:
        value = t(x)
        assert np.isfinite(value).all(), t.name
        assert (value >= 0).all(), t.name


@pytest.mark.parametrize("name", sorted(CASES))
def test_parts_sum_to_the_step_and_to_the_peak(name):
    around, layouts = sample(name, 20000, seed=5)
    x = Inputs(*around, layouts)
    np.testing.assert_allclose(sum(step.time_parts(x).values()), step.step_s(x), rtol=1e-12)
    parts = [t(x) for t in memory.MEMORY_TERMS.values()]
    whole = np.where(x.stages.count > 0, sum(parts), 0.0).max(axis=1)
    np.testing.assert_allclose(whole, memory.peak_bytes(x), rtol=1e-12)


def slower_links(cluster, share):
    link = cluster.scale_up
    fits = tuple(f.model_copy(update={"gb_per_s": f.gb_per_s * share}) for f in link.collectives)
    halved = link.model_copy(update={"gb_per_s": link.gb_per_s * share, "collectives": fits})
    return cluster.model_copy(update={"scale_up": halved})


def later_links(cluster, times):
    link, fabric = cluster.scale_up, cluster.fabric
    fits = tuple(f.model_copy(update={"alpha_us": f.alpha_us * times}) for f in link.collectives)
    link = link.model_copy(update={"latency_us": link.latency_us * times, "collectives": fits})
    fabric = fabric.model_copy(
        update={
            "latency_us": fabric.latency_us * times,
            "step_latency_us": fabric.step_latency_us * times,
        }
    )
    return cluster.model_copy(update={"scale_up": link, "fabric": fabric})


def slower_nics(cluster, share):
    node = cluster.node
    node = node.model_copy(update={"nic_gbit_per_s": node.nic_gbit_per_s * share})
    return cluster.model_copy(update={"node": node})


def slower_memory(cluster, share):
    gpu = cluster.accelerator
    gpu = gpu.model_copy(update={"hbm_gb_per_s": gpu.hbm_gb_per_s * share})
    return cluster.model_copy(update={"accelerator": gpu})


def slower_peak(cluster, share):
    gpu = cluster.accelerator
    peak = {name: value * share for name, value in gpu.peak_tflops.items()}
    return cluster.model_copy(update={"accelerator": gpu.model_copy(update={"peak_tflops": peak})})


def narrower_fabric(cluster, level, times):
    fabric = cluster.fabric
    fabric = fabric.model_copy(
        update={
            level: getattr(fabric, level) * times,
            "nodes_per_leaf": fabric.nodes_per_leaf or 2,
            "leafs_per_pod": fabric.leafs_per_pod or 2,
        }
    )
    return cluster.model_copy(update={"fabric": fabric})


WORSE = {
    "half the NVLink": lambda c: slower_links(c, 0.5),
    "twice the latency": lambda c: later_links(c, 2),
    "half the NICs' rate": lambda c: slower_nics(c, 0.5),
    "half the memory bandwidth": lambda c: slower_memory(c, 0.5),
    "half the FLOP/s": lambda c: slower_peak(c, 0.5),
    "twice the oversubscription of leafs": lambda c: narrower_fabric(c, "leaf_oversubscription", 2),
    "twice the oversubscription of pods": lambda c: narrower_fabric(c, "pod_oversubscription", 2),
}


@pytest.mark.parametrize("worse", WORSE)
@pytest.mark.parametrize("name", sorted(CASES))
def test_no_worse_machine_makes_any_layout_faster(name, worse):
    around, layouts = sample(name, 20000, seed=11)
    cluster = around.cluster
    if (
        "oversubscription" in worse
    ):  # both sides with leafs and pods, so that only one figure differs
        cluster = narrower_fabric(cluster, "leaf_oversubscription", 1)
    before = step.step_s(Inputs(around.model, cluster, around.workload, layouts))
    after = step.step_s(Inputs(around.model, WORSE[worse](cluster), around.workload, layouts))
    # where the host sets the pace, weight gradients that take longer fill more of the idle time
    less = after / before + np.where(SPLITS[layouts.schedule], 0.005, 0.0)
    low = int(less.argmin())
    assert less[low] >= 1 - 1e-12, layouts.row(low)
    if "oversubscription" not in worse:
        assert (after > before).any()


def with_columns(layouts, **columns):
    values = {name: np.full(len(layouts), value) for name, value in columns.items()}
    return Layouts(**{**vars(layouts), **values})


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(name=case, seed=st.integers(0, 1 << 30))
def test_more_micro_batches_never_raise_the_share_of_the_bubble(name, seed):
    around, layouts = sample(name, 500, seed)
    shares = []
    for more in (1, 2, 8):
        moved = Layouts(**{**vars(layouts), "num_microbatches": layouts.num_microbatches * more})
        x = Inputs(*around, moved)
        shares.append(pipelined.bubble_s(x) / step.step_s(x))
    assert (shares[1] <= shares[0] * (1 + 1e-12)).all()
    assert (shares[2] <= shares[1] * (1 + 1e-12)).all()


def state_bytes(around, layouts, **columns):
    """Return what ZeRO divides: FP8 copies of gathered weights are whole whatever the stage."""
    x = Inputs(*around, with_columns(layouts, **columns))
    parts = (memory.weights_bytes(x), memory.gradients_bytes(x), memory.optimizer_bytes(x))
    return np.where(x.stages.count > 0, sum(parts) - fp8_copies_bytes(x), 0.0)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_higher_zero_stage_never_holds_more_state(name):
    around, layouts = sample(name, 3000, seed=13)
    layouts = layouts.take((layouts.edp > 1) & (layouts.dp * layouts.cp > 1))
    stages = (0, 2, 3) if around.workload.stack == "torchtitan" else (0, 1, 2, 3)
    held = [state_bytes(around, layouts, zero=z, dp_replicate=1) for z in stages]
    for less, more in pairwise(held):
        assert (more <= less * (1 + 1e-12)).all()
    full = held[0] > 0
    assert (held[-1] < held[0])[full].all()


@pytest.mark.parametrize("name", sorted(CASES))
def test_zero_3_divides_all_states_by_the_shards_and_replicas_give_it_back(name):
    around, layouts = sample(name, 3000, seed=17)
    layouts = layouts.take((layouts.ep == 1) & (layouts.etp == 1) & (layouts.tp == 1))
    whole = state_bytes(around, layouts, zero=0, dp_replicate=1)
    ways = (layouts.dp * layouts.cp)[:, None]
    np.testing.assert_allclose(state_bytes(around, layouts, zero=3, dp_replicate=1), whole / ways)
    copies = layouts.dp[:, None]
    moved = Layouts(**{**vars(layouts), "dp_replicate": layouts.dp})
    np.testing.assert_allclose(state_bytes(around, moved, zero=3), whole / ways * copies)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(name=case, seed=st.integers(0, 1 << 30))
def test_recompute_trades_memory_for_time(name, seed):
    around, layouts = sample(name, 300, seed)
    held, took = [], []
    for kind in range(3):
        x = Inputs(*around, with_columns(layouts, recompute=kind))
        held.append(np.where(x.stages.count > 0, memory.activations_bytes(x), 0.0))
        took.append(step.step_s(x))
    for i in (0, 1):
        assert (held[i + 1] <= held[i] * (1 + 1e-12)).all()
        assert (took[i + 1] >= took[i] * (1 - 1e-12)).all()

"""The engine only saves time: parts, cores and cuts lose nothing of what single rows would say."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from planner.estimate import forked, layer, memory, pipelined, scoring, step
from planner.estimate.bounds import least_step_s
from planner.estimate.inputs import Inputs
from planner.estimate.record import TERMS
from planner.estimate.scoring import best_first
from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import parse_fix
from planner.layouts.rules import Context
from planner.layouts.table import COLUMNS, Layouts
from planner.specs.catalog import load_cluster, load_model
from planner.specs.workload import Workload

BLOCKS = {"recompute_method": "block", "recompute_layers": 3}
CASES = {
    "dense": ("llama-3.1-8b", "dgx-h100:2", {}, {}),
    "blocks": ("gpt-3-1.3b", "dgx-a100:2", {"stack": "megatron", **BLOCKS}, {}),
    "experts": ("deepseek-v2-lite", "dgx-h100:2", {}, {"micro_batch": "1|3", "vpp": "1..3"}),
    "short gradients": (
        "qwen3-30b-a3b",
        "gb200-nvl72:4",
        {"stack": "megatron+bf16-gradients"},
        {"micro_batch": "1|2", "vpp": "1..3"},
    ),
    "fsdp": ("mixtral-8x7b", "meta-24k-roce:2", {"stack": "torchtitan"}, {"micro_batch": "1|2|4"}),
    "offload": (
        "llama-3.1-8b",
        "dgx-a100:2",
        {"stack": "deepspeed"},
        {"offload": "none|optimizer|optimizer+params"},
    ),
    "muon": ("deepseek-v2-lite", "dgx-h100:1", {"stack": "megatron", "optimizer": "muon"}, {}),
    "by cost": ("llama-3.1-8b", "dgx-h100:2", {"stack": "nanotron"}, {}),
}


def case(name):
    model, cluster, more, fix = CASES[name]
    workload = Workload(seq_tokens=4096, global_batch=48, **more)
    context = Context(load_model(model), load_cluster(cluster), workload)
    return context, parse_fix(fix)


def scored(name, **how):
    context, fix = case(name)
    return scoring.score(context, context.cluster.gpus, fix, **how)


def columns(found):
    return [found.step_s, found.least_s, found.peak_bytes] + [
        getattr(found.layouts, column) for column in COLUMNS
    ]


def assert_same(left, right):
    assert left.tally == right.tally
    assert left.fitted == right.fitted
    assert left.lightest_bytes == right.lightest_bytes
    for one, other in zip(columns(left), columns(right), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_term_of_a_part_is_that_of_each_row_alone(name):
    context, fix = case(name)
    parts = list(legal_layouts(context, context.cluster.gpus, fix, Tally()))
    draw = np.random.default_rng(29)
    for rows in parts:
        many = Inputs(*context, rows)
        together = {t.name: t(many) for t in TERMS}
        together |= {"step_s": step.step_s(many), "peak_bytes": memory.peak_bytes(many)}
        together["least_step_s"] = least_step_s(many)
        for row in draw.choice(len(rows), min(len(rows), 60 // len(parts) + 1), replace=False):
            one = Inputs(*context, rows.take([row]))
            alone = {t.name: t.function(one)[0] for t in TERMS}
            alone |= {"step_s": step.step_s(one)[0], "peak_bytes": memory.peak_bytes(one)[0]}
            alone["least_step_s"] = least_step_s(one)[0]
            there = many.stages.count[row] > 0
            for term, value in alone.items():
                found = together[term][row]
                if np.ndim(value) and len(found) == len(there) and len(value) != len(found):
                    found = found[there]
                np.testing.assert_allclose(found, value, rtol=1e-12, err_msg=f"{term}, row {row}")


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_total_is_the_sum_of_its_parts_stage_by_stage(name):
    """Memory and time of a row, added up in plain Python over all stages of its pipeline."""
    context, _ = case(name)
    found = scored(name)
    draw = np.random.default_rng(31)
    rows = draw.choice(len(found.layouts), min(len(found.layouts), 50), replace=False)
    for row in rows.tolist():
        one = found.layouts.take([row])
        x = Inputs(*context, one, every_stage=True)
        stages = range(int(one.pp[0]))
        peak = max(sum(t(x)[0][p] for t in memory.MEMORY_TERMS.values()) for p in stages)
        assert found.peak_bytes[row] == pytest.approx(peak, rel=1e-12)
        assert found.step_s[row] == pytest.approx(step_alone(x, stages), rel=1e-12)


def step_alone(x, stages):
    lay, s = x.layouts, x.stages
    dense, moe = sum(layer.dense_layer_s(x)[0]), sum(layer.moe_layer_s(x)[0])
    every = []
    for p in stages:
        layers = s.dense_layers[0][p] * dense + s.moe_layers[0][p] * moe
        ends = s.first[0][p] * pipelined.first_s(x)[0] + s.last[0][p] * pipelined.head_s(x)[0]
        every.append(layers + ends + pipelined.pp_microbatch_s(x)[0] + x.stack.microbatch_s)
    m, vpp = lay.num_microbatches[0], lay.vpp[0]
    pipeline = m * max(every) + (sum(every) - max(every)) / vpp
    if vpp > 1 and m < lay.pp[0]:  # too few to fill a lap of the chunks
        pipeline = sum(every) + (m - 1) * max(every) / vpp
    once = [step.exposed_sync_s, step.tied_embedding_s, step.optimizer_s, step.offloaded_s]
    whole = pipeline + sum(part(x)[0] for part in once) + x.stack.step_s
    return whole * step.pressure_slowdown(x)[0]


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_size_of_parts_changes_no_bit(name, monkeypatch):
    whole = scored(name)
    monkeypatch.setattr("planner.layouts.grid.CHUNK_ROWS", 777)
    assert_same(whole, scored(name))
    monkeypatch.setattr("planner.estimate.inputs.MOST_SHARED", 50)
    assert_same(whole, scored(name))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_two_cores_give_the_bits_of_one(monkeypatch):
    monkeypatch.setattr("planner.layouts.grid.CHUNK_ROWS", 1000)
    alone = scored("dense", cores=1)
    monkeypatch.setattr(scoring, "PARALLEL_ROWS", 0)
    assert_same(alone, scored("dense", cores=2))
    assert_same(alone, scored("dense", cores=3))


@pytest.fixture
def forks(monkeypatch):
    """Whether a job was really done elsewhere does not depend on the threads of the test run."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    monkeypatch.setattr(forked, "can_fork", lambda: True)
    return os.getpid()


def test_items_come_in_order_from_other_processes(forks):
    found = list(forked.in_order(lambda item: (item, os.getpid()), range(3, 20), 2))
    assert [item for item, _ in found] == list(range(3, 20))
    assert forks not in {pid for _, pid in found}
    assert len({pid for _, pid in found}) == 2


def test_a_copy_begins_its_next_item_while_another_is_at_its_own(forks, tmp_path):
    """Also where results are larger than what a pipe holds."""

    def meets(item):
        (tmp_path / str(item)).touch()
        other = tmp_path / str(item ^ 1)  # 2 and 3, 4 and 5 are at work together
        until = time.monotonic() + 20
        while not other.exists() and time.monotonic() < until:
            time.sleep(0.001)
        return other.exists(), bytes(1 << 20)

    assert all(met for met, _ in forked.in_order(meets, range(2, 8), 2))


def test_an_error_in_a_copy_is_raised_here(forks):
    def fails(item):
        if item == 5:
            raise ValueError("five")
        return item

    got = []
    with pytest.raises(ValueError, match="five"):
        got.extend(forked.in_order(fails, range(10), 2))


def test_what_a_killed_copy_leaves_is_done_here(forks):
    def dies(item):
        if item == 4 and os.getpid() != forks:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert list(forked.in_order(dies, range(10), 2)) == list(range(10))


def test_no_copy_is_left_when_the_results_are_not_wanted(forks):
    some = forked.in_order(lambda item: (item, os.getpid()), range(10_000), 2)
    _, pid = next(some)
    some.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_of_too_many_rows_the_fastest_are_kept_and_all_are_counted(monkeypatch):
    whole = scored("dense")
    monkeypatch.setattr(scoring, "MOST_KEPT", 300)
    monkeypatch.setattr("planner.layouts.grid.CHUNK_ROWS", 1000)
    few = scored("dense")
    assert few.tally == whole.tally
    assert few.fitted == whole.fitted == len(whole.layouts)
    assert 300 <= len(few.layouts) < 1000
    for kept in ("step_s", "least_s"):
        best = np.sort(np.minimum(whole.step_s, whole.least_s))[299]
        wanted = np.sort(getattr(whole, kept)[getattr(whole, kept) <= best])
        found = np.sort(getattr(few, kept))[: len(wanted)]
        np.testing.assert_array_equal(found, wanted)
    assert few.peak_bytes.min() == whole.peak_bytes.min()
    assert best_of_shapes(few) == best_of_shapes(whole)


def best_of_shapes(found):
    lay, best = found.layouts, {}
    shapes = zip(*(getattr(lay, n).tolist() for n in ("tp", "pp", "cp", "dp")), strict=True)
    for shape, seconds in zip(shapes, found.step_s.tolist(), strict=True):
        best[shape] = min(seconds, best.get(shape, np.inf))
    return best


def test_rows_are_ordered_by_time_then_memory_then_row():
    draw = np.random.default_rng(5)
    time, peak = draw.integers(0, 40, 5000) / 7, draw.integers(0, 4, 5000) / 3
    wanted = np.lexsort((np.arange(5000), peak, time))
    np.testing.assert_array_equal(best_first(time, peak), wanted)


def test_taking_rows_of_factored_layouts_gives_their_columns():
    context, fix = case("experts")
    rows = next(legal_layouts(context, context.cluster.gpus, fix, Tally()))
    plain = Layouts.concat([rows])
    picked = np.array([5, 0, len(rows) - 1])
    for column in COLUMNS:
        wanted = getattr(plain, column)[picked]
        np.testing.assert_array_equal(getattr(rows.take(picked), column), wanted)
        np.testing.assert_array_equal(getattr(rows.only(picked), column), wanted)


LEFT_OUT = {
    "x86": ("llama-3.1-8b", "dgx-h100:1", "any"),
    "grace": ("qwen3-30b-a3b", "gb200-nvl72:2", "megatron"),
    "deepspeed": ("llama-3.1-8b", "dgx-a100:1", "deepspeed"),
    "torchtitan": ("llama-3.1-8b", "dgx-h100:1", "torchtitan"),
}


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_states_on_the_host_never_make_the_same_layout_faster(name):
    """Why they are searched only where they are asked for, or nothing fits without."""
    model, cluster, stack = LEFT_OUT[name]
    workload = Workload(seq_tokens=4096, global_batch=32, stack=stack)
    context = Context(load_model(model), load_cluster(cluster), workload)
    fix = parse_fix({"offload": "optimizer|optimizer+params", "recompute": "none|full"})
    seen = 0
    for rows in legal_layouts(context, context.cluster.gpus, fix, Tally()):
        away = Layouts.concat([rows])
        here = Layouts(**{**vars(away), "offload": np.zeros(len(away), dtype=np.int64)})
        assert (step.step_s(Inputs(*context, away)) >= step.step_s(Inputs(*context, here))).all()
        seen += len(rows)
    assert seen > 10


@pytest.mark.parametrize("stack", ["any", "megatron", "torchtitan"])
def test_overlap_of_gradients_is_never_worse_than_none(stack):
    """Why it is no choice of the search: every stack that has it, has it on."""
    workload = Workload(seq_tokens=4096, global_batch=32, stack=stack)
    context = Context(load_model("llama-3.1-8b"), load_cluster("dgx-h100:2"), workload)
    off = workload.model_copy(update={"stack": f"{stack}+no-dp-overlap"})
    for rows in legal_layouts(context, 16, parse_fix({"recompute": "none"}), Tally()):
        without = step.step_s(Inputs(context.model, context.cluster, off, rows))
        usual = step.step_s(Inputs(*context, rows))
        assert (without >= usual).all()
        assert (without > usual).any()

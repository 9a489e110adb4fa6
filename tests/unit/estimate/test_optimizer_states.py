"""Bytes that optimizers keep: of real ones stepped once, of DeepSpeed's estimators, and laws."""

from __future__ import annotations

import numpy as np
import pytest
from estimate_cases import inputs, spec, table
from tensors import MODELS, tensors

from planner.estimate import memory, muon, params, states
from planner.estimate.optimizer import host_traffic_s, optimizer_s
from planner.layouts.rules import Context, broken_rules
from planner.specs.model import Experts
from planner.specs.parameters import count_parameters
from planner.specs.workload import Optimizer

EIGHT = Experts(count=8, top_k=2, ffn=512, shared_ffn=128)


@pytest.mark.parametrize("name", MODELS)
def test_the_tensors_of_the_small_models_are_all_of_their_parameters(name):
    model = MODELS[name]
    held = sum(int(np.prod(shape)) for _, shape in tensors(model))
    assert held == count_parameters(model).total


@pytest.mark.parametrize("name", MODELS)
def test_parameters_fall_into_matrices_tables_and_vectors_as_their_tensors_do(name):
    model = MODELS[name]
    x = inputs(model, {})
    vectors = sum(shape[0] for _, shape in tensors(model) if len(shape) == 1)
    tables = sum(
        int(np.prod(shape)) for n, shape in tensors(model) if n.startswith(("embed", "lm_head"))
    )
    told = params.stage_dense_vectors(x) + params.stage_expert_vectors(x)
    assert told[0, 0] == vectors
    assert params.stage_tables(x)[0, 0] == tables


# --- real optimizers


@pytest.mark.parametrize(
    "row",
    table("optimizer_states.csv"),
    ids=lambda r: f"{r['optimizer']}-{r['library']}-{r['model']}-{r['parameters']}",
)
def test_moments_are_those_that_a_real_optimizer_made_to_the_byte(row):
    """FSDP2 keeps no master weights, so what the estimate counts is the optimizer's own."""
    stack = {"fp32": "torchtitan", "bf16": "torchtitan+pure-bf16"}[row["parameters"]]
    x = inputs(MODELS[row["model"]], {}, stack=stack, optimizer=row["optimizer"])
    assert memory.optimizer_bytes(x)[0, 0] == int(row["state_bytes"])


@pytest.mark.frameworks
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("name", MODELS)
def test_torchs_optimizers_step_once_and_keep_what_is_told(name, optimizer, dtype):
    torch = pytest.importorskip("torch")
    made = [
        (n, torch.nn.Parameter(torch.ones(shape, dtype=getattr(torch, dtype), device="meta")))
        for n, shape in tensors(MODELS[name])
    ]
    ends = ("embed", "lm_head")
    matrices = [p for n, p in made if p.ndim == 2 and not n.startswith(ends)]
    others = [p for n, p in made if p.ndim != 2 or n.startswith(ends)]
    build = {
        "adamw": lambda: [torch.optim.AdamW(matrices + others)],
        "sgd": lambda: [torch.optim.SGD(matrices + others, lr=0.1, momentum=0.9)],
        "muon": lambda: [torch.optim.Muon(matrices), torch.optim.AdamW(others)],
    }[optimizer]
    kept = 0
    for each in build():
        for group in each.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        each.step()
        kept += sum(
            v.numel() * v.element_size()
            for state in each.state.values()
            for key, v in state.items()
            if isinstance(v, torch.Tensor) and key != "step"
        )
    stack = "torchtitan" if dtype == "float32" else "torchtitan+pure-bf16"
    x = inputs(MODELS[name], {}, stack=stack, optimizer=optimizer)
    assert memory.optimizer_bytes(x)[0, 0] == kept


@pytest.mark.frameworks
@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (80, 80)])
def test_muon_orthogonalises_with_the_flops_that_torch_counts(shape):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    weight = torch.nn.Parameter(torch.randn(shape))
    weight.grad = torch.randn(shape)
    counter = FlopCounterMode(display=False)
    with counter:
        torch.optim.Muon([weight]).step()
    assert muon.newton_schulz_flops(*map(float, shape)) == counter.get_total_flops()


def test_muon_orthogonalises_every_matrix_of_a_model():
    for name, model in MODELS.items():
        x = inputs(model, {}, optimizer="muon")
        told = sum(
            float(muon.newton_schulz_flops(*map(float, shape)))
            for n, shape in tensors(model)
            if len(shape) == 2 and not n.startswith(("embed", "lm_head"))
        )
        assert muon.orthogonalising_flops(x)[0] == pytest.approx(told, rel=1e-12), name


# --- frameworks

MASTER = {"megatron": (2, 4, 4), "deepspeed": (2, 2, 8), "torchtitan": (4, 4, 0)}
"""Weights, gradients, and what is kept beside the moments (Megatron-LM
docs/dist_optimizer.md: 16 + 2; DeepSpeed's estimator: 2 + 18; FSDP2: fp32 weights)."""


@pytest.mark.parametrize("stack", MASTER)
def test_sgd_keeps_four_bytes_less_than_adam_and_muon_the_same_of_matrices(stack):
    model = spec()
    told = {
        o: memory.optimizer_bytes(inputs(model, {}, stack=stack, optimizer=o))[0, 0]
        for o in ("adamw", "sgd", "muon")
    }
    total, ends = count_parameters(model).total, 2 * 8192 * 256 + (4 * 2 + 1) * 256
    assert told["adamw"] == (MASTER[stack][2] + 8) * total
    assert told["adamw"] - told["sgd"] == 4 * total
    assert told["adamw"] - told["muon"] == 4 * (total - ends)


@pytest.mark.parametrize(
    ("flags", "each"),
    [
        ("precision-aware", 2 + 4 + 2 + 8),
        ("bf16-moments", 2 + 4 + 2 + 4),
        ("bf16-moments+bf16-gradients", 2 + 2 + 2 + 4),
        ("fp8-moments", 2 + 4 + 2 + 2),
    ],
)
def test_megatrons_precision_aware_optimizer_keeps_the_widths_chosen(flags, each):
    """Of a bf16 weight's fp32 master it keeps the 16 bits that the weight lacks."""
    x = inputs(spec(), {}, stack=f"megatron+{flags}")
    parts = memory.weights_bytes(x), memory.gradients_bytes(x), memory.optimizer_bytes(x)
    assert sum(parts)[0, 0] == each * count_parameters(spec()).total


def test_pure_bf16_takes_half_of_what_fsdp2_keeps_in_fp32():
    whole, half = (
        inputs(spec(), {"dp": 8, "zero": 3}, stack=stack)
        for stack in ("torchtitan", "torchtitan+pure-bf16")
    )
    for part in (memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes):
        assert part(half)[0, 0] == part(whole)[0, 0] / 2


# --- offload


@pytest.mark.parametrize(
    "row",
    table("deepspeed_offload.csv"),
    ids=lambda r: "-".join(list(r.values())[i] for i in (0, 1, 4, 5, 6)),
)
def test_offloaded_states_are_those_of_deepspeeds_estimators(row):
    """Zero 2 stages the new 16-bit weights on the host, which the estimator leaves out.

    On many GPUs it counts instead the fp32 copies that the processes load the model from.
    """
    total, each, nodes = (int(row[k]) for k in ("total_params", "gpus_per_node", "nodes"))
    zero = int(row["estimator"][-1])
    degrees = {"dp": each * nodes, "zero": zero, "offload": row["offload"]}
    x = inputs(spec(), degrees, cluster="dgx-h100:64", stack="deepspeed")
    scale = total / count_parameters(spec()).total
    parts = memory.weights_bytes(x), memory.gradients_bytes(x), memory.optimizer_bytes(x)
    layer = 4 * int(row["largest_layer_params"] or 0)
    assert sum(parts)[0, 0] * scale + layer == pytest.approx(int(row["gpu_bytes"]), abs=1)
    staged = 2 * total if zero == 2 else 0
    if zero == 3 or 4 * each * nodes <= 16:
        node = states.host_rank_bytes(x)[0, 0] * scale * each
        assert node == pytest.approx(int(row["node_bytes"]) + staged, rel=1e-9)


OFFLOADS = [
    ("megatron", 1, "optimizer"),
    ("deepspeed", 1, "optimizer"),
    ("deepspeed", 2, "optimizer"),
    ("deepspeed", 3, "optimizer"),
    ("deepspeed", 3, "optimizer+params"),
    ("torchtitan", 2, "optimizer+params"),
    ("torchtitan", 3, "optimizer+params"),
]


@pytest.mark.parametrize(("stack", "zero", "offload"), OFFLOADS)
def test_what_leaves_the_gpus_is_on_their_hosts(stack, zero, offload):
    """Nothing is lost: GPU and host together hold at least what the GPU held alone."""
    here, away = (
        inputs(spec(), {"dp": 8, "zero": zero, "offload": o}, stack=stack)
        for o in ("none", offload)
    )
    parts = memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes
    alone, split = (sum(part(x) for part in parts)[0, 0] for x in (here, away))
    assert split < alone
    # DeepSpeed's gradients add up in fp32 shards on the host, counted with the optimizer: zero 1
    # needs no whole fp32 sums beside them, zero 2 and 3 no 16-bit shards
    total = count_parameters(spec()).total
    merged = {1: 4 * total}.get(zero, 2 * total / 8) if stack == "deepspeed" else 0
    assert split + states.host_rank_bytes(away)[0, 0] >= alone - merged
    assert memory.optimizer_bytes(away)[0, 0] == 0 < states.host_rank_bytes(away)[0, 0]
    assert memory.peak_bytes(away)[0] < memory.peak_bytes(here)[0]
    assert states.host_rank_bytes(here)[0, 0] == 0 == memory.host_bytes(here)[0]


@pytest.mark.parametrize("offload", ["optimizer", "optimizer+params"])
def test_a_step_on_the_host_is_slower_and_its_copies_scale_with_the_shard(offload):
    rows = [{"dp": dp, "zero": 3, "offload": offload} for dp in (8, 16, 32)]
    x = inputs(spec(), *rows, {"dp": 8, "zero": 3}, cluster="dgx-h100:4", stack="deepspeed")
    away, onto = optimizer_s(x)[:3], optimizer_s(x)[3]
    assert away[0] > 10 * onto
    assert away[:2] / away[1:] == pytest.approx(2)
    assert (host_traffic_s(x)[:3] > 0).all()
    assert host_traffic_s(x)[3] == 0


def with_drives(x, gb_per_s):
    node = x.cluster.node.model_copy(update={"nvme_gb_per_s": gb_per_s})
    x.cluster = x.cluster.model_copy(update={"node": node})
    return x


def test_drives_hold_what_the_host_would_and_the_host_only_what_passes():
    """16 bytes of four swap buffers and 4 of gradients a parameter, below 1e9 parameters a rank."""
    rows = [{"dp": 8, "zero": 3, "offload": o} for o in ("optimizer", "optimizer-nvme")]
    rows += [{"dp": 8, "zero": 3, "offload": f"optimizer+params{e}"} for e in ("", "-nvme")]
    x = inputs(spec(), *rows, stack="deepspeed")
    peak = memory.peak_bytes(x)
    assert peak[0] == peak[1]
    assert peak[2] == peak[3]
    shard = count_parameters(spec()).total / 8
    host = states.host_rank_bytes(x)[:, 0]
    least = min(shard, 1e9)
    assert host[1] == pytest.approx(4 * shard + 16 * least, rel=1e-6)
    assert host[3] == pytest.approx(host[1] + 1e9, rel=1e-6)


def test_a_step_from_drives_adds_reading_and_writing_all_states_of_a_node():
    rows = [{"dp": 8, "zero": 3, "offload": o} for o in ("optimizer", "optimizer-nvme")]
    host, drives = optimizer_s(with_drives(inputs(spec(), *rows, stack="deepspeed"), 20.0))
    assert drives - host == pytest.approx(24 * count_parameters(spec()).total / 20e9, rel=1e-3)
    fetch = [{"dp": 8, "zero": 3, "offload": f"optimizer+params{e}"} for e in ("", "-nvme")]
    link, slow = host_traffic_s(with_drives(inputs(spec(), *fetch, stack="deepspeed"), 2.0))
    assert slow == pytest.approx(4 * count_parameters(spec()).total / 2e9, rel=1e-3)
    assert slow > link


def test_drives_without_a_rate_are_refused():
    x = inputs(spec(), {"dp": 8, "zero": 3, "offload": "optimizer-nvme"}, stack="deepspeed")
    (broken,) = broken_rules(x.layouts, 0, Context(x.model, x.cluster, x.workload))
    assert "node.nvme_gb_per_s" in broken


def test_a_host_without_room_makes_a_layout_unfit():
    x = inputs(spec(), {"dp": 8, "zero": 2, "offload": "optimizer"}, stack="deepspeed")
    assert memory.fits(x, memory.peak_bytes(x)).all()
    node = x.cluster.node.model_copy(update={"memory_gib": memory.host_bytes(x)[0] / 2**30 * 0.99})
    x.cluster = x.cluster.model_copy(update={"node": node})
    assert not memory.fits(x, memory.peak_bytes(x)).any()
    x.cluster = x.cluster.model_copy(
        update={"node": node.model_copy(update={"memory_gib": memory.host_bytes(x)[0] / 2**30})}
    )
    assert memory.fits(x, memory.peak_bytes(x)).all()


# --- laws

STACKS = {"megatron": (0, 1), "deepspeed": (0, 1, 2, 3), "torchtitan": (2, 3)}


@pytest.mark.parametrize("optimizer", [o.value for o in Optimizer])
@pytest.mark.parametrize(
    ("stack", "zero"), [(s, z) for s, stages in STACKS.items() for z in stages]
)
@pytest.mark.parametrize("experts", [None, EIGHT], ids=["dense", "experts"])
def test_the_shards_of_all_ranks_sum_to_at_least_what_one_rank_would_keep(
    stack, zero, experts, optimizer
):
    """And to no more than replicas, copies of tied ends and norms on every tp rank make of it."""
    model = spec(experts=experts)
    rows = [
        {"tp": tp, "sp": int(tp > 1), "pp": pp, "dp": 8, "ep": ep, "zero": zero}
        | ({"schedule": "1f1b"} if pp > 1 else {})
        for tp in ((1,) if stack == "deepspeed" else (1, 2))  # AutoTP copies both ends, too
        for pp in (1, 2)
        for ep in ((1, 4) if experts else (1,))
    ]
    x = inputs(model, *rows, cluster="dgx-h100:4", stack=stack, optimizer=optimizer)
    alone = inputs(model, {}, stack=stack, optimizer=optimizer)
    ranks = (x.layouts.tp * x.layouts.dp)[:, None] * x.stages.count
    everywhere = (memory.optimizer_bytes(x) * ranks).sum(axis=1)
    whole = memory.optimizer_bytes(alone)[0, 0]
    replicas = 1 if zero or experts else 8
    assert (everywhere >= replicas * whole * (1 - 1e-9)).all()
    assert (everywhere <= replicas * whole * 1.01).all() or experts is not None
    assert np.isfinite(everywhere).all()


@pytest.mark.parametrize("optimizer", [o.value for o in Optimizer])
def test_hybrid_sharding_divides_states_by_its_shards_only(optimizer):
    rows = [{"dp": dp, "dp_replicate": r, "zero": 3} for dp, r in ((8, 1), (32, 4), (32, 1))]
    x = inputs(spec(), *rows, cluster="dgx-h100:4", stack="torchtitan", optimizer=optimizer)
    kept = memory.optimizer_bytes(x)[:, 0]
    assert kept[0] == kept[1] == pytest.approx(4 * kept[2])


def test_a_search_offloads_nothing_unless_it_is_asked_to():
    from planner.layouts.grid import Tally, legal_layouts
    from planner.layouts.ranges import Fix, parse_fix
    from planner.layouts.rules import Context

    x = inputs(spec(), {}, cluster="dgx-h100:2", stack="deepspeed")
    context = Context(x.model, x.cluster, x.workload)
    plain, asked = Tally(), Tally()
    free = [part.offload for part in legal_layouts(context, 16, Fix(), plain)]
    assert not np.concatenate(free).any()
    fix = parse_fix({"offload": "none|optimizer|optimizer+params"})
    found = np.concatenate([p.offload for p in legal_layouts(context, 16, fix, asked)])
    assert set(found.tolist()) == {0, 1, 2}
    assert asked.enumerated == 3 * plain.enumerated
    assert plain.legal == int((found == 0).sum())

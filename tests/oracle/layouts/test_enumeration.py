"""Every legal layout, and nothing else: the fast enumeration against one written with loops."""

from __future__ import annotations

import pytest
import reference

from planner.layouts.grid import Tally, legal_layouts
from planner.layouts.ranges import parse_fix
from planner.layouts.rules import Context
from planner.layouts.table import COLUMNS
from planner.layouts.table import SCHEDULE as SCHEDULES
from planner.specs.catalog import load_cluster
from planner.specs.model import Experts, LatentAttention, ModelSpec
from planner.specs.workload import Workload

SHAPE = {"hidden": 64, "head_dim": 16, "vocab": 1000, "max_seq_tokens": 1 << 20}
DENSE = ModelSpec(name="dense", layers=5, heads=4, kv_heads=4, ffn=96, **SHAPE)
GROUPED = ModelSpec(
    name="grouped", layers=6, heads=12, kv_heads=2, ffn=100, tied_embeddings=True, **SHAPE
)
EXPERTS = ModelSpec(
    name="experts",
    layers=4,
    heads=8,
    kv_heads=2,
    ffn=7,
    experts=Experts(count=6, top_k=2, ffn=36, shared_ffn=24),
    **SHAPE,
)
LATENT = ModelSpec(
    name="latent",
    layers=4,
    heads=4,
    kv_heads=4,
    ffn=64,
    mla=LatentAttention(kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16),
    experts=Experts(count=4, top_k=2, ffn=6, shared_ffn=12, first_dense_layers=1),
    **SHAPE,
)
STACKS = ("any", "megatron", "deepspeed", "torchtitan")
FIXES: list[tuple[ModelSpec, int, dict[str, str]]] = [
    (DENSE, 8, {}),
    (DENSE, 6, {}),
    (DENSE, 16, {"micro_batch": "1|5", "recompute": "none", "zero": "0|3"}),
    (GROUPED, 8, {"recompute": "full"}),
    (GROUPED, 24, {"tp": "3|4|6", "micro_batch": "2", "zero": "3"}),
    (GROUPED, 8, {"pp": "2..4", "vpp": "1..5", "zero": "1"}),
    (GROUPED, 8, {"dp": "4", "cp": "2", "dp_replicate": "1..4", "sp": "false"}),
    (EXPERTS, 8, {"recompute": "selective", "micro_batch": "1..3"}),
    (EXPERTS, 12, {"ep": "2|3|6", "micro_batch": "1", "recompute": "none|full"}),
    (EXPERTS, 8, {"etp": "2", "zero": "1|3", "micro_batch": "2"}),
    (LATENT, 8, {"recompute": "none", "micro_batch": "1|2|4"}),
    (LATENT, 4, {"schedule": "gpipe|interleaved", "ep": "1..4", "micro_batch": "1"}),
    (DENSE, 8, {"dp_sync": "parameter-server"}),
    (DENSE, 8, {"schedule": "|".join(SCHEDULES), "micro_batch": "1|3", "zero": "0|2"}),
    (DENSE, 8, {"tp": "7"}),
    (DENSE, 8, {"offload": "none|optimizer|optimizer+params", "micro_batch": "1"}),
    (GROUPED, 1, {"offload": "optimizer|optimizer+params"}),
    (EXPERTS, 4, {"offload": "optimizer", "micro_batch": "1|2"}),
]


def context(model: ModelSpec, gpus: int, stack: str) -> Context:
    cluster = load_cluster(f"dgx-h100:{-(-gpus // 8)}")
    return Context(model, cluster, Workload(seq_tokens=48, global_batch=24, stack=stack))


def values(fix: dict[str, str]) -> dict[str, set[int]]:
    """The chosen values, by name, as the reference takes them."""
    words = {name: code for code, name in enumerate(SCHEDULES)} | {"full": 2, "selective": 1}
    words |= {"parameter-server": 1, "false": 0, "optimizer": 1, "optimizer+params": 2}
    out = {}
    for name, text in fix.items():
        low, dots, high = text.partition("..")
        parts = range(int(low), int(high) + 1) if dots else text.split("|")
        out[name] = {words[p] if p in words else int(p) for p in parts}
    return out


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    ("model", "gpus", "fix"), FIXES, ids=[f"{m.name}-{g}-{f}" for m, g, f in FIXES]
)
def test_the_legal_layouts_are_those_of_the_slow_reference(model, gpus, fix, stack):
    around, tally = context(model, gpus, stack), Tally()
    found = set()
    for part in legal_layouts(around, gpus, parse_fix(fix), tally):
        columns = [getattr(part, name).tolist() for name in COLUMNS]
        rows = list(zip(*columns, strict=True))
        assert not found & set(rows)
        assert len(rows) == len(set(rows))
        found |= set(rows)
    rows = list(reference.everything(*around, gpus, values(fix)))
    wanted = {tuple(r[n] for n in COLUMNS) for r in rows if reference.legal(r, *around)}
    assert found == wanted
    assert tally.enumerated == len(rows)
    assert tally.legal == len(wanted)
    assert sum(tally.rejected.values()) + tally.legal == tally.enumerated


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    ("model", "gpus", "fix", "opened"),
    [
        (DENSE, 8, {"micro_batch": "1|3", "recompute": "none"}, ("offload", "schedule")),
        (EXPERTS, 6, {"micro_batch": "1|2", "zero": "0|1|3"}, ("schedule",)),
        (LATENT, 4, {"micro_batch": "2"}, ("offload",)),
    ],
    ids=["both", "schedules", "offload"],
)
def test_axes_that_are_opened_are_searched_whole_and_rejects_still_add_up(
    model, gpus, fix, opened, stack
):
    around, tally = context(model, gpus, stack), Tally()
    found = set()
    for part in legal_layouts(around, gpus, parse_fix(fix, opened), tally):
        columns = [getattr(part, name).tolist() for name in COLUMNS]
        found |= set(zip(*columns, strict=True))
    rows = list(reference.everything(*around, gpus, values(fix), opened=opened))
    wanted = {tuple(r[n] for n in COLUMNS) for r in rows if reference.legal(r, *around)}
    assert found == wanted
    assert (tally.enumerated, tally.legal) == (len(rows), len(wanted))
    assert sum(tally.rejected.values()) + tally.legal == tally.enumerated
    closed = Tally()
    for _ in legal_layouts(around, gpus, parse_fix(fix), closed):
        pass
    assert tally.enumerated > closed.enumerated or stack != "any"


def test_some_layouts_are_legal_and_some_are_not_in_every_stack():
    for stack in STACKS:
        tally = Tally()
        assert list(legal_layouts(context(DENSE, 8, stack), 8, parse_fix({}), tally))
        assert tally.legal > 0
        assert tally.rejected


def test_every_chunk_of_rows_is_yielded(monkeypatch):
    monkeypatch.setattr("planner.layouts.grid.CHUNK_ROWS", 100)
    small = Tally()
    rows = sum(map(len, legal_layouts(context(DENSE, 8, "any"), 8, parse_fix({}), small)))
    monkeypatch.undo()
    whole = Tally()
    assert rows == sum(map(len, legal_layouts(context(DENSE, 8, "any"), 8, parse_fix({}), whole)))
    assert small == whole

"""How Megatron-LM is told which pipeline chunk holds which layers.

It has three ways: divide evenly, divide evenly with the embedding or the loss counted as a layer,
or spell every chunk out. The plainest one that gives exactly the planned split is used, because
the spelt-out string is the hardest to read and to change by hand.
"""

from __future__ import annotations

from itertools import groupby, product

from planner.plan import RankedPlan

Flag = tuple[str, tuple[str, ...]]


def chunks_in_order(best: RankedPlan, layers: int) -> list[int] | None:
    """Return layers per chunk in the order that a token meets them, chunk = vpp * PP + stage.

    None when the plan names no split and `layers` cannot be divided evenly, or when it names one
    of another shape or total.
    """
    lay, rows = best.layout, best.stage_layers
    count = lay.pp * lay.vpp
    if not rows:
        return None if layers % count else [layers // count] * count
    shape_fits = len(rows) == lay.pp and all(len(row) == lay.vpp for row in rows)
    if not shape_fits or sum(map(sum, rows)) != layers:
        return None
    return [rows[stage][chunk] for chunk in range(lay.vpp) for stage in range(lay.pp)]


def pipeline_flags(chunks: list[int], *, pp: int, vpp: int, mtp_layers: int) -> list[Flag]:
    """Return the flags that make Megatron build `chunks`; none for a single stage."""
    if pp == 1:
        return []
    virtual: list[Flag] = [("--num-virtual-stages-per-pipeline-rank", (str(vpp),))]
    virtual = virtual if vpp > 1 else []
    for embedding, loss in product((0, 1), (0, 1)):
        if chunks == _counted(chunks, embedding, loss):
            counted: list[Flag] = []
            if embedding:
                counted.append(("--account-for-embedding-in-pipeline-split", ()))
            if loss:
                counted.append(("--account-for-loss-in-pipeline-split", ()))
            return virtual + counted
    return [("--pipeline-model-parallel-layout", (layout_string(chunks, mtp_layers),))]


def _counted(chunks: list[int], embedding: int, loss: int) -> list[int]:
    """Return the split that Megatron makes when the first and last chunk give up that many."""
    total, count = sum(chunks) + embedding + loss, len(chunks)
    split = [total // count] * count
    split[0] -= embedding
    split[-1] -= loss
    return split


def layout_string(chunks: list[int], mtp_layers: int) -> str:
    """Return the layout in Megatron's grammar: E embedding, t layer, m MTP layer, L loss, | end.

    `[3, 4, 4, 3]` is 'Et*3|(t*4|)*2t*3L'.
    """
    stages = [_repeated("t", n) for n in chunks]
    stages[0] = "E" + stages[0]
    last = stages.pop() + _repeated("m", mtp_layers) + "L"
    runs = ((text, len(list(group))) for text, group in groupby(stages))
    return "".join(f"({text}|)*{n}" if n > 1 else f"{text}|" for text, n in runs) + last


def _repeated(symbol: str, times: int) -> str:
    return f"{symbol}*{times}" if times > 1 else symbol * times

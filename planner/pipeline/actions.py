"""Actions: what a rank of a pipeline does next, as rows of integers.

An order is one array of rows (kind, stage, micro-batch) per rank: no times, no sends, so that the
same order serves any stage times and any links. Stages are numbered along the model, a rank holds
several of them where it runs more than one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Rows = NDArray[np.int32]
"""Shape (actions, 3): kind, stage, micro-batch."""

FORWARD, BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT = range(4)
LETTERS = "FBIW"
"""One letter a kind, as torch.distributed.pipelining prints them."""
TOGETHER = 4
"""Added to the kinds of a forward and the backward after it that run as one, overlapped."""

Style = Literal["loop", "v", "both"]


class Shape(NamedTuple):
    """How large a pipeline is: ranks, chunks (stages of the model a rank holds), micro-batches."""

    ranks: int
    chunks: int
    microbatches: int

    @property
    def stages(self) -> int:
        """Return the stages that a rank's chunks add up to."""
        return self.ranks * self.chunks


@dataclass(frozen=True)
class Order:
    """What every rank does, in its order.

    `style` says which rank holds a stage: 'loop' deals stages round, 'v' deals them there and back,
    and 'both' runs the whole model from either end (two copies of it; stages from `ranks` on are
    the second copy, and half of the micro-batches take each).
    """

    shape: Shape
    style: Style
    actions: tuple[Rows, ...]

    @property
    def depth(self) -> int:
        """Return the stages that one micro-batch passes through."""
        return self.shape.ranks if self.style == "both" else self.shape.stages

    @property
    def each(self) -> int:
        """Return the micro-batches that pass each stage."""
        return self.shape.microbatches // (2 if self.style == "both" else 1)

    @property
    def rank_of(self) -> IntArray:
        """Return the rank that holds each stage."""
        lap, at = np.divmod(np.arange(self.shape.stages), self.shape.ranks)
        back = (lap % 2 == 1) & (self.style != "loop")
        return np.where(back, self.shape.ranks - 1 - at, at)

    @property
    def model_part(self) -> IntArray:
        """Return which part of the model, cut into `depth` parts, each stage holds."""
        return np.arange(self.shape.stages) % self.depth

    def text(self, rank: int) -> list[str]:
        """Return a rank's actions as torch writes them: stage, letter, micro-batch ('3F0')."""
        return [f"{s}{LETTERS[k % TOGETHER]}{m}" for k, s, m in self.actions[rank].tolist()]


def rows(kind: int, stage: int | IntArray, microbatch: range | IntArray) -> Rows:
    """Return actions of one kind, one row a micro-batch."""
    at = np.asarray(microbatch) if not isinstance(microbatch, range) else _arange(microbatch)
    out = np.empty((len(at), 3), dtype=np.int32)
    out[:, 0], out[:, 1], out[:, 2] = kind, stage, at
    return out


def _arange(span: range) -> IntArray:
    """Return a range, which numpy would else take number by number."""
    return np.arange(span.start, span.stop, span.step)


def weave(*parts: Rows) -> Rows:
    """Return one row of each part in turn; all parts are of one length."""
    return np.stack(parts, axis=1).reshape(-1, 3)


def join(*parts: Rows) -> Rows:
    """Return the parts one after the other."""
    return np.concatenate(parts)


def lagged(*parts: tuple[Rows, int]) -> Rows:
    """Return rows of one length each, woven together, every part so many slots late.

    Within a slot they come in the order of the parts.
    """
    count = len(parts[0][0])
    edges = sorted({lag + end for _, lag in parts for end in (0, count)})
    spans = [
        weave(*(part[a - lag : b - lag] for part, lag in parts if lag <= a < lag + count))
        for a, b in pairwise(edges)
        if any(lag <= a < lag + count for _, lag in parts)
    ]
    return join(*spans)


def one_forward_one_backward(
    forward: Rows, backward: Rows, *, warm: int, weight: Rows | None = None, weight_lag: int = 0
) -> Rows:
    """Return `warm` forwards, then a backward after each forward, then the backwards left over.

    With `weight`, each weight gradient comes right behind the input gradient of `weight_lag`
    backwards later.
    """
    parts = [(forward, -warm), (backward, 0)]
    if weight is not None:
        parts.append((weight, weight_lag))
    return lagged(*parts)


def rounds(shape: Shape, group: int, rank: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return (micro-batch, stage forward, stage backward) of a rank that goes round its chunks.

    `group` micro-batches pass through one chunk before the next chunk's turn; backward visits the
    chunks from the last to the first.
    """
    first = np.arange(0, shape.microbatches, group)
    size = np.minimum(group, shape.microbatches - first)
    microbatch = np.concatenate(
        [np.tile(np.arange(f, f + n), shape.chunks) for f, n in zip(first, size, strict=True)]
    )
    chunk = np.concatenate([np.repeat(np.arange(shape.chunks), n) for n in size])
    back = shape.chunks - 1 - chunk
    return microbatch, chunk * shape.ranks + rank, back * shape.ranks + rank


def group_of(shape: Shape) -> int:
    """Return the micro-batches that pass a chunk in a row: ranks, or what divides them evenly."""
    return shape.microbatches // max(1, shape.microbatches // shape.ranks)

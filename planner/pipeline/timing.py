"""What actions cost: seconds per stage, and seconds per message between stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one micro-batch at each stage, shape (stages,), stages as `Order` numbers them.

    A whole backward takes input + weight. `hidden_s` is what a backward saves when it runs
    together with a forward (traffic of the one behind kernels of the other).
    """

    forward_s: FloatArray
    backward_input_s: FloatArray
    backward_weight_s: FloatArray
    hidden_s: FloatArray

    @classmethod
    def of(
        cls,
        stages: int,
        forward_s: ArrayLike,
        backward_input_s: ArrayLike,
        backward_weight_s: ArrayLike,
        hidden_s: ArrayLike = 0.0,
    ) -> Self:
        """Return the times with scalars spread over all stages."""
        every = (forward_s, backward_input_s, backward_weight_s, hidden_s)
        return cls(*(np.broadcast_to(np.asarray(t, dtype=np.float64), (stages,)) for t in every))

    def slowed(self, factors: FloatArray) -> StageTimes:
        """Return the times with each stage's multiplied by its factor."""
        return StageTimes(
            self.forward_s * factors,
            self.backward_input_s * factors,
            self.backward_weight_s * factors,
            self.hidden_s * factors,
        )


@dataclass(frozen=True)
class Links:
    """Seconds of a message over the boundary behind each stage, shape (stages,), either direction.

    A message holds its link for `transfer_s` (messages on one link, in one direction, queue) and
    arrives `latency_s` later. The sender can do nothing else for `blocking_s`; 0 is full overlap.
    """

    latency_s: FloatArray
    transfer_s: FloatArray
    blocking_s: FloatArray

    @classmethod
    def of(
        cls,
        stages: int,
        *,
        latency_s: ArrayLike = 0.0,
        sent_bytes: ArrayLike = 0.0,
        bytes_per_s: ArrayLike = np.inf,
        exposed: float = 0.0,
    ) -> Self:
        """Return links by latency, message size and bandwidth; senders wait for `exposed` of it."""
        transfer = np.asarray(sent_bytes, dtype=np.float64) / np.asarray(bytes_per_s)
        latency = np.asarray(latency_s, dtype=np.float64)
        every = (latency, transfer, exposed * (latency + transfer))
        return cls(*(np.broadcast_to(part, (stages,)) for part in every))

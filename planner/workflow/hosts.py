"""Whether a step waits for the host's launches, and what shortens that."""

from __future__ import annotations

from planner.plan import Estimate
from planner.specs.stack import stack_named

MUCH = 0.10
"""Share of a step that the GPU waits for its host, from which it is said."""


def host_bound(what: str, estimate: Estimate, stack: str) -> list[str]:
    """Return the sentence that says of `what` that it is host-bound, and the mend; else nothing."""
    share = estimate.time_s.get("host", 0.0) / estimate.step_time_s
    if share <= MUCH:
        return []
    graphs = " or CUDA graphs (--stack NAME+full-graphs)"
    mend = "" if stack_named(stack).graphs == "full" else graphs
    return [
        f"{what} is host-bound: its GPUs wait {share:.0%} of the step for the host to launch "
        f"kernels; try a larger micro-batch{mend}"
    ]

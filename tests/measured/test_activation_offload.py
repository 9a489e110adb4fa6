"""Published runs whose activations went to the host, none of which anything was fitted to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from planner.specs.stack import stack_named
from planner.validate import predicted, read_runs

RUNS = read_runs(Path(__file__).parent / "activation_offload.csv")


def test_runs_that_send_activations_to_the_host_take_as_long_as_was_measured():
    """Megatron-Bridge's performance summary: 10 to 95 layers of Llama 3 on GB200 and GB300.

    Their links hide the copies; the runs of releases 25.11 on GB300 are slower than later ones.
    """
    counts = {stack_named(run.context.workload.stack).offload_layers for run in RUNS}
    assert counts == {10, 20, 40, 92, 95}
    records = predicted(RUNS)
    assert {r["status"] for r in records} == {"ok"}
    errors = np.abs([r["error"] for r in records])
    assert np.median(errors) <= 0.07
    assert np.quantile(errors, 0.9) <= 0.15

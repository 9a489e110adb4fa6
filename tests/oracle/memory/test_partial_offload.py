"""What Megatron-Core's own hybrid optimizer leaves on the GPU, beside what the estimate does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import megatron_harness
import pytest
from estimate_cases import inputs, spec

from planner.estimate import states
from planner.estimate.optimizer import gpu_step_s, host_copies_s, host_step_s, optimizer_s

FRACTIONS = (0.1, 0.25, 0.5, 0.8, 1.0)
SIZES = [1000, 50, 400, 400, 8, 1200, 30, 700, 700, 12, 90]
"""Elements of the tensors of a rank's shard."""


def groups(torch: Any, fraction: float) -> tuple[float, float, float]:
    """Return the elements that stay, those that go, and the largest tensor, by Megatron's code.

    A subclass says that its tensors are on a GPU, since none is here.
    """
    from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer

    class OnGpu(torch.Tensor):  # type: ignore[misc,name-defined]
        is_cuda = True

        def cpu(self) -> Any:
            return self.as_subclass(torch.Tensor)

    params = [torch.zeros(n, dtype=torch.bfloat16).as_subclass(OnGpu) for n in SIZES]
    asked = SimpleNamespace(param_groups=[{"params": params}], param_update_in_fp32=True)
    with mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor):
        away, here, *_, kept = HybridDeviceOptimizer._get_sub_optimizer_param_groups(
            asked, fraction
        )
    assert all(p.dtype == torch.float32 for p in kept.values())
    counts = (sum(p.numel() for group in part for p in group["params"]) for part in (here, away))
    return (*counts, max(SIZES))


@pytest.mark.frameworks
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_megatron_leaves_no_more_of_the_optimizer_on_the_gpu_than_told(fraction):
    torch = pytest.importorskip("torch")
    megatron_harness.load()
    here, away, largest = groups(torch, fraction)
    layout = {"dp": 8, "zero": 1, "offload": "optimizer"}
    x = inputs(spec(), layout, stack=f"megatron+offload-fraction={fraction}")
    told = states.optimizer_here(x)[0, 0] * sum(SIZES)
    assert told - largest <= here <= told + 1e-6
    assert here + away == sum(SIZES)


@pytest.mark.parametrize(
    ("stack", "zero"), [("megatron", 1), ("deepspeed", 3)], ids=["megatron", "deepspeed"]
)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_part_that_leaves_the_gpu_is_on_the_host_and_they_step_at_once(stack, zero, fraction):
    rows = [{"dp": 8, "zero": zero, "offload": o} for o in ("none", "optimizer")]
    whole = inputs(spec(), *rows, stack=stack)
    x = inputs(spec(), *rows, stack=f"{stack}+offload-fraction={fraction}")
    kept = states.optimizer_bytes(x)[:, 0]
    assert kept[1] == pytest.approx((1 - fraction) * kept[0])
    there = states.host_rank_bytes(whole)[1, 0]
    assert states.host_rank_bytes(x)[:, 0] == pytest.approx([0.0, fraction * there])
    host = (host_copies_s(whole) + host_step_s(whole))[1]
    here = gpu_step_s(whole)[0]
    assert optimizer_s(x) == pytest.approx([here, max((1 - fraction) * here, fraction * host)])

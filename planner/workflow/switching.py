"""Settings outside the layout that hide traffic or fuse kernels: what each is worth to a job.

A job has them off by leaving something out. Each is turned on alone, with what the framework asks
for beside it, and the same layout is timed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from planner.errors import InfeasibleError
from planner.explanation import Switch
from planner.plan import Layout
from planner.specs.stack import FLAGS, overlaps_of, stack_named
from planner.workflow.completing import completed
from planner.workflow.planning import PlanRequest, ranked

GRADIENTS = "gradients travel while the backward pass computes"
PARAMETERS = "updated parameters travel while the next forward pass computes"
EXPERTS = "tokens travel to experts while another micro-batch computes"
TENSORS = "tensor-parallel traffic travels while multiplies run"


class Setting(NamedTuple):
    """One setting: the flag of a stack that it clears or sets, and those that go with it."""

    name: str
    advice: str
    flag: str
    stack: str


def switches(request: PlanRequest, layout: Layout, took_s: float) -> list[Switch]:
    """Return what turning each setting on would make of a step that takes `took_s`, best first."""
    found = []
    for setting in _settings(request, layout):
        work = request.workload.model_copy(update={"stack": stack_named(setting.stack).name})
        other = replace(request, workload=work)
        try:
            there = completed(other, _fields(layout)).layouts
        except InfeasibleError:
            continue
        step_s = ranked(other, there, 0, 1).estimate.step_time_s
        found.append(
            Switch(
                flag=f"{setting.flag} ({FLAGS[setting.flag][0]})",
                setting=setting.name,
                advice=setting.advice,
                step_time_s=step_s,
                slower=step_s / took_s - 1,
            )
        )
    return sorted(found, key=lambda switch: switch.step_time_s)


def _settings(request: PlanRequest, lay: Layout) -> Iterator[Setting]:
    """Yield what the job has off, where its framework takes it with this layout."""
    name = request.workload.stack
    flags, rules = name.split("+")[1:], stack_named(name).rules
    if "no-dp-overlap" in flags:
        what = "overlap_comm" if rules == "deepspeed" else "overlap_grad_reduce"
        yield Setting(what, GRADIENTS, "no-dp-overlap", _without(name, "no-dp-overlap"))
    if "no-gather-overlap" in flags:
        # Megatron refuses it without the other (megatron/training/arguments.py)
        both = "no-dp-overlap" in flags
        what = f"{'overlap_grad_reduce and ' if both else ''}overlap_param_gather"
        advice = f"{GRADIENTS}, {PARAMETERS}" if both else PARAMETERS
        stack = _without(name, "no-dp-overlap", "no-gather-overlap")
        yield Setting(what, advice, "no-gather-overlap", stack)
    if "eager" in flags:
        yield Setting("torch.compile", "kernels are fused", "eager", _without(name, "eager"))
    hidden = overlaps_of(name, experts=request.model.experts is not None)
    if "ep-overlap" in hidden and rules == "megatron" and _takes_ep_overlap(request, lay):
        what = "overlap_moe_expert_parallel_comm"
        stack = _without(name, "no-ep-overlap") + "+ep-overlap"
        yield Setting(what, EXPERTS, "ep-overlap", stack)
    if "async-tp" in hidden and rules == "torchtitan" and lay.tp > 1 and "eager" not in flags:
        yield Setting("enable_async_tensor_parallel", TENSORS, "async-tp", f"{name}+async-tp")


def _takes_ep_overlap(request: PlanRequest, lay: Layout) -> bool:
    """Return whether Megatron-Core has it (transformer_config.py, overlap_moe_expert_...)."""
    again = (lay.recompute == "selective" and request.workload.recompute_modules) or ()
    chunked = lay.pp == 1 or lay.vpp > 1
    return lay.ep > 1 and chunked and lay.recompute != "full" and "moe" not in again


def _without(stack: str, *flags: str) -> str:
    return "+".join(part for part in stack.split("+") if part not in flags)


def _fields(layout: Layout) -> dict[str, str]:
    """Return every field of the layout as text."""
    held = layout.model_dump(mode="json", exclude={"num_microbatches"})
    return {n: str(int(v) if isinstance(v, bool) else v) for n, v in held.items()}

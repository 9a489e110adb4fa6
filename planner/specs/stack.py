"""Training stacks: what each overlaps, fuses and costs beyond the kernels, by name.

A name may carry flags, `megatron-bridge+deepep+ep-overlap`: what one run switches on is an input
of its own, not another profile. Which layouts a stack can run at all is said by the rules in
`planner.layouts.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from planner.errors import SpecError, did_you_mean
from planner.specs.profile import Rules, Stack
from planner.specs.profiles import STACKS

__all__ = ["FLAGS", "STACKS", "Stack", "overlaps_of", "stack_named", "stack_with"]

EP_OVERLAP = 0.0886
"""Share of the all-to-all that stays exposed when it overlaps computation (fit; 5 to 30 %)."""
FUSED_MOE = 0.52
"""Memory traffic of fused layers with experts over unfused (fit; Megatron-Bridge 0.5)."""
DROPPED_HOST_S = 3.4e-3
"""Host time of a layer with experts of static shapes, x 0.74 under partial graphs (fit)."""
ASYNC_TP = 0.912
"""Share of the tensor-parallel traffic that torch's asynchronous form leaves exposed (fit)."""
CUDNN_ATTENTION = 0.957
"""Rate of cuDNN's attention called by torch over the class's figure (fit; torchtitan)."""
EAGER = 2.15
"""Memory traffic of PyTorch without a compiler over with one (fit; torchtitan)."""
ROWWISE_RATE = 0.954
"""Rate of FP8 multiplies with a scale per row over one per tensor (fit; torchao's CUTLASS)."""
ROWWISE_CAST = 7.7
CURRENT_CAST = 1.14
MXFP8_CAST = 1.55
NVFP4_CAST = 1.67
"""Bytes of casts over FP8's with delayed scaling: a scale per row; current scaling; MXFP8; NVFP4
(fits; NVFP4's start: 7.5 bytes an element against 4.5)."""
NVFP4_RATE = 2.04
"""Rate of multiplies in NVFP4 over FP8: 1.8 on GB200, 1.95 on GB300 (fit to 18 runs)."""

PACKED_TOKENS = 256
"""A sample of fine-tuning data: SQuAD's, which NeMo's and Megatron-Bridge's recipes pack, have some
200 tokens."""

# flag -> (what it changes, in words, the fields)
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "alltoall": ("one copy of a token per expert", {"dispatcher": "alltoall"}),
    "deepep": ("one copy of a token per rank and node", {"dispatcher": "deepep"}),
    "hybridep": ("the same, over NVLink domains", {"dispatcher": "hybridep"}),
    "ep-overlap": ("all-to-all behind computation", {"ep_exposed": EP_OVERLAP}),
    "no-ep-overlap": ("all-to-all exposed", {"ep_exposed": 1.0}),
    "no-graphs": ("no CUDA graphs", {"graphs": "none"}),
    "partial-graphs": ("CUDA graphs over attention and router", {"graphs": "partial"}),
    "full-graphs": ("CUDA graphs over the iteration", {"graphs": "full"}),
    "fused-moe": (
        "fused routing, permutation and casts",
        {"moe_traffic": FUSED_MOE, "expert_cast_s": 1.5e-5},
    ),
    "bf16-gradients": ("gradients kept and reduced in 16 bit", {"gradient_bytes": 2.0}),
    "pure-bf16": (
        "weights, gradients and moments in bf16, no fp32 master",
        {
            "weight_bytes": 2.0,
            "gradient_bytes": 2.0,
            "master_bytes": 0.0,
            "moment_bytes": 2.0,
            "low_precision_states": True,
            "autocast": False,
        },
    ),
    "precision-aware": (
        "precision-aware optimizer: of a bf16 weight's fp32 master only the 16 bits that it lacks",
        {"master_bytes": 2.0, "low_precision_states": True},
    ),
    "bf16-moments": (
        "the same, moments in bf16",
        {"master_bytes": 2.0, "low_precision_states": True, "moment_bytes": 2.0},
    ),
    "fp8-moments": (
        "the same, moments in FP8",
        {"master_bytes": 2.0, "low_precision_states": True, "moment_bytes": 1.0},
    ),
    "no-dp-overlap": ("gradient traffic exposed", {"overlap": 0.0}),
    "no-gather-overlap": ("gather of updated parameters exposed", {"gather_overlap": 0.0}),
    "async-tp": ("tensor-parallel traffic behind multiplies", {"tp_exposed": ASYNC_TP}),
    "eager": ("kernels not fused by a compiler", {"fusion": EAGER}),
    "fp8-rowwise": (
        "FP8 with a scale per row",
        {"fp8_rate": ROWWISE_RATE, "fp8_cast": ROWWISE_CAST, "fp8_copy_bytes": 2.0},
    ),
    "fp8-current": ("FP8 with scales of the current tensor", {"fp8_cast": CURRENT_CAST}),
    "mxfp8": (
        "FP8 with a scale per 32 values",
        {
            "fp8_cast": MXFP8_CAST,
            "fp8_copy_bytes": 2.0 * (1 + 1 / 32),
            "fp8_gather_bytes": 2.0,  # of weights in bf16, cast where they arrive
        },
    ),
    "fp8-params": (
        "with precision fp8: parameters kept and gathered in FP8 (--fp8-param-gather)",
        {"fp8_params": True},
    ),
    "chunked-loss": (
        "logits and loss in eight pieces of the sequence (torchtitan 0.3's ChunkedLossWrapper)",
        {"loss_chunks": 8},
    ),
    "nvfp4": (
        "with precision fp8: multiplies in NVFP4 where the GPU has it",
        {
            "fp4_rate": NVFP4_RATE,
            "fp8_cast": NVFP4_CAST,
            "fp8_copy_bytes": 2.0 * (1 / 2 + 1 / 16),
        },
    ),
    "cudnn": (
        "fused attention of the cuDNN class",
        {"attention_kernel": "te", "attention": CUDNN_ATTENTION},
    ),
    "token-drop": (
        "a fixed number of tokens an expert: graphs cover it",
        {"host_moe_s": DROPPED_HOST_S, "host_expert_s": 0.0},
    ),
    "packed": (
        "sequences packed of short documents, attention within each",
        {"document_tokens": PACKED_TOKENS},
    ),
    "flash": ("fused attention", {"attention_kernel": "fa2", "host_fallback": 1.0}),
    "primus-pipeline": (
        "AMD Primus' pipeline schedules: zero bubble (rocm.blogs.amd.com, primus-pipeline)",
        {},
    ),
    "unfused": ("unfused attention", {"attention_kernel": "unfused", "host_fallback": 1.46}),
}


class Amount(NamedTuple):
    """A flag that is written with a number, `offload-fraction=0.5`."""

    words: str
    field: str
    most: float
    """The largest value; the smallest is 1 of whole numbers, and anything above 0 of others."""
    whole: bool


AMOUNTS: dict[str, Amount] = {
    "offload-fraction": Amount(
        "share of the optimizer's state that offload=optimizer moves to the host",
        "offload_fraction",
        1.0,
        whole=False,
    ),
    "offload-layers": Amount(
        "layers, the first ones, whose activations go to the host's memory and back",
        "offload_layers",
        1e5,
        whole=True,
    ),
}
"""Flags with a number: what it is, and the field of the profile that it sets."""


FLAG_RULES: dict[str, tuple[Rules, ...]] = {
    "fp8-params": ("any", "megatron"),
    "offload-layers": ("any", "megatron"),
    "offload-fraction": ("any", "megatron", "deepspeed"),
    "chunked-loss": ("any", "torchtitan"),
    "pure-bf16": ("any", "torchtitan", "transformers"),
    "precision-aware": ("any", "megatron"),
    "bf16-moments": ("any", "megatron"),
    "fp8-moments": ("any", "megatron"),
    "primus-pipeline": ("any", "megatron"),
}
"""Flags that only some frameworks have: whose rules a profile must follow to take them."""


OVERLAPS: dict[str, tuple[Rules, ...]] = {
    "async-tp": ("torchtitan",),
    "ep-overlap": ("megatron",),
}
"""Flags that hide traffic and are a user's to switch on: whose frameworks have them."""


@lru_cache(maxsize=512)
def overlaps_of(name: str, *, experts: bool) -> tuple[str, ...]:
    """Return the flags that would hide more of a stack's traffic than it hides by itself.

    The profile `any` has those of every framework. Exposed gradient traffic is left out: it is
    never faster.
    """
    own, profile = stack_named(name), name.partition("+")[0]
    found = []
    for flag, rules in OVERLAPS.items():
        ((field, exposed),) = FLAGS[flag][1].items()
        less = exposed < getattr(own, field) and (experts or field != "ep_exposed")
        if less and (profile == "any" or own.rules in rules):
            found.append(flag)
    return tuple(found)


@lru_cache(maxsize=512)
def stack_named(name: str) -> Stack:
    """Return the stack called `name`, with its flags set; the result keeps the whole name.

    Raises SpecError with the known names, or the known flags, otherwise.
    """
    return stack_with(name, {})


def stack_with(name: str, numbers: Mapping[str, float]) -> Stack:
    """Return `stack_named` with numbers of its profile replaced; its flags are set after that."""
    profile, *flags = name.split("+")
    if profile not in STACKS:
        raise SpecError(
            f"stack: {profile!r} is not known; allowed: {', '.join(sorted(STACKS))}",
            hint=did_you_mean(profile, STACKS),
        )
    measured: dict[str, Any] = dict(numbers)
    stack = replace(STACKS[profile], **measured) if measured else STACKS[profile]
    for flag in flags:
        word, equals, number = flag.partition("=")
        changes = _amount(name, word, number) if equals or word in AMOUNTS else _plain(name, word)
        if stack.rules not in FLAG_RULES.get(word, (stack.rules,)):
            what = AMOUNTS[word].words if word in AMOUNTS else FLAGS[word][0]
            raise SpecError(
                f"stack: {name!r}: {profile} has no {word} ({what})",
                hint=f"for stacks that follow the rules of {', '.join(FLAG_RULES[word][1:])}",
            )
        stack = replace(stack, **changes)
    return replace(stack, name=name) if flags else stack


def _plain(name: str, flag: str) -> dict[str, Any]:
    """Return the fields that a flag sets; SpecError where there is no such flag."""
    if flag in FLAGS:
        return FLAGS[flag][1]
    known = (*FLAGS, *(f"{amount}=N" for amount in AMOUNTS))
    raise SpecError(
        f"stack: {name!r}: flag {flag!r} is not known; allowed: {', '.join(known)}",
        hint=did_you_mean(flag, (*FLAGS, *AMOUNTS)),
    )


def _amount(name: str, flag: str, number: str) -> dict[str, Any]:
    """Return the field that a flag with a number sets; SpecError for any other flag or number."""
    if flag not in AMOUNTS:
        if flag in FLAGS:
            raise SpecError(f"stack: {name!r}: flag {flag!r} takes no number")
        return _plain(name, flag)
    amount = AMOUNTS[flag]
    value = _number(number, whole=amount.whole)
    if value is None or not 0 < value <= amount.most:
        kind = "a whole number from 1" if amount.whole else "a number above 0 and"
        raise SpecError(
            f"stack: {name!r}: {flag}={number} is not allowed, must be {kind} up to "
            f"{amount.most:,g}",
            hint=f"{flag}: {amount.words}",
        )
    return {amount.field: int(value) if amount.whole else value}


def _number(text: str, *, whole: bool) -> float | None:
    """Return a plain decimal number, or None for anything else."""
    digits = text if whole else text.replace(".", "", 1)
    return float(text) if digits.isascii() and digits.isdigit() and len(text) <= 9 else None

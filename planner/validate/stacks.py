"""Which stack a row ran, with which flags, and what such stacks do when a row does not say."""

from __future__ import annotations

import re
from collections.abc import Mapping

from planner.specs.profiles import STACKS
from planner.specs.stack import stack_named
from planner.validate.fields import whole
from planner.validate.vocabulary import (
    FRAMEWORKS,
    LOW_PRECISION,
    OVERLAP,
    RELEASES,
    longest_prefix,
)

_UNFUSED = "unfused"
_PACKED = re.compile(r"packed (SQuAD )?sequences|^SFT;")
"""Notes of runs on packed documents: Megatron-Bridge's recipes of fine-tuning (SFT) pack."""
_AWAY = re.compile(r"activations (\d{1,5}) layers to CPU$")
_TITAN = re.compile(r"torchtitan (\d{4}-\d\d)")
_RELEASE = re.compile(r"(?:container |\b20)(\d\d)[.-](\d\d)")


def stack_of(row: Mapping[str, str], assumed: dict[str, str], *, experts: bool) -> str:
    """Return the profile and flags, as `--stack` takes them."""
    framework, version = row["framework"], row.get("framework_version", "")
    profile = longest_prefix(version, RELEASES.get(framework, {})) if version else None
    if profile is None:
        profile = longest_prefix(framework, FRAMEWORKS)
    if framework == "Megatron-LM" and row["hardware"].startswith("V100"):
        profile = "megatron-deepspeed-2021"
    if profile is None and framework.lower() in STACKS:
        profile = framework.lower()
    if profile is None:
        profile = assumed["framework"] = "any"
    flags = [*_attention(row, profile), *_overlap(row), *_built(row, profile)]
    if _keeps_fp8(row, profile):
        flags.append("fp8-params")
    if away := offloaded_layers(row):
        flags.append(f"offload-layers={away}")
    if (framework.startswith("NeMo") and profile == "megatron") or profile == "deepspeed":
        # NeMo's and DGX Cloud's benchmark recipes set grad_reduce_in_fp32=False, and DeepSpeed's
        # grad_accum_dtype is the model's where nobody sets it
        flags.append("bf16-gradients")
    if experts:
        usual = _usual_expert_flags(row, profile)
        if usual:
            assumed["experts"] = "+".join(usual)
        flags = usual + flags
    return "+".join([profile, *dict.fromkeys(flags)])


def _keeps_fp8(row: Mapping[str, str], profile: str) -> bool:
    """Return whether a run's recipes keep parameters in FP8, as NVIDIA's do.

    NeMo's bf16_with_fp8_mixed (and fp8_params before it) and Megatron-Bridge's mixed_precision.py
    set fp8_param_gather for all but its sub-channel recipe and NVFP4; Megatron-LM's CI says so.
    """
    dtype = row.get("dtype", "")
    if row["framework"].startswith(("Megatron-Bridge", "NeMo/Megatron")):
        return dtype.startswith(("fp8", "mxfp8")) and dtype != "fp8_sc"
    return "fp8-param-gather=True" in row.get("note", "")


def offloaded_layers(row: Mapping[str, str]) -> int:
    """Return the layers whose activations a run kept on the host."""
    found = _AWAY.match(row.get("offload", ""))
    return int(found[1]) if found else 0


def _attention(row: Mapping[str, str], profile: str) -> list[str]:
    stated = row.get("attention", "")
    unfused = stack_named(profile).attention_kernel == _UNFUSED
    if stated.startswith(_UNFUSED) and not unfused:
        return [_UNFUSED]
    return ["flash"] if stated and unfused and not stated.startswith(_UNFUSED) else []


def _overlap(row: Mapping[str, str]) -> list[str]:
    """Return the flags that the row's overlap column states; what it opens with may be `none`."""
    flags: list[str] = []
    for i, word in enumerate(row.get("overlap", "").split(";")):
        if i and word.strip().startswith("none"):
            continue
        flags.extend(longest_prefix(word.strip(), OVERLAP) or ())
    return flags


def _built(row: Mapping[str, str], profile: str) -> list[str]:
    """Return the flags of a run's precision, recompute list and compiler."""
    flags = list(longest_prefix(row.get("dtype", ""), LOW_PRECISION) or ())
    if _PACKED.search(row.get("note", "")):
        flags.append("packed")
    if profile == "torchtitan":
        flags += _compiled(row)
    return flags


def _compiled(row: Mapping[str, str]) -> list[str]:
    """Return what torch's compiler and release bring: fusion, and cuDNN attention from 2025-08."""
    told = f"{row.get('framework_version', '')};{row.get('note', '')}".lower()
    flags = ["eager"] if re.search(r"(^|[;(] ?)eager\b", told) else []
    if "chunked cross-entropy=1" in told:
        flags.append("chunked-loss")
    release = _TITAN.search(told)
    recent = row["framework"] != "torchtitan" or (release and release[1] >= "2025-08")
    return [*flags, "cudnn"] if recent and row["hardware"].startswith("H") else flags


def _usual_expert_flags(row: Mapping[str, str], profile: str) -> list[str]:
    """Return what Megatron-Bridge's recipes switch on by release, machine and precision."""
    if profile != "megatron-bridge":
        return []
    grace_or_blackwell = row["hardware"].startswith(("B200", "B300", "GB"))
    found = _RELEASE.search(row.get("framework_version", ""))
    release = f"{found[1]}.{found[2]}" if found else "26.02"
    if release < "25.11":
        deepseek = row.get("model", "").lower().startswith("deepseek")
        static = ["token-drop"] if "cuda_graph" in row.get("overlap", "") else []
        kind = "alltoall" if grace_or_blackwell or not deepseek else "deepep"
        return ["no-graphs", kind, *static]
    if not grace_or_blackwell:
        recent = release >= "26.07" and not row.get("overlap")
        return ["hybridep", "ep-overlap", "partial-graphs"] if recent else ["no-graphs"]
    if release >= "26.06" and row.get("dtype", "") == "mxfp8":
        return ["hybridep", "ep-overlap", "full-graphs", "fused-moe"]
    return ["hybridep", "partial-graphs"]


def sequence_parallel(row: Mapping[str, str], tp: int, stack: str, assumed: dict[str, str]) -> int:
    """Return the sequence-parallel flag; stacks before 2022 do not have it."""
    if tp == 1:
        return 0
    stated = row.get("sp", "")
    if stated:
        return int(stated not in ("0", "0.0", "false", "False"))
    profile = stack_named(_bare(stack))
    usual = int(profile.rules != "deepspeed" and profile.attention_kernel != _UNFUSED)
    assumed["sp"] = str(usual)
    return usual


def zero_stage(row: Mapping[str, str], ranks: int, stack: str, assumed: dict[str, str]) -> int:
    """Return the ZeRO stage: `fsdp` first, then `zero_stage`, then what the stack is used with."""
    if ranks == 1:
        return 0
    if row.get("fsdp") in ("full", "hybrid"):
        return 3
    if row.get("fsdp") == "zero2":
        return 2
    if row.get("zero_stage"):
        return min(3, whole(row, "zero_stage"))
    profile = stack_named(stack)
    if row.get("dist_optimizer"):
        usual = int(row["dist_optimizer"] == "1")
    elif profile.states == "fsdp2":
        usual = 3
    else:
        usual = int(profile.attention_kernel == "te")
    assumed["zero_stage"] = str(usual)
    return usual


def usual_recompute(stack: str) -> str:
    """Return what a stack's users recompute when they do not say: all of it before 2022."""
    profile = stack_named(_bare(stack))
    if profile.name == "torchtitan":  # its configurations switch selective checkpointing on
        return "selective"
    return "full" if profile.attention_kernel == _UNFUSED else "none"


def _bare(stack: str) -> str:
    return stack.split("+", maxsplit=1)[0]

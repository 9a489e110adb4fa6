"""What sources call things, and what that is here. A table: words in, names of ours out.

The longest prefix wins. Every value that occurs in collections of published runs is covered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Machine(NamedTuple):
    """A shipped cluster, and what of it a source's nodes differ in (0: nothing)."""

    cluster: str
    gpus: int = 0
    nics: int = 0
    nic_gbit_per_s: float = 0.0


HARDWARE: dict[str, Machine] = {
    "80GB GPU": Machine("dgx-a100"),
    "A100": Machine("dgx-a100"),
    "A100-SXM-40GB": Machine("dgx-a100-40gb"),
    "A800": Machine("dgx-a100"),
    "B200": Machine("dgx-b200"),
    "B300": Machine("dgx-b300"),
    "GB200": Machine("gb200-nvl72"),
    "GB300": Machine("gb300-nvl72"),
    "H100": Machine("dgx-h100"),
    "H100-SXM-80GB (GCP A3)": Machine("gcp-a3-high"),
    "H100-SXM-94GB": Machine("meta-h100-500w"),
    "H100-SXM-96GB": Machine("meta-h100-500w"),
    "H20": Machine("h20-8x"),
    "H200": Machine("dgx-h200"),
    "H800": Machine("deepseek-h800"),
    "L40S": Machine("l40s-8x"),
    "MI300X": Machine("mi300x-8x400g"),
    "MI355X": Machine("mi355x-8x"),
    "V100": Machine("dgx-1-v100", 4, 1, 100),
}
CLOUD: dict[str, dict[str, str]] = {
    "AWS EFA": {
        "A100": "aws-p4d",
        "H100": "aws-p5",
        "H200": "aws-p5e",
        "B200": "aws-p6-b200",
    },
    "GCP A3 TCPX": {"H100": "gcp-a3-high"},
    "4x Omni-Path 100Gb/s": {"A100": "jean-zay-a100"},
}
"""Networks that are a cluster of ours, by the accelerator in it."""
NETWORK: dict[str, tuple[int, float]] = {
    "100GbE InfiniBand": (1, 100),
    "1600 Gb/s per node": (8, 200),
    "1x Ethernet 100Gb/Sec, 8x NVIDIA Quantum-2 CX7": (8, 400),
    "400 Gb/s CX-7 per GPU": (8, 400),
    "400 Gb/s per node": (4, 100),
    "4x ConnectX-7 IB NDR 400": (4, 400),
    "4x ConnectX-8 IB XDR 800": (4, 800),
    "4x Omni-Path 100Gb/s": (4, 100),
    "4x100 Gb RoCE": (4, 100),
    "800 Gb/s per node": (4, 200),
    "8x ConnectX-7 IB NDR 400": (8, 400),
    "8x HDR200": (8, 200),
    "BF3 200Gbps for NS and 2xBF3 400Gbps": (2, 400),
    "Compute: 8x MT43244 BlueField-3 200Gb/s": (8, 200),
    "DGX SuperPOD, 8x HDR200": (8, 200),
    "Management: 1x Bluefield-2 DPU Ethernet 100Gb/Sec, Compute: 8x": (8, 400),
    "Omni-Path 100Gb/s": (1, 100),
    "RDMA 400 Gb/s per GPU": (8, 400),
    "Storage&Compute: 4x ConnectX-7": (4, 400),
    "Storage+Management: 1x NVIDIA BlueField 2 DPU 100Gb/s, Compute: 8x": (8, 400),
    "Storage: 2x BF3 ConnectX-7 400Gb/s, Compute: 8x": (8, 400),
    "Storage: 2x ConnectX-7 IB NDR 400Gb/s, Compute: 8x": (8, 400),
}
"""NICs of a node for training traffic, and Gb/s of each. Others: what the cluster's file says."""

MLPERF = ("23.", "24.0", "v3", "v4", "v5")
FRAMEWORKS: dict[str, str] = {
    "DeepSpeed": "deepspeed",
    "DeepSpeed ZeRO-3 + Megatron TP": "megatron-deepspeed-2021",
    "InternEvo": "internevo",
    "Lightning Lite FSDP1": "fsdp1",
    "MaxText": "jax",
    "Megatron (Pai": "megatron-plain",
    "Megatron-Bridge": "megatron-bridge",
    "Megatron-Core": "megatron",
    "Megatron-DeepSpeed": "megatron-deepspeed",
    "Megatron-LM": "megatron-plain",
    "Megatron-SWIFT": "megatron-swift",
    "NeMo AutoModel": "torchtitan",
    "NeMo/Megatron": "nemo-2023",
    "NeMo/Megatron-Core": "megatron",
    "PaddleNLP": "any",
    "Paxml": "jax",
    "Primus": "megatron-plain",
    "XTuner": "deepspeed",
    "composer/llm-foundry": "llm-foundry",
    "fms-fsdp": "llm-foundry",
    "nanotron": "nanotron",
    "torchtitan": "torchtitan",
}
RELEASES: dict[str, dict[str, str]] = {
    "NeMo/Megatron-Core": {
        **dict.fromkeys(MLPERF, "mlperf"),
        "NeMo Launcher": "nemo-2023",
        "2022": "nemo-2023",
    },
    "Megatron-LM": {
        "2021": "megatron-2021",
        "2022": "megatron-2021",
        "v2.": "megatron-2021",
        "main 2026": "megatron-ci",
    },
    "Megatron-DeepSpeed": {
        "2021": "megatron-deepspeed-2021",
        "bigscience fork 2021": "megatron-deepspeed-2021",
        "bigscience fork": "megatron-deepspeed-2022",
    },
}
"""Framework -> prefix of its version -> profile, before FRAMEWORKS."""

OVERLAP: dict[str, tuple[str, ...]] = {
    "none": ("no-dp-overlap",),
    "async TP": ("async-tp",),
    "dispatcher=alltoall": ("alltoall",),
    "dispatcher=deepep": ("deepep",),
    "dispatcher=hybridep": ("hybridep",),
    "hybridep": ("hybridep",),
    "moe_a2a_overlap": ("ep-overlap",),
    "ep (a2a) overlap on": ("ep-overlap",),
    "ep overlap on": ("ep-overlap",),
    "ep overlap off": ("no-ep-overlap",),
    "cuda_graph=full_iteration": ("full-graphs",),
    "cuda_graph=local:full_iteration": ("full-graphs",),
    "cuda_graph=transformer_engine:None": ("no-graphs",),
    "cuda_graph": ("partial-graphs",),
    "TE cuda graphs": ("partial-graphs",),
}
"""Prefix of one word of the overlap column -> flags of the stack."""
RECOMPUTE: dict[str, str] = {
    "none": "none",
    "full": "full",
    "selective": "selective",
    "selective granularity, 0 layers": "none",
    "default SAC": "selective",
    "minimal": "selective",
    "moe+layernorm": "selective",
}
OFFLOADED: dict[str, str] = {
    "none": "none",
    "optimizer to CPU": "optimizer",
}
"""Prefix of the offload column -> states in host memory; `activations N layers to CPU` beside."""
LOW_PRECISION: dict[str, tuple[str, ...]] = {
    "fp8-rowwise": ("fp8-rowwise",),
    "fp8_cs": ("fp8-current",),
    "mxfp8": ("mxfp8",),
    "nvfp4": ("nvfp4",),
}
"""Prefix of the dtype column -> flags; delayed and tensorwise scaling are what FP8 is without."""
PRECISION: dict[str, str] = {
    "bf16": "bf16",
    "te-bf16": "bf16",
    "fp16": "fp16",
    "fp8": "fp8",
    "mxfp8": "fp8",
    "nvfp4": "fp8",
    "te-fp8": "fp8",
}
BIASED_EXPERTS = ("gpt-oss", "gpt_oss", "gptoss")
"""Models whose experts have biases, which tables of shapes leave out."""


def longest_prefix(word: str, table: Mapping[str, T]) -> T | None:
    """Return the value under the longest key that `word` starts with, or None."""
    found = [key for key in table if word.startswith(key)]
    return table[max(found, key=len)] if found else None

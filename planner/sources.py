"""Every publication that a formula leans on, once. Formulas cite these by name."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """Where a formula or a figure comes from: a short name and where to find it."""

    name: str
    where: str

    def __str__(self) -> str:
        return f"{self.name} ({self.where})"


MEGATRON_2019 = Source("Shoeybi et al. 2019, Megatron-LM", "arXiv:1909.08053 sec. 3")
MEGATRON_2021 = Source("Narayanan et al. 2021", "arXiv:2104.04473 sec. 2-3")
KORTHIKANTI_2022 = Source("Korthikanti et al. 2022", "arXiv:2205.05198 eq. 1-6")
ZERO_2020 = Source("Rajbhandari et al. 2020, ZeRO", "arXiv:1910.02054 sec. 5-7")
FSDP_2023 = Source("Zhao et al. 2023, PyTorch FSDP", "arXiv:2304.11277 sec. 3")
GPIPE_2019 = Source("Huang et al. 2019, GPipe", "arXiv:1811.06965 sec. 2")
BREADTH_FIRST_2022 = Source("Lamy-Poirier 2022, breadth-first", "arXiv:2211.05953 sec. 4")
ZERO_BUBBLE_2023 = Source("Qi et al. 2023, zero bubble", "arXiv:2401.10241 sec. 2-6")
DUALPIPE = Source(
    "DeepSeek-AI, DualPipe", "arXiv:2412.19437 sec. 3.2; github.com/deepseek-ai/DualPipe"
)
PATARASUK_2009 = Source(
    "Patarasuk and Yuan 2009, ring all-reduce",
    "doi:10.1016/j.jpdc.2008.09.002",
)
PARAMETER_SERVER_2014 = Source("Li et al. 2014, parameter server", "OSDI'14 sec. 3")
RING_ATTENTION_2023 = Source("Liu et al. 2023, ring attention", "arXiv:2310.01889 sec. 3")
SWITCH_2021 = Source("Fedus et al. 2021, Switch Transformer", "arXiv:2101.03961 sec. 2.2")
GSHARD_2020 = Source("Lepikhin et al. 2020, GShard", "arXiv:2006.16668 sec. 2-3")
DEEPSEEK_V2 = Source("DeepSeek-AI 2024, multi-head latent attention", "arXiv:2405.04434 sec. 2.1")
FLASH_ATTENTION_2 = Source("Dao 2023, FlashAttention-2", "arXiv:2307.08691 sec. 3")
LLAMA_3 = Source("Llama Team 2024, Llama 3", "arXiv:2407.21783 sec. 3.3")
PALM_2022 = Source("Chowdhery et al. 2022, PaLM (MFU)", "arXiv:2204.02311 app. B")
MEGATRON_CORE = Source("Megatron-LM", "github.com/NVIDIA/Megatron-LM@d98e8a64dd")
TORCH = Source("PyTorch 2.13", "torch.distributed.fsdp, torch.distributed.pipelining")
NCCL_TUNER = Source("NCCL tuning tables", "github.com/NVIDIA/nccl@5067397c:src/graph/tuning.cc")
NCCL_TESTS = Source("nccl-tests, bus bandwidth", "github.com/NVIDIA/nccl-tests:doc/PERFORMANCE.md")
CALIBRATION = Source(
    "fit to published step times",
    "docs/model.md, section Calibration: 2,600 published runs, calibration/fit.py",
)
DEEPSPEED_OFFLOAD = Source(
    "DeepSpeed 0.19.8, ZeRO-Offload",
    "deepspeed/runtime/zero/stage_1_and_2.py, stage3.py: estimate_zero*_model_states_mem_needs",
)
ZERO_OFFLOAD_2021 = Source("Ren et al. 2021, ZeRO-Offload", "arXiv:2101.06840 sec. 4-5")
ZERO_INFINITY_2021 = Source("Rajbhandari et al. 2021, ZeRO-Infinity", "arXiv:2104.07857 sec. 3-5")
TRANSFORMER_ENGINE = Source(
    "Transformer Engine 2.20", "github.com/NVIDIA/TransformerEngine@d0067d0da6:cpu_offload.py"
)
NEWKIRK_2025 = Source(
    "Newkirk et al. 2025, power of H100 nodes in training", "arXiv:2506.14551 abstract"
)
MUON = Source("Jordan et al. 2024, Muon", "kellerjordan.github.io/posts/muon; torch.optim.Muon")

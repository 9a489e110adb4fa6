"""`ds_config.json`: the batch, the precision and the ZeRO stage, as DeepSpeed 0.19.8 takes them."""

from __future__ import annotations

from typing import Any

from planner.emit.states import offload_fraction
from planner.plan import Layout, Plan
from planner.specs.stack import stack_named
from planner.specs.workload import Optimizer, Precision, Workload

BUCKET_ELEMENTS = 500_000_000
"""Elements in one reduction or gather: DeepSpeed 0.19.8's default, runtime/zero/config.py."""

SMALL_GROUP = 50_000_000
"""Parameters of a rank that are stepped at once, where only some of them are on the host."""

SPLIT: dict[str, Any] = {
    "use_default_specs": False,
    "layer_specs": [
        {"patterns": [r".*\.(out|down)\.weight$"], "partition_type": "row"},
        {"patterns": [r".*\.up\.weight$"], "partition_type": "column"},
        {
            "patterns": [r".*\.qkv\.weight$"],
            "partition_type": "column",
            "shape": [3, -1],  # q, k and v, each over its heads
            "partition_dim": 0,
        },
    ],
}
"""How AutoTP splits the layers of the stand-in, examples/train_deepspeed.py."""
NVME_PATH = "/local_nvme"
"""Where nodes mount their drives, unless the user says otherwise in `ds_config.json`."""


def config(plan: Plan) -> dict[str, Any]:
    """Return `ds_config.json`: the batch, the precision, ZeRO, the pipeline, the optimizer."""
    lay, work = plan.best.layout, plan.request.workload
    out: dict[str, Any] = {
        "train_batch_size": work.global_batch,
        "train_micro_batch_size_per_gpu": lay.micro_batch,
        "gradient_accumulation_steps": lay.num_microbatches,
        **precision(work, lay),
        "zero_optimization": zero(lay) | offload(lay, offload_fraction(plan)),
        "optimizer": optimizer(work.optimizer, lay),
        "gradient_clipping": 1.0,
        "steps_per_print": 10,
        "wall_clock_breakdown": False,
    }
    if lay.zero and work.optimizer is Optimizer.MUON:  # it needs whole gradients
        out["zero_optimization"]["reduce_scatter"] = False
    if lay.zero and work.optimizer is Optimizer.SGD:  # ZeRO asks before optimizers it never tried
        out["zero_allow_untested_optimizer"] = True
    if lay.tp > 1:
        out["tensor_parallel"] = {"autotp_size": lay.tp, "partition_config": SPLIT}
    if lay.pp > 1:
        out["pipeline"] = {"stages": lay.pp, "activation_checkpoint_interval": 0}
    return out


def precision(work: Workload, lay: Layout) -> dict[str, Any]:
    """Return the number format. Gradients add up in FP32, which DeepSpeed can only under ZeRO.

    In 16 bit, DeepSpeed's own default, where the stack is asked for with bf16-gradients.
    """
    kind = work.precision
    in_fp32 = lay.zero and stack_named(work.stack).gradient_bytes is None
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if in_fp32 else {}
    if kind is Precision.FP16:  # a loss scale of 0 is a dynamic one
        return {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}} | sums
    return {"bf16": {"enabled": True}} | sums


def optimizer(kind: Optimizer, lay: Layout) -> dict[str, Any]:
    """Return the optimizer. DeepSpeed's own Adam is compiled at the first start.

    On the GPU that needs nvcc, so it is torch's there; on the host it needs a C++ compiler, and is
    several times as fast as torch's. Muon finds out by itself which parameters are matrices.
    """
    if kind is Optimizer.SGD:
        params = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0001}
        return {"type": "SGD", "params": params}
    if kind is Optimizer.MUON:
        params = {"lr": 0.02, "adam_lr": 0.0003, "momentum": 0.95, "weight_decay": 0.1}
        return {"type": "Muon", "params": params | {"torch_adam": True}}
    on_gpu = {"torch_adam": True} if lay.offload == "none" else {}
    adam: dict[str, Any] = {"lr": 0.0003, "betas": [0.9, 0.95], "weight_decay": 0.1}
    return {"type": "AdamW", "params": adam | on_gpu}


def offload(lay: Layout, fraction: float = 1.0) -> dict[str, Any]:
    """Return what ZeRO keeps on the host, in pinned memory, or on its NVMe drives.

    A part of the optimizer's state is a number of whole groups of parameters: small ones then, so
    that the part is near to the fraction (runtime/zero/stage3.py, subgroup_to_device).
    """
    where: dict[str, Any] = {"device": "cpu", "pin_memory": True}
    if lay.offload.endswith("-nvme"):
        where |= {"device": "nvme", "nvme_path": NVME_PATH}
    out: dict[str, Any] = {"offload_optimizer": where} if lay.offload != "none" else {}
    if out and fraction < 1:
        out["offload_optimizer"] = where | {"ratio": fraction}
        out["sub_group_size"] = SMALL_GROUP
    return out | ({"offload_param": where} if lay.offload.startswith("optimizer+params") else {})


def zero(lay: Layout) -> dict[str, Any]:
    """Return the ZeRO stage with its buckets, in whole elements."""
    if lay.zero == 0:
        return {"stage": 0}
    out: dict[str, Any] = {
        "stage": lay.zero,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if lay.zero == 3:
        out["stage3_prefetch_bucket_size"] = BUCKET_ELEMENTS // 10
        out["stage3_param_persistence_threshold"] = 100_000
        out["stage3_gather_16bit_weights_on_model_save"] = True
        if lay.dp_replicate > 1:
            out["zero_hpz_partition_size"] = lay.dp // lay.dp_replicate
    return out

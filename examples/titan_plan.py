"""The model of `plan.json` beside this file, as a torchtitan 0.3.0 configuration function.

    torchrun ... -m torchtitan.train --module titan_plan --config planned ...

Holds what command-line keys cannot say: the shapes of the model and which pipeline stage has which
layers. Everything else is in `torchtitan.args`. A plan knows shapes only: rotary base, the scoring
of the router and the initial values below are a start, yours to set.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import preflight
import torch.distributed as dist
from torch import nn
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    default_adamw,
    register_moe_load_balancing_hook,
)
from torchtitan.components.quantization import (
    Float8GroupedExpertsConverter,
    Float8LinearConverter,
)
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.config_utils import (
    get_attention_config,
    make_ffn_config,
    make_gqa_config,
    make_moe_config,
    make_routed_experts_config,
    make_router_config,
)
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock
from torchtitan.models.llama3.parallelize import parallelize_llama
from torchtitan.models.qwen3.model import Qwen3Model, Qwen3TransformerBlock
from torchtitan.models.qwen3.parallelize import parallelize_qwen3
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

HERE = Path(__file__).resolve().parent
ROPE_THETA = 500000.0
NORM = {"weight": nn.init.ones_}


def linear(std: float = 0.02) -> dict[str, Any]:
    """Return how a projection is initialised."""
    return {"weight": partial(nn.init.trunc_normal_, std=std), "bias": nn.init.zeros_}


def norm(width: int) -> RMSNorm.Config:
    """Return an RMSNorm over `width` elements."""
    return RMSNorm.Config(normalized_shape=width, param_init=NORM)


SPLIT_BACKWARD = ("interleaved-zb", "zbv", "dualpipev")
"""Schedules that refuse compiled modules, and with them the attention that needs a compiler."""
THERE_AND_BACK = ("zbv", "dualpipev")


def attention(model: dict[str, Any]) -> Any:
    """Return grouped-query attention of the planned shape."""
    return make_gqa_config(
        dim=model["hidden"],
        n_heads=model["heads"],
        n_kv_heads=model["kv_heads"],
        head_dim=model["head_dim"],
        wqkv_param_init=linear(),
        wo_param_init=linear(0.02 / (2 * model["layers"]) ** 0.5),
        inner_attention=get_attention_config("varlen" if uncompiled() else "flex"),
        fuse_qkv=True,
        rope=ComplexRoPE.Config(
            dim=model["head_dim"], max_seq_len=model["max_seq_tokens"], theta=ROPE_THETA
        ),
        qk_norm=norm(model["head_dim"]) if model["qk_norm"] == "head" else None,
    )


def uncompiled() -> bool:
    """Return whether the planned schedule refuses compiled modules."""
    plan = json.loads((HERE / "plan.json").read_text(encoding="utf-8"))
    return plan["plans"][0]["layout"]["schedule"] in SPLIT_BACKWARD


def feed_forward(model: dict[str, Any], width: int) -> Any:
    """Return a gated feed-forward layer `width` elements wide."""
    return make_ffn_config(
        dim=model["hidden"], hidden_dim=width, w1_param_init=linear(), w2w3_param_init=linear()
    )


def experts(model: dict[str, Any]) -> Any:
    """Return a layer of experts, with the shared ones as one wide feed-forward."""
    held = model["experts"]
    shared = feed_forward(model, held["shared_ffn"]) if held["shared_ffn"] else None
    draw = linear()["weight"]
    return make_moe_config(
        num_experts=held["count"],
        router=make_router_config(
            dim=model["hidden"],
            num_experts=held["count"],
            gate_param_init=linear(),
            top_k=held["top_k"],
            score_func="softmax",
            route_norm=held["top_k"] > 1,
        ),
        routed_experts=make_routed_experts_config(
            dim=model["hidden"],
            hidden_dim=held["ffn"],
            num_experts=held["count"],
            top_k=held["top_k"],
            param_init={"w1_EFD": draw, "w2_EDF": draw, "w3_EFD": draw},
            comm_backend="standard",
        ),
        shared_experts=shared,
    )


def has_experts(model: dict[str, Any], layer: int) -> bool:
    """Return whether this layer, counted from 0, has experts."""
    if (held := model["experts"]) is None:
        return False
    return layer >= held["first_dense_layers"] and (layer + 1) % held["layer_period"] == 0


def layers(model: dict[str, Any], block: Any) -> list[Any]:
    """Return every transformer layer."""
    out = []
    for layer in range(model["layers"]):
        routed = has_experts(model, layer)
        part = {"moe": experts(model)} if routed else {}
        if not routed:
            part["feed_forward"] = feed_forward(model, model["ffn"])
        out.append(
            block.Config(
                attention_norm=norm(model["hidden"]),
                ffn_norm=norm(model["hidden"]),
                attention=attention(model),
                **part,
            )
        )
    return out


def model_spec(model: dict[str, Any]) -> ModelSpec:
    """Return the model: Llama's blocks, or Qwen 3's where q and k are normalised or routed."""
    routed = model["experts"] is not None
    llama = not routed and model["qk_norm"] == "none"
    kind, block = (
        (Llama3Model, Llama3TransformerBlock) if llama else (Qwen3Model, Qwen3TransformerBlock)
    )
    tied = model["tied_embeddings"]
    start = skip_param_init if tied else partial(nn.init.normal_, std=1.0)
    return ModelSpec(
        name="planned",
        flavor="plan",
        model=kind.Config(
            dim=model["hidden"],
            vocab_size=model["vocab"],
            enable_weight_tying=tied,
            tok_embeddings=Embedding.Config(
                num_embeddings=model["vocab"],
                embedding_dim=model["hidden"],
                param_init={"weight": start},
            ),
            norm=norm(model["hidden"]),
            lm_head=Linear.Config(
                in_features=model["hidden"],
                out_features=model["vocab"],
                param_init=linear(model["hidden"] ** -0.5),
            ),
            layers=layers(model, block),
        ),
        parallelize_fn=agreed(parallelize_llama if llama else parallelize_qwen3),
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=register_moe_load_balancing_hook if routed else None,
        state_dict_adapter=None,
    )


def agreed(parallelize: Any) -> Any:
    """Return the function that splits a model, after a look at the groups, before the first."""
    seen: list[bool] = []

    def run(model: Any, *, parallel_dims: Any, **options: Any) -> Any:
        if not seen and dist.is_initialized():
            meshes = {"tp": "tp", "cp": "cp", "dp": "batch", "pp": "pp", "ep": "ep"}
            found = {axis: parallel_dims.get_optional_mesh(name) for axis, name in meshes.items()}
            here = {axis: mesh.get_local_rank() if mesh else 0 for axis, mesh in found.items()}
            preflight.check_groups(here, folder=HERE)
            seen.append(True)
        return parallelize(model, parallel_dims=parallel_dims, **options)

    return run


def in_float8(spec: ModelSpec, routed: bool) -> ModelSpec:
    """Return the model with its projections, and its experts, multiplied in FP8 (torchao).

    Scales are a row's; the router and the output layer stay in bf16. Gathers are in bf16 too.
    """
    kept = ["lm_head", "router.gate"]
    how = [Float8LinearConverter.Config(filter_fqns=kept, model_compile_enabled=True)]
    if routed:
        how.append(Float8GroupedExpertsConverter.Config(model_compile_enabled=True))
    for converter in how:
        spec.model = converter.build().convert(spec.model)
    return spec


def stages(ranked: dict[str, Any]) -> list[list[str]] | None:
    """Return the modules of every pipeline stage in the order in which a token meets them."""
    held, layout = ranked["stage_layers"], ranked["layout"]
    if layout["pp"] == 1:
        return None
    parts, layer = [], 0
    for chunk in range(layout["vpp"]):
        back = layout["schedule"] in THERE_AND_BACK and chunk % 2 == 1
        for stage in reversed(range(layout["pp"])) if back else range(layout["pp"]):
            count = held[stage][chunk]
            parts.append([f"layers.{i}" for i in range(layer, layer + count)])
            layer += count
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", "lm_head"]
    return parts


def planned() -> Trainer.Config:
    """Return the configuration that the keys of `torchtitan.args` complete."""
    plan = json.loads((HERE / "plan.json").read_text(encoding="utf-8"))
    model = plan["request"]["model"]
    loss = CrossEntropyLoss.Config(global_vocab_size=model["vocab"])
    data = os.environ.get("DATASET_PATH") or None
    spec = model_spec(model)
    if plan["request"]["workload"]["precision"] == "fp8":
        spec = in_float8(spec, model["experts"] is not None)
    return Trainer.Config(
        model_spec=spec,
        loss=ChunkedLossWrapper.Config(loss_fn=loss),
        hf_assets_path=os.environ.get("HF_ASSETS_PATH", "./assets"),
        optimizer=default_adamw(lr=3e-4),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(seq_len=plan["request"]["workload"]["seq_tokens"]),
        dataloader=HuggingFaceTextDataLoader.Config(
            dataset=os.environ.get("DATASET", "c4"), dataset_path=data
        ),
        metrics=MetricsProcessor.Config(log_freq=1),
        parallelism=ParallelismConfig(module_fqns_per_model_part=stages(plan["plans"][0])),
        checkpoint=CheckpointManager.Config(),
    )

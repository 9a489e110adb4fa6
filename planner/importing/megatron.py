"""Megatron-LM's arguments, also as Megatron-Bridge and NeMo spell them in YAML, to a Job.

Defaults are those of megatron/training/arguments.py (megatron-core 0.19.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from planner.errors import SpecError
from planner.importing.facts import Facts
from planner.importing.job import Job
from planner.importing.megatron_model import expert_count, layers_of, model_of
from planner.specs.parse import shown
from planner.specs.workload import RECOMPUTABLE

TELLING = (
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "num_layers"),
    *("micro_batch_size", "seq_length", "hidden_size"),
)
"""Names of which a file of Megatron's has one or more."""
STRATEGIES = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
FORMATS = {
    "bf16": "bf16-moments",
    "bfloat16": "bf16-moments",
    "fp8": "fp8-moments",
    "uint8": "fp8-moments",
}
OPTIMIZERS = {"adam": "adamw", "adamw": "adamw", "sgd": "sgd", "muon": "muon"}
BESIDE = (
    *("cpu_offloading_weights", "cpu_offloading_activations", "ckpt_format", "tokenizer_model"),
    *("init_model_with_meta_device", "moe_grouped_gemm", "overlap_cpu_optimizer_d2h_h2d"),
    *("moe_router_load_balancing_type", "moe_router_padding_for_quantization", "mock_data"),
    *("tokenizer_type", "moe_aux_loss_coeff", "no_bias_dropout_fusion", "use_mcore_models"),
    *("moe_router_pre_softmax", "use_flash_attn"),
    "reuse_grad_buf_for_mxfp8_param_ag",
)
"""Names that follow from what is read, or are as the estimate takes them to be."""


def megatron_job(facts: Facts, gpus: int | None, *, stack: str = "megatron") -> Job:
    """Return what Megatron's settings say; `gpus` is the size of the job where it is known.

    Raises SpecError for a value that Megatron would refuse too, or that a script leaves open.
    """
    told: list[str] = []
    model = model_of(facts, told)
    layout, micro = _degrees(facts, gpus, told), facts.integer("micro_batch_size")
    layout |= {"micro_batch": str(micro or 1)}
    dp = int(layout["dp"]) if "dp" in layout else None
    layout |= _sharding(facts, layout, told)
    layout |= _recompute(facts)
    if facts.flag("optimizer_cpu_offload"):
        layout["offload"] = "optimizer"
    else:
        layout["offload"] = "none"
    batch = facts.integer("global_batch_size")
    if batch is None and dp is not None:
        batch = (micro or 1) * dp
        told.append(f"no global batch size: {batch}, one micro-batch a replica, as Megatron does")
    precision, flags = _precision(facts, told)
    flags += [*_state_flags(facts), *_overlap_flags(facts, layout), *_expert_flags(facts, told)]
    facts.leave(*BESIDE)
    if facts.values.get("transformer_impl") != "local":
        facts.leave("transformer_impl")
    method = facts.text("recompute_method", default="uniform")
    if method not in ("uniform", "block"):
        raise facts.wrong(("recompute_method",), method, "uniform or block")
    full = layout["recompute"] == "full"
    return Job(
        framework="Megatron",
        stack="+".join([stack, *flags]),
        layout=layout,
        gpus=gpus,
        seq_tokens=facts.integer("seq_length", "encoder_seq_length"),
        global_batch=batch,
        precision=precision,
        optimizer=_optimizer(facts),
        capacity_factor=facts.number("moe_expert_capacity_factor"),
        recompute_modules=_modules(facts) if layout["recompute"] == "selective" else None,
        recompute_method=method if full else "uniform",
        recompute_layers=(facts.integer("recompute_num_layers") or 1) if full else 1,
        model=model,
        assumed=tuple(told),
    )


def _degrees(facts: Facts, gpus: int | None, told: list[str]) -> dict[str, str]:
    """Return the degrees of parallelism and the pipeline's schedule."""
    tp = facts.integer("tensor_model_parallel_size") or 1
    pp = facts.integer("pipeline_model_parallel_size") or 1
    cp = facts.integer("context_parallel_size") or 1
    ep, etp = (
        facts.integer("expert_model_parallel_size"),
        facts.integer("expert_tensor_parallel_size"),
    )
    experts = expert_count(facts)
    vpp = _chunks(facts, pp) if pp > 1 else 1
    _uneven(facts, told)
    if facts.flag("use_tp_pp_dp_mapping"):
        told.append("ranks are in the order tp-cp-ep-dp-pp, not in that of tp-pp-dp mapping")
    out = {
        "tp": tp,
        "sp": int(facts.flag("sequence_parallel") and tp > 1),
        "pp": pp,
        "vpp": vpp,
        "cp": cp,
        "ep": (ep or 1) if experts else 1,
        "etp": (etp or tp) if experts else 1,
    }
    if gpus is not None:
        if gpus % (tp * pp * cp):
            raise SpecError(
                f"{facts.origin}: {gpus:,} GPUs are not a multiple of tp*pp*cp = {tp * pp * cp:,}",
                hint="give the number that the job runs on: --gpus N",
            )
        out["dp"] = gpus // (tp * pp * cp)
    words = {name: str(value) for name, value in out.items()}
    schedule = "none" if pp == 1 else "interleaved" if vpp > 1 else "1f1b"
    return {**words, "schedule": schedule}


def _chunks(facts: Facts, pp: int) -> int:
    """Return virtual chunks a stage, from whichever of Megatron's ways to say it."""
    facts.asked.update(("num_virtual_stages_per_pipeline_rank", "pipeline_model_parallel_layout"))
    stated = facts.integer(
        "num_virtual_stages_per_pipeline_rank", "virtual_pipeline_model_parallel_size"
    )
    if stated:
        return stated
    each = facts.integer("num_layers_per_virtual_pipeline_stage")
    if each and (layers := layers_of(facts)):
        chunk, rest = divmod(layers, pp * each)
        if rest or not chunk:
            raise SpecError(
                f"{facts.origin}: {layers} layers are not a multiple of pp={pp} stages in chunks "
                f"of {each}"
            )
        return chunk
    if text := facts.text("pipeline_model_parallel_layout"):
        chunk, rest = divmod(_stages_in(text, facts), pp)
        if rest or not chunk:
            raise facts.wrong(("pipeline_model_parallel_layout",), text, f"a multiple of {pp}")
        return chunk
    return 1


def _stages_in(layout: str, facts: Facts) -> int:
    """Return the stages of a layout in Megatron's grammar, such as 'Et*3|(t*4|)*2t*3L'."""
    text, stages = layout.strip("'\""), 1
    for match in re.finditer(r"\(([^()]*)\)(?:\*(\d{1,6}))?", text):
        stages += match[1].count("|") * int(match[2] or 1)
    rest = re.sub(r"\(([^()]*)\)(?:\*\d{1,6})?", "", text)
    for match in re.finditer(r"(\|)(?:\*(\d{1,6}))?", rest):
        stages += int(match[2] or 1)
    if stages > 10**6 or not re.fullmatch(r"[EtmL0-9*|(),]+", text):
        raise facts.wrong(("pipeline_model_parallel_layout",), layout, "E, t, m, L and |")
    return stages


def _uneven(facts: Facts, told: list[str]) -> None:
    names = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
    split = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
    facts.asked.update((*split, "pipeline_model_parallel_layout"))
    counts = [n for name in names if (n := facts.integer(name, least=0)) is not None]
    if counts:
        told.append("the layers of each stage are dealt out by the planner, not as these flags say")


def _sharding(facts: Facts, layout: dict[str, str], told: list[str]) -> dict[str, str]:
    """Return the ZeRO stage and the replicas of its shards."""
    zero = facts.integer("zero_stage", least=0)
    strategy = facts.text("data_parallel_sharding_strategy", default="no_shard")
    if strategy not in STRATEGIES:
        allowed = ", ".join(STRATEGIES)
        raise facts.wrong(("data_parallel_sharding_strategy",), strategy, f"one of {allowed}")
    torch_fsdp = facts.flag("use_torch_fsdp2")
    if zero is None:
        zero = int(facts.flag("use_distributed_optimizer"))
        if torch_fsdp:
            zero = 2 if facts.flag("torch_fsdp2_no_reshard_after_forward") else 3
        if facts.flag("use_megatron_fsdp", "use_custom_fsdp"):
            zero = STRATEGIES[strategy]
    shards = int(layout.get("dp", 2)) * int(layout["cp"])
    if zero and shards == 1:
        told.append("one replica only: there is nothing to shard the optimizer over")
        zero = 0
    replicas = facts.integer("num_distributed_optimizer_instances") or 1
    return {"zero": str(min(3, zero)), "dp_replicate": str(replicas)}


def _recompute(facts: Facts) -> dict[str, str]:
    kind = facts.text("recompute_granularity", "activations_checkpoint_granularity").lower()
    if kind in ("", "none", "null"):
        names = ("recompute_activations", "checkpoint_activations")
        kind = "selective" if facts.flag(names[0]) else "full" if facts.flag(names[1]) else "none"
    if kind not in ("none", "selective", "full"):
        raise facts.wrong(("recompute_granularity",), kind, "full or selective")
    facts.asked.update(("recompute_method", "recompute_num_layers", "recompute_modules"))
    return {"recompute": kind}


def _modules(facts: Facts) -> tuple[str, ...]:
    """Return what selective recompute runs again; Megatron's default is the core of attention."""
    modules = facts.words("recompute_modules") or ("core_attn",)
    if strange := [m for m in modules if m not in RECOMPUTABLE]:
        raise facts.wrong(("recompute_modules",), strange[0], f"among {', '.join(RECOMPUTABLE)}")
    return modules


def _precision(facts: Facts, told: list[str]) -> tuple[str, list[str]]:
    """Return the precision, and the flags of a stack that say how FP8 scales."""
    bf16, fp16 = facts.flag("bf16"), facts.flag("fp16")
    named = facts.text("precision", "mixed_precision").lower()
    recipe = facts.text("fp8_recipe").lower()
    fp8 = facts.text("fp8_format", "fp8").lower() not in ("", "none", "null", "false")
    if fp8 or "fp8" in named:
        scales = {"tensorwise": ["fp8-current"], "mxfp8": ["mxfp8"], "blockwise": ["fp8-rowwise"]}
        gathered = facts.flag("fp8_param_gather", "fp8_param")
        return "fp8", scales.get(recipe, []) + (["fp8-params"] if gathered else [])
    if fp16 or named.startswith(("16", "fp16")):
        return "fp16", []
    if not bf16 and not named.startswith("bf16"):
        told.append("bf16: no option says in which precision it trains")
    return "bf16", []


def _state_flags(facts: Facts) -> Iterator[str]:
    """Yield the flags of a stack that say how states are kept and gradients travel."""
    away = facts.flag("optimizer_cpu_offload")
    aware = facts.flag("use_precision_aware_optimizer") and not away
    kept = facts.text("exp_avg_dtype").lower().rpartition(".")[2]
    facts.asked.update(("exp_avg_sq_dtype", "main_grads_dtype"))
    if away and (part := facts.part("optimizer_offload_fraction")) is not None:
        yield f"offload-fraction={part}"
    on = facts.flag("cpu_offloading", default=True)  # Megatron-LM's parser sets it by the number
    if (layers := facts.integer("cpu_offloading_num_layers", least=0)) and on:
        yield f"offload-layers={layers}"
    if aware:
        flag = FORMATS.get(kept, "precision-aware")
        yield flag
    in_fp32 = facts.raw("grad_reduce_in_fp32")
    if facts.flag("grad_reduce_in_bf16") or str(in_fp32).lower() == "false":
        yield "bf16-gradients"


def _overlap_flags(facts: Facts, layout: Mapping[str, str]) -> Iterator[str]:
    """Yield the flags of a stack that say which traffic of data parallelism nothing hides.

    torch's FSDP2 hides its own, and takes neither option.
    """
    if facts.flag("use_torch_fsdp2"):
        facts.leave("overlap_grad_reduce", "overlap_param_gather")
        return
    for name, flag, counts in (
        ("overlap_grad_reduce", "no-dp-overlap", True),
        ("overlap_param_gather", "no-gather-overlap", layout["zero"] in ("1", "2")),
    ):
        by_default = not facts.words_follow and facts.raw(name) is None  # Megatron-Bridge's is on
        if not by_default and not facts.flag(name) and counts:
            yield flag


def _expert_flags(facts: Facts, told: list[str]) -> Iterator[str]:
    """Yield the flags of a stack that say how tokens travel to experts."""
    kind = facts.text("moe_token_dispatcher_type").lower()
    backend = facts.text("moe_flex_dispatcher_backend").lower()
    deepep = facts.flag("moe_enable_deepep")
    overlapped = facts.flag("overlap_moe_expert_parallel_comm")
    if expert_count(facts) is None:
        return
    if kind == "allgather":
        told.append("tokens travel by all-to-all, not by all-gather")
    if kind == "flex" or deepep:
        yield "hybridep" if backend == "hybridep" else "deepep"
    elif kind == "alltoall":
        yield "alltoall"
    if overlapped:
        yield "ep-overlap"


def _optimizer(facts: Facts) -> str:
    kind = facts.text("optimizer", "optimizer_type", default="adam").lower()
    kind = kind.removeprefix("distributed_").removeprefix("dist_")
    kind = "adam" if "adam" in kind else "muon" if "muon" in kind else kind
    if kind not in OPTIMIZERS:
        raise facts.wrong(("optimizer",), shown(kind, 40), f"one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[kind]

"""nanotron's YAML to a Job (huggingface/nanotron@2411b022, config/config.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.importing.facts import Facts
from planner.importing.job import Job
from planner.specs.model import ModelSpec
from planner.specs.read import validate

BESIDE = ("general.", "checkpoints.", "logging.", "data_stages", "optimizer.learning_rate")


def is_nanotron(data: Mapping[str, Any]) -> bool:
    """Return whether a mapping is nanotron's configuration."""
    parallel = data.get("parallelism")
    return isinstance(parallel, Mapping) and {"dp", "tp", "pp"} <= set(parallel)


def nanotron_job(facts: Facts, gpus: int | None) -> Job:
    """Return what nanotron's configuration says.

    Raises SpecError for a value that is none.
    """
    told: list[str] = []
    tp, pp, dp, cp, ep = (
        facts.integer(f"parallelism.{name}") or 1
        for name in ("tp", "pp", "dp", "context_parallel_size", "expert_parallel_size")
    )
    engine = facts.text("parallelism.pp_engine", default="1f1b").lower()
    mode = facts.text("parallelism.tp_mode", default="ALL_REDUCE").upper()
    recompute = facts.flag("parallelism.recompute_layer")
    zero = facts.integer("optimizer.zero_stage", least=0) or 0
    micro = facts.integer("tokens.micro_batch_size") or 1
    steps = facts.integer("tokens.batch_accumulation_per_replica") or 1
    if facts.text("model.dtype", default="bfloat16") not in ("bfloat16", "bf16"):
        told.append(f"bf16, not {facts.text('model.dtype')[:40]}")
    layout: dict[str, object] = {"tp": tp, "pp": pp, "dp": dp, "cp": cp, "ep": ep, "vpp": 1}
    layout |= {
        "sp": int(mode.endswith("REDUCE_SCATTER") and tp > 1),
        "zero": 0 if dp * cp == 1 else min(zero, 3),
        "dp_replicate": 1,
        "micro_batch": micro,
        "recompute": "full" if recompute else "none",
        "schedule": "none" if pp == 1 else "gpipe" if engine == "afab" else "1f1b",
        "offload": "none",
    }
    name = facts.text("optimizer.optimizer_factory.name", default="adamW").lower()
    model = _model(facts)
    kinds = ("parallelism.tp_linear_async_communication", "optimizer.accumulate_grad_in_fp32")
    facts.leave(*kinds, *BESIDE)
    return Job(
        framework="nanotron",
        stack="nanotron",
        layout={name: str(value) for name, value in layout.items()},
        gpus=tp * pp * dp * cp,
        seq_tokens=facts.integer("tokens.sequence_length"),
        global_batch=micro * steps * dp,
        optimizer="sgd" if "sgd" in name else "adamw",
        model=model,
        assumed=tuple(told),
    )


def _model(facts: Facts) -> ModelSpec | None:
    """Return the Llama of `model.model_config`; a vocabulary of its own is not needed."""
    read = {
        name: facts.integer(f"model.model_config.{name}")
        for name in (
            *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"),
            *("intermediate_size", "vocab_size", "max_position_embeddings"),
        )
    }
    tied = facts.flag("model.model_config.tie_word_embeddings")
    facts.leave("model.model_config.is_llama_config")
    layers, hidden, heads = (read[n] for n in list(read)[:3])
    if not (layers and hidden and heads):
        return None
    spec = {
        "name": f"{layers}x{hidden}",
        "source": facts.origin,
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": read["num_key_value_heads"] or heads,
        "head_dim": max(1, hidden // heads),
        "ffn": read["intermediate_size"] or 4 * hidden,
        "vocab": read["vocab_size"] or 32000,
        "max_seq_tokens": read["max_position_embeddings"] or 2048,
        "tied_embeddings": tied,
    }
    return validate(ModelSpec, spec, facts.origin)

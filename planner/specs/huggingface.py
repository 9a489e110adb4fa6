"""Hugging Face config.json to ModelSpec, for the decoder families that people train.

A config says only what differs from its class in `transformers`; `families` knows what the class
takes for granted. Any other model_type is read as a Llama if it has a Llama's fields, and refused
if it shows signs of more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import SpecError
from planner.specs.config_fields import ConfigFields, Fields, every_nth
from planner.specs.families import FAMILIES, Family
from planner.specs.model import ModelSpec, Norm
from planner.specs.parse import shown
from planner.specs.read import validate

_DROPOUTS = (
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "attn_pdrop",
    "resid_pdrop",
    "embd_pdrop",
)
_MOST_LAYERS = 100_000  # what follows goes through them one by one
_NOT_ATTENTION = (
    "attn_layer_period",
    "full_attention_interval",
    "linear_num_value_heads",
    "mamba_d_state",
    "ssm_cfg",
    "state_size",
)


def is_config(data: Mapping[str, Any]) -> bool:
    """Return whether a mapping looks like a Hugging Face config."""
    return any(name in data for name in ("model_type", "architectures", "text_config"))


def model_from_config(config: Mapping[str, Any], name: str, origin: str) -> ModelSpec:
    """Return the model that a Hugging Face config describes, under `name`.

    Fields that do not bear on shapes are ignored. Raises SpecError, beginning with `origin`, when
    a needed field is missing or wrong, or the architecture is not one that a ModelSpec can hold.
    """
    data = _text_part(config, origin)
    kind = ConfigFields(data, origin, {}).text("model_type")
    family = FAMILIES.get(kind)
    c = ConfigFields(data, origin, family.absent if family else {})
    if family is None:
        _refuse_strangers(c, kind)
        family = Family(more=_unknown)
    fields = {**_decoder(c), **family.fixed}
    fields |= family.more(c, fields)
    source = f"Hugging Face config.json, model_type {shown(kind, 60) or 'not given'}"
    return validate(ModelSpec, {"name": name, "source": source, **fields}, origin)


def _text_part(config: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    """Return the language model's own fields of a multimodal wrapper, or the config itself."""
    inner = config.get("text_config")
    if inner is None:
        return config
    if not isinstance(inner, Mapping):
        raise SpecError(f"{origin}: field 'text_config' must be a mapping")
    outer = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    kind = str(config.get("model_type", ""))
    return {"model_type": f"{kind}_text" if f"{kind}_text" in FAMILIES else kind, **outer, **inner}


def _decoder(c: ConfigFields) -> Fields:
    """Return the fields of a Llama-like decoder."""
    layers = c.integer("num_hidden_layers", most=_MOST_LAYERS)
    hidden, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    mla = _latent_attention(c)
    max_seq = c.integer("max_position_embeddings", 2048)
    wide = c.absent.get("ffn_per_hidden")
    bias = c.flag("attention_bias")
    return {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": heads if mla else _kv_heads(c, heads),
        "head_dim": mla["qk_nope_head_dim"] + mla["qk_rope_head_dim"] if mla else _head_dim(c),
        "ffn": c.integer("intermediate_size", wide * hidden if wide else None),
        "vocab": c.integer("vocab_size"),
        "max_seq_tokens": max_seq,
        "tied_embeddings": c.flag("tie_word_embeddings"),
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": c.flag("mlp_bias"),
        "python_gelu": _activation(c) == "gelu_new",
        "dropout": any(c.rate(name) > 0 for name in _DROPOUTS),
        **_window(c, layers, max_seq),
        "mla": mla,
        "experts": _experts(c, layers),
        "mtp_layers": c.integer("num_nextn_predict_layers", 0, least=0),
    }


def _activation(c: ConfigFields) -> str:
    """Return the name of the feed-forward's activation function."""
    return c.text("hidden_act") or "silu"


def _kv_heads(c: ConfigFields, heads: int) -> int:
    kv_heads = c.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        spelling, _ = c.get("num_key_value_heads")
        raise c.wrong(spelling, kv_heads, f"a divisor of num_attention_heads ({heads})")
    return kv_heads


def _head_dim(c: ConfigFields) -> int:
    hidden, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    if not c.has("head_dim") and hidden % heads:
        raise c.wrong("hidden_size", hidden, f"a multiple of num_attention_heads ({heads})")
    return c.integer("head_dim", max(1, hidden // heads))


def _latent_attention(c: ConfigFields) -> Fields | None:
    if not c.has("kv_lora_rank"):
        return None
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    mla: Fields = {name: c.integer(name) for name in names}
    return {"q_lora_rank": c.integer("q_lora_rank"), **mla} if c.has("q_lora_rank") else mla


# --- sliding windows ----------------------------------------------------------------------------


def _window(c: ConfigFields, layers: int, max_seq: int) -> Fields:
    """Return window and period of sliding attention; nothing where every layer sees all tokens.

    Llama 4's chunks are taken as windows: a query sees at most as many tokens, in the same layers.
    """
    name = "sliding_window" if c.has("sliding_window") else "attention_chunk_size"
    if not c.has(name) or not c.flag("use_sliding_window", True):
        return {}
    window = c.integer(name, least=0)
    period = _full_period(c, layers)
    if window == 0 or window >= max_seq or period == 1:
        return {}
    return {"sliding_window_tokens": window, "full_attention_period": period}


def _full_period(c: ConfigFields, layers: int) -> int:
    """Return n where every n-th layer attends to all tokens; 0 where all layers slide."""
    full = _full_layers(c, layers)
    if full is None:
        return c.integer("sliding_window_pattern", 0, least=0)
    period = every_nth(full)
    if period is None:
        name = "layer_types" if c.has("layer_types") else "max_window_layers"
        raise SpecError(
            f"{c.origin}: field '{name}': layers with full attention are not every n-th layer",
            hint="set sliding_window to null to plan with full attention in every layer",
        )
    return period


def _full_layers(c: ConfigFields, layers: int) -> list[bool] | None:
    """Return, layer by layer, whether it attends to all tokens, where the config says so."""
    if types := c.words("layer_types"):
        known = {"full_attention", "sliding_attention", "chunked_attention"}
        if strange := sorted(set(types) - known):
            raise c.wrong("layer_types", strange[0], f"one of {', '.join(sorted(known))}")
        if len(types) != layers:
            raise c.wrong("layer_types", len(types), f"as many as num_hidden_layers ({layers})")
        return [kind == "full_attention" for kind in types]
    if c.has("max_window_layers"):  # Qwen: the layers before it attend to all tokens
        first = c.integer("max_window_layers", least=0)
        return [layer < first for layer in range(layers)]
    return None


# --- experts ------------------------------------------------------------------------------------


def _experts(c: ConfigFields, layers: int) -> Fields | None:
    count = c.integer("num_local_experts", 0, least=0)
    if count == 0:
        return None
    first, period = _expert_layers(c, layers)
    ffn = c.integer("moe_intermediate_size", c.integer("intermediate_size"))
    top_k = c.integer("num_experts_per_tok")
    if top_k > count:
        raise c.wrong("num_experts_per_tok", top_k, f"at most the {count} experts of a layer")
    return {
        "count": count,
        "top_k": top_k,
        "ffn": ffn,
        "shared_ffn": _shared_ffn(c, ffn),
        "first_dense_layers": first,
        "layer_period": period,
    }


def _shared_ffn(c: ConfigFields, ffn: int) -> int:
    """Return the width of all shared experts together."""
    for name in ("shared_expert_intermediate_size", "shared_intermediate_size"):
        if c.has(name):
            return c.integer(name, least=0)
    return c.integer("n_shared_experts", 0, least=0) * ffn


def _expert_layers(c: ConfigFields, layers: int) -> tuple[int, int]:
    """Return the number of leading dense layers, and n where every n-th layer has experts."""
    if c.integer("moe_layer_freq", 1) != 1:
        raise c.wrong(*c.get("moe_layer_freq"), "1")
    first = c.integer("first_k_dense_replace", 0, least=0)
    name = "decoder_sparse_step" if c.has("decoder_sparse_step") else "interleave_moe_layer_step"
    period = c.integer(name, 1)
    chosen = {i for i in range(layers) if i >= first and (i + 1) % period == 0}
    listed = c.indices("moe_layers", layers) or chosen
    listed = listed - (c.indices("mlp_only_layers", layers) or set())
    if listed == chosen:
        return first, period
    first = min(listed, default=layers)
    if first == layers or listed != set(range(first, layers)):
        name = "moe_layers" if c.has("moe_layers") else "mlp_only_layers"
        raise c.wrong(*c.get(name), "such that dense layers come first or experts every n-th layer")
    return first, 1


# --- other architectures ------------------------------------------------------------------------


def _refuse_strangers(c: ConfigFields, kind: str) -> None:
    """Refuse an unknown architecture that is not a Llama in other words."""
    what = f"{c.origin}: model_type '{shown(kind, 60)}' is not known, and"
    hint = f"known: {', '.join(sorted(FAMILIES))}; or write a model spec in YAML"
    for name in _NOT_ATTENTION:
        if c.has(name):
            raise SpecError(f"{what} '{name}' shows layers other than attention", hint=hint)
    makers = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
    built = c.words("architectures")
    if c.flag("is_encoder_decoder") or (built and not any(b.endswith(makers) for b in built)):
        raise SpecError(f"{what} it is not a decoder-only language model", hint=hint)
    activation = _activation(c)
    if activation not in {"silu", "swish", "swiglu"}:
        raise SpecError(
            f"{what} '{shown(activation, 40)}' leaves open how wide its MLP is", hint=hint
        )
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    missing = [name for name in (*needed, "intermediate_size") if not c.has(name)]
    if missing:
        raise SpecError(
            f"{what} these fields of a Llama are missing: {', '.join(missing)}", hint=hint
        )


def _unknown(c: ConfigFields, _: Fields) -> Fields:
    layernorm = c.has("layer_norm_eps") and not c.has("rms_norm_eps")
    bias = c.flag("attention_bias") or c.flag("use_qkv_bias") or c.flag("qkv_bias")
    return {"norm": Norm.LAYERNORM if layernorm else Norm.RMSNORM, "qkv_bias": bias}

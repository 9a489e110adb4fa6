"""Typed look-ups in a Hugging Face config, each refused by its own field name when wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner.errors import SpecError
from planner.specs.parse import shown

Fields = dict[str, Any]
_LARGEST = 10**9
_ALIASES = {
    "hidden_size": ("n_embd", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "seq_length", "max_sequence_length"),
    "num_local_experts": ("num_experts", "n_routed_experts"),
    "hidden_act": ("activation_function", "hidden_activation"),
    "sliding_window_pattern": ("_sliding_window_pattern", "no_rope_layer_interval"),
}


@dataclass(frozen=True)
class ConfigFields:
    """A config's fields; null is the same as absent, and absent ones fall back on `absent`."""

    data: Mapping[str, Any]
    origin: str
    absent: Mapping[str, Any]

    def get(self, name: str) -> tuple[str, Any]:
        """Return the spelling of `name` that the config uses, and its value (None if absent)."""
        for spelling in (name, *_ALIASES.get(name, ())):
            if self.data.get(spelling) is not None:
                return spelling, self.data[spelling]
        return name, self.absent.get(name)

    def has(self, name: str) -> bool:
        """Return whether the field, in some spelling, has a value."""
        return self.get(name)[1] is not None

    def integer(
        self, name: str, default: int | None = None, *, least: int = 1, most: int = _LARGEST
    ) -> int:
        """Return a whole number in bounds; raise SpecError if it is missing or anything else."""
        spelling, value = self.get(name)
        if value is None:
            if default is None:
                raise SpecError(f"{self.origin}: field '{name}' is missing")
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(spelling, value, f"a whole number from {least} to {most}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a true/false field."""
        spelling, value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(spelling, value, "true or false")
        return value

    def rate(self, name: str) -> float:
        """Return a dropout rate, 0 where it is absent."""
        spelling, value = self.get(name)
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise self.wrong(spelling, value, "a number from 0 to 1")
        return float(value)

    def text(self, name: str) -> str:
        """Return a text field, empty where it is absent."""
        spelling, value = self.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(spelling, value, "text")
        return value

    def words(self, name: str) -> list[str]:
        """Return a list of words, empty where it is absent."""
        spelling, value = self.get(name)
        if not isinstance(value or [], list) or not all(isinstance(v, str) for v in value or ()):
            raise self.wrong(spelling, value, "a list of words")
        return list(value or ())

    def indices(self, name: str, below: int) -> set[int] | None:
        """Return a list of layer numbers as a set, None where it is absent."""
        spelling, value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(
            isinstance(v, int) and not isinstance(v, bool) and 0 <= v < below for v in value
        ):
            raise self.wrong(spelling, value, f"a list of layer numbers from 0 to {below - 1}")
        return set(value)

    def wrong(self, spelling: str, value: object, allowed: str) -> SpecError:
        """Return the error that says what stands in a field and what may."""
        what = "a long number" if _is_long(value) else shown(repr(value), 60)
        return SpecError(
            f"{self.origin}: field '{spelling}': {what} is not allowed, must be {allowed}"
        )


def every_nth(flags: Sequence[bool]) -> int | None:
    """Return n where exactly every n-th flag is set (0: none of them), None for other patterns."""
    if not any(flags):
        return 0
    period = flags.index(True) + 1
    regular = all(flag == ((i + 1) % period == 0) for i, flag in enumerate(flags))
    return period if regular else None


def _is_long(value: object) -> bool:
    """Whether Python would refuse to write the number out."""
    return isinstance(value, int) and abs(value) >= 10**60

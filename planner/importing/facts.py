"""Settings by name, as text or plain values; what is never asked for is known to be ignored.

A setting has several spellings (`--micro-batch-size`, `micro_batch_size`): names are kept in lower
case with underscores, so that all of them are one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.errors import SpecError
from planner.specs.parse import shown

TRUE = frozenset(["true", "1", "yes", "on", "set"])
FALSE = frozenset(["false", "0", "no", "off", "none", "null", ""])
LARGEST = 10**9
WITHOUT_EFFECT = re.compile(
    r"(?:^|\.)(?:(?:min_|max_)?lr|learning_rate|warmup|weight_decay|start_weight|end_weight|adam_"
    r"|clip_grad|max_grad_norm|gradient_clipping|beta|eps|epsilon|init_method_std|scheduler\."
    r"|save|load$|load_|resume|ckpt|checkpoint\.|checkpoints?_|push_to_hub|hub_"
    r"|log$|log_|logging|metrics|profil|wandb|tensorboard|report_to|run_name|timing|print_"
    r"|eval|valid|test_|do_(?:train|eval|predict)|seed|data_seed|output$|output_dir"
    r"|data$|data\.|data_(?:path|cache|impl|args|stages|files|dir)|dataset|dataloader|num_workers"
    r"|blend|split$|mock_data|tokenizer|vocab_file|merge_file|remove_unused|trust_remote_code"
    r"|train_iters|train_samples|train_steps|max_steps|steps$|num_train_epochs|num_epochs|exit_"
    r"|attention_dropout|hidden_dropout|model_name_or_path|general\.|distributed_backend"
    r"|job_name|job\.|comm\.|node_rank|machine_rank|master_|main_process|rdzv|error$|time$"
    r"|partition$|account$|qos$|exclusive$|mem$|comment$|cpus_per_task)"
)
"""Data, learning rates, logging, checkpoints and launchers, as any framework spells them."""
VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*|[0-9@*])")


def spelt(name: str) -> str:
    """Return a name as it is kept: no dashes in front, lower case, underscores."""
    return name.lstrip("-").strip().lower().replace("-", "_")


@dataclass
class Facts:
    """Settings of one kind, from one file or several; `asked` collects the names asked for."""

    values: Mapping[str, Any]
    origin: str
    words_follow: bool = False
    """A value may have swallowed words that are not its own, as on a command line."""
    asked: set[str] = field(default_factory=set)
    idle: set[str] = field(default_factory=set)
    """Names known to change neither layout nor memory nor speed, or to be as is assumed."""

    def raw(self, *names: str) -> Any:
        """Return the first of `names` that has a value; None where none has."""
        self.asked.update(names)
        return next((self.values[n] for n in names if self.values.get(n) is not None), None)

    def has(self, *names: str) -> bool:
        """Return whether one of `names` has a value."""
        return self.raw(*names) is not None

    def text(self, *names: str, default: str = "") -> str:
        """Return a setting as text."""
        value = self.raw(*names)
        if value is None:
            return default
        if isinstance(value, Mapping | list | tuple):
            raise self.wrong(names, value, "one value")
        text = str(value)
        if self.words_follow:
            text = next(iter(text.split()), "")
        if unset := VARIABLE.search(text):
            raise SpecError(
                f"{self.origin}: {self._shown(names)} is {shown(text, 60)}, and nothing sets "
                f"{unset[1]}",
                hint=f"write the value in, or give it: --set {unset[1]}=VALUE",
            )
        return text

    def integer(self, *names: str, least: int = 1) -> int | None:
        """Return a setting as a whole number of at least `least`; None where it is not given."""
        text = self.text(*names)
        if text == "" or (text.lower() in ("none", "null") and least > 0):
            return None
        try:
            number = float(text.replace("_", ""))
        except ValueError:
            number = math.nan
        if not (least <= number <= LARGEST and number == int(number)):
            raise self.wrong(names, text, f"a whole number from {least}")
        return int(number)

    def number(self, *names: str) -> float | None:
        """Return a setting as a finite number; None where it is not given."""
        text = self.text(*names)
        if text == "" or text.lower() in ("none", "null"):
            return None
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            raise self.wrong(names, text, "a number")
        return found

    def part(self, *names: str) -> str | None:
        """Return a share above 0 and below 1 as a plain decimal; None for a whole or no other."""
        found = self.number(*names)
        if found is not None and not 0 <= found <= 1:
            raise self.wrong(names, found, "between 0 and 1")
        text = f"{found or 0.0:.6f}".rstrip("0")
        return text if text not in ("0.", "1.") else None

    def flag(self, *names: str, default: bool = False) -> bool:
        """Return a switch; a bare `--name` is on."""
        text = self.text(*names).lower()
        if text in TRUE:
            return True
        if text in FALSE:
            return False if self.raw(*names) is not None else default
        if self.words_follow:
            return True
        raise self.wrong(names, text, "true or false")

    def words(self, *names: str) -> tuple[str, ...]:
        """Return a setting's words, separated by spaces or commas, or a list's."""
        value = self.raw(*names)
        if isinstance(value, list | tuple):
            return tuple(str(v) for v in value)
        return tuple(str(value or "").strip("[]()").replace(",", " ").replace("'", "").split())

    def wrong(self, names: Iterable[str], value: object, allowed: str) -> SpecError:
        """Return the error for a value that will not do."""
        return SpecError(
            f"{self.origin}: {self._shown(names)}: {shown(repr(value), 60)} is not allowed, "
            f"must be {allowed}"
        )

    def _shown(self, names: Iterable[str]) -> str:
        """Return the spelling that the file has, or the first."""
        every = list(names)
        return next((n for n in every if self.values.get(n) is not None), every[0])

    def leave(self, *starts: str) -> None:
        """Leave the names that start so aside: they make no difference here."""
        self.idle.update(name for name in self.values if name.startswith(starts))

    def left_aside(self) -> tuple[set[str], set[str]]:
        """Return the names that nobody asked for: all of them, and those without effect."""
        left = set(self.values) - self.asked
        return left, {name for name in left if name in self.idle or WITHOUT_EFFECT.search(name)}


def leaves(data: Mapping[str, Any], *, lists: bool = False) -> dict[str, Any]:
    """Return the leaves of a nested mapping by their path, dots between; lists are leaves too."""
    out: dict[str, Any] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                visit(f"{path}.{spelt(str(key))}" if path else spelt(str(key)), inner)
        elif lists or not isinstance(value, list) or all(_plain(v) for v in value):
            out[path] = value

    visit("", data)
    return out


def _plain(value: Any) -> bool:
    return not isinstance(value, Mapping | list)

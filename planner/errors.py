"""Errors that a user can act on: what failed, with its numbers, and a hint.

Every error that reaches the command line is one of these; `cli.app.main` turns it into one
message and an exit code. Anything else is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlannerError(Exception):
    """Something the user can mend. `message` says what failed, `hint` what would mend it."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class SpecError(PlannerError):
    """A model, cluster, workload or option that cannot be read or contradicts itself (exit 2)."""


class InfeasibleError(PlannerError):
    """The question is well put and has no answer: nothing legal, nothing fits, no room (exit 1)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", answered: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.answered = answered
        """Whether a document that says so has been written already."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""

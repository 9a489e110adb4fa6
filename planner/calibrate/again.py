"""The same layouts under other numbers of their stack: only what reads a changed number is redone.

A fit to steps asks for thousands of predictions that differ in one number of fourteen. Most of a
step, all collectives among it, reads none of them. What a function reads is watched, not declared,
so that no formula has to know that it is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from planner.estimate.inputs import FloatArray, Inputs
from planner.layouts.table import Layouts
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.profile import Stack
from planner.specs.workload import Workload

T = TypeVar("T")
MOST_KEPT = 4
"""Results of one function that are kept: those of a base point and of its last neighbours."""


@dataclass
class Kept:
    """What functions of one set of layouts returned, by the numbers that each has read."""

    watched: Collection[str]
    """The numbers that change from one evaluation to the next."""
    reads: dict[Any, set[str]] = field(default_factory=dict)
    results: dict[Any, dict[tuple[Any, ...], Any]] = field(default_factory=dict)


class _Watched:
    """A stack that writes down which of the changing numbers are read."""

    def __init__(self, stack: Stack, kept: Kept, open_: list[set[str]]) -> None:
        self._stack, self._kept, self._open = stack, kept, open_

    def __getattr__(self, name: str) -> Any:
        if self._open:
            if name in self._kept.watched:
                self._open[-1].add(name)
            elif isinstance(getattr(Stack, name, None), property):
                self._open[-1].update(self._kept.watched)
        return getattr(self._stack, name)


class Again(Inputs):
    """Inputs of few layouts that take over from `kept` what the changed numbers do not touch."""

    def __init__(
        self,
        model: ModelSpec,
        cluster: ClusterSpec,
        workload: Workload,
        layouts: Layouts,
        kept: Kept,
    ) -> None:
        """Take the layouts and what is kept of them; the same layouts every time."""
        super().__init__(model, cluster, workload, layouts)
        self._kept = kept
        self._open: list[set[str]] = []
        self._numbers = self.stack
        self.stack = cast(Stack, _Watched(self._numbers, kept, self._open))

    def _reduce(self, on: tuple[str, ...]) -> None:
        """Return None: the search for distinct rows costs more than it saves on few rows."""

    def by(self, on: tuple[str, ...], function: Callable[[Inputs], FloatArray]) -> FloatArray:
        """Return a function's values, as kept where no number that it reads has changed."""
        return self.once(function)

    def once(self, function: Callable[[Inputs], T]) -> T:
        """Return what a function makes of these inputs, or made of inputs with the same numbers."""
        kept = self._kept
        results = kept.results.setdefault(function, {})
        reads = kept.reads.get(function)
        key = self._key(reads) if reads is not None else None
        if key is None or key not in results:
            key = self._made_now(function, results)
        if self._open:
            self._open[-1].update(kept.reads[function])
        found: T = results[key]
        return found

    def _key(self, reads: set[str]) -> tuple[Any, ...]:
        return tuple(getattr(self._numbers, name) for name in sorted(reads))

    def _made_now(
        self, function: Callable[[Inputs], Any], results: dict[tuple[Any, ...], Any]
    ) -> tuple[Any, ...]:
        """Evaluate a function, keep its result, and return the key that it is kept under."""
        self._open.append(set())
        value = function(self)
        reads = self._open.pop()
        known = self._kept.reads.setdefault(function, set())
        if not reads <= known:  # results with fewer reads were told apart by too little
            known |= reads
            results.clear()
        if len(results) >= MOST_KEPT:
            del results[next(iter(results))]
        key = self._key(known)
        results[key] = value
        return key

"""meshwright: plans how to split a model over a cluster, and writes the files that start it.

`plan`, `explain` and `place` are the commands as functions, with typed answers. Everything loads on
first use, so that the command line stays quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "ClusterSpec",
    "Estimate",
    "Explanation",
    "InfeasibleError",
    "Layout",
    "ModelSpec",
    "Placement",
    "Plan",
    "PlannerError",
    "RankedPlan",
    "SpecError",
    "explain",
    "load_cluster",
    "load_model",
    "place",
    "plan",
]

_HOME = {
    "ClusterSpec": "specs.cluster",
    "Estimate": "plan",
    "Explanation": "explanation",
    "InfeasibleError": "errors",
    "Layout": "plan",
    "ModelSpec": "specs.model",
    "Placement": "plan",
    "Plan": "plan",
    "PlannerError": "errors",
    "RankedPlan": "plan",
    "SpecError": "errors",
    "explain": "library",
    "load_cluster": "specs.catalog",
    "load_model": "specs.catalog",
}
_CALLED = ("plan", "place")
"""Functions of the library whose names are those of modules too: the modules are callable."""


class _Callable(ModuleType):
    """A module that, called, is the function of the library that has its name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.__wrapped__(*args, **options)

    @property
    def __wrapped__(self) -> Any:
        return getattr(import_module("planner.library"), self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    """This package: a module that is set on it under a name of `_CALLED` becomes callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLED and type(value) is ModuleType:
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _CALLED:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

"""Legality: one rule, one mask, one sentence. Rules without `stacks` are physics or arithmetic.

A rule's sentence is a format string over the layout's row and the model's and cluster's figures.
Where a framework enforces a rule, `where` says so (framework file), found by running its own code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.layouts.table import Layouts
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.stack import stack_named
from planner.specs.workload import Workload

Mask = NDArray[np.bool_]


class Context(NamedTuple):
    """What rules may look at beside the layouts."""

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload

    @property
    def rules(self) -> str:
        """Return whose rules bind the layouts of the workload's stack."""
        return stack_named(self.workload.stack).rules


@dataclass(frozen=True)
class Rule:
    """`broken(layouts, context)` is a mask of the rows that violate the rule."""

    name: str
    sentence: str
    on: tuple[str, ...]
    """The columns that the mask looks at: it is applied as soon as these are known."""
    broken: Callable[[Layouts, Context], Mask]
    stacks: tuple[str, ...] = ()
    where: str = ""

    def applies(self, stack: str) -> bool:
        """Return whether the rule binds layouts of `stack`."""
        return not self.stacks or stack_named(stack).rules in self.stacks

    def explain(self, layouts: Layouts, row: int, context: Context) -> str:
        """Return the rule's sentence with the figures of one layout filled in."""
        model, cluster, workload = context
        figures: dict[str, Any] = {**layouts.row(row)}
        figures |= {
            "layers": model.layers,
            "heads": model.heads,
            "kv_heads": model.kv_heads,
            "ffn": model.ffn,
            "hidden": model.hidden,
            "experts": model.experts.count if model.experts else 0,
            "expert_ffn": model.experts.ffn if model.experts else 0,
            "shared_ffn": model.experts.shared_ffn if model.experts else 0,
            "seq": workload.seq_tokens,
            "global_batch": workload.global_batch,
            "domain": cluster.domain_gpus_used,
            "node_gpus": cluster.node.gpus,
            "nodes": cluster.nodes,
            "stack": workload.stack,
            "optimizer": workload.optimizer.value,
            "max_seq": model.max_seq_tokens,
        }
        return self.sentence.format(**figures)


def always(x: Layouts, broken: bool) -> Mask:
    """Return a mask that all rows break, or none: of rules on the workload alone."""
    return np.full(len(x), broken, dtype=bool)


def never(x: Layouts) -> Mask:
    """Return a mask that no row breaks."""
    return np.zeros(len(x), dtype=bool)

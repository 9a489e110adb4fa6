"""Plan: layout + estimate + placement as plain records, JSON in and JSON out.

The keys are a contract with scripts: more may be added, none renamed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner.errors import SpecError
from planner.frames import frame
from planner.specs.cluster import ClusterSpec
from planner.specs.model import ModelSpec
from planner.specs.read import complaint
from planner.specs.workload import Workload

if TYPE_CHECKING:
    from polars import DataFrame

PLAN_SCHEMA: Final = "meshwright.plan/1"
PLACE_SCHEMA: Final = "meshwright.place/1"
MOST_REASONS_BYTES = 1 << 16
"""A larger document is a plan, not the reasons why there is none."""


class PlanRecord(BaseModel):
    """Frozen, tolerant of keys that a later version adds."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


Schedule = Literal[
    "none",
    "gpipe",
    "1f1b",
    "interleaved",
    "looped-bfs",
    "zb-h1",
    "interleaved-zb",
    "zbv",
    "dualpipev",
    "dualpipe",
]


class Layout(PlanRecord):
    """One layout in plain values; see `planner.layouts.table.Layouts` for the meaning."""

    tp: int
    sp: bool
    pp: int
    vpp: int
    cp: int
    ep: int
    etp: int
    dp: int
    dp_replicate: int
    zero: int
    micro_batch: int
    num_microbatches: int
    recompute: Literal["none", "selective", "full"]
    schedule: Schedule
    offload: Literal[
        "none", "optimizer", "optimizer+params", "optimizer-nvme", "optimizer+params-nvme"
    ] = "none"
    dp_sync: Literal["all-reduce", "parameter-server"] = "all-reduce"

    @property
    def gpus(self) -> int:
        """Return the GPUs that the layout uses."""
        return self.tp * self.pp * self.cp * self.dp

    @property
    def edp(self) -> int:
        """Return the data-parallel size of the experts."""
        return self.tp * self.cp * self.dp // (self.ep * self.etp)

    def short(self) -> str:
        """Return the layout as `--layout` takes it, degrees of one left out."""
        parts = [f"{k}={getattr(self, k)}" for k in ("tp", "pp", "vpp", "cp", "ep", "etp", "dp")]
        parts = [p for p in parts if not p.endswith("=1") or p.startswith(("tp", "pp", "dp"))]
        if self.dp_replicate > 1:
            parts.append(f"dp_replicate={self.dp_replicate}")
        parts.append(f"zero={self.zero}")
        parts.append(f"micro_batch={self.micro_batch}")
        if self.recompute != "none":
            parts.append(f"recompute={self.recompute}")
        if self.schedule not in ("none", "1f1b", "interleaved"):
            parts.append(f"schedule={self.schedule}")
        if self.offload != "none":
            parts.append(f"offload={self.offload}")
        if self.dp_sync != "all-reduce":
            parts.append(f"dp_sync={self.dp_sync}")
        return ",".join(parts)


class StageMemory(PlanRecord):
    """Bytes on one GPU of one pipeline stage, by what holds them."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    overhead: float
    total: float


class Memory(PlanRecord):
    """Peak of the heaviest stage, the limit, and every stage."""

    peak_bytes: float
    limit_bytes: float
    budget_bytes: float | None = Field(None, description="What --max-memory leaves of the limit.")
    at_risk: bool = Field(False, description="Fits, but so close that allocators thrash.")
    host_bytes: float = Field(0.0, description="Kept in a node's own memory with offload.")
    host_limit_bytes: float | None = Field(None, description="Memory of a node; None: not known.")
    peak_point: str | None = Field(
        None, description="FSDP2: the point of a step at which the heaviest stage peaks."
    )
    stages: list[StageMemory]

    def fits(self, share: float) -> bool:
        """Return whether the peak takes at most `share` of the limit, and the host has room."""
        room = self.host_limit_bytes is None or self.host_bytes <= self.host_limit_bytes
        return room and self.peak_bytes <= self.limit_bytes * share


class Estimate(PlanRecord):
    """What one layout costs. `time_s` are exposed seconds that sum to `step_time_s`."""

    step_time_s: float
    step_time_low_s: float | None = Field(
        None, description="With step_time_high_s: holds 80 % of published runs like it."
    )
    step_time_high_s: float | None = None
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    tflops_per_gpu: float
    mfu: float
    mfu_causal: float
    bubble_fraction: float
    simulated: bool = Field(
        False, description="Its pipeline was run action by action; else a closed form."
    )
    time_s: dict[str, float]
    memory: Memory
    dropped_tokens: float = Field(0.0, description="Expected share dropped by the expert capacity.")


class Run(PlanRecord):
    """A whole training run at the speed of one layout; money and energy where their rates are."""

    tokens: float
    steps: int
    seconds: float
    usd: float | None = None
    mwh: float | None = None


def option_text(value: Any) -> str:
    """Return what --search chose for a field, as a word: lists joined by '+', '-' for none."""
    if value is None:
        return "-"
    return "+".join(value) if isinstance(value, list | tuple) else str(value)


class RankedPlan(PlanRecord):
    """One row of the ranked table. `stage_layers` is layers per (stage, virtual chunk)."""

    rank: int
    layout: Layout
    estimate: Estimate
    nodes: int | None = Field(None, description="Nodes that its GPUs are on.")
    global_batch: int | None = Field(None, description="Sequences in one of its steps.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the workload that --search chose for it."
    )
    tie: bool = Field(False, description="Within the estimate's own error of the first row.")
    usd_per_trillion_tokens: float | None = None
    mwh_per_trillion_tokens: float | None = None
    run: Run | None = Field(None, description="Of --tokens.")
    stage_layers: list[list[int]] = Field(
        default_factory=list, description="[stage][virtual chunk] -> transformer layers held."
    )
    feasible: bool = True
    note: str = Field("", description="'plain data parallelism', for the baseline row.")


class RankPlace(PlanRecord):
    """Where one rank runs, and its coordinate on every axis."""

    rank: int
    host: str
    gpu: int
    leaf: str
    tp: int
    cp: int
    ep: int
    dp: int
    pp: int


class OrderTime(PlanRecord):
    """What one way to order the ranks would give; `order` is words for people."""

    order: str
    splits: int
    step_time_s: float


class Placement(PlanRecord):
    """Rank -> host, GPU. `splits` is pipeline edges that leave a leaf, over all pipelines.

    `objective` and `bound` answer `question`: splits, seconds of a step, or ranks that move.
    """

    status: Literal["optimal", "feasible"]
    objective: float
    bound: float
    question: Literal["fewest-splits", "least-step-time", "fewest-moved-ranks"] = "fewest-splits"
    gap: float = Field(0.0, description="(objective - bound) / objective; 0 is proved best.")
    proven: str = Field("", description="What is proved, in a sentence.")
    step_time_s: float | None = Field(
        None, description="Of the estimate, with the uplinks loaded as this map loads them."
    )
    step_time_bound_s: float | None = Field(
        None, description="The same with what uplinks carry at the least: no map is faster."
    )
    orders: list[OrderTime] = Field(default_factory=list)
    moved_ranks: int | None = Field(
        None, description="Ranks on another host or GPU than in the placement moved from."
    )
    splits: int
    ranks: list[RankPlace]
    tiers: dict[str, dict[str, int]] = Field(default_factory=dict)
    baseline: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the placement in `path`, which `place --json` or `plan --json` wrote.

        Raises SpecError when the file is missing or holds neither.
        """
        hint = "write one with: meshwright place MODEL CLUSTER --layout ... --json > old.json"
        try:
            data = json.loads(path.read_bytes())
            inner = data.get("placement", data) if isinstance(data, dict) else data
            found = cls.model_validate(inner)
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{path}: holds no placement", hint=hint) from error
        if not found.ranks:
            raise SpecError(f"{path}: holds a placement without ranks", hint=hint)
        return found

    def to_frame(self) -> DataFrame:
        """Return a polars frame, one row a rank."""
        return frame([rank.model_dump(mode="json") for rank in self.ranks])

    @property
    def hosts(self) -> list[str]:
        """Return the hosts in node-rank order."""
        return list(dict.fromkeys(r.host for r in self.ranks))

    @property
    def gpus_per_node(self) -> int:
        """Return the ranks that each host runs (equal on all)."""
        return len(self.ranks) // len(self.hosts)


class Request(PlanRecord):
    """What was asked for, resolved: enough to ask again."""

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload


class Mapped(PlanRecord):
    """What a map is of."""

    schema_: Literal["meshwright.place/1"] = Field(PLACE_SCHEMA, alias="schema")
    request: Request
    layout: Layout

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True
    )


class Placed(Placement, Mapped):
    """The whole answer of `place`: what was asked, its layout, and the map of its ranks.

    Earlier versions wrote the map alone; `Placement.read` reads both.
    """

    @classmethod
    def of(cls, request: Request, layout: Layout, placement: Placement) -> Self:
        """Return the placement with what it is of."""
        return cls(request=request, layout=layout, **dict(placement))


class Search(PlanRecord):
    """How many layouts were enumerated, and why the others fell out."""

    enumerated: int
    legal: int
    feasible: int
    rejected: dict[str, int]
    simulated: int = Field(0, description="Layouts whose pipeline was run action by action.")
    unsettled: int = Field(
        0, description="Layouts not run whose lower bound is under the best step time."
    )


class Chosen(PlanRecord):
    """What the first plan is the best in, and what it had to keep to."""

    name: str = "step-time"
    unit: str = "s"
    value: float | None = Field(None, description="The objective of the first plan.")
    formula: str = ""
    source: str = ""
    usd_per_gpu_hour: float | None = None
    usd_source: str = ""
    watts_per_gpu: float | None = None
    watts_source: str = ""
    tokens: float | None = None
    deadline_s: float | None = None
    budget_usd: float | None = None
    max_step_time_s: float | None = None


class Size(PlanRecord):
    """One node count and batch that was looked at: its best layout, or why it has none."""

    nodes: int
    gpus: int
    global_batch: int
    options: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the workload that --search chose for it."
    )
    enumerated: int = 0
    legal: int = 0
    feasible: int = 0
    within_limits: int = Field(0, description="Of the feasible, those that meet every limit.")
    value: float | None = Field(None, description="The objective of its best layout.")
    step_time_s: float | None = None
    peak_bytes: float | None = None
    layout: Layout | None = None
    reason: str = ""


class FrontPoint(PlanRecord):
    """A layout that no other beats in time a token, peak memory and GPUs at once."""

    rank: int | None = Field(None, description="Its row among `plans`, where it is one.")
    nodes: int
    gpus: int
    global_batch: int
    options: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the workload that --search chose for it."
    )
    layout: Layout
    step_time_s: float
    tokens_per_s: float
    peak_bytes: float
    simulated: bool = Field(False, description="Its pipeline was run; else a closed form.")


class WhatIf(PlanRecord):
    """The plan on a cluster with one figure multiplied by `factor`."""

    factor: float
    changes: dict[str, float | dict[str, float]] = Field(description="Dotted path -> new value.")
    first_fits: bool = Field(description="Whether the plan's own first layout still fits.")
    first_step_time_s: float | None = Field(None, description="Of the plan's own first layout.")
    layout: Layout | None = Field(None, description="The best layout there; None: none fits.")
    step_time_s: float | None = None
    same_layout: bool = False


class Sensitivity(PlanRecord):
    """What one hardware figure does to the winner."""

    figure: str
    about: str
    elasticity: float | None = Field(
        None, description="d ln(step time) / d ln(figure) of the first layout, over the factors."
    )
    why_none: str = Field(
        "", description="Factors that the layout does not fit at: the slope leaves them out."
    )
    cases: list[WhatIf]


def _no_plan(raw: bytes) -> str:
    """Return why a document of `plan --json` holds no plan, where it says so itself."""
    if len(raw) > MOST_REASONS_BYTES or b'"reasons"' not in raw:
        return ""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    none = isinstance(found, dict) and found.get("plans") == [] and "request" not in found
    return "; ".join(map(str, found["reasons"])) if none else ""


def _holds_placement(raw: bytes) -> bool:
    """Return whether a document is one of `place --json`."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and bool(found.get("ranks")) and "splits" in found


class Plan(PlanRecord):
    """The whole answer of `plan`: ranked layouts, the first of them placed."""

    schema_: Literal["meshwright.plan/1"] = Field(PLAN_SCHEMA, alias="schema")
    request: Request
    search: Search
    plans: list[RankedPlan]
    placement: Placement | None = None
    objective: Chosen = Field(default_factory=Chosen)
    sizes: list[Size] = Field(
        default_factory=list, description="Where node counts or batches were to be chosen."
    )
    pareto: list[FrontPoint] = Field(
        default_factory=list, description="Fastest first, of all layouts that fit."
    )
    sensitivity: list[Sensitivity] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    timing: dict[str, float] = Field(default_factory=dict)

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True
    )

    @property
    def best(self) -> RankedPlan:
        """Return the plan ranked first."""
        return self.plans[0]

    def request_of(self, row: RankedPlan) -> Request:
        """Return what was asked for, with the batch and options of one row, not the first's."""
        work = self.request.workload
        if row.global_batch in (None, work.global_batch) and not row.options:
            return self.request
        batch = row.global_batch or work.global_batch
        own = Workload.model_validate({**work.model_dump(), "global_batch": batch, **row.options})
        return self.request.model_copy(update={"workload": own})

    def to_frame(self) -> DataFrame:
        """Return a polars frame, one row a ranked plan: layout, figures, `time_s.*`, `memory.*`."""
        rows = [row.model_dump(mode="json") for row in self.plans]
        kept = ("rank", "nodes", "global_batch", "feasible", "tie", "note")
        money = ("usd_per_trillion_tokens", "mwh_per_trillion_tokens")
        return frame(
            [
                {n: r[n] for n in kept}
                | {n: option_text(v) for n, v in r["options"].items()}
                | r["layout"]
                | r["estimate"]
                | {n: r[n] for n in money}
                for r in rows
            ]
        )

    def to_json(self) -> str:
        """Return the document that `plan --json` prints."""
        data = self.model_dump(mode="json", by_alias=True)
        return json.dumps(data, allow_nan=False, separators=(",", ":")) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the plan in `path`.

        Raises SpecError when the file is missing, is not JSON, or is not a plan.
        """
        try:
            raw = path.read_bytes()
            if reason := _no_plan(raw):
                raise SpecError(f"{path}: holds no plan: {reason}")
            return cls.model_validate_json(raw)
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            if _holds_placement(raw):
                raise SpecError(
                    f"{path}: holds a placement, not a plan",
                    hint="to start a plan's ranks where it has them: meshwright emit PLAN.json "
                    f"--placement {path} --target ... -o DIR",
                ) from error
            what, _ = complaint(cls, error, f"{path}: not a {PLAN_SCHEMA} document")
            hint = "write one with: meshwright plan MODEL CLUSTER --json > plan.json"
            raise SpecError(what, hint=hint) from error

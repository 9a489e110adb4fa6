"""From the options about objective, prices and limits to an Aim: what contradicts is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.cli.amounts import amount, duration_s
from planner.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from planner.objectives import Aim, Objective
    from planner.specs.accelerator import Accelerator


@dataclass(frozen=True)
class Wanted:
    """What was typed of them, word for word."""

    objective: str = "step-time"
    price: float | None = None
    power: float | None = None
    tokens: str | None = None
    deadline: str | None = None
    budget: str | None = None
    max_step_time: str | None = None


def aim_of(wanted: Wanted, gpu: Accelerator) -> Aim:
    """Return what is aimed at, with the rates of `gpu` where none are given.

    Raises SpecError, naming the option that is missing or wrong.
    """
    from planner.objectives import Aim

    usd, usd_source = _price(wanted, gpu)
    watts, watts_source = _power(wanted, gpu)
    aim = Aim(
        objective=_objective(wanted.objective),
        usd_per_gpu_hour=usd,
        usd_source=usd_source,
        watts_per_gpu=watts,
        watts_source=watts_source,
        tokens=_amount(wanted.tokens, "--tokens", "15T"),
        deadline_s=_duration(wanted.deadline, "--deadline", "30d"),
        budget_usd=_amount(wanted.budget, "--budget", "2M"),
        max_step_s=_duration(wanted.max_step_time, "--max-step-time", "20s"),
    )
    _refuse_unknown_rates(aim, gpu)
    _refuse_halves(aim)
    return aim


def _amount(text: str | None, option: str, example: str) -> float | None:
    return None if text is None else amount(text, option=option, example=example)


def _duration(text: str | None, option: str, example: str) -> float | None:
    return None if text is None else duration_s(text, option=option, example=example)


def _objective(text: str) -> Objective:
    from planner.objectives import Objective

    names = [one.value for one in Objective]
    if text.lower() not in names:
        raise SpecError(
            f"--objective: {text[:80]!r} is not known; allowed: {', '.join(names)}",
            hint=did_you_mean(text[:80], names),
        )
    return Objective(text.lower())


def _price(wanted: Wanted, gpu: Accelerator) -> tuple[float | None, str]:
    if wanted.price is not None:
        return _rate(wanted.price, "--price"), "given with --price"
    source = gpu.sources.get("price_usd_per_hour", "the spec names no source")
    usd = gpu.price_usd_per_hour
    return usd, f"price_usd_per_hour of {gpu.name} ({source})" if usd else ""


def _power(wanted: Wanted, gpu: Accelerator) -> tuple[float | None, str]:
    from planner.objectives import POWER_SHARE, usual_watts
    from planner.sources import NEWKIRK_2025

    if wanted.power is not None:
        return _rate(wanted.power, "--power"), "given with --power"
    watts = usual_watts(gpu)
    share = f"{POWER_SHARE:.0%} of the {gpu.tdp_w or 0:g} W of {gpu.name} ({NEWKIRK_2025})"
    return watts, share if watts else ""


def _rate(number: float, option: str) -> float:
    if not 0 < number < 1e9:
        raise SpecError(
            f"{option}: {number:g} is not allowed, must be above 0 and below 1,000,000,000"
        )
    return number


def _refuse_unknown_rates(aim: Aim, gpu: Accelerator) -> None:
    """Raise SpecError where a price or a power is needed and nobody has said one."""
    asks = "--objective cost" if aim.objective == "cost" else "--budget"
    if aim.usd_per_gpu_hour is None and (aim.objective == "cost" or aim.budget_usd):
        raise SpecError(
            f"{asks}: no price of {gpu.name} is known",
            hint="--price USD, of one GPU for an hour; or price_usd_per_hour in the accelerator",
        )
    if aim.watts_per_gpu is None and aim.objective == "energy":
        raise SpecError(
            f"--objective energy: no power of {gpu.name} is known",
            hint="--power WATTS, of one GPU in training; or tdp_w in the accelerator",
        )


def _refuse_halves(aim: Aim) -> None:
    """Raise SpecError for an option that means nothing without another."""
    needs = {"--deadline": aim.deadline_s, "--budget": aim.budget_usd}
    alone = [option for option, value in needs.items() if value is not None]
    if alone and aim.tokens is None:
        raise SpecError(
            f"{alone[0]}: says nothing without the tokens of the run", hint="add --tokens 15T"
        )
    if aim.objective == "gpus" and not aim.limited:
        raise SpecError(
            "--objective gpus: the fewest GPUs for what?",
            hint="add --max-step-time 20s, or --tokens 15T with --deadline 30d or --budget 2M",
        )

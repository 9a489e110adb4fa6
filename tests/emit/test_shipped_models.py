"""Every shipped model on every target: a bundle (test_many_plans has it read), or a reason."""

from __future__ import annotations

import pytest
from many_plans import shipped

from planner.emit import EMITTER_NAMES, emitter_named
from planner.specs.catalog import load_model, model_names

RUN = {"llama-3.1-405b"}
SOME = {"qwen2.5-72b", "gpt-oss-120b", "deepseek-v3", "qwen3-235b-a22b", "mixtral-8x22b"}
REFUSED = {
    "torchtitan": {"qwen2.5-72b", "gpt-oss-120b", "deepseek-v3", "gemma-3-27b", "gpt-3-175b"},
    "nanotron": {"qwen3-32b", *SOME},
    "megatron": {"gemma-2-9b", "bloom-176b"},
    "megatron-bridge": {"gemma-2-9b", "bloom-176b"},
}
"""Models of which a target runs nothing."""


@pytest.mark.parametrize("target", EMITTER_NAMES)
def test_any_model_gets_a_bundle_or_a_reason_on_any_target(target):
    emitter, never = emitter_named(target), set()
    for name in model_names():
        told = [emitter.unsupported(answer) for answer in shipped(name)]
        assert all(s.endswith(".") and len(s) > 20 for why in told for s in why), told
        always = set(emitter.never(load_model(name), shipped(name)[0].request.workload))
        assert all(always <= set(why) for why in told)  # no layout mends it: none of these does
        assert bool(always) == all(told)
        if always:
            never.add(name)
            continue
        answer = next(a for a, why in zip(shipped(name), told, strict=True) if not why)
        assert len(emitter.emit(answer)) > 5
    refused = REFUSED.get(target, set())
    assert refused <= never
    assert not never & RUN
    assert not never & (SOME - refused)

"""200 plans and more a target, models times layouts, read back by the real frameworks' readers.

One test a target, so that importing a framework is paid for once; what differs is told plan by
plan. Megatron-Bridge's is in test_megatron_bridge.py, Slurm's in test_slurm_starts.py.
"""

from __future__ import annotations

import pytest
import readers
from many_plans import MANY, Folder, many, shipped

from planner.emit import emitter_named

WALKED = ("qwen2.5-72b", "gpt-oss-120b", "deepseek-v3", "llama-3.1-405b", "qwen3-235b-a22b")
"""Shipped models that are read too, in every layout that the target runs."""
pytestmark = pytest.mark.frameworks


@pytest.mark.parametrize("target", readers.READERS)
def test_the_real_readers_read_back_what_is_planned(target, tmp_path):
    readers.needs(target)
    emitter = emitter_named(target)
    plans = many(emitter)
    assert len(plans) >= MANY
    asked = [answer for name in WALKED for answer in shipped(name)]
    here, told = Folder(tmp_path), {}
    for answer in (*plans, *(a for a in asked if not emitter.unsupported(a))):
        bundle = here.fill(emitter.emit(answer))
        if wrong := readers.wrong(target, bundle, answer):
            told[f"{answer.request.model.name} {answer.best.layout.short()}"] = wrong
    assert told == {}

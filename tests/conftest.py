"""Laws are tried on the same examples every time, and a busy machine fails none of them.

The helpers in `rig` can be imported everywhere; importlib mode finds none beside a test.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

RIG = str(Path(__file__).parent / "rig")
if RIG not in sys.path:
    sys.path.insert(0, RIG)

from warm import Warm  # noqa: E402

with contextlib.suppress(ImportError):  # a bare pytest may run the tests that need no hypothesis
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "repeatable",
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """Give programs of PyTorch's frameworks that start without their imports."""
    folder = tmp_path_factory.getbasetemp()
    with Warm(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) as made:
        yield made
